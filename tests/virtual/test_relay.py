"""From the outbox to the API."""

import json
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from itertools import pairwise
from typing import NoReturn, TypeVar

import pytest
import trio
import trio.lowlevel
from structlog.testing import capture_logs
from trio.testing import MockClock

from tests.fakes import BUSY, FAULT, NO_ANSWER, Fault, Lost, Rig, Slow, in_order, refused, relay_rig
from worker.delivery import MISSING_ATTEMPTS
from worker.errors import ProtocolError, QueueUnavailableError
from worker.relay import IDLE_SECONDS
from worker.state.outbox import Entry, Kind
from worker.verdicts import MOST_PAUSE_SECONDS, pause_seconds

T = TypeVar("T")

UNAUTHORIZED = QueueUnavailableError("the queue API answered 401", 401)
NONSENSE = ProtocolError("the queue API's answer: not gzip")
ROWS = ("create", "update")


@pytest.fixture
def rig() -> Iterator[Rig]:
    with relay_rig() as rig:
        yield rig


def create(execution: str, *, job: str = "job_1", server: str = "1") -> Entry:
    return Entry(job, Kind.CREATE, execution, told(jobId=job, serverId=server))


def running(execution: str, *, job: str = "job_1") -> Entry:
    return Entry(job, Kind.RUNNING, execution, told(status="running"))


def update(execution: str, *, job: str = "job_1") -> Entry:
    return Entry(job, Kind.UPDATE, execution, told(status="COMPLETED"))


def complete(job: str = "job_1", status: str = "completed") -> Entry:
    output = {"stdout": "all there is\n", "stderr": ""}
    return Entry(job, Kind.COMPLETE, job, told(status=status, exitCode=0, output=output))


def last(job: str = "job_1") -> tuple[Entry]:
    return (complete(job),)


def fail(job: str = "job_1") -> Entry:
    return Entry(job, Kind.FAIL, job, told(error="bad"))


def release(job: str = "job_1") -> Entry:
    return Entry(job, Kind.RELEASE, job, told(message="not ours"))


def told(**fields: object) -> bytes:
    return json.dumps(fields).encode()


async def delivered(rig: Rig, *entries: Entry, within: float = 3600) -> None:
    """Put `entries`, and let the relay run until nothing is left to say."""
    async with trio.open_nursery() as nursery:
        nursery.start_soon(rig.relay.run)
        await rig.relay.put(*entries)
        with trio.fail_after(within):
            await rig.relay.wait_empty()
        nursery.cancel_scope.cancel()


async def test_a_job_is_told_of_in_order(autojump_clock: MockClock, rig: Rig) -> None:
    await delivered(
        rig, create("e1"), create("e2"), running("e1"), update("e2"), update("e1"), complete()
    )

    assert rig.queue.said("create", "update", "complete") == [
        ("create", "e1"),
        ("create", "e2"),
        ("update", "e2"),
        ("update", "e1"),
        ("complete", "job_1"),
    ]
    assert rig.queue.rows == {"e1": ["queued", "COMPLETED"], "e2": ["queued", "COMPLETED"]}


async def test_a_job_is_read_before_its_end_is_told(autojump_clock: MockClock, rig: Rig) -> None:
    await delivered(rig, create("e1"), complete(), create("e2", job="job_2"), release("job_2"))

    for job_id, method in (("job_1", "complete"), ("job_2", "release")):
        assert in_order([("read", job_id), (method, job_id)], rig.queue.said())


def outage(rig: Rig, at: str, subject: str, faults: Sequence[Fault]) -> None:
    """What befalls the call and, since what failed once is tried after a look at its job, the
    reads that come before the next tries."""
    rig.queue.fault(at, subject, faults[0])
    rig.queue.fault("read", "job_1", *faults[1:])


async def test_a_row_that_fails_while_the_api_answers_does_not_hold_up_the_jobs_end(
    autojump_clock: MockClock, rig: Rig
) -> None:
    rig.queue.fault("update", "e1", *[BUSY] * 1000)

    await delivered(rig, create("e1"), update("e1"), complete())

    assert rig.queue.completions == [("job_1", "completed")]
    assert len(rig.parked()) == 1


