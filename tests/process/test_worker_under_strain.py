"""The worker as a process, when its surroundings fail it."""

import contextlib
import signal
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.process.worker_process import COMMAND, Site, open_site, wait_for
from worker.demo.sshd import Sshd


@pytest.fixture
def site(tmp_path: Path) -> Iterator[Site]:
    with open_site(tmp_path) as site:
        yield site


def test_a_job_that_the_second_signal_cancels_does_not_go_back_to_the_queue(
    site: Site, sshd: Sshd, tmp_path: Path
) -> None:
    mark = tmp_path / "mark"
    site.start_queue()
    name = site.add(sshd.server)
    worker = site.start_worker(DRAIN_TIMEOUT="2s")
    job_id = site.submit(f"trap '' TERM; touch {mark}; while :; do sleep 1; done", name)
    wait_for(mark.exists, "the script's start")

    worker.process.send_signal(signal.SIGTERM)
    worker.wait_for_event("draining")
    worker.process.send_signal(signal.SIGTERM)

    assert worker.wait() == 0
    assert site.status(job_id) == "cancelled"


@pytest.mark.parametrize("stdout", ["a pipe nobody reads", "a full disk"])
def test_a_log_that_cannot_be_written_does_not_stop_the_worker(
    stdout: str, site: Site, sshd: Sshd
) -> None:
    site.start_queue()
    name = site.add(sshd.server)
    with contextlib.ExitStack() as stack:
        full = stack.enter_context(Path("/dev/full").open("wb"))
        worker = stack.enter_context(
            subprocess.Popen(
                [*COMMAND, "run"],
                env=site.environment("state", {}),
                stdout=full if stdout == "a full disk" else subprocess.PIPE,
                stderr=subprocess.DEVNULL,
            )
        )
        stack.callback(worker.kill)
        job_id = site.submit("head -c 400000 /dev/zero | tr '\\000' x | fold -w 100", name)

        wait_for(lambda: site.status(job_id) == "completed", "the job's end")


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A file system of 2 MiB."""
    folder = tmp_path / "small"
    folder.mkdir()
    mounted = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "size=2m", "none", str(folder)], capture_output=True
    )
    if mounted.returncode:
        pytest.skip("a file system can be mounted by root alone")
    yield folder
    subprocess.run(["umount", "--lazy", str(folder)], check=True)


def fill(folder: Path) -> Path:
    """Leave no room in `folder`; the file that takes it."""
    filler = folder / "filler"
    with contextlib.suppress(OSError), filler.open("wb", buffering=0) as file:
        while True:
            file.write(bytes(4096))
    return filler


def test_output_that_there_is_no_room_for_is_left_with_the_server_until_there_is(
    site: Site, sshd: Sshd, small_disk: Path, tmp_path: Path
) -> None:
    mark, go = tmp_path / "mark", tmp_path / "go"
    site.start_queue()
    name = site.add(sshd.server)
    worker = site.start_worker(state=str(small_disk), LOG_OUTPUT="off")
    job_id = site.submit(
        f"touch {mark}; until [ -e {go} ]; do sleep 0.05; done; seq 15000; seq 99 >&2", name
    )
    wait_for(mark.exists, "the script's start")
    worker.wait_for_event("execution_started")
    filler = fill(small_disk)

    go.touch()
    worker.wait_for_event("spool_unwritable")
    filler.unlink()

    numbers = "".join(f"{number}\n" for number in range(1, 15001))
    errors = "".join(f"{number}\n" for number in range(1, 100))
    assert site.finished(job_id).executions[0].output == f"{numbers}\n--- STDERR ---\n{errors}"
    assert worker.events("spool_writable_again")


def test_a_full_disk_is_waited_for_and_costs_no_job(
    site: Site, sshd: Sshd, small_disk: Path
) -> None:
    site.start_queue()
    name = site.add(sshd.server)
    worker = site.start_worker(state=str(small_disk))
    worker.wait_for_event("worker_started")
    filler = fill(small_disk)

    job_id = site.submit("head -c 200000 /dev/zero | tr '\\000' x", name)
    worker.wait_for_event("state_unwritable")
    filler.unlink()

    assert site.finished(job_id).executions[0].output == "x" * 200_000
    assert worker.events("state_writable_again")
    assert worker.process.poll() is None
