"""A Trio loop in a thread, for what synchronous tests need beside them."""

from collections.abc import Awaitable, Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from queue import SimpleQueue
from typing import Any, TypeVar

import trio

T = TypeVar("T")


class Background:
    def __init__(self, nursery: trio.Nursery) -> None:
        self._nursery = nursery
        self._token = trio.lowlevel.current_trio_token()

    def call(self, function: Callable[..., T], *arguments: object) -> T:
        """What `function` returns over there."""
        return trio.from_thread.run_sync(function, *arguments, trio_token=self._token)

    def start(self, function: Callable[..., Awaitable[object]], *arguments: object) -> Any:  # noqa: ANN401 as trio's
        """Start a task; what it says when it has started."""
        return trio.from_thread.run(
            self._nursery.start, function, *arguments, trio_token=self._token
        )


@contextmanager
def open_background() -> Iterator[Background]:
    """At the end every task is cancelled; one that has failed before raises here."""
    ready: SimpleQueue[Background] = SimpleQueue()

    async def serve() -> None:
        async with trio.open_nursery() as nursery:
            ready.put(Background(nursery))
            await trio.sleep_forever()

    with ThreadPoolExecutor(1) as pool:
        loop = pool.submit(trio.run, serve)
        background = ready.get()
        try:
            yield background
        finally:
            if not loop.done():
                background.call(background._nursery.cancel_scope.cancel)
            loop.result()
