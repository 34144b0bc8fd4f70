"""What is asked of a server again when it could not be heard."""

from typing import cast

import pytest
import trio
from trio.testing import MockClock

from worker.errors import ConnectError, ConnectionLostError, RunnerMissingError, RunRefusedError
from worker.remote.session import ServerSession, forget_for_sure


class Session:
    """Fails with `failures`, one after another, and then no more."""

    def __init__(self, *failures: Exception) -> None:
        self._failures = list(failures)
        self.pauses = 0
        self.forgotten: list[str] = []

    async def forget(self, execution_id: str) -> None:
        await trio.lowlevel.checkpoint()
        if self._failures:
            raise self._failures.pop(0)
        self.forgotten.append(execution_id)

    async def pause(self) -> None:
        self.pauses += 1
        await trio.sleep(5)


async def test_a_run_is_forgotten_over_as_many_connections_as_it_takes(
    autojump_clock: MockClock,
) -> None:
    session = Session(
        ConnectionLostError("cut"), ConnectError("refused"), RunnerMissingError("deleted")
    )

    await forget_for_sure(cast("ServerSession", session), "exec_1")

    assert (session.forgotten, session.pauses) == (["exec_1"], 3)


async def test_a_runner_that_refuses_is_not_asked_again(autojump_clock: MockClock) -> None:
    session = Session(RunRefusedError(66, "still running"))

    with pytest.raises(RunRefusedError):
        await forget_for_sure(cast("ServerSession", session), "exec_1")

    assert session.pauses == 0