@pytest.mark.parametrize("fault", [NO_ANSWER, BUSY, UNAUTHORIZED, NONSENSE])
@pytest.mark.parametrize("at", ["create", "update", "complete"])
async def test_what_fails_for_a_passing_reason_is_tried_until_it_succeeds(
    autojump_clock: MockClock, rig: Rig, at: str, fault: Exception
) -> None:
    outage(rig, at, "job_1" if at == "complete" else "e1", [fault] * 20)

    await delivered(rig, create("e1"), update("e1"), complete())

    assert rig.queue.rows == {"e1": ["queued", "COMPLETED"]}
    assert rig.queue.completions == [("job_1", "completed")]
    assert rig.parked() == []


async def test_entries_keep_their_order_over_failures(autojump_clock: MockClock, rig: Rig) -> None:
    rig.queue.fault("create", "e1", NO_ANSWER, NO_ANSWER)
    rig.queue.fault("update", "e1", NO_ANSWER)

    await delivered(rig, create("e1"), update("e1"), complete())

    assert rig.queue.said(*ROWS, "complete") == [
        *[("create", "e1")] * 3,
        *[("update", "e1")] * 2,
        ("complete", "job_1"),
    ]


async def test_pauses_grow_and_have_a_bound(autojump_clock: MockClock, rig: Rig) -> None:
    outage(rig, "create", "e1", [NO_ANSWER] * 30)

    await delivered(rig, create("e1"))

    times = [call.at for call in rig.queue.calls]
    pauses = [late - early for early, late in pairwise(times)]
    assert pauses[0] <= 0.51
    assert all(pause <= MOST_PAUSE_SECONDS + 0.01 for pause in pauses)
    assert max(pauses[15:]) > 5


@pytest.mark.parametrize("at", ["create", "complete"])
async def test_an_api_that_says_when_is_not_asked_before(
    autojump_clock: MockClock, rig: Rig, at: str
) -> None:
    busy = QueueUnavailableError("the queue API answered 429", 429, after_seconds=40)
    subject = "e1" if at == "create" else "job_1"
    rig.queue.fault(at, subject, busy)

    await delivered(rig, create("e1"), complete())

    first, second = rig.queue.times(at, subject)
    assert 40 <= second - first <= 41
    assert rig.queue.completions == [("job_1", "completed")]


def test_a_pause_is_full_jitter_within_a_minute() -> None:
    for attempts in (*range(10), 10**6):
        pauses = [pause_seconds(attempts) for _ in range(50)]
        assert min(pauses) >= 0
        assert max(pauses) <= min(0.5 * 2 ** min(attempts, 16), 60)
        assert len(set(pauses)) > 1


async def test_a_complete_whose_answer_was_lost_is_not_sent_twice(
    autojump_clock: MockClock, rig: Rig
) -> None:
    rig.queue.fault("complete", "job_1", Lost())

    await delivered(rig, complete())

    assert rig.queue.completions == [("job_1", "completed")]
    assert rig.queue.said() == [("read", "job_1"), ("complete", "job_1"), ("read", "job_1")]


async def test_a_cancelled_complete_whose_answer_was_lost_is_not_sent_twice(
    autojump_clock: MockClock, rig: Rig
) -> None:
    rig.queue.statuses["job_1"] = "cancelled"
    rig.queue.fault("complete", "job_1", Lost())

    await delivered(rig, complete())

    assert rig.queue.completions == [("job_1", "cancelled")]


async def test_a_job_cancelled_meanwhile_is_completed_as_cancelled_with_its_output(
    autojump_clock: MockClock, rig: Rig
) -> None:
    rig.queue.statuses["job_1"] = "cancelled"

    await delivered(rig, create("e1"), update("e1"), complete())

    assert rig.queue.completions == [("job_1", "cancelled")]
    assert rig.queue.results["job_1"]["output"]["stdout"] == "all there is\n"


async def test_a_cancelled_job_does_not_fail(autojump_clock: MockClock, rig: Rig) -> None:
    rig.queue.statuses["job_1"] = "cancelled"

    await delivered(rig, fail())

    assert rig.queue.said() == [("read", "job_1")]


async def test_a_cancelled_job_that_is_given_back_is_completed_as_cancelled(
    autojump_clock: MockClock, rig: Rig
) -> None:
    rig.queue.statuses["job_1"] = "cancelled"

    await delivered(rig, release())

    assert rig.queue.completions == [("job_1", "cancelled")]


