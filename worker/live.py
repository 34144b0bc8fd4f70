"""What scripts have printed so far, told to their rows while they run."""

from collections.abc import Sequence
from typing import NoReturn, Protocol

import trio

from worker.relay import Relay

# An API that takes long over it is asked less often.
REST_PER_CALL = 5
# A worker that was held up for so long may have lost the job, whose row is another's to write then:
# the look at the job that is due as well comes first.
LATE_SECONDS = 5.0


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
        due_at = trio.current_time() + seconds
        await trio.sleep_until(due_at)
        if trio.current_time() > due_at + LATE_SECONDS:
            continue
        for child in children:
            body = child.live_body()
            if body is not None:
                began = trio.current_time()
                await relay.say_live(job_id, child.execution_id, body)
                await trio.sleep(REST_PER_CALL * (trio.current_time() - began) / len(children))
