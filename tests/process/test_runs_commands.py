"""`runs` on a server where a worker's run goes on, and one has ended."""

import json
import signal
import socket
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.loopback.openssh import make_key
from tests.process.worker_process import COMMAND, Site, open_site, wait_for
from worker.demo.sshd import Sshd


@pytest.fixture
def site(tmp_path: Path) -> Iterator[Site]:
    with open_site(tmp_path) as site:
        yield site


class Operator:
    """Somebody with a key of the account, who has no worker."""

    def __init__(self, site: Site, sshd: Sshd) -> None:
        self._site = site
        key = site.folder / "operator.key"
        key.write_text(sshd.server.private_key)
        key.chmod(0o600)
        server = sshd.server
        self._access = [
            *("--server", f"{server.user}@{server.host}:{server.port}", "--key", str(key)),
            *("--directory", str(site.folder / "operator")),
        ]

    def runs(self, verb: str, *arguments: str) -> subprocess.CompletedProcess[str]:
        return self._site.command("runs", verb, *self._access, *arguments)

    def listed(self) -> dict[str, Any]:
        """By id."""
        done = self.runs("list", "--json")
        assert done.returncode == 0, done.stderr
        return {run["execution_id"]: run for run in json.loads(done.stdout)}


def test_runs_are_listed_ended_and_forgotten_whoever_started_them(site: Site, sshd: Sshd) -> None:
    operator = Operator(site, sshd)
    site.start_queue()
    worker = site.start_worker()
    worker.wait_for_event("worker_started")
    job_id = site.submit("printf 12345; sleep 600", site.add(sshd.server))
    worker.wait_for_event("execution_started")
    worker.process.kill()
    worker.wait()
    run = f"exec_{job_id}_1_0"
    wait_for(lambda: operator.listed()[run]["stdout_bytes"] == 5, "output")

    # Beside it lies what this account has elsewhere on the machine.
    before = operator.listed()[run]
    too_soon = operator.runs("forget", run)
    signalled = operator.runs("signal", run)
    ended = operator.listed()[run]
    unknown = operator.runs("signal", "exec_nobody")
    table = operator.runs("list").stdout
    forgotten = operator.runs("forget", run)

    assert before["state"] == "running"
    assert too_soon.returncode == 1
    assert "still running" in too_soon.stderr
    assert (signalled.returncode, signalled.stdout) == (0, f"{run}\n")
    assert ended["state"] == "ended"
    assert unknown.returncode == 1
    assert "there is no such run" in unknown.stderr
    assert run in table
    assert (forgotten.returncode, forgotten.stdout) == (0, f"{run}\n")
    assert run not in operator.listed()


def test_a_server_that_does_not_answer_exits_69(site: Site, sshd: Sshd) -> None:
    operator = Operator(site, sshd)
    sshd.stop()

    assert operator.runs("list").returncode == 69
    assert operator.runs("forget").returncode == 2


def test_it_is_ended_while_it_connects(site: Site) -> None:
    with socket.create_server(("127.0.0.1", 0)) as silent:
        key = site.folder / "key"
        make_key(key)
        server = f"deploy@127.0.0.1:{silent.getsockname()[1]}"
        access = ["--server", server, "--key", str(key), "--directory", str(site.folder)]
        # What a shell starts in the background ignores it.
        plain = ["env", "--default-signal=INT"]
        process = subprocess.Popen(
            [*plain, *COMMAND, "runs", "list", *access],
            stderr=subprocess.PIPE,
            text=True,
        )
        try:
            silent.settimeout(30)
            connection, _ = silent.accept()
            with connection:
                process.send_signal(signal.SIGINT)
                _, said = process.communicate(timeout=30)
        finally:
            process.kill()

    assert process.returncode == 130
    assert said == "Aborted!\n"
