"""What scripts have printed so far, told while they run."""

from typing import cast

import trio
from trio.testing import MockClock

from worker.live import tell_live_forever
from worker.relay import Relay


class Heard:
    def __init__(self) -> None:
        self.at: list[float] = []

    async def say_live(self, *_: object) -> bool:
        await trio.lowlevel.checkpoint()
        self.at.append(trio.current_time())
        return True


class Child:
    execution_id = "exec_job_1_1_0"

    def live_body(self) -> bytes:
        return b"{}"


async def test_a_worker_that_stood_still_tells_nothing_before_it_can_have_looked_at_the_job(
    autojump_clock: MockClock, nursery: trio.Nursery
) -> None:
    heard = Heard()
    nursery.start_soon(tell_live_forever, cast("Relay", heard), "job_1", [Child()], 2)
    await trio.sleep(3)
    autojump_clock.jump(30)
    await trio.sleep(3)

    assert heard.at == [2.0, 35.0]
