"""What rows are told while scripts run: that they do, and what they have printed so far."""

from collections import deque
from collections.abc import Sequence
from functools import partial
from typing import NoReturn, Protocol

import trio

from worker.relay import Relay
from worker.standstill import slept
from worker.state.outbox import Entry

# A script that is over sooner is told of once, by its final row.
RUNNING_AFTER_SECONDS = 1.0

# The pause after a call, in times its duration: a slow API is called less often.
REST_PER_CALL = 5


class Child(Protocol):
    @property
    def execution_id(self) -> str: ...
    def live_body(self) -> bytes | None: ...


class BegunChild(Protocol):
    def running_entry(self) -> Entry | None: ...


class BegunScripts:
    """Children whose scripts have begun, until their rows are told so."""

    def __init__(self) -> None:
        # With when that is due, by the loop's clock.
        self._children: deque[tuple[BegunChild, float]] = deque()
        self._news = trio.Event()

    def add(self, child: BegunChild) -> None:
        self._children.append((child, trio.current_time() + RUNNING_AFTER_SECONDS))
        self._news.set()

    async def tell_forever(self, relay: Relay, job_id: str) -> NoReturn:
        """Of those that still run when it is due, as many at once as there are."""
        while True:
            self._news = trio.Event()
            if not self._children:
                await self._news.wait()
            if not await slept(self._children[0][1] - trio.current_time()):
                # The worker stood still: the check of whose job it is comes first.
                await trio.sleep(RUNNING_AFTER_SECONDS)
            due = self._take_due()
            if _entries(due):
                # Built again within the transaction: a final row may be there by then.
                await relay.put_rows(job_id, partial(_entries, due))

    def _take_due(self) -> list[BegunChild]:
        due = []
        while self._children and self._children[0][1] <= trio.current_time():
            due.append(self._children.popleft()[0])
        return due


def _entries(children: Sequence[BegunChild]) -> list[Entry]:
    return [entry for child in children if (entry := child.running_entry()) is not None]


async def tell_live_forever(
    relay: Relay, job_id: str, children: Sequence[Child], seconds: float
) -> NoReturn:
    """Every so many seconds, of each child that has printed something since.

    What is not heard is told again with what comes after it, and at last by the final row.
    """
    while True:
        if not await slept(seconds):
            continue  # the worker stood still: the check of whose job it is comes first
        for child in children:
            body = child.live_body()
            if body is not None:
                began = trio.current_time()
                await relay.say_live(job_id, child.execution_id, body)
                await trio.sleep(REST_PER_CALL * (trio.current_time() - began) / len(children))
