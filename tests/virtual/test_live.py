"""What rows are told while scripts run."""

from collections.abc import Callable, Sequence
from typing import cast

import pytest
import trio
from trio.testing import MockClock

from worker.live import RUNNING_AFTER_SECONDS, BegunScripts, tell_live_forever
from worker.relay import Relay
from worker.state.outbox import Entry, Kind


class Heard:
    """A relay that notes what it is given, and when."""

    def __init__(self) -> None:
        self.at: list[float] = []
        self.rows: list[list[str]] = []
        # Before anything is kept.
        self.held_up = trio.Event()
        self.held_up.set()

    async def put_rows(self, _job_id: str, make: Callable[[], Sequence[Entry]]) -> None:
        await self.held_up.wait()
        await trio.lowlevel.checkpoint()
        self.at.append(trio.current_time())
        self.rows.append([entry.subject for entry in make()])

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


class Script:
    """A child whose script has begun."""

    def __init__(self, name: str) -> None:
        self.name = name
        self.is_over = False

    def running_entry(self) -> Entry | None:
        return None if self.is_over else Entry("job_1", Kind.RUNNING, self.name, b"{}")


def told(nursery: trio.Nursery, heard: Heard) -> BegunScripts:
    scripts = BegunScripts()
    nursery.start_soon(scripts.tell_forever, cast("Relay", heard), "job_1")
    return scripts


@pytest.mark.parametrize("jump", [0, 30])
async def test_a_worker_that_stood_still_does_not_say_at_once_that_a_script_runs(
    autojump_clock: MockClock, nursery: trio.Nursery, jump: float
) -> None:
    heard = Heard()
    told(nursery, heard).add(Script("a"))
    await trio.sleep(RUNNING_AFTER_SECONDS / 2)
    autojump_clock.jump(jump)
    await trio.sleep(RUNNING_AFTER_SECONDS * 2)

    woken_at = RUNNING_AFTER_SECONDS / 2 + jump
    assert heard.at == [woken_at + RUNNING_AFTER_SECONDS if jump else RUNNING_AFTER_SECONDS]


async def test_only_of_scripts_that_still_run_is_it_said_that_they_do(
    autojump_clock: MockClock, nursery: trio.Nursery
) -> None:
    heard = Heard()
    scripts = told(nursery, heard)
    short, *others, late = (Script(name) for name in "abcd")
    for script in (short, *others):
        scripts.add(script)
    await trio.sleep(RUNNING_AFTER_SECONDS / 2)
    short.is_over = True
    scripts.add(late)
    await trio.sleep(RUNNING_AFTER_SECONDS * 2)

    assert heard.rows == [["b", "c"], ["d"]]
    assert heard.at == [RUNNING_AFTER_SECONDS, RUNNING_AFTER_SECONDS * 1.5]


async def test_nothing_is_said_where_all_are_over(
    autojump_clock: MockClock, nursery: trio.Nursery
) -> None:
    heard = Heard()
    script = Script("a")
    told(nursery, heard).add(script)
    script.is_over = True
    await trio.sleep(RUNNING_AFTER_SECONDS * 2)

    assert heard.rows == []


async def test_a_script_that_ends_before_its_row_can_be_kept_runs_no_more(
    autojump_clock: MockClock, nursery: trio.Nursery
) -> None:
    heard = Heard()
    heard.held_up = trio.Event()
    script = Script("a")
    told(nursery, heard).add(script)
    await trio.sleep(RUNNING_AFTER_SECONDS * 2)
    script.is_over = True
    heard.held_up.set()
    await trio.sleep(RUNNING_AFTER_SECONDS)

    assert heard.rows == [[]]
