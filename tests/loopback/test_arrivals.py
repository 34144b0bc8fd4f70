"""How soon a long poll of the embedded queue hears of a job that another process submits."""

from contextlib import closing
from functools import partial
from pathlib import Path

import pytest
import trio

from tests.queue_rig import QueueRig, claim, running_queue
from worker.clock import now_ms
from worker.queue_server import arrivals
from worker.queue_server.arrivals import Arrivals
from worker.queue_server.bell import MOST_AT_ONCE, ring
from worker.queue_server.keys import open_keyring
from worker.queue_server.store import Store

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


@pytest.mark.usefixtures("far_looks")
async def test_what_is_due_later_is_handed_out_when_it_is(tmp_path: Path) -> None:
    with trio.fail_after(25):
        async with running_queue(tmp_path) as queue:
            assert 0.5 < await seconds_to_claim(queue, at=now_ms() + 1500) < SOON_SECONDS


@pytest.mark.usefixtures("far_looks")
async def test_a_bell_that_nobody_heard_for_long_is_heard_again(tmp_path: Path) -> None:
    with trio.fail_after(25):
        async with running_queue(tmp_path) as queue:
            for _ in range(3 * MOST_AT_ONCE):  # while nobody polls
                ring(queue.database)
            assert await seconds_to_claim(queue) < SOON_SECONDS


@pytest.mark.usefixtures("far_looks")
async def test_by_another_path_it_is_the_same_bell(tmp_path: Path) -> None:
    (tmp_path / "linked").symlink_to(tmp_path)
    with trio.fail_after(25):
        async with running_queue(tmp_path / "linked") as queue:
            keyring = open_keyring(tmp_path / "queue.db", {})
            with closing(Store.open(tmp_path / "queue.db", keyring)) as store:
                there = QueueRig(queue.address, queue.database, store)
                assert await seconds_to_claim(there) < SOON_SECONDS


async def test_where_another_server_has_the_bell_a_job_is_found(tmp_path: Path) -> None:
    with trio.fail_after(25):
        async with running_queue(tmp_path), running_queue(tmp_path) as second:
            assert await seconds_to_claim(second) < SOON_SECONDS


async def test_whoever_rings_all_the_time_has_the_server_look_no_more_often(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    looks = []

    def look(_: Arrivals, now: int) -> bool:
        looks.append(now)
        return False

    monkeypatch.setattr(Arrivals, "_something_is_due", look)
    with trio.fail_after(25):
        async with running_queue(tmp_path) as queue, queue.client() as client:
            ended = trio.current_time() + 0.5
            async with trio.open_nursery() as pollers:
                pollers.start_soon(partial(claim, client, wait=1))
                while trio.current_time() < ended:
                    ring(queue.database)
                    await trio.lowlevel.checkpoint()

    # And for the rest of the second that the poll waits.
    assert 10 < len(looks) < 0.5 / arrivals.APART_SECONDS + 30
    assert list(tmp_path.glob("*bell*")) == []
