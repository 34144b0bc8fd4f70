"""What runs print: cut into lines as it comes, and the servers' lines put together."""

from collections.abc import Iterable, Sequence

# A longer line is handed on in pieces of this size.
MAX_LINE_BYTES = 64 * 1024

# An order number and the bytes that came then.
Block = tuple[int, bytes]


class LineCutter:
    """Hands on whole lines; keeps the beginning of the next one until its end has come.

    `rest` is what has come of a line already.
    """

    def __init__(self, rest: bytes = b"") -> None:
        self._rest = rest

    def feed(self, data: bytes) -> bytes:
        """All whole lines so far, with their ends; empty if there is none."""
        end = data.rfind(b"\n") + 1
        if not end and len(self._rest) + len(data) < MAX_LINE_BYTES:
            self._rest += data
            return b""
        whole = self._rest + data[:end]
        self._rest = data[end:]
        if len(self._rest) >= MAX_LINE_BYTES:
            whole, self._rest = whole + self._rest, b""
        return whole

    def flush(self) -> bytes:
        """What is left when the stream has ended without a line's end."""
        rest, self._rest = self._rest, b""
        return rest


def interleave(streams: Iterable[tuple[str, Sequence[Block]]]) -> bytes:
    """The lines of several named streams in the order in which they came, each prefixed."""
    merged = sorted(
        (
            (order, number, name, block)
            for number, (name, blocks) in enumerate(streams)
            for order, block in blocks
        ),
        key=lambda piece: piece[:2],  # pieces cut from one block keep their order
    )
    parts: list[bytes] = []
    last = None
    at_line_start = True
    for _, number, name, block in merged:
        prefix = b"[" + name.encode(errors="replace") + b"] "
        if number != last and not at_line_start:
            parts.append(b"\n")
            at_line_start = True
        last = number
        for line in _lines(block):
            parts.append(prefix + line if at_line_start else line)
            at_line_start = line.endswith(b"\n")
    if not at_line_start:
        parts.append(b"\n")
    return b"".join(parts)


def _lines(block: bytes) -> list[bytes]:
    """Lines end with \\n alone: a progress bar's \\r stays within its line."""
    *whole, rest = block.split(b"\n")
    return [line + b"\n" for line in whole] + ([rest] if rest else [])
