"""What the heartbeat files say of a worker, and when they say nothing."""

import math
import os
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import pytest
import trio
from structlog.testing import capture_logs
from trio.testing import MockClock

from worker.state.directory import HEARTBEAT, READY
from worker.vitals import SHOWN_SECONDS, SOON_SECONDS, STALE_SECONDS, Vitals, health, overdue

NOW = 1_700_000_000.0


class Worker:
    """A worker as its vitals see it."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.due_at = {"polls": math.inf, "outbox": math.inf}
        self.is_stuck = False
        self.is_answered = True

    async def shows(self) -> set[str]:
        """What is touched from now on."""
        for file in self.folder.iterdir():
            file.unlink()
        await trio.sleep(SHOWN_SECONDS + 1)
        return {file.name for file in self.folder.iterdir()}


@asynccontextmanager
async def showing(worker: Worker) -> AsyncIterator[None]:
    vitals = Vitals(
        worker.folder,
        lambda: worker.due_at,
        is_stuck=lambda: worker.is_stuck,
        is_answered=lambda: worker.is_answered,
    )
    async with trio.open_nursery() as nursery:
        nursery.start_soon(vitals.show_forever)
        yield
        nursery.cancel_scope.cancel()


def aged(folder: Path, **ages: float) -> Path:
    for name, age in ages.items():
        (folder / name).touch()
        os.utime(folder / name, (NOW - age, NOW - age))
    return folder


def test_a_loop_is_overdue_from_its_own_word_on() -> None:
    assert overdue({"a": 10.0, "b": math.inf, "c": 9.9}, 10.0) == ("c",)


async def test_both_files_are_touched_while_all_goes_on(
    autojump_clock: MockClock, tmp_path: Path
) -> None:
    worker = Worker(tmp_path)
    async with showing(worker):
        assert await worker.shows() == {HEARTBEAT, READY}
        worker.is_answered = False
        assert await worker.shows() == {HEARTBEAT}
        worker.is_answered = True
        await trio.sleep(SOON_SECONDS + 0.5)
        assert (worker.folder / READY).exists()


async def test_nothing_is_touched_while_a_loop_stands_still(
    autojump_clock: MockClock, tmp_path: Path
) -> None:
    worker = Worker(tmp_path)
    with capture_logs() as logs:
        async with showing(worker):
            worker.due_at["outbox"] = trio.current_time() - 1
            assert await worker.shows() == set()
            assert await worker.shows() == set()
            worker.is_stuck = True  # to start it anew would make no room
            assert await worker.shows() == {HEARTBEAT, READY}

    assert [line["loop"] for line in logs if line["event"] == "loop_overdue"] == ["outbox"]


@pytest.mark.parametrize(
    ("ages", "is_ready", "fault"),
    [
        ({"heartbeat": 1, "ready": 1}, True, None),
        ({"heartbeat": 1}, False, None),
        ({"heartbeat": 1}, True, "the queue API"),
        ({"heartbeat": 1, "ready": STALE_SECONDS + 1}, True, "the queue API"),
        ({"heartbeat": STALE_SECONDS + 1, "ready": 1}, True, "the worker does not run"),
        ({"heartbeat": -STALE_SECONDS - 1}, False, "the worker does not run"),
        ({}, False, "was never there"),
    ],
)
def test_health_goes_by_the_files_ages(
    ages: dict[str, float], is_ready: bool, fault: str | None, tmp_path: Path
) -> None:
    found = health(aged(tmp_path, **ages), is_ready=is_ready, now=NOW)

    assert found.is_well is (fault is None)
    assert (fault or "") in (found.fault or "")
