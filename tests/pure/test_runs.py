"""Jobs in flight, as the state keeps them: what no history in `test_state_machine` comes by."""

import sqlite3
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

import pytest

from tests.due import first_due
from worker.database import Database
from worker.errors import SealedValueError, WorkerError
from worker.state.directory import BEGUN, DATABASE, MIGRATIONS, SPOOLS
from worker.state.host_keys import HostKeys, Pin
from worker.state.identity import worker_id
from worker.state.marks import Marks
from worker.state.outbox import Entry, Kind, Outbox
from worker.state.run_files import MARK
from worker.state.runner_cache import CachedRunner, RunnerCache, ServerKey
from worker.state.runs import KEPT_JOBS, KEPT_MS, JobState, KeptJob, RunStore
from worker.state.seal import StateSeal
from worker.state.spool import Spool, Spools, boot_id

PLAN = b"the plan, with a password"
SEAL = StateSeal(bytes(32))


@dataclass
class State:
    """One folder; `start` is a worker that starts on it, with the jobs that it takes up."""

    folder: Path
    database: Database

    def store(self, boot: str = "one", seal: StateSeal = SEAL) -> RunStore:
        spools, marks = Spools(self.folder / SPOOLS), Marks(self.folder / BEGUN)
        return RunStore(self.database, seal, spools, marks, boot=boot)

    def start(self, boot: str = "one") -> list[KeptJob]:
        return self.store(boot).take_up()

    def rows(self, query: str) -> list[tuple[object, ...]]:
        with self.database.transaction() as tx:
            return tx.execute(query).fetchall()

    def spools(self) -> list[str]:
        return sorted(path.name.partition(MARK)[2] for path in (self.folder / SPOOLS).glob("*"))


@pytest.fixture
def state(tmp_path: Path) -> Iterator[State]:
    database = Database(tmp_path / DATABASE, MIGRATIONS)
    yield State(tmp_path, database)
    database.close()


@pytest.fixture
def runs(state: State) -> RunStore:
    return state.store()


def spool_of(runs: RunStore, job_id: str) -> Spool:
    return runs.spool(job_id, f"exec_{job_id}", "stdout", limit=1000)


def printed(runs: RunStore, job_id: str, output: bytes) -> None:
    spool = spool_of(runs, job_id)
    spool.write(output)
    spool.close()


def in_flight(runs: RunStore, job_id: str, *, output: bytes = b"output", now: int = 0) -> None:
    """A job whose one run has printed `output`."""
    runs.begin(job_id, PLAN, now=now)
    printed(runs, job_id, output)


def reported(runs: RunStore, job_id: str, *, now: int = 0) -> None:
    in_flight(runs, job_id, now=now)
    runs.reported(job_id, now=now)


def ids(kept: list[KeptJob]) -> list[str]:
    return [job.job_id for job in kept]


# What a worker that starts takes up.


def test_the_oldest_jobs_come_first_and_finished_ones_not(state: State, runs: RunStore) -> None:
    in_flight(runs, "young", now=9)
    in_flight(runs, "b", now=5)
    reported(runs, "a", now=5)
    reported(runs, "over", now=1)
    runs.finish("over")

    kept = state.start()

    assert [(job.job_id, job.state, job.began_at) for job in kept] == [
        ("a", JobState.REPORTED, 5),
        ("b", JobState.RUNNING, 5),
        ("young", JobState.RUNNING, 9),
    ]


def test_each_job_has_its_own_results_and_the_newest_of_each_run(
    state: State, runs: RunStore
) -> None:
    for job_id in ("a", "b"):
        in_flight(runs, job_id)
        runs.ended(job_id, f"exec_{job_id}", b"old")
        runs.ended(job_id, f"exec_{job_id}", b"new of " + job_id.encode())

    assert [job.results for job in state.start()] == [
        {"exec_a": b"new of a"},
        {"exec_b": b"new of b"},
    ]


def test_an_end_that_comes_after_its_job_was_dropped_is_not_kept(
    state: State, runs: RunStore
) -> None:
    in_flight(runs, "a")
    runs.drop("a")

    runs.ended("a", "exec_a", b"{}")

    assert state.rows("SELECT * FROM executions") == []


def test_a_kept_job_shows_neither_its_plan_nor_its_results(state: State, runs: RunStore) -> None:
    in_flight(runs, "a")
    runs.ended("a", "exec_a", b"a secret")

    shown = repr(state.start())

    assert "job_id='a'" in shown
    assert "sealed_claim" not in shown
    assert "secret" not in shown


