"""Claims: capacity, duplicates, held jobs, back-off."""

import json
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager
from functools import partial
from itertools import pairwise
from typing import cast

import pytest
import trio
from trio.testing import MockClock

from tests.fakes import NO_ANSWER, FakeQueue, Rig, Slow, relay_rig
from worker.api.wire import BadJob, ExecutionBody, JobBody, ScriptBody, TargetBody, decode_claim
from worker.errors import ProtocolError, QueueRefusedError, QueueUnavailableError
from worker.intake import GRANTED_SECONDS, Intake
from worker.jobs import Jobs
from worker.state.outbox import Entry, Kind


class FakeJobs:
    """Each job takes as long as `seconds` says, an hour else; like `Jobs` towards the intake."""

    def __init__(self) -> None:
        self.seconds: dict[str, float] = {}
        self.started: list[str] = []
        self.most_at_once = 0
        self.refused: list[tuple[str, str]] = []
        self._free_slots: dict[str, Callable[[], None]] = {}
        self._news = trio.Event()

    async def wait_started(self, count: int) -> None:
        while len(self.started) < count:
            self._news = trio.Event()
            await self._news.wait()

    @property
    def ids(self) -> tuple[str, ...]:
        return tuple(self._free_slots)

    def admit(
        self, job_id: str, free_slot: Callable[[], None], *, claim: str | None = None
    ) -> bool:
        assert claim is None
        if self.has(job_id):
            return False
        self._free_slots[job_id] = free_slot
        self.most_at_once = max(self.most_at_once, len(self._free_slots))
        return True

    def has(self, job_id: str) -> bool:
        return job_id in self._free_slots

    async def run(self, job: JobBody) -> None:
        self.started.append(job.id)
        self._news.set()
        await trio.sleep(self.seconds.get(job.id, 3600))
        self._free_slots.pop(job.id)()

    async def refuse(self, job_id: str, fault: str) -> None:
        await trio.lowlevel.checkpoint()
        self.refused.append((job_id, fault))


@pytest.fixture
def rig() -> Iterator[Rig]:
    with relay_rig() as rig:
        yield rig


@asynccontextmanager
async def claiming(
    rig: Rig, jobs: FakeJobs, *, slots: int = 2, batch_size: int = 10
) -> AsyncIterator[Intake]:
    intake = Intake(
        rig.queue.client, rig.relay, cast("Jobs", jobs), slots=slots, batch_size=batch_size
    )
    async with trio.open_nursery() as nursery:
        nursery.start_soon(rig.relay.run)
        nursery.start_soon(intake.claim_forever, nursery)
        yield intake
        nursery.cancel_scope.cancel()


def a_job(job_id: str, job_type: str = "ssh") -> JobBody:
    script = ScriptBody(type="BASH", content="true")
    return JobBody(
        id=job_id, type=job_type, execution=ExecutionBody(target=TargetBody(), script=script)
    )


def without_script(job_id: str, job_type: str) -> JobBody | BadJob:
    """As it comes out of a claim."""
    job = {"id": job_id, "type": job_type, "execution": {"target": {"type": "local"}}}
    (decoded,) = decode_claim(json.dumps({"jobs": [job], "count": 1}).encode())
    return decoded


async def test_a_claim_asks_for_as_many_jobs_as_slots_are_free(
    autojump_clock: MockClock, rig: Rig
) -> None:
    rig.queue.offer(a_job("a"), a_job("b"))

    async with claiming(rig, FakeJobs(), slots=5):
        await trio.sleep(1)

    assert [count for _, count in rig.queue.polls] == [5, 3]


async def test_no_job_is_claimed_while_too_many_ends_are_yet_to_be_told(
    autojump_clock: MockClock, rig: Rig
) -> None:
    ended = [f"job_{number}" for number in range(100)]
    for job in ended:
        rig.queue.fault("complete", job, Slow(10))
        entry = Entry(job, Kind.COMPLETE, job, b'{"status": "completed"}')
        await rig.relay.put_last(job, partial(tuple, [entry]), also=lambda: None)

    async with claiming(rig, FakeJobs()):
        await trio.sleep(9)
        assert not rig.queue.polls
        await trio.sleep(2)
        assert rig.queue.polls


async def test_slots_that_are_freed_at_about_the_same_time_are_filled_by_one_poll(
    autojump_clock: MockClock, rig: Rig
) -> None:
    jobs = FakeJobs()
    jobs.seconds = {"a": 0.001, "b": 0.005, "c": 0.01}
    rig.queue.offer(a_job("a"), a_job("b"), a_job("c"))

    async with claiming(rig, jobs, slots=3):
        await trio.sleep(1)

    assert [count for _, count in rig.queue.polls] == [3, 3]


