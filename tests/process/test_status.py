"""`status` beside a worker that runs, and of one that does not."""

import json
import os
import subprocess
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest

from tests.process.worker_process import COMMAND, Site, open_site, wait_for
from worker.clock import now_ms
from worker.demo.sshd import Sshd
from worker.queue_server.keys import open_keyring
from worker.queue_server.model import Script, ScriptType, Server
from worker.queue_server.store import Store


@pytest.fixture
def site(tmp_path: Path) -> Iterator[Site]:
    with open_site(tmp_path) as site:
        yield site


def status(site: Site) -> dict[str, Any]:
    done = site.command("status", "--json")
    assert done.returncode == 0, done.stderr
    found: dict[str, Any] = json.loads(done.stdout)
    return found


def execution(site: Site) -> dict[str, Any]:
    """Of the one job on the one server; empty as long as there is none."""
    jobs = status(site)["now"]["jobs"]
    return jobs[0]["executions"][0] if jobs else {}


def test_it_shows_a_job_from_its_script_to_its_end(site: Site, sshd: Sshd, tmp_path: Path) -> None:
    site.start_queue()
    worker = site.start_worker()
    worker.wait_for_event("worker_started")
    name = site.add(sshd.server)
    go = tmp_path / "go"

    job_id = site.submit(f"echo 1234; until [ -e {go} ]; do sleep 0.1; done", name)
    wait_for(lambda: execution(site).get("received_bytes") == 5, "the script's output in status")
    during, drawn = status(site), site.command("status")
    go.touch()
    wait_for(lambda: not status(site)["now"]["jobs"], "the job's end in status")
    after = status(site)
    worker.process.terminate()
    worker.wait()
    stopped = site.command("status")

    (job,) = during["now"]["jobs"]
    assert job["job_id"] == job_id
    assert during["pid"] == str(worker.pid)
    assert during["now"]["api_answers"] is True
    assert during["now"]["slots"] - during["now"]["free_slots"] == 1
    assert job["executions"][0]["server"] == name
    assert job["executions"][0]["phase"] == "execution"
    assert during["now"]["pool"]["connections"] == 1
    assert during["kept"]["runners"] == 1
    for text in (job_id, name, "execution", "1 of 5 taken", f"pid {worker.pid}"):
        assert text in drawn.stdout
    assert after["now"]["free_slots"] == after["now"]["slots"]
    assert "none runs" in stopped.stdout


def test_what_the_api_has_not_heard_is_counted(site: Site, sshd: Sshd) -> None:
    site.start_queue()
    worker = site.start_worker()
    worker.wait_for_event("worker_started")
    site.submit("sleep 1", site.add(sshd.server))
    worker.wait_for_event("execution_started")
    site.stop_queue()
    worker.wait_for_event("job_ended")
    wait_for(lambda: not status(site)["now"]["api_answers"], "the API's silence in status")

    found = status(site)

    assert found["kept"]["outbox"] > 0
    assert found["kept"]["oldest_at"] > 0
    worker.process.kill()


def test_without_a_state_it_says_so(site: Site) -> None:
    done = site.command("status")

    assert done.returncode == 2
    assert "a worker has to be started" in done.stderr
    assert site.command("status", "--watch", "--json").returncode == 2


def test_an_idle_worker_does_not_write_it_again(site: Site) -> None:
    site.start_queue()
    worker = site.start_worker()
    file = site.folder / "state" / "status.json"
    wait_for(lambda: file.exists() and status(site)["now"]["api_answers"], "the first status")
    before = file.stat().st_mtime_ns

    with pytest.raises(subprocess.TimeoutExpired):
        worker.process.wait(3)

    assert file.stat().st_mtime_ns == before


@pytest.mark.parametrize("command", [["--version"], ["check"], ["status"], ["history"]])
def test_output_that_cannot_be_written_is_no_traceback(command: list[str], tmp_path: Path) -> None:
    environ = {"PATH": os.environ["PATH"], "CRONIUM_STATE_DIR": str(tmp_path)}

    def done(redirect: str) -> "subprocess.CompletedProcess[str]":
        shell = ["sh", "-c", f'exec "$@" {redirect}', "sh", *COMMAND, *command]
        return subprocess.run(
            shell, env=environ, stderr=subprocess.PIPE, text=True, check=False, timeout=30
        )

    closed, full = done(">&-"), done(">/dev/full")

    assert "Traceback" not in closed.stderr + full.stderr
    if command in (["--version"], ["check"]):
        assert full.returncode == 1
        assert "the output: No space left on device" in full.stderr


def test_an_output_that_cannot_be_written_is_no_fault_of_the_queue(tmp_path: Path) -> None:
    database = tmp_path / "queue.db"
    with closing(Store.open(database, open_keyring(database, {}))) as store:
        store.put_server(Server(0, "w", "127.0.0.1", 22, "deploy", private_key="KEY"), now_ms())
    submit = [*COMMAND, "queue", "submit", "--db", str(database), "--script", __file__]

    def done(redirect: str) -> str:
        shell = ["sh", "-c", f'exec "$@" --server w {redirect}', "sh", *submit]
        environ = {"PATH": os.environ["PATH"]}
        return subprocess.run(
            shell, env=environ, stderr=subprocess.PIPE, text=True, check=False, timeout=30
        ).stderr

    assert done("| true") == ""
    assert done(">/dev/full") == "cronium-worker: the output: No space left on device\n"


@pytest.mark.parametrize(
    "command", [["logs"], ["outbox", "drop", "1"], ["hosts", "trust", "web-1"]]
)
def test_without_an_input_there_is_no_traceback(command: list[str], tmp_path: Path) -> None:
    environ = {"PATH": os.environ["PATH"], "CRONIUM_STATE_DIR": str(tmp_path)}
    shell = ["sh", "-c", 'exec "$@" <&-', "sh", *COMMAND, *command]

    done = subprocess.run(
        shell, env=environ, capture_output=True, text=True, check=False, timeout=30
    )

    assert "Traceback" not in done.stderr


@pytest.mark.parametrize(
    "poor",
    [
        {"PYTHONIOENCODING": "ascii"},
        {"LC_ALL": "C", "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0"},
    ],
    ids=["ASCII", "C"],
)
def test_a_letter_that_the_terminal_has_not_is_written_out(
    poor: dict[str, str], tmp_path: Path
) -> None:
    database = tmp_path / "queue.db"
    with closing(Store.open(database, open_keyring(database, {}))) as store:
        server = Server(0, "web-1", "127.0.0.1", 22, "deploy", private_key="KEY")
        store.put_server(server, now_ms())
        store.submit_script("caf\xe9", Script(ScriptType.BASH, "true"), ["web-1"], now_ms())
    environ = {"PATH": os.environ["PATH"], **poor}

    done = subprocess.run(
        [*COMMAND, "queue", "jobs", "--db", str(database)],
        env=environ,
        capture_output=True,
        text=True,
        check=False,
        timeout=30,
    )

    assert done.stderr == ""
    assert "caf\\xe9" in done.stdout


def test_an_entry_that_there_cannot_be_is_refused(site: Site) -> None:
    for verb in ("drop", "retry"):
        done = site.command("outbox", verb, "9" * 20)

        assert done.returncode == 2
        assert "is not in the range" in done.stderr
