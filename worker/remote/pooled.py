"""One connection as the executions share it: who uses it, and what it has room for."""

import math
from dataclasses import dataclass
from typing import Self

import trio

from worker.errors import ConnectionLostError
from worker.remote.connection import Connection
from worker.remote.credentials import OpenedCredential
from worker.remote.deployments import UsableRunner
from worker.remote.known_hosts import Edition
from worker.remote.spares import Spares
from worker.remote.target import Target

# OpenSSH's own MaxSessions. Where a server has more, further connections do as well; where it
# has less, a refusal tells.
CHANNELS = 10

# Pins in the state are changed by hand, now and then; known_hosts shows at once when it is.
JUDGED_SECONDS = 5.0


@dataclass(frozen=True, slots=True)
class Judgement:
    """Of a host key: by which edition of known_hosts, and when."""

    edition: Edition | None
    at: float

    def supersedes(self, last: Self | None) -> bool:
        """Whether a connection that was judged by the `last` one is to be judged anew."""
        return last is None or last.edition != self.edition or self.at > last.at + JUDGED_SECONDS


def places_for_runs(channels: int) -> int:
    """How many of a connection's channels runs may hold: calls do not wait for a run's end."""
    for_calls = 2 if channels > 5 else 1 if channels > 1 else 0
    return channels - for_calls


class PooledConnection:
    """A connection that is being made, or is there, or has gone.

    Its owner runs under `scope`, which ends when nobody has used the connection for a while.
    """

    def __init__(self, target: Target, channels: int, *, idle_seconds: float) -> None:
        self.target = target
        self.channels = channels
        self.scope = trio.CancelScope()
        self.spares = Spares()
        # One of the worker's; urgent calls go beyond them.
        self.has_slot = False
        # What it was made with, once it is made.
        self.opened: OpenedCredential | None = None
        self.judgement: Judgement | None = None
        self._idle_seconds = idle_seconds
        self._places = 0
        self._is_retired = False
        self._connection: Connection | None = None
        self._failure: Exception | None = None
        self._settled = trio.Event()
        self._runner: UsableRunner | None = None
        self._runner_until = -math.inf

    @property
    def is_idle(self) -> bool:
        return not self._places

    @property
    def is_made(self) -> bool:
        return self._connection is not None

    @property
    def is_open(self) -> bool:
        """Whether somebody else may come to use it."""
        lost = self._connection is not None and self._connection.lost.is_set()
        over = self._failure is not None or self.scope.cancel_called
        return not (lost or over or self._is_retired)

    @property
    def can_stage(self) -> bool:
        return self.is_made and self.is_open and self.is_idle and self.runner is not None

    @property
    def has_strays(self) -> bool:
        """Whether channels are open that nobody uses any more; whoever asks has none."""
        return self._connection is not None and self._places <= self._connection.channels

    def has_room(self, *, urgent: bool) -> bool:
        """Whether one more may use it; `urgent` calls have room where runs have none."""
        most = self.channels if urgent else places_for_runs(self.channels)
        return self._places < most

    def enter(self) -> None:
        self._places += 1
        self.scope.deadline = math.inf

    def leave(self) -> None:
        self._places -= 1
        if self.is_made:
            self.spares.want()
        if self._places:
            return
        if self.is_made and self.is_open:
            self.scope.deadline = trio.current_time() + self._idle_seconds
        else:
            self.scope.cancel()

    def retire(self) -> None:
        """Nobody else is to come to use it."""
        self._is_retired = True
        if self.is_idle:
            self.scope.cancel()

    def made(self, connection: Connection, opened: OpenedCredential, judgement: Judgement) -> None:
        self._connection, self.opened, self.judgement = connection, opened, judgement
        self._settled.set()

    def failed(self, failure: Exception) -> None:
        """It cannot be made, or has gone."""
        self._failure = self._failure or failure
        self._settled.set()

    async def connection(self) -> Connection:
        """Wait until it is made.

        Raises what kept it from that.
        """
        await self._settled.wait()
        if self._connection is None:
            raise self._failure or ConnectionLostError("the connection was given up")
        return self._connection

    async def serve(self) -> None:
        """Keep a spare run, until the connection is lost."""
        connection = await self.connection()
        async with trio.open_nursery() as nursery:
            nursery.start_soon(self.spares.keep, connection, self._path_for_spare)
            await connection.lost.wait()
            nursery.cancel_scope.cancel()

    @property
    def runner(self) -> UsableRunner | None:
        """The runner there, while it is known and may be called as it is."""
        return self._runner if trio.current_time() < self._runner_until else None

    def know_runner(self, runner: UsableRunner | None) -> None:
        if runner is None:
            self.spares.close()
        self._runner = runner
        self._runner_until = trio.current_time() + (runner.good_for_seconds if runner else 0)

    def _path_for_spare(self) -> str | None:
        is_wanted = self.is_open and self.has_room(urgent=False)
        return self.runner.path if self.runner is not None and is_wanted else None
