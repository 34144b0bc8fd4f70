"""One job from its claim to its result in the outbox; its servers never answer, or cannot."""

import sqlite3
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from typing import Any, NoReturn, cast

import msgspec
import pytest
import trio
from trio.testing import MockClock

import worker.jobs
from tests.due import first_due
from tests.fakes import NO_ANSWER, FakeQueue, Rig, Slow, refused, relay_rig
from worker.api.runtime import Runtimes
from worker.api.wire import ExecutionBody, JobBody, JobRowBody, MetadataBody, ScriptBody, TargetBody
from worker.clock import now_ms
from worker.crew import Surroundings
from worker.jobs import Jobs
from worker.ownership import Ownership
from worker.remote.connection import Connection
from worker.remote.connector import Connector
from worker.remote.deployments import Deployments
from worker.remote.pool import Pool
from worker.remote.session import Remote
from worker.settings.environment import load
from worker.state.outbox import Entry, Kind
from worker.telemetry import Telemetry

SETTINGS = load(
    {
        "CRONIUM_API_ENDPOINT": "http://queue.example.com",
        "CRONIUM_API_TOKEN": "t0ken",
        "CRONIUM_SETUP_TIMEOUT": "300s",
    }
)


class BlackHole:
    """A network in which no server answers; counts the connections that are wanted."""

    def __init__(self) -> None:
        self.open = 0

    def edition(self) -> None:
        """There is no known_hosts."""

    @asynccontextmanager
    async def connection(self, *_args: object) -> AsyncIterator[Connection]:
        self.open += 1
        try:
            await trio.sleep(10**9)
            yield cast("Connection", None)
        finally:
            self.open -= 1


class Slots:
    def __init__(self) -> None:
        self.freed = 0

    def free(self) -> None:
        self.freed += 1


@pytest.fixture
def rig() -> Iterator[Rig]:
    with relay_rig() as rig:
        yield rig


@pytest.fixture
def network() -> BlackHole:
    return BlackHole()


@pytest.fixture
def jobs(rig: Rig, network: BlackHole, nursery: trio.Nursery) -> Jobs:
    pool = Pool(cast("Connector", network), SETTINGS.ssh, nursery)
    remote = Remote(pool, cast("Deployments", None))
    around = Surroundings(
        SETTINGS, rig.database, remote, rig.relay, rig.runs, Runtimes(rig.queue.client), Telemetry()
    )
    return Jobs(around, Ownership(rig.queue.client, poll_seconds=10))


def a_server(number: int, *, password: str | None = "pass") -> msgspec.Raw:  # noqa: S107
    details = {
        "id": str(number),
        "name": f"web-{number}",
        "host": "192.0.2.1",
        "username": "deploy",
        "password": password,
    }
    return msgspec.Raw(msgspec.json.encode(details))


def a_job(
    *servers: msgspec.Raw,
    script: str = "BASH",
    claim: str | None = None,
    may_have_begun: bool | None = None,
) -> JobBody:
    return JobBody(
        id="job_1",
        type="ssh",
        execution=ExecutionBody(
            target=TargetBody(), script=ScriptBody(type=script, content="true")
        ),
        metadata=MetadataBody(servers=servers),
        claim_token=claim,
        may_have_begun=may_have_begun,
    )


def kept(rig: Rig) -> list[str]:
    """The jobs in the state."""
    with rig.database.transaction() as tx:
        return [job_id for (job_id,) in tx.execute("SELECT job_id FROM jobs")]


async def ran(rig: Rig, jobs: Jobs, job: JobBody) -> Slots:
    """Run `job` and have the relay deliver all of it."""
    slots = Slots()
    assert jobs.admit(job.id, slots.free, claim=job.claim_token)
    async with trio.open_nursery() as nursery:
        nursery.start_soon(rig.relay.run)
        await jobs.run(job)
        await rig.relay.wait_empty()
        nursery.cancel_scope.cancel()
    assert job.id not in jobs.ids
    return slots


