"""`outbox` beside a worker: what it lists, tries again and drops."""

import json
import sqlite3
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest

from tests.process.worker_process import Site, open_site, wait_for
from worker.demo.sshd import Sshd


@pytest.fixture
def site(tmp_path: Path) -> Iterator[Site]:
    with open_site(tmp_path) as site:
        yield site


def listed(site: Site, *arguments: str) -> list[dict[str, Any]]:
    done = site.command("outbox", "list", "--json", *arguments)
    assert done.returncode == 0, done.stderr
    found: list[dict[str, Any]] = json.loads(done.stdout)
    return found


def test_what_waits_is_listed_and_what_is_dropped_is_never_told(site: Site, sshd: Sshd) -> None:
    site.start_queue()
    worker = site.start_worker()
    worker.wait_for_event("worker_started")
    site.submit("sleep 1", site.add(sshd.server))
    worker.wait_for_event("execution_started")
    site.stop_queue()
    worker.wait_for_event("job_ended")
    worker.process.kill()
    worker.wait()

    entries = listed(site)
    last = entries[-1]
    unsure = site.command("outbox", "drop", str(last["entry"]))
    kept = listed(site)
    dropped = site.command("outbox", "drop", "--yes", str(last["entry"]), "4711")

    assert [each["kind"] for each in entries][-1] == "complete"
    assert last["bytes"] > 0
    assert listed(site, "--parked") == []
    assert unsure.returncode == 1  # nobody said yes
    assert kept == entries
    assert dropped.returncode == 1
    assert "there is no entry 4711" in dropped.stderr
    assert listed(site) == entries[:-1]
    assert "complete" not in site.command("outbox", "list").stdout


def test_what_was_parked_is_told_after_a_retry_beside_a_worker(site: Site, sshd: Sshd) -> None:
    site.start_queue()
    worker = site.start_worker()
    worker.wait_for_event("worker_started")
    job_id = site.submit("sleep 1", site.add(sshd.server))
    worker.wait_for_event("execution_started")
    site.stop_queue()
    worker.wait_for_event("job_ended")
    worker.process.kill()
    worker.wait()
    with closing(sqlite3.connect(site.folder / "state" / "state.db")) as state, state:
        state.execute("UPDATE outbox SET parked = 'refused with 400' WHERE kind = 'complete'")
    site.start_queue()
    worker = site.start_worker()
    worker.wait_for_event("job_taken_up")
    wait_for(lambda: [each["kind"] for each in listed(site)] == ["complete"], "the rows' delivery")

    (parked,) = listed(site, "--parked")
    before = site.status(job_id)
    retried = site.command("outbox", "retry", str(parked["entry"]))
    wait_for(lambda: site.status(job_id) == "completed", "the job's end at the queue")

    assert parked["parked"] == "refused with 400"
    assert before == "running"
    assert (retried.returncode, retried.stderr) == (0, "")
    assert listed(site) == []
