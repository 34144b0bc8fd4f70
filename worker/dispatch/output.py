"""What a run prints: cut into lines as it comes, and its first and last parts kept."""

from collections import deque
from collections.abc import Iterable, Sequence

# A longer line is handed on in pieces of this size.
MAX_LINE_BYTES = 64 * 1024

# Small pieces are joined up to this size.
MAX_BLOCK_BYTES = 4096

# An order number and the bytes that came then.
Block = tuple[int, bytes]


class LineCutter:
    """Hands on whole lines; keeps the beginning of the next one until its end has come."""

    def __init__(self) -> None:
        self._rest = b""

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


class Capture:
    """The first and the last half of one stream, in at most `limit` bytes of memory.

    Under the limit it is the stream, byte for byte.
    """

    def __init__(self, limit: int) -> None:
        self._limit = limit
        self._head: list[Block] = []
        self._head_room = limit - limit // 2
        self._tail: deque[Block] = deque()
        self._tail_bytes = 0
        self._last_order = -1
        self.left_out = 0

    def add(self, order: int, data: bytes) -> None:
        # What came right after the last block belongs to it, so that many small pieces do not
        # cost many times their size.
        follows = order == self._last_order + 1
        self._last_order = order
        if self._head_room:
            first, data = data[: self._head_room], data[self._head_room :]
            _append(self._head, order, first, joined=follows)
            self._head_room -= len(first)
        if not data:
            return
        _append(self._tail, order, data, joined=follows)
        self._tail_bytes += len(data)
        while (excess := self._tail_bytes - self._limit // 2) > 0:
            order, block = self._tail.popleft()
            if len(block) > excess:
                self._tail.appendleft((order, block[excess:]))
            cut = min(excess, len(block))
            self._tail_bytes -= cut
            self.left_out += cut

    def trimmed(self, limit: int) -> "Capture":
        """The same stream under a smaller limit; nothing is added to it any more."""
        blocks = [*self._head, *self._tail]
        kept = sum(len(block) for _, block in blocks)
        if kept <= limit:
            return self
        half = limit // 2
        smaller = Capture(limit)
        smaller._head = list(_first(blocks, limit - half))
        mirrored = _first(((order, block[::-1]) for order, block in reversed(blocks)), half)
        smaller._tail = deque((order, block[::-1]) for order, block in mirrored)
        smaller._tail.reverse()
        smaller.left_out = self.left_out + kept - limit
        return smaller

    def blocks(self) -> list[Block]:
        """What is kept, in order, with a line between the halves that says what is not."""
        if not self.left_out:
            return [*self._head, *self._tail]
        between = self._head[-1][0] if self._head else 0
        marker = b"\n[cronium] ... %d bytes left out ...\n" % self.left_out
        return [*self._head, (between, marker), *self._tail]

    def content(self) -> bytes:
        return b"".join(block for _, block in self.blocks())


def _append(blocks: "list[Block] | deque[Block]", order: int, data: bytes, *, joined: bool) -> None:
    if joined and blocks and len(blocks[-1][1]) + len(data) <= MAX_BLOCK_BYTES:
        first_order, block = blocks[-1]
        blocks[-1] = (first_order, block + data)
    else:
        blocks.append((order, data))


def _first(blocks: Iterable[Block], count: int) -> Iterable[Block]:
    """The first `count` bytes of `blocks`."""
    for order, block in blocks:
        if count <= 0:
            return
        yield order, block[:count]
        count -= len(block)


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