async def test_a_silent_server_costs_its_setup_limit_and_no_more(
    autojump_clock: MockClock, rig: Rig, jobs: Jobs, network: BlackHole
) -> None:
    began = trio.current_time()

    slots = await ran(rig, jobs, a_job(a_server(1), a_server(2), a_server(3)))

    assert trio.current_time() - began == pytest.approx(300, abs=1)
    assert rig.queue.completions == [("job_1", "failed")]
    outcomes = [each["outcome"] for each in rig.queue.results["job_1"]["metrics"]["servers"]]
    assert outcomes == ["unreachable"] * 3
    assert rig.queue.results["job_1"]["exitCode"] == 3 * 255
    assert rig.queue.rows == {f"exec_job_1_{n}_0": ["queued", "FAILED"] for n in (1, 2, 3)}
    assert (slots.freed, network.open) == (1, 0)


async def test_what_is_said_of_a_passed_limit_is_not_the_apps_word_for_it(
    autojump_clock: MockClock, rig: Rig, jobs: Jobs
) -> None:
    await ran(rig, jobs, a_job(a_server(1)))

    stderr = rig.queue.results["job_1"]["output"]["stderr"]
    assert "over its limit of 300 s" in stderr
    assert "timeout" not in stderr.lower()
    assert "timed out" not in stderr.lower()


async def test_a_server_that_cannot_be_used_is_counted_and_costs_no_time(
    autojump_clock: MockClock, rig: Rig, jobs: Jobs
) -> None:
    began = trio.current_time()

    await ran(rig, jobs, a_job(a_server(1, password=None)))

    assert trio.current_time() - began < 1
    assert rig.queue.completions == [("job_1", "failed")]
    assert "neither a private key nor a password" in rig.queue.results["job_1"]["output"]["stderr"]


async def test_a_cancelled_job_ends_at_once_and_is_completed_as_cancelled(
    autojump_clock: MockClock, rig: Rig, jobs: Jobs, network: BlackHole
) -> None:
    began = trio.current_time()

    async with trio.open_nursery() as nursery:
        nursery.start_soon(ran, rig, jobs, a_job(a_server(1), a_server(2)))
        await trio.sleep(10)
        jobs.cancel("job_1")
        jobs.cancel("job_1")
        jobs.cancel("another")

    assert trio.current_time() - began < 20
    assert rig.queue.completions == [("job_1", "cancelled")]
    assert rig.queue.results["job_1"]["exitCode"] == 2 * 130
    assert network.open == 0


async def test_a_job_that_was_cancelled_before_its_start_is_never_revived(
    autojump_clock: MockClock, rig: Rig, jobs: Jobs
) -> None:
    rig.queue.statuses["job_1"] = "cancelled"

    await ran(rig, jobs, a_job(a_server(1)))

    assert rig.queue.said("status") == []
    assert rig.queue.completions == [("job_1", "cancelled")]


@pytest.mark.parametrize("status", ["another's", "completed", "failed", "timeout"])
async def test_a_job_that_is_not_ours_is_not_started_and_nothing_is_said_of_it(
    autojump_clock: MockClock, rig: Rig, jobs: Jobs, status: str
) -> None:
    rig.queue.statuses["job_1"] = status

    slots = await ran(rig, jobs, a_job(a_server(1)))

    assert rig.queue.said() == [("read", "job_1")]
    assert (slots.freed, kept(rig)) == (1, [])


async def test_a_job_is_said_to_run_before_anything_else_is_said_of_it(
    autojump_clock: MockClock, rig: Rig, jobs: Jobs
) -> None:
    await ran(rig, jobs, a_job(a_server(1)))

    assert rig.queue.said()[:3] == [
        ("read", "job_1"),
        ("status", "job_1"),
        ("create", "exec_job_1_1_0"),
    ]


@pytest.mark.parametrize("fault", [NO_ANSWER, Slow(3600)])
async def test_an_api_that_stopped_answering_does_not_hold_a_job_up(
    autojump_clock: MockClock, rig: Rig, jobs: Jobs, fault: Exception | Slow
) -> None:
    rig.queue.fault("read", "job_1", fault)
    began = trio.current_time()

    await ran(rig, jobs, a_job(a_server(1)))

    assert trio.current_time() - began < 300 + 15
    assert rig.queue.said("status") == []  # it is never sent late
    assert rig.queue.completions == [("job_1", "failed")]


