"""What `check --server` makes of a server that does not do as it should."""

import tracemalloc
from typing import cast

import trio
from trio.testing import MockClock

from tests.virtual.test_jobs import SETTINGS
from worker.checkup import Finding, Verdict
from worker.database import Database
from worker.remote.connection import Connection
from worker.remote.target import Credential, Target
from worker.trial import Trial

MIB = 1024 * 1024


class Talkative:
    """A connection whose shell prints `pieces` of 1 MiB before it does what it is told."""

    def __init__(self, pieces: int) -> None:
        self._pieces = pieces
        self._said = [b"\n<<Linux 6.1.0\n<<bash\n"]

    async def exec(self, command: str) -> "Talkative":
        assert command == "sh"
        await trio.lowlevel.checkpoint()
        return self

    async def send_all(self, _data: bytes) -> None:
        await trio.lowlevel.checkpoint()

    def send_eof(self) -> None: ...

    def close(self) -> None: ...

    async def receive(self) -> bytes:
        await trio.lowlevel.checkpoint()
        if self._pieces:
            self._pieces -= 1
            return bytes(MIB)
        return self._said.pop() if self._said else b""


async def test_a_shell_that_prints_without_end_takes_no_more_memory(
    autojump_clock: MockClock,
) -> None:
    said: list[Finding] = []
    target = Target("web-1", 22, "deploy", Credential())
    trial = Trial(target, SETTINGS, cast("Database", None), said.append)
    tracemalloc.start()

    await trial._look_around(cast("Connection", Talkative(30)))

    most = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert most < 10 * MIB
    assert [(each.verdict, each.subject) for each in said] == [(Verdict.PASSED, "shell")]
    assert said[0].told.startswith("Linux 6.1.0, with bash; without python3")