async def test_a_claim_asks_for_no_more_than_a_batch(autojump_clock: MockClock, rig: Rig) -> None:
    async with claiming(rig, FakeJobs(), slots=50, batch_size=10):
        await trio.sleep(1)

    assert [count for _, count in rig.queue.polls] == [10]


async def test_nothing_is_claimed_without_a_free_slot(autojump_clock: MockClock, rig: Rig) -> None:
    jobs = FakeJobs()
    jobs.seconds = {"a": 100, "b": 200}
    rig.queue.offer(a_job("a"), a_job("b"))
    began = trio.current_time()

    async with claiming(rig, jobs, slots=2):
        await trio.sleep(160)

    polled = [(round(at - began), count) for at, count in rig.queue.polls]
    assert polled == [(0, 2), (100, 1), (125, 1), (150, 1)]  # held for 25 s each


async def test_there_is_one_poll_at_a_time(autojump_clock: MockClock, rig: Rig) -> None:
    jobs = FakeJobs()
    for number in range(30):
        jobs.seconds[f"j{number}"] = number % 7
        rig.queue.offer(a_job(f"j{number}"))

    async with claiming(rig, jobs, slots=3):
        await trio.sleep(500)

    assert rig.queue.most_polling == 1
    assert len(jobs.started) == 30
    assert jobs.most_at_once <= 3


async def test_a_duplicate_is_dropped(autojump_clock: MockClock, rig: Rig) -> None:
    jobs = FakeJobs()
    rig.queue.offer(a_job("a"), a_job("a"))
    rig.queue.offer(a_job("a"), a_job("b"))

    async with claiming(rig, jobs, slots=5) as intake:
        await trio.sleep(10)
        assert intake.free_slots == 3

    assert jobs.started == ["a", "b"]


async def test_a_job_that_ended_here_may_come_again(autojump_clock: MockClock, rig: Rig) -> None:
    jobs = FakeJobs()
    jobs.seconds = {"a": 5}
    rig.queue.offer(a_job("a"))

    async with claiming(rig, jobs):
        await trio.sleep(10)
        rig.queue.offer(a_job("a"))
        await trio.sleep(1)

    assert jobs.started == ["a", "a"]


async def test_a_malformed_job_is_refused_and_its_neighbours_run(
    autojump_clock: MockClock, rig: Rig
) -> None:
    jobs = FakeJobs()
    fault = "job: Expected `int` - at `$.attempts`"
    rig.queue.offer(a_job("a"), BadJob("bad", fault), BadJob(None, "no id"), a_job("z"))

    async with claiming(rig, jobs, slots=5) as intake:
        await trio.sleep(1)
        assert intake.free_slots == 3

    assert sorted(jobs.started) == ["a", "z"]
    assert jobs.refused == [("bad", fault)]


async def test_a_job_that_runs_is_not_refused_over_a_malformed_duplicate(
    autojump_clock: MockClock, rig: Rig
) -> None:
    jobs = FakeJobs()
    rig.queue.offer(a_job("a"), BadJob("a", "job: Expected `int` - at `$.attempts`"))
    rig.queue.offer(BadJob("a", "job: Expected `int` - at `$.attempts`"))

    async with claiming(rig, jobs, slots=5):
        await trio.sleep(1)

    assert jobs.started == ["a"]
    assert jobs.refused == []


@pytest.mark.parametrize("job", [a_job("a"), BadJob("a", "no type"), BadJob(None, "no id")])
async def test_a_queue_that_hands_out_what_is_no_news_is_not_asked_without_end(
    job: JobBody | BadJob, autojump_clock: MockClock, rig: Rig
) -> None:
    rig.queue.offer(a_job("a"))
    for _ in range(200):
        rig.queue.offer(job)

    async with claiming(rig, FakeJobs(), slots=5):
        await trio.sleep(20)

    assert 4 <= len(rig.queue.polls) <= 20