async def test_a_job_whose_start_is_refused_is_not_ours(
    autojump_clock: MockClock, rig: Rig, jobs: Jobs
) -> None:
    rig.queue.fault("status", "job_1", refused(403))

    await ran(rig, jobs, a_job(a_server(1)))

    assert rig.queue.said("create", "complete", "fail") == []


async def test_a_job_under_a_claims_token_takes_two_calls(
    autojump_clock: MockClock, rig: Rig, jobs: Jobs
) -> None:
    rig.queue.tokens["job_1"] = "cl41m"

    await ran(rig, jobs, a_job(a_server(1, password=None), claim="cl41m"))

    assert rig.queue.said() == [("status", "job_1"), ("complete", "job_1")]
    assert rig.queue.rows == {"exec_job_1_1_0": ["queued", "FAILED"]}
    assert rig.queue.completions == [("job_1", "failed")]


@pytest.mark.parametrize("fault", [NO_ANSWER, Slow(3600)])
async def test_rows_that_could_not_be_told_with_a_jobs_start_are_told_later(
    autojump_clock: MockClock, rig: Rig, jobs: Jobs, fault: Exception | Slow
) -> None:
    rig.queue.tokens["job_1"] = "cl41m"
    rig.queue.fault("status", "job_1", fault)

    await ran(rig, jobs, a_job(a_server(1), claim="cl41m"))

    told = rig.queue.said("status", "rows", "complete")
    assert told == [("status", "job_1"), ("rows", "job_1"), ("complete", "job_1")]
    assert rig.queue.rows == {"exec_job_1_1_0": ["queued", "FAILED"]}


@pytest.mark.parametrize("status", ["another's", "completed", "failed", "timeout"])
async def test_a_job_under_another_claim_or_over_is_not_started(
    autojump_clock: MockClock, rig: Rig, jobs: Jobs, network: BlackHole, status: str
) -> None:
    rig.queue.tokens["job_1"] = "a later one" if status == "another's" else "cl41m"
    rig.queue.statuses["job_1"] = status

    slots = await ran(rig, jobs, a_job(a_server(1), claim="cl41m"))

    assert rig.queue.said() == [("status", "job_1")]
    assert (slots.freed, network.open, kept(rig)) == (1, 0, [])


async def test_a_job_is_kept_while_the_api_is_told_that_it_runs(
    autojump_clock: MockClock, rig: Rig, jobs: Jobs, network: BlackHole
) -> None:
    rig.queue.tokens["job_1"] = "cl41m"
    rig.queue.fault("status", "job_1", Slow(5))

    async with trio.open_nursery() as nursery:
        nursery.start_soon(ran, rig, jobs, a_job(a_server(1), claim="cl41m"))
        await trio.sleep(1)
        meanwhile = kept(rig), network.open
        await trio.sleep(5)
        then = kept(rig), network.open
        nursery.cancel_scope.cancel()

    assert (meanwhile, then) == ((["job_1"], 0), (["job_1"], 1))


def a_first_claim(rig: Rig, *servers: msgspec.Raw) -> JobBody:
    """A job that no worker has had before, under a claim's token."""
    rig.queue.tokens["job_1"] = "cl41m"
    return a_job(*servers or (a_server(1),), claim="cl41m", may_have_begun=False)


async def test_a_job_that_nobody_had_is_started_while_the_api_is_told_that_it_runs(
    autojump_clock: MockClock, rig: Rig, jobs: Jobs, network: BlackHole
) -> None:
    rig.queue.fault("status", "job_1", Slow(5))

    async with trio.open_nursery() as nursery:
        nursery.start_soon(ran, rig, jobs, a_first_claim(rig))
        await trio.sleep(1)
        assert (kept(rig), network.open, rig.queue.said()) == (["job_1"], 1, [("status", "job_1")])
        nursery.cancel_scope.cancel()


async def test_a_job_among_others_that_is_soon_over_is_told_of_by_its_end_alone(
    autojump_clock: MockClock, rig: Rig, jobs: Jobs
) -> None:
    servers = [a_server(number, password=None) for number in (1, 2)]
    async with among_others(rig, jobs):
        await ran(rig, jobs, a_first_claim(rig, *servers))

    assert [call for call in rig.queue.said() if "job_2" not in call[1]] == [("complete", "job_1")]
    assert rig.queue.rows["exec_job_1_1_0"] == rig.queue.rows["exec_job_1_2_0"]
    assert rig.queue.rows["exec_job_1_1_0"] == ["queued", "FAILED"]


