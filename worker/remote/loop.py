"""The asyncio loop that asyncssh runs in: trio-asyncio's, which here does more at a time."""

import inspect
import socket
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from functools import cache, partial
from typing import Any

import structlog
import trio
import trio_asyncio

log = structlog.get_logger()

# How much is done before other tasks have their turn; most of it takes microseconds, and a step
# of a handshake a third of a millisecond.
MOST_AT_ONCE = 16
# Names that are asked for at once: one that no resolver answers holds its thread for half a minute.
LOOKUPS_AT_ONCE = 100


class EagerLoop(trio_asyncio.TrioEventLoop):  # type: ignore[misc]  # it ships no types
    """trio-asyncio gives way to all other tasks after every single callback. A new connection has
    37 of them, and a third of its processor time went into that."""

    async def _main_loop_one(self, no_wait: bool = False) -> None:
        await super()._main_loop_one(no_wait)
        try:
            for _ in range(MOST_AT_ONCE - 1):
                if self._stopped.is_set():
                    return
                await super()._main_loop_one(no_wait=True)
        except trio.WouldBlock:
            pass  # nothing else is to be done


@asynccontextmanager
async def open_loop() -> AsyncIterator[None]:
    """For all that reaches servers within."""
    async with trio_asyncio.open_loop() as loop:
        if is_known(type(loop)):
            loop.__class__ = EagerLoop
        else:
            _say_once()
        loop.getaddrinfo = partial(_look_up, loop, trio.CapacityLimiter(LOOKUPS_AT_ONCE))
        # trio-asyncio would end the program for what asyncio only reports.
        loop.set_exception_handler(_log_stray)
        yield


def is_known(kind: type) -> bool:
    """Whether a loop of this kind does one thing at a time, and can be asked for the next."""
    if kind is not trio_asyncio.TrioEventLoop or not hasattr(kind, "_main_loop_one"):
        return False
    return "no_wait" in inspect.signature(kind._main_loop_one).parameters  # noqa: SLF001  see above


async def _look_up(
    loop: trio_asyncio.TrioEventLoop,
    turns: trio.CapacityLimiter,
    *arguments: Any,  # noqa: ANN401  those of `socket.getaddrinfo`
    **named: Any,  # noqa: ANN401
) -> Any:  # noqa: ANN401
    """Trio has 40 threads for whatever is done in one, such as the beginning of every connection,
    and to look for the queue: servers' names must not take these."""
    ask = partial(socket.getaddrinfo, *arguments, **named)
    look_up = partial(trio.to_thread.run_sync, ask, abandon_on_cancel=True, limiter=turns)
    return await loop.trio_as_future(look_up)


def _log_stray(_loop: object, context: dict[str, object]) -> None:
    log.error("asyncio_error", error=repr(context.get("exception") or context.get("message")))


@cache
def _say_once() -> None:
    log.info("eager_loop_off", reason=f"trio-asyncio {trio_asyncio.__version__} is not known")