@pytest.mark.parametrize(
    "container", [a_job("c", "container"), without_script("c", "container")], ids=["whole", "bare"]
)
async def test_a_container_job_is_held_30_s_and_then_released(
    autojump_clock: MockClock, rig: Rig, container: JobBody | BadJob
) -> None:
    jobs = FakeJobs()
    rig.queue.offer(container, a_job("a"))
    began = trio.current_time()

    async with claiming(rig, jobs, slots=2) as intake:
        await trio.sleep(29)
        held_at_29 = intake.held_jobs
        assert intake.free_slots == 1
        assert rig.queue.said("release") == []
        await trio.sleep(2)
        held_at_31 = intake.held_jobs

    assert (held_at_29, held_at_31) == (("c",), ())

    (released,) = [call for call in rig.queue.calls if call.method == "release"]
    assert released.subject == "c"
    assert released.at - began == pytest.approx(30, abs=0.1)
    assert released.body["message"]
    assert jobs.started == ["a"]
    assert jobs.refused == []


async def test_a_poll_asks_for_free_slots_and_as_many_more_as_are_held(
    autojump_clock: MockClock, rig: Rig
) -> None:
    rig.queue.offer(a_job("c", "container"), a_job("d", "container"), a_job("a"))

    async with claiming(rig, FakeJobs(), slots=3):
        await trio.sleep(1)

    assert [count for _, count in rig.queue.polls] == [3, 2 + 2]


async def test_a_held_job_that_comes_again_is_dropped(autojump_clock: MockClock, rig: Rig) -> None:
    rig.queue.offer(a_job("c", "container"))
    rig.queue.offer(a_job("c", "container"))

    async with claiming(rig, FakeJobs()):
        await trio.sleep(50)

    assert rig.queue.said("release") == [("release", "c")]


async def test_a_drain_releases_held_jobs_at_once(autojump_clock: MockClock, rig: Rig) -> None:
    intake = Intake(rig.queue.client, rig.relay, cast("Jobs", FakeJobs()), slots=2, batch_size=10)
    rig.queue.offer(a_job("c", "container"))
    began = trio.current_time()

    async with trio.open_nursery() as support:
        support.start_soon(rig.relay.run)
        async with trio.open_nursery() as jobs:
            with trio.move_on_after(5):
                await intake.claim_forever(jobs)
        support.cancel_scope.cancel()

    assert [round(at - began) for at in rig.queue.times("release", "c")] == [5]


async def test_a_held_job_is_given_up_when_the_api_does_not_take_it_back(
    autojump_clock: MockClock, rig: Rig
) -> None:
    rig.queue.fault("read", "c", *[NO_ANSWER] * 1000)
    rig.queue.offer(a_job("c", "container"))

    async with claiming(rig, FakeJobs()) as intake:
        await trio.sleep(36)
        assert intake.held_jobs == ()
        # Heartbeats go on naming it, until the outbox is rid of it.
        assert await rig.relay.pending_jobs() == ("c",)


async def test_more_jobs_than_slots_stop_the_claims_until_they_are_fewer(
    autojump_clock: MockClock, rig: Rig
) -> None:
    jobs = FakeJobs()
    jobs.seconds = {"a": 100, "b": 100, "d": 200}
    rig.queue.offer(a_job("c", "container"))
    # In the place of the held one came a job of ours.
    rig.queue.offer(a_job("a"), a_job("b"), a_job("d"))
    began = trio.current_time()

    async with claiming(rig, jobs, slots=2):
        await trio.sleep(150)

    polled = [(round(at - began), count) for at, count in rig.queue.polls]
    assert polled[:3] == [(0, 2), (0, 2 + 1), (100, 1)]
    assert all(count > 0 for _, count in polled)


async def test_claims_wait_for_as_long_as_the_api_asks_for(
    autojump_clock: MockClock, rig: Rig
) -> None:
    rig.queue.claims.append(QueueUnavailableError("the queue API answered 503", 503, 45))

    async with claiming(rig, FakeJobs()):
        await trio.sleep(47)

    first, second = [at for at, _ in rig.queue.polls[:2]]
    assert 45 <= second - first <= 46


@pytest.mark.parametrize(
    "error", [NO_ANSWER, QueueRefusedError(403, "no"), ProtocolError("claim: no JSON")]
)
async def test_claims_back_off_while_the_api_fails_and_recover_by_themselves(
    autojump_clock: MockClock, rig: Rig, error: Exception
) -> None:
    jobs = FakeJobs()
    rig.queue.claims.extend([error] * 100)
    rig.queue.offer(a_job("a"))
    began = trio.current_time()

    async with claiming(rig, jobs, slots=5):
        await jobs.wait_started(1)

    times = [at - began for at, _ in rig.queue.polls]
    pauses = [late - early for early, late in pairwise(times)][:100]
    assert pauses[0] <= 1
    assert max(pauses) <= 30
    assert sum(pauses[10:]) > 90 * 5  # 15 s each on the average
    assert len(set(pauses)) > 50  # jitter


