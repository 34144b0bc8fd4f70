"""The probe against a worker that runs, that is held up, and that is gone."""

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.process.worker_process import Site, open_site, wait_for

# A worker whose first claim holds up its loop.
HELD_UP = """
import sys, time
from worker.api.client import QueueClient
claim = QueueClient.claim
async def slow(self, count):
    time.sleep(7)
    QueueClient.claim = claim
    return await claim(self, count)
QueueClient.claim = slow
from worker.cli import main
main(["run"])
"""


@pytest.fixture
def site(tmp_path: Path) -> Iterator[Site]:
    with open_site(tmp_path) as site:
        yield site


def aged(site: Site) -> None:
    """As if a minute had gone since the files were touched."""
    for name in ("heartbeat", "ready"):
        path = site.folder / "state" / name
        if path.exists():
            os.utime(path, (time.time() - 61,) * 2)


def test_a_worker_is_ready_while_the_api_answers_and_live_without_it(site: Site) -> None:
    worker = site.start_worker()  # the queue is not there yet
    worker.wait_for_event("queue_unavailable")
    wait_for((site.folder / "state" / "heartbeat").exists, "the heartbeat")

    live, ready = site.command("health", "--live"), site.command("health", "--json")

    assert (live.returncode, live.stdout) == (0, "healthy\n")
    assert ready.returncode == 1
    assert json.loads(ready.stdout)["healthy"] is False
    assert "the queue API does not answer" in ready.stderr
    worker.process.terminate()
    worker.wait()


def test_a_worker_that_is_gone_is_not_live(site: Site) -> None:
    site.start_queue()
    worker = site.start_worker()
    wait_for((site.folder / "state" / "ready").exists, "the API's answer")
    assert site.command("health").returncode == 0
    worker.process.send_signal(signal.SIGKILL)
    worker.wait()
    aged(site)

    gone = site.command("health", "--live")

    assert gone.returncode == 1
    assert "heartbeat is 6" in gone.stderr


def test_a_loop_that_is_held_up_is_told_of_with_what_holds_it(site: Site) -> None:
    site.start_queue()
    log_file = site.folder / "held-up.log"
    with log_file.open("wb") as log:
        process = subprocess.Popen(
            [sys.executable, "-c", HELD_UP], env=site.environment("state", {}), stdout=log
        )
    try:
        wait_for(lambda: b"event_loop_goes_on" in log_file.read_bytes(), "the end of the stall")
    finally:
        process.terminate()
        process.wait(30)
    lines = [json.loads(line) for line in log_file.read_bytes().splitlines()]

    (stalled,) = [line for line in lines if line["event"] == "event_loop_stalled"]
    (over,) = [line for line in lines if line["event"] == "event_loop_goes_on"]
    assert "in slow" in stalled["stack"]
    assert 5 <= stalled["seconds"] < 7
    assert 7 <= over["seconds"] < 12