async def test_a_job_among_others_that_runs_on_is_told_of_within_a_second(
    autojump_clock: MockClock, rig: Rig, jobs: Jobs, network: BlackHole
) -> None:
    servers = a_server(1), a_server(2, password=None)
    async with among_others(rig, jobs), trio.open_nursery() as nursery:
        began = trio.current_time()
        nursery.start_soon(ran, rig, jobs, a_first_claim(rig, *servers))
        await trio.sleep(5)
        nursery.cancel_scope.cancel()

    (told_at,) = rig.queue.times("status", "job_1")
    assert told_at - began == pytest.approx(1, abs=0.1)
    # Of the one that ended before that, too.
    assert rig.queue.rows["exec_job_1_2_0"] == ["queued", "FAILED"]


async def test_a_job_among_others_that_is_not_ours_is_let_go_of_at_its_end(
    autojump_clock: MockClock, rig: Rig, jobs: Jobs
) -> None:
    job = a_first_claim(rig, a_server(1, password=None))
    async with among_others(rig, jobs):
        rig.queue.tokens["job_1"] = "a later one"
        slots = await ran(rig, jobs, job)

    assert [call for call in rig.queue.said() if "job_2" not in call[1]] == [("complete", "job_1")]
    assert not rig.queue.completions
    assert (slots.freed, kept(rig)) == (1, ["job_2"])


@asynccontextmanager
async def among_others(rig: Rig, jobs: Jobs) -> AsyncIterator[None]:
    """While another job is in flight."""
    async with trio.open_nursery() as nursery:
        other = msgspec.structs.replace(a_job(a_server(1)), id="job_2")
        assert jobs.admit(other.id, Slots().free)
        nursery.start_soon(jobs.run, other)
        await trio.sleep(1)
        yield
        nursery.cancel_scope.cancel()


@pytest.mark.parametrize("may_have_begun", [True, None])
async def test_a_job_that_another_worker_may_have_had_is_not(
    autojump_clock: MockClock,
    rig: Rig,
    jobs: Jobs,
    network: BlackHole,
    may_have_begun: bool | None,
) -> None:
    job = msgspec.structs.replace(a_first_claim(rig), may_have_begun=may_have_begun)
    rig.queue.fault("status", "job_1", Slow(5))

    async with trio.open_nursery() as nursery:
        nursery.start_soon(ran, rig, jobs, job)
        await trio.sleep(1)
        assert network.open == 0
        nursery.cancel_scope.cancel()