def test_a_plan_is_nowhere_in_the_clear(state: State, runs: RunStore) -> None:
    in_flight(runs, "a")

    (job,) = state.start()

    assert runs.open_claim(job) == PLAN
    for path in state.folder.iterdir():
        assert path.is_dir() or PLAN not in path.read_bytes()


def test_a_plan_opens_neither_with_another_key_nor_as_another_jobs(
    state: State, runs: RunStore
) -> None:
    in_flight(runs, "a")
    in_flight(runs, "b")
    with state.database.transaction() as tx:
        tx.execute("UPDATE jobs SET claim = (SELECT claim FROM jobs WHERE job_id = 'a')")

    a, b = state.start()

    assert runs.open_claim(a) == PLAN
    with pytest.raises(SealedValueError):
        runs.open_claim(b)
    with pytest.raises(SealedValueError):
        state.store(seal=StateSeal(bytes([1]) * 32)).open_claim(a)


def test_spools_that_somebody_removed_are_begun_anew(state: State, runs: RunStore) -> None:
    in_flight(runs, "a")
    runs._spools.remove_all_but([])

    assert ids(state.start()) == ["a"]

    (state.folder / SPOOLS).rmdir()
    assert ids(state.start()) == ["a"]
    assert (spool_of(runs, "a").exists, spool_of(runs, "a").received) == (False, 0)


# The machine goes down.


def test_spools_from_before_a_reboot_are_not_whole_and_gone(state: State, runs: RunStore) -> None:
    in_flight(runs, "a")
    reported(runs, "b")

    state.start(boot="two")

    assert state.spools() == []


def test_spools_from_after_a_reboot_are_whole(state: State, runs: RunStore) -> None:
    in_flight(runs, "a")
    state.start(boot="two")
    printed(runs, "a", b"anew")

    state.start(boot="two")

    assert spool_of(runs, "a").read(0, 9) == b"anew"


def test_a_reboot_is_noticed_however_often_the_worker_was_started_before(
    state: State, runs: RunStore
) -> None:
    in_flight(runs, "a")
    state.start()
    state.start()
    state.start(boot="two")
    printed(runs, "a", b"anew")

    state.start(boot="one")

    assert state.spools() == []


def test_a_result_that_lost_its_output_in_a_reboot_never_has_whole_spools_beside_it(
    state: State, runs: RunStore
) -> None:
    in_flight(runs, "a", output=b"output")
    runs.ended("a", "exec_a", b"{}")
    state.start(boot="two")

    (job,) = state.start(boot="two")  # killed before it was given the output once more

    assert spool_of(runs, "a").received == 0
    assert job.results == {}


def test_a_result_that_never_had_output_outlives_a_reboot(state: State, runs: RunStore) -> None:
    in_flight(runs, "a")
    runs.ended("a", "exec_a", b"{}", has_run=False)

    (job,) = state.start(boot="two")

    assert job.results == {"exec_a": b"{}"}


def test_the_results_of_a_reported_job_outlive_a_reboot(state: State, runs: RunStore) -> None:
    in_flight(runs, "a")
    runs.ended("a", "exec_a", b"{}")
    runs.reported("a", now=1)

    (job,) = state.start(boot="two")

    assert job.results == {"exec_a": b"{}"}


def test_a_boot_has_one_name() -> None:
    assert boot_id() == boot_id() != ""


