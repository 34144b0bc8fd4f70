"""The nursery of one job: one child per server."""

from collections.abc import Awaitable, Callable, Sequence
from typing import Protocol

import trio

from worker.dispatch.result import ServerResult
from worker.trigger import Trigger


class Child(Protocol):
    async def run(self) -> ServerResult: ...
    async def clean_up(self, haste: Trigger) -> object: ...
    def close(self) -> None: ...


Report = Callable[[tuple[ServerResult, ...]], Awaitable[bool]]


async def fan_out(children: Sequence[Child], report: Report) -> None:
    """Run all `children` at once; `report` gets their results, in their order, when all ended.

    Servers are independent: one child's failure is its own result. When `report` says that
    the results were accepted, each child cleans up; otherwise the runs stay as they are.
    Cancellation closes every child and reports nothing; those that clean up are told to make haste.
    """
    results: dict[int, ServerResult] = {}
    all_ended, reported, all_closed = trio.Event(), trio.Event(), trio.Event()
    accepted = False
    open_children = len(children)
    haste = Trigger()

    async def one(index: int, child: Child) -> None:
        nonlocal open_children
        try:
            results[index] = await child.run()
            if len(results) == len(children):
                all_ended.set()
            await reported.wait()
            if accepted:
                await child.clean_up(haste)
        finally:
            child.close()
            open_children -= 1
            if not open_children:
                all_closed.set()

    async with trio.open_nursery() as nursery:
        for index, child in enumerate(children):
            nursery.start_soon(one, index, child)
        await all_ended.wait()
        accepted = await report(tuple(results[index] for index in range(len(children))))
        reported.set()
        try:
            await all_closed.wait()
        finally:
            haste.set()
