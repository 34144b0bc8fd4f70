"""Running what a command does under Trio, so that Ctrl-C ends it."""

import os
import signal
from collections.abc import Awaitable, Callable
from typing import TypeVar

import trio

T = TypeVar("T")


def name_account() -> None:
    """For asyncssh, which asks for the local user's name: a container's arbitrary uid has none."""
    os.environ.setdefault("LOGNAME", "cronium-worker")


def run(work: Callable[[], Awaitable[T]]) -> T:
    """What `work` gives back, or raises; KeyboardInterrupt after SIGINT, by which it is cancelled.

    Python's own would come up wherever the program is just then, in asyncio's hands too, where
    what it leaves behind was waited for without an end.
    """
    if (
        signal.getsignal(signal.SIGINT) is signal.SIG_IGN
    ):  # as of what a shell has in the background
        return trio.run(work)
    return trio.run(_ended_by_sigint, work)


async def _ended_by_sigint(work: Callable[[], Awaitable[T]]) -> T:
    results: list[T] = []
    failures: list[Exception] = []
    with trio.open_signal_receiver(signal.SIGINT) as signals:
        async with trio.open_nursery() as nursery:

            async def end_at_signal() -> None:
                await signals.__anext__()
                nursery.cancel_scope.cancel()

            nursery.start_soon(end_at_signal)
            try:
                results.append(await work())
            except Exception as error:  # noqa: BLE001  a nursery would make a group of it
                failures.append(error)
            nursery.cancel_scope.cancel()
    if failures:
        raise failures[0]
    if not results:
        raise KeyboardInterrupt
    return results[0]
