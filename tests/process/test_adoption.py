"""A worker that is started anew takes up what the killed one left."""

import json
import os
import shutil
import signal
import sqlite3
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path

import pytest

from tests.faults.api_proxy import ApiProxy
from tests.faults.background import open_background
from tests.live_files import files_of_runs
from tests.process.worker_process import Site, WorkerProcess, open_site, wait_for
from worker.clock import now_ms
from worker.demo.sshd import LocalServer, Sshd

Fleet = Callable[[int], tuple[LocalServer, ...]]


@pytest.fixture
def site(tmp_path: Path) -> Iterator[Site]:
    with open_site(tmp_path) as site:
        yield site


def kill(worker: WorkerProcess) -> None:
    worker.process.kill()
    worker.wait()


def drained(worker: WorkerProcess) -> int:
    worker.process.terminate()
    return worker.wait()


def logged(*workers: WorkerProcess) -> str:
    return "\n".join(line["text"] for worker in workers for line in worker.events("script_output"))


def kept_states(site: Site, state: str = "state") -> list[tuple[str, str, bool]]:
    """Id, state and whether there is a plan, of every job in the state file."""
    connection = sqlite3.connect(site.folder / state / "state.db")
    try:
        return connection.execute(
            "SELECT job_id, state, claim IS NOT NULL FROM jobs ORDER BY began_at"
        ).fetchall()
    finally:
        connection.close()


def results_in(site: Site) -> list[str]:
    connection = sqlite3.connect(site.folder / "state" / "state.db")
    try:
        return [row[0] for row in connection.execute("SELECT execution_id FROM executions")]
    finally:
        connection.close()


def kept_of_runs(site: Site) -> list[Path]:
    return files_of_runs(site.folder / "state")


def runs_on(sshd: Sshd) -> list[str]:
    return sorted(path.name for path in (sshd.server.home / ".cache/cronium/runs").glob("*"))


def test_what_was_received_is_neither_fetched_nor_logged_twice(
    site: Site, sshd: Sshd, tmp_path: Path
) -> None:
    starts, go = tmp_path / "starts", tmp_path / "go"
    site.start_queue()
    name = site.add(sshd.server)
    first = site.start_worker()
    job_id = site.submit(
        f"echo x >>{starts}; seq 1000; printf 'half a '; echo warned >&2; "
        f"until [ -e {go} ]; do sleep 0.05; done; echo line; seq 1001 2000",
        name,
    )
    wait_for(lambda: b"warned" in first.log_file.read_bytes(), "the first half")
    wait_for(
        lambda: any(b"half a " in path.read_bytes() for path in kept_of_runs(site)), "its rest"
    )
    kill(first)

    second = site.start_worker()
    second.wait_for_event("execution_started")
    go.touch()
    report = site.finished(job_id)
    assert drained(second) == 0

    numbers = [*map(str, range(1, 1001)), "half a line", *map(str, range(1001, 2001))]
    stdout = "\n".join(numbers) + "\n"
    assert report.executions[0].output == f"{stdout}\n--- STDERR ---\nwarned\n"
    printed = [line for line in logged(first, second).split("\n") if line != "warned"]
    assert printed == numbers
    assert logged(second).split("\n")[0] == "half a line"
    assert starts.read_text() == "x\n"
    assert report.job.attempts == 0  # it was never given back
    assert kept_states(site) == [(job_id, "finished", False)]
    assert (kept_of_runs(site), runs_on(sshd)) == ([], [])


def test_a_run_that_was_silent_is_not_started_again_where_the_server_knows_nothing_of_it(
    site: Site, sshd: Sshd, tmp_path: Path
) -> None:
    starts, go = tmp_path / "starts", tmp_path / "go"
    site.start_queue()
    name = site.add(sshd.server)
    first = site.start_worker()
    job_id = site.submit(f"echo x >>{starts}; until [ -e {go} ]; do sleep 0.1; done", name)
    wait_for(lambda: starts.exists() and kept_of_runs(site), "the mark that it has begun")
    kill(first)
    # As where the server was set up anew.
    go.touch()
    for pid in sshd.processes():
        with suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL)
    wait_for(lambda: not sshd.processes(), "the end of all that ran there")
    shutil.rmtree(sshd.server.home / ".cache/cronium")

    site.start_worker()
    report = site.finished(job_id)

    assert (report.job.status, starts.read_text()) == ("failed", "x\n")
    wait_for(lambda: not kept_of_runs(site), "the mark to be removed")


