"""From the outbox to a queue that gives each claim a token."""

import json
from collections.abc import Iterator
from functools import partial

import pytest
import trio
from trio.testing import MockClock

from tests.fakes import BUSY, FAULT, NO_ANSWER, Lost, Rig, refused, relay_rig
from worker.relay import GATHER_MS
from worker.state.outbox import GO_ENTRIES, Entry, Kind
from worker.verdicts import FIRST_PAUSE_SECONDS

TOKEN = "cl41m"  # noqa: S105  opens nothing


@pytest.fixture
def rig() -> Iterator[Rig]:
    with relay_rig() as rig:
        rig.queue.tokens["job_1"] = TOKEN
        rig.relay.claim_of = {"job_1": TOKEN}.get
        yield rig


def told(**fields: object) -> bytes:
    return json.dumps(fields).encode()


def create(execution: str) -> Entry:
    return Entry("job_1", Kind.CREATE, execution, told(jobId="job_1", serverId="1"))


def update(execution: str) -> Entry:
    return Entry("job_1", Kind.UPDATE, execution, told(status="COMPLETED"))


def last(kind: Kind = Kind.COMPLETE) -> Entry:
    output = {"stdout": "", "stderr": ""}
    return Entry("job_1", kind, "job_1", told(status="completed", output=output, error="no"))


async def put_row(rig: Rig, entry: Entry) -> None:
    await rig.relay.put_rows("job_1", lambda: [entry])


async def said_all(rig: Rig) -> None:
    with trio.fail_after(3600):
        await rig.relay.wait_empty()


async def test_a_jobs_last_row_and_its_end_are_one_call(
    autojump_clock: MockClock, nursery: trio.Nursery, rig: Rig
) -> None:
    rig.queue.rows["e1"] = ["queued"]
    nursery.start_soon(rig.relay.run)
    began = trio.current_time()

    await put_row(rig, update("e1"))
    await trio.sleep(0.01)
    await rig.relay.put(last())
    await said_all(rig)

    assert rig.queue.said() == [("complete", "job_1")]
    assert rig.queue.rows == {"e1": ["queued", "COMPLETED"]}
    assert trio.current_time() - began < GATHER_MS / 2000


async def test_rows_wait_a_moment_for_one_another(
    autojump_clock: MockClock, nursery: trio.Nursery, rig: Rig
) -> None:
    nursery.start_soon(rig.relay.run)
    await rig.relay.put(*(create(f"e{number}") for number in range(10)))
    await said_all(rig)

    for number in range(10):
        await put_row(rig, update(f"e{number}"))
        await trio.sleep(GATHER_MS / 1000 / 20)
    await said_all(rig)

    assert rig.queue.said() == [("rows", "job_1")] * 2
    first, second = (call.at for call in rig.queue.calls)
    assert second - first == pytest.approx(GATHER_MS / 1000)
    assert set(map(tuple, rig.queue.rows.values())) == {("queued", "COMPLETED")}


async def test_rows_of_a_queue_without_tokens_wait_for_nothing(
    autojump_clock: MockClock, nursery: trio.Nursery, rig: Rig
) -> None:
    rig.queue.rows["e1"] = ["queued"]
    rig.relay.claim_of = lambda _job_id: None
    nursery.start_soon(rig.relay.run)
    began = trio.current_time()

    await put_row(rig, update("e1"))
    await said_all(rig)

    assert rig.queue.times("update", "e1") == [began]