async def test_a_cancelled_job_with_runs_to_be_ended_is_not_given_back(
    autojump_clock: MockClock, rig: Rig
) -> None:
    rig.runs.begin("job_1", b"the claim", now=0)
    rig.queue.statuses["job_1"] = "cancelled"

    await delivered(rig, release())

    assert rig.queue.said() == [("read", "job_1")]
    assert rig.runs.running() == ("job_1",)
    assert not await rig.relay.is_done()


@pytest.mark.parametrize("status", ["another's", "completed", "failed", "timeout"])
@pytest.mark.parametrize("entry", [complete(), release(), fail()])
async def test_the_end_of_a_job_that_is_not_ours_any_more_is_dropped(
    autojump_clock: MockClock, rig: Rig, entry: Entry, status: str
) -> None:
    rig.queue.statuses["job_1"] = status

    await delivered(rig, entry)

    assert rig.queue.said() == [("read", "job_1")]
    assert rig.queue.statuses["job_1"] == status
    assert rig.parked() == []


@pytest.mark.parametrize("status", [400, 403, 404, 409])
@pytest.mark.parametrize("at", ["create", "update"])
async def test_a_row_that_is_refused_is_parked_and_holds_nothing_back(
    autojump_clock: MockClock, rig: Rig, at: str, status: int
) -> None:
    rig.queue.fault(at, "e1", *[refused(status)] * 9)

    await delivered(
        rig, create("e1"), create("e2", server="2"), update("e1"), update("e2"), complete()
    )

    assert ("job_1", "e1") in rig.parked()
    assert rig.queue.rows["e2"] == ["queued", "COMPLETED"]
    assert rig.queue.completions == [("job_1", "completed")]
    # Nothing is remembered of what was given up.
    assert rig.relay._delivery._faults == {}


@pytest.mark.parametrize("status", [403, 404, 409])
async def test_a_complete_that_is_refused_is_parked_and_other_jobs_go_on(
    autojump_clock: MockClock, rig: Rig, status: int
) -> None:
    rig.queue.fault("complete", "job_1", refused(status))

    await delivered(rig, complete(), complete("job_2"))

    assert rig.parked() == [("job_1", "job_1")]
    assert rig.queue.completions == [("job_2", "completed")]


@pytest.mark.parametrize("entry", [complete(), release(), fail()])
async def test_the_end_of_a_job_that_the_api_has_not_any_more_is_parked_in_the_end(
    autojump_clock: MockClock, rig: Rig, entry: Entry
) -> None:
    rig.queue.fault("read", "job_1", *[refused(404)] * 1000)

    await delivered(rig, entry, complete("job_2"))

    assert rig.parked() == [("job_1", "job_1")]
    assert rig.queue.completions == [("job_2", "completed")]
    assert rig.relay._delivery._faults == {}


async def test_a_job_that_the_api_does_not_find_for_a_while_has_its_end_told(
    autojump_clock: MockClock, rig: Rig
) -> None:
    almost = [refused(404)] * (MISSING_ATTEMPTS - 1)
    rig.queue.fault("read", "job_1", *almost, NO_ANSWER, *almost)

    await delivered(rig, complete())

    assert rig.parked() == []
    assert rig.queue.completions == [("job_1", "completed")]
    assert rig.relay._delivery._faults == {}


async def test_a_row_that_waited_while_its_job_became_anothers_is_not_told(
    autojump_clock: MockClock, rig: Rig
) -> None:
    rig.queue.rows["e1"] = ["queued"]
    rig.queue.fault("update", "e1", NO_ANSWER)

    async with trio.open_nursery() as nursery:
        nursery.start_soon(rig.relay.run)
        await rig.relay.put(update("e1"), complete())
        await trio.lowlevel.checkpoint()
        rig.queue.statuses["job_1"] = "another's"
        await rig.relay.wait_empty()
        nursery.cancel_scope.cancel()

    assert rig.queue.said(*ROWS, "complete") == [("update", "e1")]
    assert rig.queue.rows == {"e1": ["queued"]}


async def test_a_row_of_a_worker_that_was_stopped_for_long_is_told_after_a_look_at_its_job(
    autojump_clock: MockClock, rig: Rig
) -> None:
    rig.queue.rows["e1"] = ["queued"]
    rig.queue.statuses["job_1"] = "another's"
    await rig.relay.put(update("e1"), complete())
    await trio.sleep(60)

    await delivered(rig)

    assert rig.queue.said() == [("read", "job_1")]