def test_of_many_servers_only_those_that_had_not_ended_are_gone_on_with(
    site: Site, fleet: Fleet, tmp_path: Path
) -> None:
    starts, go = tmp_path / "starts", tmp_path / "go"
    site.start_queue()
    names = [site.add(server) for server in fleet(3)]
    first = site.start_worker()
    job_id = site.submit(
        f'echo "$CRONIUM_SERVER_NAME" >>{starts}; echo begun; '
        f'[ "$CRONIUM_SERVER_NAME" != {names[0]} ] || until [ -e {go} ]; do sleep 0.05; done; '
        "echo ended",
        *names,
    )
    wait_for(lambda: first.events("job_started") and len(results_in(site)) == 2, "two ends")
    wait_for(starts.exists, "the third's start")
    kill(first)
    go.touch()

    second = site.start_worker()
    report = site.finished(job_id)
    assert drained(second) == 0

    assert report.job.result is not None
    entries = report.job.result["metrics"]["servers"]
    assert [(each["name"], each["outcome"]) for each in entries] == [
        (name, "success") for name in names
    ]
    assert [each.output for each in report.executions] == ["begun\nended\n"] * 3
    assert sorted(report.stdout.split("\n")[:-2]) == sorted(
        f"[{name}] {word}" for name in names for word in ("begun", "ended")
    )
    ended_later = {line["server"] for line in second.events("execution_ended")}
    assert ended_later == {names[0]}
    assert sorted(starts.read_text().split()) == sorted(names)


def test_the_runs_of_a_job_whose_end_was_told_are_forgotten_by_the_next(
    site: Site, sshd: Sshd, tmp_path: Path
) -> None:
    site.start_queue()
    name = site.add(sshd.server)
    first = site.start_worker(CLEANUP_TIMEOUT="1s")
    go = tmp_path / "go"
    job_id = site.submit(f"until [ -e {go} ]; do sleep 0.05; done; echo hello", name)
    first.wait_for_event("execution_started")
    site.stop_queue()
    go.touch()
    first.wait_for_event("job_ended")
    kill(first)
    left = (runs_on(sshd), kept_states(site))

    site.start_queue()
    second = site.start_worker()
    site.finished(job_id)
    wait_for(lambda: kept_states(site) == [(job_id, "finished", False)], "the job's last state")

    assert left == ([f"exec_{job_id}_1_0"], [(job_id, "reported", True)])
    assert runs_on(sshd) == []
    assert second.events("execution_ended") == []  # it was not run, nor followed, once more


def test_the_runs_are_forgotten_however_late_the_api_hears_of_their_end(
    site: Site, sshd: Sshd, tmp_path: Path
) -> None:
    site.start_queue()
    name = site.add(sshd.server)
    worker = site.start_worker(SSH_IDLE_TIMEOUT="1s")
    go = tmp_path / "go"
    job_id = site.submit(f"until [ -e {go} ]; do sleep 0.05; done; echo hello", name)
    worker.wait_for_event("execution_started")
    site.stop_queue()
    go.touch()
    worker.wait_for_event("job_ended")
    wait_for(lambda: not sessions_of(sshd), "the idle connection's end")

    site.start_queue()
    site.finished(job_id)

    wait_for(lambda: runs_on(sshd) == [], "the run to be forgotten")
    wait_for(lambda: kept_states(site) == [(job_id, "finished", False)], "the job's last state")


def sessions_of(sshd: Sshd) -> bool:
    children = Path(f"/proc/{sshd.pid}/task/{sshd.pid}/children").read_text().split()
    return bool(children)


def test_a_job_cancelled_while_its_worker_was_down_is_ended_with_its_output(
    site: Site, sshd: Sshd, tmp_path: Path
) -> None:
    mark = tmp_path / "started"
    site.start_queue()
    name = site.add(sshd.server)
    first = site.start_worker()
    job_id = site.submit(f"echo begun; touch {mark}; sleep 600", name)
    wait_for(mark.exists, "the script's start")
    kill(first)
    site.store.cancel(job_id, now_ms())

    second = site.start_worker()
    report = site.finished(job_id)
    assert drained(second) == 0

    assert (report.job.status, report.executions[0].output) == ("cancelled", "begun\n")
    wait_for(lambda: not sshd.processes(), "the end of the run's processes")
    assert kept_states(site) == [(job_id, "finished", False)]


