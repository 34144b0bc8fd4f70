"""The worker as a process: its start, its signals, and what it survives."""

import json
import os
import re
import signal
import sqlite3
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.forked import run_forked
from tests.process.worker_process import COMMAND, Site, WorkerProcess, open_site, wait_for
from worker.demo.sshd import Sshd


@pytest.fixture
def site(tmp_path: Path) -> Iterator[Site]:
    with open_site(tmp_path) as site:
        yield site


def test_all_faults_of_the_configuration_are_told_at_once_and_it_exits_2(tmp_path: Path) -> None:
    environ = {
        "PATH": os.environ["PATH"],
        "CRONIUM_API_ENDPOINT": "cronium.example.com",
        "CRONIUM_SETUP_TIMEOUT": "soon",
        "CRONIUM_JOBS_MAX_CONCURRENT": "0",
        "CRONIUM_ENCRYPTION_KEY": "not-a-key",
    }

    done = run_forked(["run"], environ)

    assert done.returncode == 2
    assert done.stdout == ""
    told = dict(line.split(": ")[1:3] for line in done.stderr.splitlines())
    assert set(told) == {
        "CRONIUM_API_ENDPOINT",
        "CRONIUM_API_TOKEN",
        "CRONIUM_SETUP_TIMEOUT",
        "CRONIUM_JOBS_MAX_CONCURRENT",
        "CRONIUM_ENCRYPTION_KEY",
    }
    assert "not-a-key" not in done.stderr


@pytest.mark.parametrize(
    ("name", "content", "said"),
    [
        ("state.db", 4000 * b"none", "state.db: file is not a database"),
        ("seal.key", b"none", "seal.key"),
        ("spool", b"", "Not a directory"),
    ],
)
def test_a_state_that_cannot_be_used_stops_the_start_and_says_why(
    name: str, content: bytes, said: str, site: Site
) -> None:
    state = Path(site.environment("state", {})["CRONIUM_STATE_DIR"])
    state.mkdir(parents=True)
    (state / name).write_bytes(content)

    done = run_forked(["run"], site.environment("state", {}))

    assert done.returncode == 2
    assert said in done.stderr


def test_nobody_else_reads_a_state_whose_directory_others_may_enter(site: Site) -> None:
    site.start_queue()
    state = Path(site.environment("state", {})["CRONIUM_STATE_DIR"])
    state.mkdir(mode=0o755, parents=True)
    site.start_worker().wait_for_event("worker_started")

    modes = {path.name: path.stat().st_mode & 0o077 for path in state.glob("state.db*")}
    assert modes.keys() >= {"state.db", "state.db-wal"}
    assert set(modes.values()) == {0}


def test_a_second_worker_on_a_state_directory_exits_75_and_names_the_first(site: Site) -> None:
    site.start_queue()
    first = site.start_worker()
    first.wait_for_event("worker_started")

    second = run_forked(["run"], site.environment("state", {}))

    assert second.returncode == 75
    assert f"pid {first.pid}" in second.stderr


def test_an_idle_worker_listens_nowhere_and_drains_at_once(site: Site) -> None:
    site.start_queue()
    worker = site.start_worker(LOGGING_LEVEL="debug")
    worker.wait_for_event("worker_started")

    listening = _listening_sockets(worker.pid)
    worker.process.terminate()

    assert worker.wait() == 0
    assert listening == set()
    assert [line["event"] for line in worker.log()][-2:] == ["draining", "worker_stopped"]


def test_it_takes_as_many_files_as_it_may(site: Site) -> None:
    site.start_queue()
    worker = site.start_worker()
    worker.wait_for_event("worker_started")

    limits = Path(f"/proc/{worker.pid}/limits").read_text()
    worker.process.terminate()
    worker.wait()

    soft, hard = re.search(r"Max open files\s+(\w+)\s+(\w+)", limits).groups()  # type: ignore[union-attr]  # always there
    assert int(soft) >= min(65536, 2**20 if hard == "unlimited" else int(hard))