async def test_a_fault_of_the_look_at_a_job_is_not_an_answer_to_its_row(
    autojump_clock: MockClock, rig: Rig
) -> None:
    outage(rig, "create", "e1", [NO_ANSWER, FAULT, NONSENSE, FAULT, FAULT])

    await delivered(rig, create("e1"), complete())

    assert rig.queue.rows == {"e1": ["queued"]}


async def test_a_fresh_row_costs_one_call(autojump_clock: MockClock, rig: Rig) -> None:
    await delivered(rig, create("e1"), update("e1"))

    assert rig.queue.said() == [("create", "e1"), ("update", "e1")]


async def test_a_row_that_is_there_already_counts_as_made(
    autojump_clock: MockClock, rig: Rig
) -> None:
    rig.queue.fault("create", "e1", Lost())

    await delivered(rig, create("e1"), update("e1"), complete())

    assert rig.queue.said("create") == [("create", "e1")] * 2
    assert rig.queue.rows == {"e1": ["queued", "COMPLETED"]}


async def test_a_row_of_a_server_that_the_app_has_not_is_made_without_it(
    autojump_clock: MockClock, rig: Rig
) -> None:
    await delivered(rig, create("e1", server="999999"), update("e1"), complete())

    assert rig.queue.said(*ROWS) == [
        ("create", "e1"),
        ("update", "e1"),
        ("create", "e1"),
        ("update", "e1"),
    ]
    assert "serverId" not in rig.queue.calls[2].body
    assert rig.queue.rows == {"e1": ["queued", "COMPLETED"]}
    assert rig.queue.completions == [("job_1", "completed")]


@pytest.mark.parametrize("fault", [NONSENSE, NO_ANSWER, BUSY, FAULT, refused(400)])
async def test_a_fault_while_the_row_is_made_anew_stops_nothing(
    autojump_clock: MockClock, rig: Rig, fault: Exception
) -> None:
    rig.queue.fault("create", "e1", FAULT, fault)

    await delivered(rig, create("e1"), update("e1"), complete())

    assert rig.queue.completions == [("job_1", "completed")]


async def test_a_row_that_the_api_fails_over_again_is_given_up_and_complete_goes_out(
    autojump_clock: MockClock, rig: Rig
) -> None:
    rig.queue.fault("update", "e1", *[FAULT] * 100)

    await delivered(rig, create("e1"), update("e1"), complete())

    assert len(rig.queue.times("update", "e1")) == 4
    assert rig.parked() == [("job_1", "e1")]
    assert rig.queue.completions == [("job_1", "completed")]


async def test_an_outage_is_not_held_against_a_row(autojump_clock: MockClock, rig: Rig) -> None:
    rig.queue.rows["e1"] = ["queued"]
    rig.queue.fault("update", "e1", NO_ANSWER, BUSY, BUSY)
    rig.queue.fault("read", "job_1", *6 * [NO_ANSWER])

    await delivered(rig, update("e1"))

    assert rig.parked() == []
    assert rig.queue.rows["e1"] == ["queued", "COMPLETED"]


async def test_an_outage_of_an_hour_loses_no_row(autojump_clock: MockClock, rig: Rig) -> None:
    began = trio.current_time()
    outage(rig, "create", "e1", [BUSY, NO_ANSWER] * 200)

    await delivered(rig, create("e1"), update("e1"), complete(), within=86400)

    assert trio.current_time() - began > 3600
    assert rig.queue.rows == {"e1": ["queued", "COMPLETED"]}
    assert rig.parked() == []


async def test_jobs_do_not_wait_for_one_another(autojump_clock: MockClock, rig: Rig) -> None:
    rig.queue.fault("complete", "job_1", Slow(1000))

    async with trio.open_nursery() as nursery:
        nursery.start_soon(rig.relay.run)
        await rig.relay.put(complete("job_1"), complete("job_2"))
        with trio.fail_after(1):
            await rig.relay.wait_said("job_2")
        nursery.cancel_scope.cancel()

    assert rig.queue.completions == [("job_2", "completed")]


async def test_a_retry_does_not_wait_for_a_slow_delivery_of_another_job(
    autojump_clock: MockClock, rig: Rig
) -> None:
    rig.queue.fault("complete", "job_1", Slow(1000))
    rig.queue.fault("complete", "job_2", NO_ANSWER)

    async with trio.open_nursery() as nursery:
        nursery.start_soon(rig.relay.run)
        await rig.relay.put(complete("job_1"), complete("job_2"))
        with trio.fail_after(5):
            await rig.relay.wait_said("job_2")
        nursery.cancel_scope.cancel()

    assert rig.queue.completions == [("job_2", "completed")]


