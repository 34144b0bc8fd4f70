"""What scripts have printed so far, told to their rows while they run."""

from collections.abc import Sequence
from typing import NoReturn, Protocol

import trio

from worker.relay import Relay
from worker.standstill import slept

# An API that takes long over it is asked less often.
REST_PER_CALL = 5


class Child(Protocol):
    @property
    def execution_id(self) -> str: ...
    def live_body(self) -> bytes | None: ...


async def tell_live_forever(
    relay: Relay, job_id: str, children: Sequence[Child], seconds: float
) -> NoReturn:
    """Every so many seconds, of each child that has printed something since.

    What is not heard is told again with what comes after it, and at last by the final row.
    """
    while True:
        if not await slept(seconds):
            continue  # a look at whose the job is comes first
        for child in children:
            body = child.live_body()
            if body is not None:
                began = trio.current_time()
                await relay.say_live(job_id, child.execution_id, body)
                await trio.sleep(REST_PER_CALL * (trio.current_time() - began) / len(children))