def test_it_has_no_more_connections_than_it_may_have_files_for(site: Site) -> None:
    log_file = site.folder / "worker.log"
    with log_file.open("wb") as log:
        process = subprocess.Popen(
            ["sh", "-c", 'ulimit -n 500; exec "$@"', "-", *COMMAND, "run"],
            env=site.environment("state", {"SSH_MAX_CONNECTIONS": "200"}),
            stdout=log,
        )
    worker = WorkerProcess(process, log_file)
    try:
        worker.wait_for_event("worker_started")
        (told,) = worker.events("file_limit_low")
    finally:
        process.terminate()
        worker.wait()

    assert told["level"] == "warning"
    assert (told["files"], told["connections"], told["wanted_connections"]) == (500, 100, 200)


def test_sigterm_lets_a_running_job_finish(site: Site, sshd: Sshd, tmp_path: Path) -> None:
    mark = tmp_path / "started"
    site.forks = False
    site.start_queue()
    name = site.add(sshd.server)
    worker = site.start_worker()
    job_id = site.submit(f"touch {mark}; sleep 1; echo done", name)
    wait_for(mark.exists, "the script's start")

    worker.process.terminate()

    assert worker.wait() == 0
    report = site.finished(job_id)
    assert (report.job.status, report.executions[0].output) == ("completed", "done\n")


def test_a_second_signal_cancels_what_runs(site: Site, sshd: Sshd, tmp_path: Path) -> None:
    mark = tmp_path / "started"
    site.start_queue()
    name = site.add(sshd.server)
    worker = site.start_worker()
    job_id = site.submit(f"echo begun; touch {mark}; sleep 600", name)
    wait_for(mark.exists, "the script's start")

    worker.process.send_signal(signal.SIGINT)
    worker.wait_for_event("draining")
    worker.process.send_signal(signal.SIGINT)

    assert worker.wait() == 0
    report = site.finished(job_id)
    assert (report.job.status, report.executions[0].output) == ("cancelled", "begun\n")
    wait_for(lambda: not sshd.processes(), "the end of the run's processes")


def test_the_drain_can_end_what_runs_too_long(site: Site, sshd: Sshd, tmp_path: Path) -> None:
    mark = tmp_path / "started"
    site.start_queue()
    name = site.add(sshd.server)
    worker = site.start_worker(DRAIN_TIMEOUT="0", DRAIN_POLICY="cancel")
    job_id = site.submit(f"echo begun; touch {mark}; sleep 600", name)
    wait_for(mark.exists, "the script's start")

    worker.process.terminate()

    assert worker.wait() == 0
    report = site.finished(job_id)
    assert (report.job.status, report.executions[0].output) == ("cancelled", "begun\n")
    wait_for(lambda: not sshd.processes(), "the end of the run's processes")


def test_a_hand_over_that_the_api_did_not_hear_of_exits_75_and_is_made_up_for(
    site: Site, sshd: Sshd, tmp_path: Path
) -> None:
    starts, go = tmp_path / "starts", tmp_path / "go"
    site.start_queue()
    name = site.add(sshd.server)
    first = site.start_worker(DRAIN_TIMEOUT="0")
    job_id = site.submit(
        f"echo x >>{starts}; until [ -e {go} ]; do sleep 0.05; done; echo done", name
    )
    wait_for(starts.exists, "the script's start")

    site.stop_queue()
    first.process.terminate()
    code = first.wait()
    go.touch()
    site.start_queue()
    site.start_worker()

    assert code == 75
    assert site.finished(job_id).executions[0].output == "done\n"
    assert starts.read_text() == "x\n"


def test_a_third_signal_ends_it_at_once(site: Site, sshd: Sshd, tmp_path: Path) -> None:
    mark = tmp_path / "started"
    site.start_queue()
    name = site.add(sshd.server)
    worker = site.start_worker()
    site.submit(f"trap '' TERM; touch {mark}; sleep 20", name)
    wait_for(mark.exists, "the script's start")

    for event in ("draining", "cancelling_jobs", None):
        worker.process.terminate()
        if event:
            worker.wait_for_event(event)

    assert worker.wait() == 1