async def test_failures_are_forgotten_once_the_api_answers(
    autojump_clock: MockClock, rig: Rig
) -> None:
    rig.queue.claims.extend([NO_ANSWER] * 50)
    rig.queue.offer(a_job("a"))
    rig.queue.claims.append(NO_ANSWER)
    rig.queue.offer(a_job("b"))
    jobs = FakeJobs()

    async with claiming(rig, jobs, slots=5):
        await jobs.wait_started(2)

    late, early = rig.queue.polls[52][0], rig.queue.polls[51][0]
    assert late - early <= 1


async def test_a_queue_that_holds_polls_is_asked_again_at_once(
    autojump_clock: MockClock, rig: Rig
) -> None:
    async with claiming(rig, FakeJobs()):
        await trio.sleep(100.5)

    times = [at for at, _ in rig.queue.polls]
    assert [round(at - times[0]) for at in times] == [0, 25, 50, 75, 100]


async def test_a_queue_that_does_not_hold_polls_is_given_pauses_up_to_5_s(
    autojump_clock: MockClock, rig: Rig
) -> None:
    rig.queue.long_polls = False

    async with claiming(rig, FakeJobs()):
        await trio.sleep(1000)

    times = [at for at, _ in rig.queue.polls]
    pauses = [late - early for early, late in pairwise(times)]
    assert max(pauses) <= 5
    assert 1000 / 5 < len(times) < 1000 / 1.5
    assert len(set(pauses)) == len(pauses)


async def test_after_a_job_the_next_poll_comes_within_a_second(
    autojump_clock: MockClock, rig: Rig
) -> None:
    rig.queue.long_polls = False
    for number in range(20):
        rig.queue.offer(a_job(f"j{number}"))
    jobs = FakeJobs()

    async with claiming(rig, jobs, slots=100):
        await trio.sleep(20)

    assert len(jobs.started) == 20
    times = [at for at, _ in rig.queue.polls]
    assert max(late - early for early, late in pairwise(times[:21])) <= 1


async def test_a_job_that_ends_while_orphans_are_asked_for_is_none(
    autojump_clock: MockClock, rig: Rig, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def orphaned(_queue: FakeQueue) -> tuple[str, ...]:
        await trio.sleep(1)
        return ("a",) if jobs.started else ()

    monkeypatch.setattr(FakeQueue, "orphaned", orphaned)
    jobs = FakeJobs()
    jobs.seconds = {"a": 99.5}
    rig.queue.offer(a_job("a"))

    async with claiming(rig, jobs) as intake:
        await trio.sleep(100)
        assert await intake.release_orphans()
        await trio.sleep(10)

    assert jobs.ids == ()
    assert ("release", "a") not in rig.queue.said()


async def test_what_was_granted_late_goes_back_though_all_slots_are_busy(
    autojump_clock: MockClock, rig: Rig
) -> None:
    rig.queue.claims.append(NO_ANSWER)  # and the queue is still at it
    jobs = FakeJobs()
    jobs.seconds["long"] = 36_000
    async with claiming(rig, jobs, slots=1):
        await trio.sleep(20)
        rig.queue.offer(a_job("long"))
        await jobs.wait_started(1)
        rig.queue.orphans.append("late")
        await trio.sleep(2 * GRANTED_SECONDS)

    assert rig.queue.said("release") == [("release", "late")]


async def test_a_job_that_is_granted_to_a_poll_that_was_given_up_goes_back(
    autojump_clock: MockClock, rig: Rig
) -> None:
    rig.queue.claims.append(NO_ANSWER)  # and the queue is still at it

    async with claiming(rig, FakeJobs()):
        await trio.sleep(40)
        rig.queue.statuses["late"] = "claimed"
        rig.queue.orphans.append("late")
        await trio.sleep(300)

    assert rig.queue.said().count(("release", "late")) == 1


async def test_a_job_that_is_granted_to_a_poll_of_the_worker_before_goes_back(
    autojump_clock: MockClock, rig: Rig
) -> None:
    async with claiming(rig, FakeJobs()):
        await trio.sleep(10)
        rig.queue.statuses["late"] = "claimed"
        rig.queue.orphans.append("late")
        await trio.sleep(2 * GRANTED_SECONDS)

    assert rig.queue.said().count(("release", "late")) == 1
