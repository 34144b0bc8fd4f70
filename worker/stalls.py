"""An event loop that stands still: told of while it does, with what holds it."""

import contextvars
import sys
import threading
import time
import traceback
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import NoReturn

import structlog
import trio

log = structlog.get_logger()

STALL_SECONDS = 5.0
LOOK_SECONDS = 1.0
# The innermost part is what is wanted, and a log line has a limit.
STACK_CHARACTERS = 6000


class _Watch:
    """The loop beats; a thread looks whether it does."""

    def __init__(self) -> None:
        self._loop_thread = threading.get_ident()
        self._beat = time.monotonic()
        self._closed = threading.Event()

    def close(self) -> None:
        self._closed.set()

    async def beat_forever(self) -> NoReturn:
        while True:
            self._beat = time.monotonic()
            await trio.sleep(LOOK_SECONDS)

    def look_until_closed(self) -> None:
        stalled_since: float | None = None
        looked_at = time.monotonic()
        while not self._closed.wait(LOOK_SECONDS):
            before, looked_at = looked_at, time.monotonic()
            beat = self._beat
            if stalled_since is not None and beat != stalled_since:
                log.warning("event_loop_goes_on", seconds=round(beat - stalled_since, 1))
                stalled_since = None
            # A process that was stopped as a whole has not stalled.
            if looked_at - before > STALL_SECONDS / 2:
                continue
            if stalled_since is None and looked_at - beat >= STALL_SECONDS:
                stalled_since = beat
                log.error(
                    "event_loop_stalled", seconds=round(looked_at - beat, 1), stack=self._stack()
                )

    def _stack(self) -> str:
        frame = sys._current_frames().get(self._loop_thread)  # noqa: SLF001  the one way to it
        return "".join(traceback.format_stack(frame))[-STACK_CHARACTERS:]


@asynccontextmanager
async def stalls_logged() -> AsyncIterator[None]:
    watch = _Watch()
    thread = threading.Thread(
        # With the log's own masking.
        target=contextvars.copy_context().run,
        args=(watch.look_until_closed,),
        name="stalls",
        daemon=True,
    )
    thread.start()
    try:
        async with trio.open_nursery() as nursery:
            nursery.start_soon(watch.beat_forever)
            yield
            nursery.cancel_scope.cancel()
    finally:
        watch.close()