async def test_a_job_that_was_claimed_some_time_ago_is_not(
    autojump_clock: MockClock,
    rig: Rig,
    jobs: Jobs,
    network: BlackHole,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    rig.queue.fault("status", "job_1", Slow(5))
    monkeypatch.setattr("worker.beginnings.now_ms", lambda: now_ms() + 2000)

    async with trio.open_nursery() as nursery:
        nursery.start_soon(ran, rig, jobs, a_first_claim(rig))
        await trio.sleep(1)
        assert network.open == 0
        nursery.cancel_scope.cancel()


async def test_the_end_of_a_job_is_not_told_before_its_beginning(
    autojump_clock: MockClock, rig: Rig, jobs: Jobs
) -> None:
    rig.queue.fault("status", "job_1", Slow(5))
    began = trio.current_time()

    await ran(rig, jobs, a_first_claim(rig, a_server(1, password=None)))

    assert rig.queue.said("status", "complete") == [("status", "job_1"), ("complete", "job_1")]
    assert rig.queue.times("complete", "job_1")[0] - began == pytest.approx(5, abs=0.5)
    assert rig.queue.rows == {"exec_job_1_1_0": ["queued", "FAILED"]}


@pytest.mark.parametrize("fault", [NO_ANSWER, Slow(3600)])
async def test_rows_that_could_not_be_told_of_a_job_that_runs_come_before_its_end(
    autojump_clock: MockClock, rig: Rig, jobs: Jobs, fault: Exception | Slow
) -> None:
    rig.queue.fault("status", "job_1", fault)

    await ran(rig, jobs, a_first_claim(rig, a_server(1, password=None)))

    assert rig.queue.said("status", "complete") == [("status", "job_1"), ("complete", "job_1")]
    assert rig.queue.said()[-1] == ("complete", "job_1")
    assert rig.queue.rows == {"exec_job_1_1_0": ["queued", "FAILED"]}


async def test_a_job_that_was_cancelled_as_it_started_is_ended(
    autojump_clock: MockClock, rig: Rig, jobs: Jobs, network: BlackHole
) -> None:
    rig.queue.statuses["job_1"] = "cancelled"
    began = trio.current_time()

    await ran(rig, jobs, a_first_claim(rig))

    assert trio.current_time() - began < 1
    assert rig.queue.completions == [("job_1", "cancelled")]
    assert network.open == 0


@pytest.mark.parametrize("status", ["another's", "completed", "failed", "timeout"])
async def test_a_job_that_turns_out_not_to_be_ours_is_let_go_of(
    autojump_clock: MockClock, rig: Rig, jobs: Jobs, network: BlackHole, status: str
) -> None:
    job = a_first_claim(rig)
    if status == "another's":
        rig.queue.tokens["job_1"] = "a later one"
    rig.queue.statuses["job_1"] = status

    slots = await ran(rig, jobs, job)

    assert rig.queue.said() == [("status", "job_1")]
    assert (slots.freed, network.open, kept(rig)) == (1, 0, [])


async def test_a_job_that_is_claimed_anew_goes_on_under_that_claim(
    autojump_clock: MockClock, rig: Rig, jobs: Jobs
) -> None:
    rig.queue.tokens["job_1"] = "cl41m"

    async with trio.open_nursery() as nursery:
        nursery.start_soon(ran, rig, jobs, a_job(a_server(1), claim="cl41m"))
        await trio.sleep(10)
        rig.queue.tokens["job_1"] = "a later one"
        assert not jobs.admit("job_1", Slots().free, claim="a later one")

    assert rig.queue.completions == [("job_1", "failed")]


async def test_a_job_that_cannot_be_run_is_failed_with_the_field_named(
    autojump_clock: MockClock, rig: Rig, jobs: Jobs
) -> None:
    slots = await ran(rig, jobs, a_job(a_server(1), script="PERL"))

    assert rig.queue.said("create", "complete", "fail") == [("fail", "job_1")]
    assert "execution.script.type" in rig.queue.results["job_1"]["error"]
    assert slots.freed == 1


async def test_a_fault_of_ours_fails_its_job_and_leaves_the_worker(
    autojump_clock: MockClock, rig: Rig, jobs: Jobs
) -> None:
    rig.queue.fault("read", "job_1", ZeroDivisionError())
    slots = Slots()
    jobs.admit("job_1", slots.free)

    await jobs.run(a_job(a_server(1)))

    assert [queued.entry.kind for queued in first_due(rig.outbox, limit=9, now=10**15)] == ["fail"]
    assert slots.freed == 1


async def test_a_fault_of_ours_is_told_as_it_came_up_but_for_secrets(
    autojump_clock: MockClock, rig: Rig, jobs: Jobs, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fault(*_arguments: object, **_named: object) -> NoReturn:
        raise ZeroDivisionError("no luck with swordfish")

    monkeypatch.setattr(worker.jobs, "complete_entry", fault)

    await ran(rig, jobs, a_job(a_server(1, password="swordfish")))

    error = "a fault of the worker: ZeroDivisionError: no luck with ***"
    assert rig.queue.results["job_1"]["error"] == error


@pytest.mark.parametrize("servers", [1, 3])
async def test_a_job_that_the_drain_cuts_short_is_handed_over(
    autojump_clock: MockClock, rig: Rig, jobs: Jobs, network: BlackHole, servers: int
) -> None:
    slots = Slots()
    jobs.admit("job_1", slots.free)

    async with trio.open_nursery() as support:
        support.start_soon(rig.relay.run)
        with trio.move_on_after(25):
            await jobs.run(a_job(*map(a_server, range(1, servers + 1))))
        await rig.relay.wait_empty()
        support.cancel_scope.cancel()

    assert rig.queue.said("release", "complete", "fail") == [("release", "job_1")]
    assert rig.queue.statuses["job_1"] == "queued"
    assert (slots.freed, jobs.ids, network.open) == (1, (), 0)


async def test_a_job_whose_end_is_in_the_outbox_is_not_handed_over(
    autojump_clock: MockClock, rig: Rig, jobs: Jobs
) -> None:
    slots = Slots()
    jobs.admit("job_1", slots.free)

    with trio.move_on_after(10):  # nobody delivers, so the job waits with its cleanup
        await jobs.run(a_job(a_server(1, password=None)))

    said = []
    while heads := first_due(rig.outbox, limit=1, now=10**15):
        said.append(heads[0].entry.kind)
        rig.outbox.delivered(heads[0].id)
    assert said == ["create", "update", "complete"]
    assert slots.freed == 1


async def test_a_lone_execution_and_its_job_end_by_one_commit_or_by_none(
    autojump_clock: MockClock, rig: Rig, jobs: Jobs, monkeypatch: pytest.MonkeyPatch
) -> None:
    def said() -> list[str]:
        return [entry.kind for entry in rig.outbox.all()]

    def ended() -> list[tuple[str, int]]:
        """The state of each job, and how many of its results are kept."""
        with rig.database.transaction() as tx:
            return tx.execute(
                "SELECT state, count(result) FROM jobs LEFT JOIN executions USING (job_id) "
                "GROUP BY job_id"
            ).fetchall()

    def full(*arguments: Any, **named: Any) -> NoReturn:  # noqa: ANN401  as they are
        reported(*arguments, **named)
        uncommitted.append((said(), ended()))
        error = sqlite3.OperationalError("database or disk is full")
        error.sqlite_errorcode = sqlite3.SQLITE_FULL
        raise error

    reported = rig.runs.reported
    uncommitted: list[object] = []
    slots = Slots()
    jobs.admit("job_1", slots.free)
    async with trio.open_nursery() as nursery:
        with monkeypatch.context() as patch:
            patch.setattr(rig.runs, "reported", full)
            nursery.start_soon(jobs.run, a_job(a_server(1, password=None)))
            await trio.sleep(2.5)
            assert (said(), ended(), slots.freed) == (["create"], [("running", 0)], 0)
        await trio.sleep(1)
        assert (said(), ended()) == (["create", "update", "complete"], [("reported", 1)])
        assert uncommitted == 3 * [(said(), ended())]
        nursery.cancel_scope.cancel()

    assert slots.freed == 1


async def test_a_slot_is_free_once_the_result_is_in_the_outbox(
    autojump_clock: MockClock, rig: Rig, jobs: Jobs
) -> None:
    slots = Slots()
    jobs.admit("job_1", slots.free)

    async with trio.open_nursery() as nursery:
        nursery.start_soon(jobs.run, a_job(a_server(1, password=None)))
        await trio.sleep(1)

        assert slots.freed == 1
        assert jobs.ids == ("job_1",)  # heartbeats name it until the API has its end
        assert not jobs.admit("job_1", slots.free)
        nursery.cancel_scope.cancel()

    assert slots.freed == 1


async def test_what_was_asked_of_an_earlier_claim_does_not_let_go_of_the_next(
    autojump_clock: MockClock,
    rig: Rig,
    jobs: Jobs,
    network: BlackHole,
    nursery: trio.Nursery,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    # Of an earlier claim, tried before; the job is another worker's since then, and ours again
    # while that is on its way to us.
    entry = Entry("job_1", Kind.UPDATE, "exec_job_1_1_0", b'{"status":"FAILED"}')
    rig.outbox.put([entry], now=0)
    rig.outbox.take_up()
    read_job, answers = FakeQueue.read_job, [refused(403)]

    async def read_slowly(queue: FakeQueue, job_id: str) -> JobRowBody:
        if answers:
            await trio.sleep(1)
            raise answers.pop()
        return await read_job(queue, job_id)

    monkeypatch.setattr(FakeQueue, "read_job", read_slowly)
    nursery.start_soon(rig.relay.run)
    await trio.sleep(0.5)
    job = a_job(a_server(1))
    assert jobs.admit(job.id, Slots().free)
    nursery.start_soon(jobs.run, job)

    await trio.sleep(20)

    assert answers == []
    assert (jobs.ids, network.open) == (("job_1",), 1)
