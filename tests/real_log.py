"""The log as a worker writes it, in the process of the tests.

Where a test has none of its own, structlog's default writes it, which takes twenty times as long.
"""

import io
import json
import logging
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import structlog

from worker.logs import configure
from worker.settings import LogFormat, LogLevel, LogSettings


@contextmanager
def a_log() -> Iterator[io.BytesIO]:
    """What the worker logs meanwhile, as JSON."""
    stream = io.BytesIO()
    with configuration_restored():
        writer = configure(
            LogSettings(LogLevel.DEBUG, LogFormat.JSON, output=True), worker_id="w-1", stream=stream
        )
        structlog.configure(cache_logger_on_first_use=False)  # other tests have logs of their own
        yield stream
        writer.close()


@contextmanager
def configuration_restored() -> Iterator[None]:
    root = logging.getLogger()
    handlers, level = root.handlers[:], root.level
    try:
        yield
    finally:
        structlog.contextvars.clear_contextvars()
        structlog.reset_defaults()
        root.handlers[:] = handlers
        root.setLevel(level)


def events(log: io.BytesIO) -> list[dict[str, Any]]:
    """Its events, each one line and one JSON object."""
    *lines, rest = log.getvalue().split(b"\n")
    assert rest == b""
    assert all(byte >= 0x20 for line in lines for byte in line)
    found = [json.loads(line) for line in lines]
    assert all(list(event)[:3] == ["timestamp", "level", "event"] for event in found)
    return found
