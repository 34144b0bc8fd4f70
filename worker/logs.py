"""The log: what is logged, from where, and with which secrets masked."""

import logging
import sys
from collections.abc import Callable, Sequence
from contextvars import ContextVar
from datetime import UTC, datetime
from enum import StrEnum
from functools import partial
from typing import Any, BinaryIO

import structlog

from worker.log_forms import Console, Event, Json, pieces
from worker.log_writer import LogWriter
from worker.settings import LogFormat, LogSettings

# What masks the secrets that may be in an event of the present context; see `mask_with`.
_mask: ContextVar[Callable[[str], str]] = ContextVar("mask", default=str)

# Fields that identify things: there is no secret in them.
_NAMES = frozenset(("level", "event", "worker_id", "job_id", "execution_id", "server_id", "server"))


def configure(
    settings: LogSettings, *, worker_id: str, stream: BinaryIO | None = None, colours: bool = True
) -> LogWriter:
    """Send all that is logged from now on to `stream` (stdout); the caller closes the writer.

    `colours` are for a terminal only, whatever is asked for.
    """
    target = stream or sys.stdout.buffer
    as_json = settings.format is LogFormat.JSON or (
        settings.format is LogFormat.AUTO and not target.isatty()
    )
    level = logging.getLevelNamesMapping()[settings.level.upper()]
    renderer = Json() if as_json else Console(colours=colours and target.isatty())
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


def masked(text: str) -> str:
    """As it would be logged in this context."""
    return _mask.get()(text)


def log_output(stream: str, lines: Sequence[bytes]) -> None:
    """The lines that a script printed, as events of the present context.

    This bypasses structlog's processors, which take twenty times as long for each.
    """
    loggers = structlog.get_config()["logger_factory"]
    if isinstance(loggers, _LineLoggers):
        loggers.log_output(stream, lines)
        return
    for line in lines:
        for text, more in pieces(line):
            structlog.get_logger().info("script_output", stream=stream, text=text, **more)


class _LineLoggers:
    """structlog's logger factory: every logger writes to the one writer."""

    def __init__(self, writer: LogWriter, renderer: "Json | Console", level: int) -> None:
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


def _dropped_notice(renderer: "Json | Console", count: int) -> bytes:
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
        # A member of an enumeration is one of our own words.
        if isinstance(value, str) and name not in _NAMES and not isinstance(value, StrEnum):
            event[name] = mask(value)
    return event
