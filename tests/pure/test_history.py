"""What the state tells of past jobs."""

from collections.abc import Iterator
from pathlib import Path

import pytest

from worker.database import Database
from worker.state.directory import BEGUN, DATABASE, MIGRATIONS, SPOOLS
from worker.state.history import Begun, History, JobEnd, KeptOutput
from worker.state.marks import Marks
from worker.state.runs import KEPT_MS, RunStore
from worker.state.seal import StateSeal
from worker.state.spool import Spools

BAD = JobEnd("failed", 7, "FAILURE: 0 of 1 servers succeeded (failed: web-1 exit 7)")
GOOD = JobEnd("completed", 0, "SUCCESS: 1 of 1 servers succeeded")


@pytest.fixture
def database(tmp_path: Path) -> Iterator[Database]:
    database = Database(tmp_path / DATABASE, MIGRATIONS)
    yield database
    database.close()


@pytest.fixture
def runs(database: Database, tmp_path: Path) -> RunStore:
    spools, marks = Spools(tmp_path / SPOOLS), Marks(tmp_path / BEGUN)
    return RunStore(database, StateSeal(bytes(32)), spools, marks, boot="one")


@pytest.fixture
def history(database: Database) -> History:
    return History(database)


def ended_job(runs: RunStore, job_id: str, end: JobEnd, *, at: int, size: int = 0) -> None:
    execution_id = f"exec_{job_id}"
    runs.begin(job_id, b"the claim", now=at, begun=Begun("backup", {execution_id: "web-1"}))
    output = KeptOutput(b"o" * size, b"e" * size) if size else None
    runs.ended(job_id, execution_id, b"{}", output=output, now=at + 5)
    runs.reported(job_id, now=at + 5, end=end)


def test_a_job_is_told_of_while_it_runs_and_after_all_is_cleaned_up(
    runs: RunStore, history: History
) -> None:
    runs.begin("a", b"the claim", now=1, begun=Begun("backup", {"exec_a": "web-1"}))
    running = history.job("a")
    ended_job(runs, "a", BAD, at=1, size=3)
    runs.finish("a")
    ended = history.job("a")

    assert running is not None
    assert ended is not None
    assert (running.ended_at, running.end, running.servers) == (None, None, {"exec_a": "web-1"})
    assert (ended.event, ended.ended_at, ended.end) == ("backup", 6, BAD)
    (execution,) = history.executions("a")
    assert execution.output == KeptOutput(b"ooo", b"eee")


def test_recent_jobs_are_the_newest_and_failed_ones_those_that_did_not_succeed(
    runs: RunStore, history: History
) -> None:
    ended_job(runs, "a", BAD, at=1)
    ended_job(runs, "b", GOOD, at=2)
    ended_job(runs, "c", JobEnd("completed", 7, "PARTIAL SUCCESS"), at=3)
    runs.begin("d", b"the claim", now=4)

    assert [job.job_id for job in history.recent(3)] == ["d", "c", "b"]
    assert [job.job_id for job in history.recent(9, failed=True)] == ["c", "a"]


def test_a_job_that_could_not_be_run_is_told_of_with_its_fault(
    runs: RunStore, history: History
) -> None:
    runs.begin("a", b"the claim", now=1)

    runs.failed("a", "execution.target: names no server", now=9)

    job = history.job("a")
    assert job is not None
    assert job.end == JobEnd("failed", 1, "execution.target: names no server")
    assert runs.take_up() == []


def test_the_newest_output_is_kept_within_the_limit(runs: RunStore, history: History) -> None:
    for at in range(5):
        ended_job(runs, f"job_{at}", GOOD, at=at, size=50)

    history.sweep(limit_bytes=250)

    kept = [at for at in range(5) if history.executions(f"job_{at}")[0].output]
    assert kept == [3, 4]


def test_output_goes_with_its_job(database: Database, runs: RunStore, history: History) -> None:
    ended_job(runs, "a", GOOD, at=1, size=3)
    ended_job(runs, "b", GOOD, at=1, size=3)

    runs.drop("a")
    runs.sweep(now=6 + KEPT_MS)

    with database.transaction() as tx:
        assert tx.execute("SELECT count(*) FROM outputs").fetchone() == (0,)
    assert history.job("b") is None


def test_an_execution_that_ends_once_more_has_its_last_output(
    runs: RunStore, history: History
) -> None:
    ended_job(runs, "a", GOOD, at=1, size=3)

    runs.ended("a", "exec_a", b"{}", output=KeptOutput(b"new"), now=9)
    runs.ended("dropped", "exec_dropped", b"{}", output=KeptOutput(b"new"), now=9)

    (execution,) = history.executions("a")
    assert execution.output == KeptOutput(b"new")
    assert history.executions("dropped") == []
