"""What a row hears of its execution while that runs."""

from collections.abc import Callable
from types import SimpleNamespace
from typing import Any, cast

import pytest
import trio
from trio.testing import MockClock

from worker.masking import Masker
from worker.reported import RUNNING_AFTER_SECONDS, ReportedExecution
from worker.state.outbox import Entry, Kind
from worker.telemetry import ExecutionTrace

HOUR_SECONDS = 3600


class Heard:
    """A relay that notes what it is given, and when."""

    def __init__(self) -> None:
        self.at: list[float] = []

    async def put_row(self, _job_id: str, make: Callable[[], Entry]) -> None:
        await trio.lowlevel.checkpoint()
        assert make().kind is Kind.RUNNING
        self.at.append(trio.current_time())


class Inner:
    """A script that has begun, and goes on."""

    def __init__(self) -> None:
        self.begun = trio.Event()
        self.begun.set()

    async def run(self) -> None:
        await trio.sleep(HOUR_SECONDS)


def reported(heard: Heard) -> ReportedExecution:
    parts: dict[str, Any] = {
        "plan": SimpleNamespace(job_id="job_1"),
        "execution": SimpleNamespace(id="exec_job_1_1_0"),
        "inner": Inner(),
        "printed": SimpleNamespace(begin=lambda: None),
        "masker": Masker(),
        "relay": heard,
        "runs": None,
    }
    return ReportedExecution(
        **parts,
        trace=cast("ExecutionTrace", SimpleNamespace(log_fields={})),
        known=None,
        kept_bytes=0,
    )


@pytest.mark.parametrize("jump", [0, 30])
async def test_a_worker_that_stood_still_does_not_say_at_once_that_a_script_runs(
    autojump_clock: MockClock, nursery: trio.Nursery, jump: float
) -> None:
    heard = Heard()
    nursery.start_soon(reported(heard).run)
    await trio.sleep(RUNNING_AFTER_SECONDS / 2)
    autojump_clock.jump(jump)
    await trio.sleep(RUNNING_AFTER_SECONDS * 2)
    nursery.cancel_scope.cancel()

    woken_at = RUNNING_AFTER_SECONDS / 2 + jump
    assert heard.at == [woken_at + RUNNING_AFTER_SECONDS if jump else RUNNING_AFTER_SECONDS]
