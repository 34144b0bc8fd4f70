"""An event of the log as a line: JSON for machines, or coloured text for people."""

import zlib
from collections.abc import Iterator, Mapping, MutableMapping, Sequence
from typing import Any

import msgspec

# Container runtimes split lines over 16 KiB; an escaped byte takes up to six.
MAX_LINE_BYTES = 16 * 1024
MAX_TEXT_CHARACTERS = 2048

Event = MutableMapping[str, Any]

# Fields that a person reads from the prefix, or does not need at a glance.
_HIDDEN = ("timestamp", "level", "event", "server", "worker_id", "server_id", "execution_id")
_COLOURS = (36, 33, 35, 32, 34, 96, 93, 95, 92, 94)
_LEVEL_COLOURS = {"debug": 90, "warning": 33, "error": 31}


class Json:
    """One object per line, no longer than a container runtime takes."""

    def __call__(self, _logger: Any, _method: str, event: Event) -> bytes:  # noqa: ANN401  structlog's own signature
        ordered = {name: event.pop(name) for name in ("timestamp", "level", "event")} | dict(event)
        line = _encoded(ordered)
        if len(line) <= MAX_LINE_BYTES:
            return line
        shortened = {
            name: value[:MAX_TEXT_CHARACTERS] if isinstance(value, str) else value
            for name, value in ordered.items()
        }
        line = _encoded(shortened | {"truncated": True})
        if len(line) <= MAX_LINE_BYTES:
            return line
        bare = {name: shortened[name] for name in ("timestamp", "level", "event")}
        return _encoded(bare | {"truncated": True})

    def output(self, context: Event, lines: Sequence[bytes]) -> bytes:
        head = _encoded(context)[:-1] + b',"text":'
        return b"".join(
            head + msgspec.json.encode(text) + (b',"continues":true}\n' if more else b"}\n")
            for line in lines
            for text, more in pieces(line)
        )


def _encoded(fields: Mapping[str, Any]) -> bytes:
    try:
        return msgspec.json.encode(fields, enc_hook=str)
    except UnicodeEncodeError:  # half a surrogate pair, as in the name of a file
        texts = {name: str(value).encode(errors="replace") for name, value in fields.items()}
        return msgspec.json.encode({name: text.decode() for name, text in texts.items()})


class Console:
    """What a person needs at a glance, with the server's name in its colour."""

    def __init__(self, *, colours: bool) -> None:
        self._colours = colours

    def __call__(self, _logger: Any, _method: str, event: Event) -> bytes:  # noqa: ANN401  structlog's own signature
        time = event["timestamp"][11:23]
        server = event.get("server")
        prefix = self._paint(f"[{printable(server)}] ", _colour_of(server)) if server else ""
        if event["event"] == "script_output":
            return f"{time} {prefix}{printable(event['text'])}".encode(errors="replace")
        level = event["level"]
        fields = " ".join(
            f"{name}={printable(str(value))}"
            for name, value in event.items()
            if name not in _HIDDEN and value is not None
        )
        name = self._paint(f"{level:<7} {printable(event['event'])}", _LEVEL_COLOURS.get(level, 1))
        return f"{time} {prefix}{name} {fields}".rstrip().encode(errors="replace")

    def output(self, context: Event, lines: Sequence[bytes]) -> bytes:
        return b"".join(
            self(None, "", {**context, "text": text}) + b"\n"
            for line in lines
            for text, _ in pieces(line)
        )

    def _paint(self, text: str, colour: int) -> str:
        return f"\x1b[{colour}m{text}\x1b[0m" if self._colours else text


def printable(text: str) -> str:
    """`text` without what would move a terminal's cursor or forge a line."""
    if text.isprintable():
        return text
    return "".join(
        character if character.isprintable() or character == "\t" else f"\\x{ord(character):02x}"
        for character in text
    )


def _colour_of(server: str) -> int:
    return _COLOURS[zlib.crc32(server.encode(errors="replace")) % len(_COLOURS)]


def pieces(line: bytes) -> Iterator[tuple[str, dict[str, bool]]]:
    """A line in pieces that fit a log line, all but the last with the mark that it goes on."""
    text = line.decode(errors="replace")
    for at in range(0, len(text) or 1, MAX_TEXT_CHARACTERS):
        more = {"continues": True} if at + MAX_TEXT_CHARACTERS < len(text) else {}
        yield text[at : at + MAX_TEXT_CHARACTERS], more
