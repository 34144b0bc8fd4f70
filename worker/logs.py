"""The log: one JSON object per line, or a readable coloured form on a terminal."""

import logging
import sys
import zlib
from collections.abc import Callable, Iterator, Mapping, MutableMapping, Sequence
from contextvars import ContextVar
from datetime import UTC, datetime
from functools import partial
from typing import Any, BinaryIO

import msgspec
import structlog

from worker.log_writer import LogWriter
from worker.settings import LogFormat, LogSettings

# Container runtimes split lines over 16 KiB; an escaped byte takes up to six.
MAX_LINE_BYTES = 16 * 1024
MAX_TEXT_CHARACTERS = 2048

Event = MutableMapping[str, Any]

# What masks the secrets that may be in an event of the present context; see `mask_with`.
_mask: ContextVar[Callable[[str], str]] = ContextVar("mask", default=str)

# What names things, and never tells of them.
_NAMES = frozenset(("level", "event", "worker_id", "job_id", "execution_id", "server_id", "server"))

# Fields that a person reads from the prefix, or does not need at a glance.
_HIDDEN = ("timestamp", "level", "event", "server", "worker_id", "server_id", "execution_id")
_COLOURS = (36, 33, 35, 32, 34, 96, 93, 95, 92, 94)
_LEVEL_COLOURS = {"debug": 90, "warning": 33, "error": 31}


def configure(
    settings: LogSettings, *, worker_id: str, stream: BinaryIO | None = None
) -> LogWriter:
    """Send all that is logged from now on to `stream` (stdout); the caller closes the writer."""
    target = stream or sys.stdout.buffer
    as_json = settings.format is LogFormat.JSON or (
        settings.format is LogFormat.AUTO and not target.isatty()
    )
    level = logging.getLevelNamesMapping()[settings.level.upper()]
    renderer = _Json() if as_json else _Console(colours=target.isatty())
    writer = LogWriter(target, partial(_dropped_notice, renderer))
    structlog.configure(
        processors=[
            structlog.contextvars.merge_contextvars,
            structlog.processors.add_log_level,
            structlog.processors.format_exc_info,
            _masked,
            _timestamp,
            renderer,
        ],
        wrapper_class=structlog.make_filtering_bound_logger(level),
        logger_factory=_LineLoggers(writer, renderer, level),
        cache_logger_on_first_use=True,
    )
    structlog.contextvars.clear_contextvars()
    structlog.contextvars.bind_contextvars(worker_id=worker_id)
    # Libraries log connect arguments and bodies at debug; what matters reaches us as errors.
    logging.basicConfig(level=logging.CRITICAL, handlers=[logging.NullHandler()], force=True)
    return writer


def mask_with(mask: Callable[[str], str]) -> None:
    """Have `mask` take secrets out of all that is logged in this context from now on, but for
    what scripts print: that comes without."""
    _mask.set(mask)


def log_output(stream: str, lines: Sequence[bytes]) -> None:
    """The lines that a script printed, as events of the present context.

    A way of its own past structlog's processors, which take twenty times as long for each.
    """
    loggers = structlog.get_config()["logger_factory"]
    if isinstance(loggers, _LineLoggers):
        loggers.log_output(stream, lines)
        return
    for line in lines:
        for text, more in _pieces(line):
            structlog.get_logger().info("script_output", stream=stream, text=text, **more)


class _LineLoggers:
    """structlog's logger factory: every logger writes to the one writer."""

    def __init__(self, writer: LogWriter, renderer: "_Json | _Console", level: int) -> None:
        self._writer = writer
        self._renderer = renderer
        self._logs_output = level <= logging.INFO

    def __call__(self, *_names: object) -> "_LineLogger":
        return _LineLogger(self._writer)

    def log_output(self, stream: str, lines: Sequence[bytes]) -> None:
        if not self._logs_output:
            return
        context: Event = {
            "timestamp": _now(),
            "level": "info",
            "event": "script_output",
            **structlog.contextvars.get_contextvars(),
            "stream": stream,
        }
        self._writer.write_output(self._renderer.output(context, lines), len(lines))


class _LineLogger:
    """What structlog calls with a rendered line, whatever its level."""

    def __init__(self, writer: LogWriter) -> None:
        self._writer = writer

    def msg(self, line: bytes) -> None:
        self._writer.write(line + b"\n")

    debug = info = warning = error = critical = exception = msg


def _pieces(line: bytes) -> Iterator[tuple[str, dict[str, bool]]]:
    """A line in pieces that fit a log line, all but the last with the mark that it goes on."""
    text = line.decode(errors="replace")
    for at in range(0, len(text) or 1, MAX_TEXT_CHARACTERS):
        more = {"continues": True} if at + MAX_TEXT_CHARACTERS < len(text) else {}
        yield text[at : at + MAX_TEXT_CHARACTERS], more


def _dropped_notice(renderer: "_Json | _Console", count: int) -> bytes:
    event: Event = {"timestamp": _now(), "level": "warning", "event": "log_lines_dropped"}
    return renderer(None, "", {**event, "count": count}) + b"\n"


def _now() -> str:
    return datetime.now(UTC).isoformat(timespec="microseconds").replace("+00:00", "Z")


def _timestamp(_logger: Any, _method: str, event: Event) -> Event:  # noqa: ANN401  structlog's own signature
    event["timestamp"] = _now()
    return event


def _masked(_logger: Any, _method: str, event: Event) -> Event:  # noqa: ANN401  structlog's own signature
    mask = _mask.get()
    for name, value in event.items():
        if isinstance(value, str) and name not in _NAMES:
            event[name] = mask(value)
    return event


class _Json:
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
            for text, more in _pieces(line)
        )


def _encoded(fields: Mapping[str, Any]) -> bytes:
    try:
        return msgspec.json.encode(fields, enc_hook=str)
    except UnicodeEncodeError:  # half a surrogate pair, as in the name of a file
        texts = {name: str(value).encode(errors="replace") for name, value in fields.items()}
        return msgspec.json.encode({name: text.decode() for name, text in texts.items()})


class _Console:
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
            for text, _ in _pieces(line)
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