def test_a_system_that_does_not_name_its_boots_has_empty_names(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def read_text(path: Path) -> str:
        raise FileNotFoundError(path)

    monkeypatch.setattr(Path, "read_text", read_text)

    assert boot_id() == ""


# Writes that are cut off: files are not part of a transaction.


class CutOffError(Exception):
    pass


@pytest.mark.parametrize(
    "write",
    [lambda runs: runs.begin("a", PLAN, now=1), lambda runs: runs.drop("a")],
    ids=["begin", "drop"],
)
def test_a_write_that_is_not_committed_costs_no_result_its_output(
    state: State, runs: RunStore, write: Callable[[RunStore], None]
) -> None:
    in_flight(runs, "a", output=b"output")
    runs.ended("a", "exec_a", b"{}")

    with suppress(CutOffError), state.database.transaction():
        write(runs)
        raise CutOffError  # a full disk, and then SIGKILL

    (job,) = state.start()
    assert job.results == {"exec_a": b"{}"}
    assert spool_of(runs, "a").received == len(b"output")


def test_a_job_is_not_finished_while_it_runs_anew(state: State, runs: RunStore) -> None:
    reported(runs, "a")
    in_flight(runs, "a", output=b"anew", now=1)

    runs.finish("a")  # of the earlier claim, late

    (job,) = state.start()
    assert job.state is JobState.RUNNING
    assert spool_of(runs, "a").received == len(b"anew")


# Names from outside.


@pytest.mark.parametrize("job_id", ["", ".", "..", "../beside", "a/../b", "{folder}/beside"])
def test_no_name_of_a_job_leads_out_of_its_spools(
    state: State, runs: RunStore, job_id: str
) -> None:
    in_flight(runs, "a")
    in_flight(runs, "b")
    beside = state.folder / "beside"
    beside.mkdir()

    with suppress(ValueError, WorkerError):
        runs.drop(job_id.format(folder=state.folder))  # as the release of an orphan ends

    assert beside.exists()
    assert (state.folder / DATABASE).exists()
    assert state.spools() == ["a", "b"]


# The janitor.


def test_a_job_is_known_for_seven_days_after_its_end(state: State, runs: RunStore) -> None:
    for job_id, now in (("a", 1), ("b", 2)):
        reported(runs, job_id, now=now)
        runs.ended(job_id, f"exec_{job_id}", b"{}")
    in_flight(runs, "running", now=0)

    runs.sweep(now=1 + KEPT_MS)

    assert ids(state.start()) == ["running", "b"]
    assert state.rows("SELECT execution_id FROM executions") == [("exec_b",)]
    assert state.spools() == ["b", "running"]


@pytest.mark.parametrize(("is_parked", "left"), [(False, ["a"]), (True, [])])
def test_a_job_whose_end_is_still_to_be_told_stays_until_it_is_told_or_given_up(
    state: State, runs: RunStore, is_parked: bool, left: list[str]
) -> None:
    reported(runs, "a")
    outbox = Outbox(state.database)
    outbox.put([Entry("a", Kind.COMPLETE, "a", b"{}")], now=0)
    if is_parked:
        outbox.park(first_due(outbox, limit=1, now=0)[0].id, "refused")

    runs.sweep(now=10 * KEPT_MS)

    assert ids(state.start()) == left


def test_the_newest_ten_thousand_finished_jobs_are_known(state: State, runs: RunStore) -> None:
    with state.database.transaction() as tx:
        tx.executemany(
            "INSERT INTO jobs (job_id, state, boot, began_at, ended_at) "
            "VALUES (?, 'finished', 'one', 0, ?)",
            [(f"job_{number}", number) for number in reversed(range(KEPT_JOBS + 5))],
        )
    reported(runs, "reported", now=0)
    in_flight(runs, "running")

    runs.sweep(now=KEPT_MS - 1)

    assert KEPT_JOBS == 10_000
    assert state.rows("SELECT count(*), min(ended_at) FROM jobs WHERE state = 'finished'") == [
        (KEPT_JOBS, 5)
    ]
    assert sorted(ids(state.start())) == ["reported", "running"]


# A state of the version before there was anything of jobs in it.


def test_a_state_of_version_1_is_taken_on_with_all_that_it_has(tmp_path: Path) -> None:
    first = tmp_path / "migrations"
    first.mkdir()
    (first / "0001_initial.sql").write_text((MIGRATIONS / "0001_initial.sql").read_text())
    old = Database(tmp_path / DATABASE, first)
    name = worker_id(old, None)
    with old.transaction() as tx:
        tx.execute("INSERT INTO host_keys VALUES ('web', 22, 'ssh-ed25519 AAAA', 1, 'a')")
    runner, server = CachedRunner("v", "f00", "/x", "SHA256:k", 1), ServerKey("1", "web", 22, "me")
    RunnerCache(old).put(server, runner)
    entry, parked = Entry("a", Kind.COMPLETE, "a", b"{}"), Entry("b", Kind.UPDATE, "e", b"{}")
    Outbox(old).put([entry, parked], now=1)
    Outbox(old).park(2, "refused")
    old.close()
    assert tables(tmp_path / DATABASE) >= {"outbox"}
    assert "jobs" not in tables(tmp_path / DATABASE)

    new = State(tmp_path, Database(tmp_path / DATABASE, MIGRATIONS))

    assert worker_id(new.database, None) == name
    assert HostKeys(new.database).all() == (Pin("web", 22, "ssh-ed25519 AAAA", 1, "a"),)
    assert RunnerCache(new.database).use(server, "f00") == runner
    outbox = Outbox(new.database)
    assert [queued.entry for queued in first_due(outbox, limit=9, now=1)] == [entry]
    assert outbox.parked() == [("b", "e", "refused")]
    assert new.start() == []
    in_flight(new.store(), "c")
    assert ids(new.start()) == ["c"]
    new.database.close()


def tables(path: Path) -> set[str]:
    connection = sqlite3.connect(path)
    found = {name for (name,) in connection.execute("SELECT name FROM sqlite_schema")}
    connection.close()
    return found
