"""`cache` beside a worker: what it tells of runners, and what it does about them."""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.process.worker_process import Site, WorkerProcess, open_site
from worker.demo.sshd import Sshd


@pytest.fixture
def site(tmp_path: Path) -> Iterator[Site]:
    with open_site(tmp_path) as site:
        site.start_queue()
        yield site


@pytest.fixture
def access(site: Site, sshd: Sshd) -> list[str]:
    server = sshd.server
    key = site.folder / "operator.key"
    key.write_text(server.private_key)
    key.chmod(0o600)
    return ["--server", f"{server.user}@{server.host}:{server.port}", "--key", str(key)]


def started(site: Site) -> WorkerProcess:
    worker = site.start_worker()
    worker.wait_for_event("worker_started")
    return worker


def listed(site: Site) -> list[dict[str, Any]]:
    done = site.command("cache", "list", "--json")
    assert done.returncode == 0, done.stderr
    found: list[dict[str, Any]] = json.loads(done.stdout)
    return found


def deployments(worker: WorkerProcess) -> list[str]:
    return [each["runner"] for each in worker.events("setup_ended")]


def test_what_a_job_deployed_is_listed_verified_and_forgotten(
    site: Site, sshd: Sshd, access: list[str]
) -> None:
    started(site)
    name = site.add(sshd.server)
    site.finished(site.submit("true", name))

    (entry,) = listed(site)
    table = site.command("cache", "list").stdout
    verified = site.command("cache", "verify", *access)
    (after,) = listed(site)
    runner = Path(entry["path"])
    runner.write_text("exit 0\n")
    spoilt = site.command("cache", "verify", *access)
    unknown = site.command("cache", "forget", "4711")

    assert entry["is_current"] is True
    assert entry["port"] == sshd.server.port
    assert entry["artifact"] in table
    assert (verified.returncode, verified.stderr) == (0, "")
    assert str(runner) in verified.stdout
    assert after["verified_at"] > entry["verified_at"]
    assert spoilt.returncode == 1
    assert "no runner answered" in spoilt.stderr or "not the one" in spoilt.stderr
    assert listed(site) == []
    assert unknown.returncode == 1
    assert site.command("cache", "verify", *access).returncode == 1


def test_a_server_to_which_the_runner_was_brought_costs_its_first_job_no_deployment(
    site: Site, sshd: Sshd, access: list[str]
) -> None:
    worker = started(site)
    name = site.add(sshd.server)
    server_id = "1"  # the queue's first

    unnamed = site.command("cache", "deploy", *access)
    deployed = site.command("cache", "deploy", *access, "--id", server_id)
    site.finished(site.submit("true", name))
    cached = listed(site)
    forgotten = site.command("cache", "forget", server_id)

    assert unnamed.returncode == 2
    assert "--id" in unnamed.stderr
    assert (deployed.returncode, deployed.stderr) == (0, "")
    assert [each["hits"] for each in cached] == [1]
    assert worker.events("execution_started")
    assert forgotten.returncode == 0
    assert listed(site) == []


def test_a_server_that_cannot_be_reached_exits_69(
    site: Site, sshd: Sshd, access: list[str]
) -> None:
    started(site)
    sshd.stop()

    assert site.command("cache", "deploy", *access, "--id", "1").returncode == 69