def test_a_restarted_worker_keeps_its_id_and_its_runner_cache(site: Site, sshd: Sshd) -> None:
    site.start_queue()
    name = site.add(sshd.server)
    first = site.start_worker()
    site.finished(site.submit("true", name))
    first.process.terminate()
    first.wait()

    second = site.start_worker()
    site.finished(site.submit("true", name))
    second.process.terminate()
    second.wait()

    sources = [worker.events("execution_ended")[0]["runner"] for worker in (first, second)]
    ids = {line["worker_id"] for worker in (first, second) for line in worker.log()}
    assert sources == ["deployed", "cached"]
    assert len(ids) == 1


def test_a_worker_killed_while_a_script_runs_costs_neither_run_nor_output(
    site: Site, sshd: Sshd, tmp_path: Path
) -> None:
    starts, go = tmp_path / "starts", tmp_path / "go"
    site.start_queue()  # whose lease is longer than this test waits
    name = site.add(sshd.server)
    first = site.start_worker()
    job_id = site.submit(
        f"echo x >>{starts}; echo before; until [ -e {go} ]; do sleep 0.05; done; echo after", name
    )
    wait_for(starts.exists, "the script's start")

    first.process.kill()
    first.wait()
    go.touch()
    site.start_worker()

    report = site.finished(job_id)
    assert report.executions[0].output == "before\nafter\n"
    assert starts.read_text() == "x\n"


def test_another_worker_takes_over_from_one_that_is_gone_for_good(
    site: Site, sshd: Sshd, tmp_path: Path
) -> None:
    starts, go = tmp_path / "starts", tmp_path / "go"
    site.start_queue(lease="1s")
    name = site.add(sshd.server)
    first = site.start_worker()
    job_id = site.submit(
        f"echo x >>{starts}; echo before; until [ -e {go} ]; do sleep 0.05; done; echo after", name
    )
    wait_for(starts.exists, "the script's start")

    first.process.kill()
    first.wait()
    go.touch()
    site.start_worker(state="another-state")

    report = site.finished(job_id)
    assert report.executions[0].output == "before\nafter\n"
    assert starts.read_text() == "x\n"


def test_the_jobs_of_a_worker_whose_state_is_lost_are_freed_by_its_id(
    site: Site, sshd: Sshd, tmp_path: Path
) -> None:
    starts, go = tmp_path / "starts", tmp_path / "go"
    site.start_queue()
    name = site.add(sshd.server)
    first = site.start_worker(state="lost")
    job_id = site.submit(f"echo x >>{starts}; until [ -e {go} ]; do sleep 0.05; done", name)
    wait_for(starts.exists, "the script's start")
    lost_id = first.log()[0]["worker_id"]
    first.process.kill()
    first.wait()

    listed = site.command("orphans", "--of", lost_id, "--json")
    freed = site.command("orphans", "--of", lost_id, "--release")
    none = site.command("orphans", "--of", lost_id, "--json")
    go.touch()
    site.start_worker(state="new")

    assert json.loads(listed.stdout) == [job_id]
    assert (freed.returncode, freed.stdout) == (0, f"{job_id}\n")
    assert json.loads(none.stdout) == []
    assert site.finished(job_id).job.status == "completed"
    assert starts.read_text() == "x\n"


def test_a_job_whose_result_is_still_to_be_told_is_no_orphan(
    site: Site, sshd: Sshd, tmp_path: Path
) -> None:
    mark, go = tmp_path / "started", tmp_path / "go"
    site.start_queue()
    name = site.add(sshd.server)
    worker = site.start_worker(CLEANUP_TIMEOUT="1s")
    job_id = site.submit(f"touch {mark}; until [ -e {go} ]; do sleep 0.05; done", name)
    wait_for(mark.exists, "the script's start")
    site.stop_queue()
    go.touch()
    worker.wait_for_event("job_ended")
    worker.process.kill()
    worker.wait()
    site.start_queue()

    done = site.command("orphans", "--release", "--json")

    assert json.loads(done.stdout) == []
    assert site.status(job_id) == "running"


def test_orphans_of_a_running_worker_are_its_own_to_free(site: Site) -> None:
    site.start_queue()
    worker = site.start_worker()
    worker.wait_for_event("worker_started")

    done = site.command("orphans")

    assert done.returncode == 75
    assert f"pid {worker.pid}" in done.stderr


def test_orphans_without_a_state_makes_none(site: Site) -> None:
    done = site.command("orphans")

    assert done.returncode == 2
    assert "there is no state.db" in done.stderr
    assert "--of" in done.stderr
    assert not (site.folder / "state").exists()


