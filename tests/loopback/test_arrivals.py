"""How soon a long poll of the embedded queue hears of a job that another process submits."""

import os
import stat
from pathlib import Path

import pytest
import trio

from tests.queue_rig import QueueRig, claim, running_queue
from worker.clock import now_ms
from worker.queue_server import arrivals
from worker.queue_server.bell import MOST_BYTES, bell_of, ring

# So long a look takes to come, where nobody is told.
FAR_SECONDS = 20.0
SOON_SECONDS = 5.0


async def seconds_to_claim(queue: QueueRig, *, at: int | None = None) -> float:
    """From a submission to the answer of a poll that has been waiting."""
    taken: list[str] = []

    async def poll() -> None:
        async with queue.client() as client:
            taken.extend(job["id"] for job in await claim(client, wait=30))

    async with trio.open_nursery() as pollers:
        pollers.start_soon(poll)
        await trio.sleep(0.3)
        job_id = queue.submit(at=at)
        began = trio.current_time()
    assert taken == [job_id]
    return trio.current_time() - began


@pytest.fixture
def far_looks(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(arrivals, "LOOK_SECONDS", FAR_SECONDS)


@pytest.mark.usefixtures("far_looks")
async def test_a_poll_hears_at_once_of_what_is_submitted_beside_the_server(tmp_path: Path) -> None:
    with trio.fail_after(25):
        async with running_queue(tmp_path) as queue:
            for _ in range(3):
                assert await seconds_to_claim(queue) < SOON_SECONDS
            assert stat.S_IMODE(bell_of(queue.database).stat().st_mode) == 0o600


@pytest.mark.usefixtures("far_looks")
async def test_what_is_due_later_is_handed_out_when_it_is(tmp_path: Path) -> None:
    with trio.fail_after(25):
        async with running_queue(tmp_path) as queue:
            assert 0.5 < await seconds_to_claim(queue, at=now_ms() + 1500) < SOON_SECONDS


@pytest.mark.usefixtures("far_looks")
async def test_a_bell_that_nobody_heard_for_long_is_heard_again(tmp_path: Path) -> None:
    with trio.fail_after(25):
        async with running_queue(tmp_path) as queue:
            for _ in range(MOST_BYTES + 100):  # while nobody polls
                ring(bell_of(queue.database))
            assert await seconds_to_claim(queue) < SOON_SECONDS


@pytest.mark.parametrize("what", ["a file", "a link", "a directory"])
async def test_where_there_can_be_no_bell_a_job_is_found(tmp_path: Path, what: str) -> None:
    bell = bell_of(tmp_path / "queue.db")
    notes = tmp_path / "notes"
    notes.write_text("mine\n")
    match what:
        case "a file":
            os.link(notes, bell)
        case "a link":
            bell.symlink_to(notes)
        case _:
            bell.mkdir()
    with trio.fail_after(25):
        async with running_queue(tmp_path) as queue:
            assert await seconds_to_claim(queue) < SOON_SECONDS
    assert notes.read_text() == "mine\n"


async def test_a_server_takes_up_the_bell_of_one_that_was_killed(tmp_path: Path) -> None:
    os.mkfifo(bell_of(tmp_path / "queue.db"), 0o600)
    ring(bell_of(tmp_path / "queue.db"))  # nobody is there: it does not wait
    with trio.fail_after(25):
        async with running_queue(tmp_path) as queue:
            assert await seconds_to_claim(queue) < SOON_SECONDS