async def test_entries_of_one_job_never_go_at_once(autojump_clock: MockClock, rig: Rig) -> None:
    for execution in ("e1", "e2", "e3"):
        rig.queue.fault("create", execution, Slow(10))
    began = trio.current_time()

    await delivered(rig, create("e1"), create("e2"), create("e3"), complete())

    starts = [round(call.at - began) for call in rig.queue.calls if call.method == "create"]
    assert starts == [0, 10, 20]


async def test_what_is_put_is_told_without_a_look_at_all_that_there_is(
    autojump_clock: MockClock, nursery: trio.Nursery, rig: Rig, monkeypatch: pytest.MonkeyPatch
) -> None:
    nursery.start_soon(rig.relay.run)
    await trio.sleep(1)
    steps, run = 0, rig.database.run

    async def counted(do: Callable[[], T]) -> T:
        nonlocal steps
        steps += 1
        return await run(do)

    monkeypatch.setattr(rig.database, "run", counted)

    word = await rig.relay.put_last("job_1", last, also=lambda: None)
    await word.said.wait()
    await trio.sleep(0.1)

    assert (word.accepted, steps) == (True, 2)  # kept, and known to be told


async def test_what_comes_while_a_delivery_ends_is_not_passed_over(
    autojump_clock: MockClock, nursery: trio.Nursery, rig: Rig, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = rig.database.run

    async def late(do: Callable[[], T]) -> T:
        done = await run(do)
        name = do.func.__name__ if isinstance(do, partial) else ""
        await trio.sleep({"_look": 2, "keep": 3}.get(name, 0))
        return done

    nursery.start_soon(rig.relay.run)
    await trio.sleep(1)
    monkeypatch.setattr(rig.database, "run", late)
    began = trio.current_time()
    await rig.relay.put(create("e1"))
    await trio.sleep(1)  # e1 is told, and for 2 s more its delivery does not know that it is over
    await rig.relay.put(create("e2"))
    await trio.sleep(1)
    rig.relay._news.set()  # a look begins, and the delivery ends before the look does
    await rig.relay.wait_empty()

    (told_at,) = rig.queue.times("create", "e2")
    assert told_at - began < 10


async def test_many_rows_of_a_job_are_kept_and_looked_for_in_few_steps(
    autojump_clock: MockClock, rig: Rig, monkeypatch: pytest.MonkeyPatch
) -> None:
    steps, run = 0, rig.database.run

    async def counted(do: Callable[[], T]) -> T:
        nonlocal steps
        steps += 1
        return await run(do)

    monkeypatch.setattr(rig.database, "run", counted)
    names = [f"e{number}" for number in range(100)]

    await delivered(rig, *map(create, names), *map(update, names), complete())

    assert [subject for _, subject in rig.queue.said(*ROWS)] == names * 2
    assert rig.queue.completions == [("job_1", "completed")]
    assert steps < 35


async def test_of_a_job_that_is_dropped_meanwhile_no_further_row_is_told(
    autojump_clock: MockClock, rig: Rig
) -> None:
    rig.queue.fault("create", "e2", Slow(10))

    async with trio.open_nursery() as nursery:
        nursery.start_soon(rig.relay.run)
        await rig.relay.put(create("e1"), create("e2"), create("e3"), update("e1"))
        await trio.sleep(5)
        await rig.relay.drop("job_1")
        await trio.sleep(20)
        await rig.relay.put(create("e4"), complete())
        with trio.fail_after(5):
            await rig.relay.wait_empty()
        nursery.cancel_scope.cancel()

    assert [subject for _, subject in rig.queue.said(*ROWS)] == ["e1", "e2", "e4"]
    assert rig.queue.completions == [("job_1", "completed")]


async def test_a_row_that_must_wait_holds_back_those_that_were_to_go_with_it(
    autojump_clock: MockClock, rig: Rig
) -> None:
    rig.queue.fault("create", "e3", NO_ANSWER)

    await delivered(rig, *map(create, ("e1", "e2", "e3", "e4")), update("e1"), complete())

    told = [subject for _, subject in rig.queue.said(*ROWS)]
    assert told == ["e1", "e2", "e3", "e3", "e4", "e1"]
    assert rig.queue.said("read")[0] == ("read", "job_1")


async def test_at_most_16_deliveries_go_at_once(autojump_clock: MockClock, rig: Rig) -> None:
    jobs = [f"job_{number}" for number in range(36)]
    for job in jobs:
        rig.queue.fault("complete", job, Slow(10))
    began = trio.current_time()

    await delivered(rig, *map(complete, jobs))

    starts = [round(call.at - began) for call in rig.queue.calls if call.method == "complete"]
    assert starts == [0] * 16 + [10] * 16 + [20] * 4


async def test_jobs_that_begin_hold_up_no_delivery_of_others(
    autojump_clock: MockClock, nursery: trio.Nursery, rig: Rig
) -> None:
    async def begin(job_id: str) -> None:
        async with rig.relay.held(job_id):
            await trio.sleep(10)

    nursery.start_soon(rig.relay.run)
    for number in range(20):
        nursery.start_soon(begin, f"job_{number + 2}")
    await trio.sleep(1)
    await rig.relay.put(complete(), complete("job_2"))
    await trio.sleep(1)
    told_soon = list(rig.queue.completions)
    await trio.sleep(9)

    assert told_soon == [("job_1", "completed")]
    assert rig.queue.completions[1:] == [("job_2", "completed")]


async def test_what_is_put_while_nothing_is_due_goes_out_at_once(
    autojump_clock: MockClock, rig: Rig
) -> None:
    async with trio.open_nursery() as nursery:
        nursery.start_soon(rig.relay.run)
        await trio.sleep(1000)
        began = trio.current_time()
        await rig.relay.put(complete())
        await rig.relay.wait_said("job_1")
        assert trio.current_time() - began < 0.1
        nursery.cancel_scope.cancel()


async def test_what_a_relay_left_is_delivered_by_the_next(
    autojump_clock: MockClock, rig: Rig
) -> None:
    rig.queue.fault("complete", "job_1", Slow(1000))
    await rig.relay.put(create("e1"), complete())
    with trio.move_on_after(10):
        await rig.relay.run()
    assert await rig.relay.pending_jobs() == ("job_1",)

    await delivered(rig)

    assert rig.queue.completions == [("job_1", "completed")]


async def test_an_idle_relay_asks_nothing(autojump_clock: MockClock, rig: Rig) -> None:
    with trio.move_on_after(86400):
        await rig.relay.run()

    assert rig.queue.calls == []


async def test_a_result_that_is_too_large_for_the_way_is_sent_with_less_output(
    autojump_clock: MockClock, rig: Rig
) -> None:
    rig.queue.fault("complete", "job_1", *[refused(413)] * 3)
    body = {"status": "completed", "exitCode": 0, "output": {"stdout": "x" * 8000, "stderr": ""}}

    await delivered(rig, Entry("job_1", Kind.COMPLETE, "job_1", json.dumps(body).encode()))

    sent = [call.body for call in rig.queue.calls if call.method == "complete"]
    sizes = [len(each["output"]["stdout"]) for each in sent]
    assert sizes == sorted(sizes, reverse=True)
    assert sizes[-1] < 2000
    assert rig.queue.completions == [("job_1", "completed")]


async def test_what_a_script_said_goes_last_where_a_result_is_too_large_for_the_way(
    autojump_clock: MockClock, rig: Rig
) -> None:
    rig.queue.fault("complete", "job_1", *[refused(413)] * 2)
    body = {
        "status": "completed",
        "exitCode": 0,
        "output": {"stdout": "x" * 300, "stderr": ""},
        "scriptOutput": ["y" * 8000],
        "condition": True,
    }

    await delivered(rig, Entry("job_1", Kind.COMPLETE, "job_1", json.dumps(body).encode()))

    sent = [call.body for call in rig.queue.calls if call.method == "complete"]
    assert [bool(each["scriptOutput"]) for each in sent] == [True, True, False]
    assert "script output left out" in sent[-1]["output"]["stdout"]
    assert sent[-1]["condition"] is True
    assert rig.queue.completions == [("job_1", "completed")]


async def test_a_result_that_is_too_large_without_any_output_is_parked(
    autojump_clock: MockClock, rig: Rig
) -> None:
    rig.queue.fault("complete", "job_1", *[refused(413)] * 100)

    await delivered(rig, complete())

    assert len(rig.parked()) == 1


@pytest.mark.parametrize(("fault", "seconds"), [(Slow(10), 10), (BUSY, 0)])
async def test_a_worker_is_not_abreast_while_100_ends_are_yet_to_be_told(
    autojump_clock: MockClock, rig: Rig, fault: Exception | Slow, seconds: float
) -> None:
    jobs = [f"job_{number}" for number in range(115)]
    for job in jobs:
        rig.queue.fault("complete", job, *100 * [fault])
    for job in jobs[:99]:
        await rig.relay.put_last(job, partial(last, job), also=lambda: None)
    with trio.fail_after(1):
        await rig.relay.last_words.wait_abreast()
    for job in jobs[99:]:
        await rig.relay.put_last(job, partial(last, job), also=lambda: None)
    began = trio.current_time()

    async with trio.open_nursery() as nursery:
        nursery.start_soon(rig.relay.run)
        with capture_logs() as logs:
            await rig.relay.last_words.wait_abreast()
        nursery.cancel_scope.cancel()

    told = [entry["event"] for entry in logs if entry["event"].startswith("claims_")]
    assert told == (["claims_wait_for_ends", "claims_go_on"] if seconds else [])
    # 115 less the first 16; an end that is not taken has been tried too.
    assert trio.current_time() - began == pytest.approx(seconds, abs=0.1)


async def test_an_end_that_could_not_be_put_holds_no_worker_up(
    autojump_clock: MockClock, rig: Rig
) -> None:
    def fault() -> NoReturn:
        raise ZeroDivisionError

    for number in range(100):
        with pytest.raises(ZeroDivisionError):
            await rig.relay.put_last(f"job_{number}", fault, also=lambda: None)

    with trio.fail_after(10):
        await rig.relay.last_words.wait_abreast()


async def test_nobody_waits_for_the_end_of_a_job_that_an_operator_has_dropped(
    autojump_clock: MockClock, rig: Rig
) -> None:
    rig.queue.fault("complete", "job_1", *1000 * [BUSY])
    rig.queue.fault("complete", "job_2", *1000 * [BUSY])
    async with trio.open_nursery() as nursery:
        nursery.start_soon(rig.relay.run)
        word = await rig.relay.put_last("job_1", last, also=lambda: None)
        other = await rig.relay.put_last("job_2", partial(last, "job_2"), also=lambda: None)
        await trio.sleep(60)
        assert not word.said.is_set()

        (entry, _) = rig.outbox.all()
        assert rig.outbox.drop(entry.id)

        with trio.fail_after(IDLE_SECONDS + 1):
            await word.said.wait()
        assert word.accepted
        await trio.sleep(60)
        assert not other.said.is_set()
        nursery.cancel_scope.cancel()


async def test_a_release_on_its_way_is_not_the_last_word_of_the_next_claim(
    autojump_clock: MockClock, rig: Rig
) -> None:
    rig.queue.fault("release", "job_1", Slow(5))
    async with trio.open_nursery() as nursery:
        nursery.start_soon(rig.relay.run)
        await rig.relay.put(release())
        await trio.sleep(1)

        async with rig.relay.held("job_1"):
            has_end = await rig.relay.supersede("job_1")
        waited_until = trio.current_time()
        rig.queue.statuses["job_1"] = "running"
        word = await rig.relay.put_last("job_1", last, also=lambda: None)
        await word.said.wait()
        nursery.cancel_scope.cancel()

    assert not has_end
    assert waited_until >= 5
    assert rig.queue.completions == [("job_1", "completed")]


async def test_who_waits_until_all_is_said_does_not_wait_for_what_was_said_meanwhile(
    autojump_clock: MockClock, rig: Rig, nursery: trio.Nursery, monkeypatch: pytest.MonkeyPatch
) -> None:
    look = rig.database.run

    async def look_slowly(work: Callable[[], object]) -> object:
        found = await look(work)
        if work == rig.outbox.pending_jobs:
            await trio.sleep(5)  # by now it is old
        return found

    rig.queue.fault("release", "job_1", Slow(2))
    await rig.relay.put(release())
    monkeypatch.setattr(rig.database, "run", look_slowly)
    nursery.start_soon(rig.relay.run)

    with trio.fail_after(20):
        await rig.relay.wait_said("job_1")