def test_a_command_that_needs_the_api_exits_69_without_it(site: Site) -> None:
    done = site.command("orphans", "--of", "somebody")

    assert done.returncode == 69
    assert "cannot be reached" in done.stderr


def test_an_api_that_is_not_there_yet_is_waited_for(site: Site, sshd: Sshd) -> None:
    name = site.add(sshd.server)
    worker = site.start_worker()
    worker.wait_for_event("queue_unavailable")

    job_id = site.submit("echo hello", name)
    site.start_queue()

    assert site.finished(job_id).executions[0].output == "hello\n"
    assert worker.events("queue_answers_again")


def test_an_api_that_refuses_the_token_once_it_is_there_is_told_of(site: Site) -> None:
    worker = site.start_worker(API_TOKEN="an-old-token-7c1d")
    worker.wait_for_event("queue_unavailable")

    site.start_queue()

    def told() -> bool:
        return any("401" in event["error"] for event in worker.events("queue_unavailable"))

    wait_for(told, "the refusal in the worker's log")


def test_a_result_survives_an_outage_of_the_api_and_the_workers_end(
    site: Site, sshd: Sshd, tmp_path: Path
) -> None:
    mark, go = tmp_path / "started", tmp_path / "go"
    site.start_queue()
    name = site.add(sshd.server)
    first = site.start_worker(CLEANUP_TIMEOUT="1s", DRAIN_TIMEOUT="5s")
    job_id = site.submit(f"touch {mark}; until [ -e {go} ]; do sleep 0.05; done; echo hello", name)
    wait_for(mark.exists, "the script's start")

    site.stop_queue()
    go.touch()
    first.wait_for_event("job_ended")
    first.process.kill()
    first.wait()
    site.start_queue()
    site.start_worker()

    assert site.finished(job_id).executions[0].output == "hello\n"
    wait_for(lambda: _outbox(tmp_path / "state") == 0, "an empty outbox")


def test_every_line_of_the_log_is_one_object_with_the_fields_that_apply(
    site: Site, sshd: Sshd
) -> None:
    site.start_queue()
    name = site.add(sshd.server)
    worker = site.start_worker()
    report = site.finished(
        site.submit("printf '\\033[31mred\\n{\"forged\": 1}\\n'; head -c 100000 /dev/zero", name)
    )
    worker.process.terminate()
    worker.wait()

    assert max(map(len, worker.log_file.read_bytes().split(b"\n"))) <= 16 * 1024
    for line in worker.log():
        assert re.fullmatch(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{6}Z", line["timestamp"])
    printed = worker.events("script_output")
    assert [line["text"] for line in printed[:2]] == ["\x1b[31mred", '{"forged": 1}']
    assert "".join(line["text"] for line in printed[2:]) == "\0" * 100_000
    assert {
        (line["job_id"], line["execution_id"], line["server"], line["phase"]) for line in printed
    } == {(report.job.id, report.executions[0].id, name, "execution")}


def test_script_output_can_be_kept_out_of_the_log(site: Site, sshd: Sshd) -> None:
    site.start_queue()
    name = site.add(sshd.server)
    worker = site.start_worker(LOG_OUTPUT="off")

    report = site.finished(site.submit("echo hello", name))

    assert report.executions[0].output == "hello\n"
    assert worker.events("script_output") == []


def _listening_sockets(pid: int) -> set[str]:
    """The inodes of the process's sockets that accept connections."""
    own = {
        match[1]
        for link in Path(f"/proc/{pid}/fd").iterdir()
        if (match := re.fullmatch(r"socket:\[(\d+)\]", str(link.readlink())))
    }
    listening = set()
    for table in ("tcp", "tcp6"):
        for row in Path(f"/proc/{pid}/net/{table}").read_text().splitlines()[1:]:
            columns = row.split()
            if columns[3] == "0A":
                listening.add(columns[9])
    return own & listening


def _outbox(state: Path) -> int:
    with sqlite3.connect(state / "state.db") as connection:
        (count,) = connection.execute("SELECT count(*) FROM outbox").fetchone()
    connection.close()
    return int(count)