async def test_many_rows_go_in_few_calls(
    autojump_clock: MockClock, nursery: trio.Nursery, rig: Rig
) -> None:
    names = [f"e{number}" for number in range(100)]
    await rig.relay.put(*map(create, names), *map(update, names), last())

    nursery.start_soon(rig.relay.run)
    await said_all(rig)

    methods = [call.method for call in rig.queue.calls]
    assert methods == ["rows"] * (201 // GO_ENTRIES) + ["complete"]
    assert len(rig.queue.rows) == len(names)


@pytest.mark.parametrize("kind", [Kind.COMPLETE, Kind.FAIL])
async def test_a_job_that_is_under_another_claim_now_is_let_go(
    autojump_clock: MockClock, nursery: trio.Nursery, rig: Rig, kind: Kind
) -> None:
    let_go: list[str] = []
    rig.relay.letting_go = lambda job_id: partial(let_go.append, job_id)
    rig.queue.tokens["job_1"] = "a later one"
    nursery.start_soon(rig.relay.run)

    await rig.relay.put(create("e1"), last(kind))
    await said_all(rig)

    assert let_go == ["job_1"]
    assert (rig.queue.rows, rig.queue.completions, rig.parked()) == ({}, [], [])


async def test_an_end_whose_answer_was_lost_is_not_sent_twice(
    autojump_clock: MockClock, nursery: trio.Nursery, rig: Rig
) -> None:
    rig.queue.fault("complete", "job_1", Lost())
    nursery.start_soon(rig.relay.run)

    await rig.relay.put(last())
    await said_all(rig)

    assert rig.queue.completions == [("job_1", "completed")]
    assert rig.queue.said() == [("complete", "job_1"), ("read", "job_1")]


async def test_an_end_that_is_tried_again_is_under_its_claim_too(
    autojump_clock: MockClock, nursery: trio.Nursery, rig: Rig
) -> None:
    let_go: list[str] = []
    rig.relay.letting_go = lambda job_id: partial(let_go.append, job_id)
    rig.queue.fault("complete", "job_1", NO_ANSWER)
    nursery.start_soon(rig.relay.run)

    await rig.relay.put(last())
    while not rig.queue.calls:
        await trio.sleep(0.001)
    rig.queue.tokens["job_1"] = "a later one"  # the job's own worker is still this one
    await said_all(rig)

    assert rig.queue.said() == [("complete", "job_1"), ("read", "job_1"), ("complete", "job_1")]
    assert (let_go, rig.queue.completions) == (["job_1"], [])


@pytest.mark.parametrize("fault", [refused(400), refused(413)])
async def test_what_is_refused_together_is_told_one_by_one(
    autojump_clock: MockClock, nursery: trio.Nursery, rig: Rig, fault: Exception
) -> None:
    rig.queue.fault("complete", "job_1", fault)
    rig.queue.fault("update", "e1", refused(400))
    nursery.start_soon(rig.relay.run)

    await rig.relay.put(create("e1"), create("e2"), update("e1"), update("e2"), last())
    await said_all(rig)

    assert rig.parked() == [("job_1", "e1")]
    assert rig.queue.rows == {"e1": ["queued"], "e2": ["queued", "COMPLETED"]}
    assert rig.queue.completions == [("job_1", "completed")]


@pytest.mark.parametrize("fault", [BUSY, FAULT, NO_ANSWER, Lost()])
async def test_what_may_have_been_heard_is_told_one_by_one_and_the_end_once(
    autojump_clock: MockClock, nursery: trio.Nursery, rig: Rig, fault: Exception | Lost
) -> None:
    rig.queue.fault("complete", "job_1", fault)
    rig.queue.fault("read", "job_1", *[NO_ANSWER] * 20)
    nursery.start_soon(rig.relay.run)

    await rig.relay.put(create("e1"), update("e1"), last())
    await said_all(rig)

    told_again = ["COMPLETED"] if isinstance(fault, Lost) else []
    assert rig.queue.rows == {"e1": ["queued", "COMPLETED", *told_again]}
    assert rig.queue.completions == [("job_1", "completed")]
    assert rig.parked() == []


async def test_an_end_that_is_due_after_its_row_is_told_when_it_is_due(
    autojump_clock: MockClock, nursery: trio.Nursery, rig: Rig
) -> None:
    """Each is put off for a time of its own."""
    rig.queue.rows["e1"] = ["queued"]
    nursery.start_soon(rig.relay.run)

    for _ in range(20):
        rig.queue.fault("complete", "job_1", BUSY)
        began = trio.current_time()
        await rig.relay.put(update("e1"), last())
        await said_all(rig)
        assert trio.current_time() - began < 2 * FIRST_PAUSE_SECONDS
        rig.queue.statuses["job_1"] = "running"

    assert len(rig.queue.completions) == 20


async def test_a_job_is_read_before_it_is_given_back(
    autojump_clock: MockClock, nursery: trio.Nursery, rig: Rig
) -> None:
    nursery.start_soon(rig.relay.run)

    await rig.relay.put(last(Kind.RELEASE))
    await said_all(rig)

    assert rig.queue.said() == [("read", "job_1"), ("release", "job_1")]


async def test_live_output_is_told_under_the_claim_while_rows_wait(
    autojump_clock: MockClock, nursery: trio.Nursery, rig: Rig
) -> None:
    rig.queue.rows |= {"e1": ["queued"], "e2": ["queued"]}
    nursery.start_soon(rig.relay.run)
    await put_row(rig, update("e1"))
    live = told(status="running", output="so far\n")

    heard = await rig.relay.say_live("job_1", "e2", live)
    rig.queue.tokens["job_1"] = "a later one"
    heard_later = await rig.relay.say_live("job_1", "e2", live)

    assert (heard, heard_later) == (True, False)
    assert rig.queue.rows == {"e1": ["queued"], "e2": ["queued", "running"]}
