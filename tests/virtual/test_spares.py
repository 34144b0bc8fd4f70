"""The calls that wait on one connection."""

from dataclasses import replace
from typing import cast

import pytest
import trio
from trio.testing import MockClock, wait_all_tasks_blocked

from worker.remote.connection import Connection
from worker.remote.payload import Interpreter, Payload
from worker.remote.spares import EXTRA_SECONDS, MOST_AGE_SECONDS, Spares
from worker.remote.waiting import RunRequest, WaitingRun

REQUEST = RunRequest("exec_1", 60, Payload(Interpreter.BASH, b"true\n", {}, "", b"null", 1))


class Run:
    def __init__(self) -> None:
        self.since = trio.current_time()
        self.is_waiting = True
        self.is_being_written = False
        self.is_staged_for: RunRequest | None = None

    def stage(self, request: RunRequest) -> None:
        self.is_staged_for = request

    def is_ready_for(self, request: RunRequest) -> bool:
        return self.is_waiting and self.is_staged_for == request

    def close(self) -> None:
        self.is_waiting = False

    async def closed(self) -> None:
        await trio.lowlevel.checkpoint()


def given(spares: Spares, count: int = 1) -> list[WaitingRun]:
    runs = [cast("WaitingRun", Run()) for _ in range(count)]
    for run in runs:
        spares.give_back(run)
    return runs


@pytest.fixture
def spares(nursery: trio.Nursery) -> Spares:
    spares = Spares()
    nursery.start_soon(spares.keep, cast("Connection", None), lambda: None)
    return spares


async def test_the_last_used_is_the_next_and_the_first_forgets(
    autojump_clock: MockClock, spares: Spares
) -> None:
    first, _, last = given(spares, 3)
    await wait_all_tasks_blocked()

    assert spares.any() is first
    assert spares.take(REQUEST) is last


async def test_one_that_has_gone_is_not_used(autojump_clock: MockClock, spares: Spares) -> None:
    first, last = given(spares, 2)
    last.close()
    await wait_all_tasks_blocked()

    assert spares.take(REQUEST) is first
    assert spares.take(REQUEST) is None


async def test_of_those_that_nobody_needs_one_stays(
    autojump_clock: MockClock, spares: Spares
) -> None:
    runs = given(spares, 4)
    await trio.sleep(EXTRA_SECONDS / 2)
    used = spares.take(REQUEST)
    assert used is not None
    spares.give_back(used)

    await trio.sleep(10 * EXTRA_SECONDS)

    assert [run for run in runs if run.is_waiting] == [used]


async def test_those_that_are_used_again_and_again_stay(
    autojump_clock: MockClock, spares: Spares
) -> None:
    given(spares, 3)
    first = used = [spares.take(REQUEST), spares.take(REQUEST)]
    for _ in range(20):
        await trio.sleep(EXTRA_SECONDS / 4)
        for each in used:
            assert each is not None
            spares.give_back(each)
        await trio.sleep(EXTRA_SECONDS / 4)
        used = [spares.take(REQUEST), spares.take(REQUEST)]

    assert set(used) == set(first)


async def test_one_that_has_served_for_long_is_let_go(
    autojump_clock: MockClock, spares: Spares
) -> None:
    (run,) = given(spares)
    while (used := spares.take(REQUEST)) is not None:
        await trio.sleep(30)
        spares.give_back(used)

    assert not run.is_waiting
    assert trio.current_time() - run.since <= MOST_AGE_SECONDS + 30


async def test_a_channel_is_given_back_as_long_as_there_is_one(
    autojump_clock: MockClock, spares: Spares
) -> None:
    runs = given(spares, 2)

    assert [await spares.drop() for _ in range(3)] == [True, True, False]
    assert not any(run.is_waiting for run in runs)


async def test_what_is_ready_for_a_run_is_for_that_alone(
    autojump_clock: MockClock, spares: Spares
) -> None:
    other = replace(REQUEST, execution_id="exec_2")
    first, last = given(spares, 2)
    await wait_all_tasks_blocked()
    spares.stage(REQUEST)

    assert spares.any() is first
    assert spares.take(other) is first
    assert spares.take(other) is None
    assert spares.take(REQUEST) is last
    assert spares.take(REQUEST) is None


async def test_what_is_ready_for_another_script_is_not_used(
    autojump_clock: MockClock, spares: Spares
) -> None:
    first, last = given(spares, 2)
    await wait_all_tasks_blocked()
    spares.stage(REQUEST)

    assert spares.take(replace(REQUEST, limit_seconds=61)) is first
    assert not last.is_waiting


async def test_what_was_made_ready_in_vain_is_let_go(
    autojump_clock: MockClock, spares: Spares
) -> None:
    first, second = given(spares, 2)
    await wait_all_tasks_blocked()
    spares.stage(REQUEST)
    waiting = []
    for execution_id in ("exec_2", "exec_1"):
        spares.unstage(execution_id)
        waiting.append(second.is_waiting)
    assert waiting == [True, False]

    spares.stage(REQUEST)
    spares.close()
    assert not first.is_waiting
    spares.stage(REQUEST)
    assert spares.take(REQUEST) is None


async def test_amid_what_is_written_nothing_is_staged(
    autojump_clock: MockClock, spares: Spares
) -> None:
    (run,) = given(spares)
    await wait_all_tasks_blocked()
    cast("Run", run).is_being_written = True
    spares.stage(REQUEST)

    assert cast("Run", run).is_staged_for is None
    assert spares.any() is run


async def test_one_that_is_ready_gives_its_channel_back_as_the_last(
    autojump_clock: MockClock, spares: Spares
) -> None:
    waiting, ready = given(spares, 2)
    spares.stage(REQUEST)

    assert await spares.drop()
    assert (waiting.is_waiting, ready.is_waiting) == (False, True)
    assert await spares.drop()
    assert not await spares.drop()
    assert spares.take(REQUEST) is None