def test_a_job_cancelled_before_its_start_while_its_worker_was_down_never_starts(
    site: Site, sshd: Sshd, tmp_path: Path
) -> None:
    mark = tmp_path / "started"
    site.start_queue()
    name = site.add(sshd.server)
    sshd.stop()
    first = site.start_worker(LOGGING_LEVEL="debug")
    os.kill(first.pid, signal.SIGSTOP)
    job_id = site.submit(f"touch {mark}", name)
    os.kill(first.pid, signal.SIGCONT)
    wait_for(lambda: (site.folder / "state" / "state.db").exists(), "the state")
    first.wait_for_event("job_started")
    kill(first)
    site.store.cancel(job_id, now_ms())
    sshd.start()

    second = site.start_worker()
    report = site.finished(job_id)
    assert drained(second) == 0

    assert report.job.status == "cancelled"
    assert not mark.exists()


def test_a_job_that_is_anothers_by_now_is_dropped_and_its_run_left_alone(
    site: Site, sshd: Sshd, tmp_path: Path
) -> None:
    starts, go = tmp_path / "starts", tmp_path / "go"
    site.start_queue()
    name = site.add(sshd.server)
    first = site.start_worker()
    job_id = site.submit(
        f"echo x >>{starts}; echo before; until [ -e {go} ]; do sleep 0.05; done; echo after", name
    )
    wait_for(starts.exists, "the script's start")
    kill(first)
    with site.store.database.transaction() as tx:  # as when a lease has run out
        tx.execute(
            "UPDATE jobs SET status = 'queued', orchestrator_id = NULL WHERE id = ?", (job_id,)
        )
    other = site.start_worker(state="another")
    other.wait_for_event("execution_started")

    again = site.start_worker()
    again.wait_for_event("job_disowned")
    wait_for(lambda: kept_states(site) == [], "the state to forget the job")
    go.touch()
    report = site.finished(job_id)

    assert (report.job.status, report.executions[0].output) == ("completed", "before\nafter\n")
    assert starts.read_text() == "x\n"
    wait_for(lambda: kept_of_runs(site) == [], "all of it to be removed")
    assert again.events("execution_started") == []


def test_a_plan_that_cannot_be_unsealed_goes_back_to_the_queue(
    site: Site, sshd: Sshd, tmp_path: Path
) -> None:
    starts, go = tmp_path / "starts", tmp_path / "go"
    site.start_queue()
    name = site.add(sshd.server)
    first = site.start_worker(STATE_KEY="ab" * 32)
    job_id = site.submit(
        f"echo x >>{starts}; echo before; until [ -e {go} ]; do sleep 0.05; done; echo after", name
    )
    wait_for(starts.exists, "the script's start")
    kill(first)
    go.touch()

    second = site.start_worker(STATE_KEY="cd" * 32)
    report = site.finished(job_id)
    assert drained(second) == 0

    assert second.events("kept_plan_unreadable")
    assert report.executions[0].output == "before\nafter\n"
    assert starts.read_text() == "x\n"
    assert not (site.folder / "state" / "seal.key").exists()


def test_nothing_of_a_plan_lies_open_in_the_state(site: Site, sshd: Sshd, tmp_path: Path) -> None:
    mark = tmp_path / "started"
    site.start_queue()
    name = site.add(sshd.server)
    worker = site.start_worker()
    site.submit(f"touch {mark}; : not-to-be-read; sleep 600", name)
    wait_for(mark.exists, "the script's start")

    files = [path for path in (site.folder / "state").rglob("*") if path.is_file()]
    held = {path.name: path.read_bytes() for path in files}
    key = (site.folder / "state" / "seal.key").stat()
    kill(worker)

    assert {"state.db", "seal.key"} <= held.keys()
    for content in held.values():
        assert b"not-to-be-read" not in content
        assert b"PRIVATE KEY" not in content
        assert sshd.server.private_key.split("\n")[1].encode() not in content
    assert (key.st_mode & 0o777, key.st_size) == (0o600, 32)


def test_a_hand_over_that_was_not_heard_of_is_taken_up_with_what_was_received(
    site: Site, sshd: Sshd, tmp_path: Path
) -> None:
    starts, go = tmp_path / "starts", tmp_path / "go"
    site.start_queue()
    name = site.add(sshd.server)
    first = site.start_worker(DRAIN_TIMEOUT="0")
    job_id = site.submit(
        f"echo x >>{starts}; echo before; until [ -e {go} ]; do sleep 0.05; done; echo after", name
    )
    wait_for(lambda: "before" in logged(first), "its output")
    site.stop_queue()
    assert drained(first) == 75

    site.start_queue()
    second = site.start_worker()
    second.wait_for_event("job_taken_up")
    go.touch()
    report = site.finished(job_id)

    assert report.executions[0].output == "before\nafter\n"
    assert logged(second) == "after"
    assert starts.read_text() == "x\n"
    assert report.job.attempts == 0


def test_a_job_cancelled_while_its_hand_over_was_on_its_way_is_ended_by_the_next(
    site: Site, sshd: Sshd, tmp_path: Path
) -> None:
    mark = tmp_path / "started"
    site.start_queue()
    name = site.add(sshd.server)
    first = site.start_worker(DRAIN_TIMEOUT="0")
    job_id = site.submit(f"echo begun; touch {mark}; sleep 600", name)
    wait_for(mark.exists, "the script's start")
    first.wait_for_event("execution_started")
    site.stop_queue()
    first.process.terminate()
    first.wait_for_event("job_handed_over")
    site.store.cancel(job_id, now_ms())
    site.start_queue()
    code = first.wait()

    second = site.start_worker()
    report = site.finished(job_id)
    assert drained(second) == 0

    assert code == 75
    assert (report.job.status, report.executions[0].output) == ("cancelled", "begun\n")
    wait_for(lambda: not sshd.processes(), "the end of the run's processes")


# By the app, whose claims have no tokens, a worker has the job read to it first.
@pytest.mark.parametrize("learns_by", ["status", "acknowledge"])
def test_the_runs_of_a_lost_worker_are_ended_when_their_job_is_claimed_and_found_cancelled(
    site: Site, sshd: Sshd, tmp_path: Path, learns_by: str
) -> None:
    mark = tmp_path / "started"
    site.start_queue(lease="1s")
    name = site.add(sshd.server)
    first = site.start_worker(state="lost")
    job_id = site.submit(f"echo begun; touch {mark}; sleep 600", name)
    wait_for(mark.exists, "the script's start")
    kill(first)

    with open_background() as background:
        api = ApiProxy(background, site.port)
        api.hides_tokens = learns_by == "acknowledge"
        learning = api.hold(learns_by)
        # Nothing is to be kept there for a next job.
        site.start_worker(API_ENDPOINT=f"http://127.0.0.1:{api.port}", SSH_IDLE_TIMEOUT="0s")
        learning.wait_reached()
        site.store.cancel(job_id, now_ms())
        learning.release()
        report = site.finished(job_id)
        wait_for(lambda: not sshd.processes(), "the end of the run's processes")

    assert (report.job.status, report.executions[0].output) == ("cancelled", "begun\n")


def test_a_job_that_was_claimed_anew_for_this_worker_is_gone_on_with(
    site: Site, sshd: Sshd, tmp_path: Path
) -> None:
    starts, go = tmp_path / "starts", tmp_path / "go"
    site.start_queue()
    name = site.add(sshd.server)
    first = site.start_worker()
    wait = f"until [ -e {go} ]; do sleep 0.05; done"
    job_id = site.submit(f"echo x >>{starts}; echo begun; {wait}; echo out", name)
    wait_for(starts.exists, "the script's start")
    kill(first)
    # As where its lease ran out, and the answer to its next poll was lost.
    with site.store.database.transaction() as tx:
        tx.execute("UPDATE jobs SET claim_token = 'later' WHERE id = ?", (job_id,))

    second = site.start_worker()
    second.wait_for_event("job_taken_up")
    go.touch()
    report = site.finished(job_id)

    assert report.executions[0].output == "begun\nout\n"
    assert starts.read_text() == "x\n"
    assert second.events("job_disowned") == []


def test_a_job_that_was_handed_over_leaves_nothing_behind(
    site: Site, sshd: Sshd, tmp_path: Path
) -> None:
    starts = tmp_path / "starts"
    site.start_queue()
    name = site.add(sshd.server)
    worker = site.start_worker(DRAIN_TIMEOUT="0")
    site.submit(f"echo x >>{starts}; echo before; sleep 600", name)
    wait_for(lambda: "before" in logged(worker), "its output")

    assert drained(worker) == 0

    assert (kept_states(site), kept_of_runs(site)) == ([], [])
    assert json.loads(site.command("orphans", "--json").stdout) == []
