"""Connections that executions share and that outlive them a while, within the worker's limit."""

import contextvars
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass, field

import structlog
import trio

from worker.errors import ConnectionLostError, HostKeyError, NoChannelError, SshError
from worker.remote.connection import Connection
from worker.remote.connector import Connector
from worker.remote.credentials import OpenedCredential
from worker.remote.pooled import CHANNELS, Judgement, PooledConnection
from worker.remote.target import Target
from worker.remote.waiting import RunRequest
from worker.settings import SshSettings
from worker.snapshot import PoolNow

log = structlog.get_logger()

# How long a refused channel counts as the server's limit: it may only not have noticed yet that
# another channel had ended.
LESSON_SECONDS = 60.0
# The pauses between tries, for a server to notice that the channel before has ended.
NOTICED_SECONDS = (0.02, 0.05, 0.1, 0.3)
OpenCredential = Callable[[], Awaitable[OpenedCredential]]


@dataclass(slots=True, eq=False)
class _Waiter:
    """Waits for the worker's limit, or for a place that another leaves, whichever comes first."""

    scope: trio.CancelScope = field(default_factory=trio.CancelScope)
    given: PooledConnection | None = None


class Pool:
    """By target, which is all that makes one connection as good as another; see `open_pool`."""

    def __init__(self, connector: Connector, settings: SshSettings, nursery: trio.Nursery) -> None:
        """Tasks in `nursery` own the connections."""
        self._connector = connector
        self._nursery = nursery
        self._idle_seconds = settings.idle_seconds
        self._slots = trio.CapacityLimiter(settings.max_connections)
        self._pooled: dict[Target, list[PooledConnection]] = {}
        self._waiters: dict[Target, list[_Waiter]] = {}
        # How many channels a server gave one connection, and until when that is taken for true.
        self._lessons: dict[Target, tuple[int, float]] = {}
        # Of no job: a connection outlives jobs, and must not hold the secrets of one.
        self._context = contextvars.copy_context()

    @property
    def now(self) -> PoolNow:
        every = [pooled for those in self._pooled.values() for pooled in those]
        return PoolNow(
            connections=len(every),
            idle=sum(pooled.is_idle for pooled in every),
            limit=int(self._slots.total_tokens),
            waiting=self._slots.statistics().tasks_waiting,
        )

    async def place(
        self, target: Target, open_credential: OpenCredential, job_id: str, *, urgent: bool = False
    ) -> PooledConnection:
        """A connection to `target`, that may still have to be made, to be left with `leave`.

        Waits for the worker's limit on connections, unless it is `urgent`.
        """
        pooled = self._with_room(target, urgent=urgent)
        if pooled is None:
            new = PooledConnection(target, self._channels(target), idle_seconds=self._idle_seconds)
            given = await self._take_slot(new, urgent=urgent)
            if given is not None:
                self._free_slot(new)
                return given
            # Meanwhile another may have been made.
            pooled = self._with_room(target, urgent=urgent)
            if pooled is None:
                pooled = new
                self._pooled.setdefault(target, []).append(new)
                self._context.copy().run(
                    self._nursery.start_soon, self._own, new, open_credential, job_id
                )
            else:
                self._free_slot(new)
        pooled.enter()
        self._hand_on(pooled)
        return pooled

    async def stage(self, target: Target, request: RunRequest) -> None:
        """Have a server prepare a run that may come soon, over a connection that lies idle; on a
        busy one the call that waits is kept for runs that are sure to come."""
        pooled = self._with_room(target, urgent=False)
        if pooled is not None and pooled.can_stage:
            with suppress(SshError):  # for the run to meet
                await self.connection(pooled)
            if pooled.can_stage:
                pooled.spares.stage(request)

    def unstage(self, target: Target, execution_id: str) -> None:
        """Drop what was prepared: the run did not come, or was started otherwise."""
        for pooled in self._pooled.get(target, ()):
            pooled.spares.unstage(execution_id)

    def leave(self, pooled: PooledConnection) -> None:
        pooled.leave()
        self._hand_on(pooled)
        if pooled.is_idle and pooled.is_open and not self._may_stay(pooled):
            pooled.retire()

    async def connection(self, pooled: PooledConnection) -> Connection:
        """That of a place, once it is made and if its server is to be trusted still.

        Raises ConnectError, HostKeyError or AuthenticationError if it cannot be made,
        NoChannelError if another place is needed.
        """
        if not pooled.is_made:
            return await pooled.connection()
        connection = await pooled.connection()
        judgement = Judgement(self._connector.edition(), trio.current_time())
        if judgement.supersedes(pooled.judgement):
            if not await self._is_trusted(pooled.target, connection):
                pooled.retire()
                raise NoChannelError("what is known of the server's host key has changed")
            pooled.judgement = judgement
        return connection

    async def made_room(
        self, pooled: PooledConnection, connection: Connection, refusals: int
    ) -> bool:
        """After its server gave the connection no further channel, so many times: whether it may
        do so now.

        Raises ConnectionLostError if there is none at all.
        """
        if await pooled.spares.drop():
            return True
        if not connection.channels:
            # It may not have noticed yet that the one before has ended.
            if refusals <= len(NOTICED_SECONDS):
                await trio.sleep(NOTICED_SECONDS[refusals - 1])
                return True
            pooled.retire()
            raise ConnectionLostError("the server gives the connection no channel")
        log.info("channel_refused", channels=connection.channels)
        pooled.channels = connection.channels
        if pooled.has_strays:
            pooled.retire()  # it would seem to have room, again and again
        now = trio.current_time()
        self._lessons = {target: each for target, each in self._lessons.items() if each[1] > now}
        self._lessons[pooled.target] = (connection.channels, now + LESSON_SECONDS)
        return False

    def forget_runner(self, target: Target) -> None:
        """What was known of it is wrong."""
        for pooled in self._pooled.get(target, ()):
            pooled.know_runner(None)

    def _with_room(self, target: Target, *, urgent: bool) -> PooledConnection | None:
        for pooled in self._pooled.get(target, ()):
            if pooled.is_open and pooled.has_room(urgent=urgent):
                return pooled
        return None

    def _channels(self, target: Target) -> int:
        channels, until = self._lessons.get(target, (CHANNELS, 0))
        if until < trio.current_time():
            self._lessons.pop(target, None)
            return CHANNELS
        return channels

    async def _take_slot(
        self, pooled: PooledConnection, *, urgent: bool
    ) -> PooledConnection | None:
        """One of the worker's for `pooled`; or a place on another, already entered."""
        # A run that is to end, or that waits for an answer, does not wait for others' ends.
        if self._has_slot(pooled) or urgent:
            return None
        idle = [each for those in self._pooled.values() for each in those if each.is_idle]
        if idle := [each for each in idle if each.is_open and each.has_slot]:
            min(idle, key=lambda each: each.scope.deadline).retire()
        waiter = _Waiter()
        self._waiters.setdefault(pooled.target, []).append(waiter)
        is_through = False
        try:
            with waiter.scope:
                await self._slots.acquire_on_behalf_of(pooled)
                pooled.has_slot = True
            is_through = True
        finally:
            if waiter.given is None:
                self._drop_waiter(pooled.target, waiter)
            elif not is_through:
                self.leave(waiter.given)
        return waiter.given

    def _hand_on(self, pooled: PooledConnection) -> None:
        """Places on it, to those that wait for one, in the order in which they came."""
        while (
            (waiters := self._waiters.get(pooled.target))
            and pooled.is_open
            and pooled.has_room(urgent=False)
        ):
            waiter = waiters[0]
            self._drop_waiter(pooled.target, waiter)
            pooled.enter()
            waiter.given = pooled
            waiter.scope.cancel()

    def _drop_waiter(self, target: Target, waiter: _Waiter) -> None:
        waiters = self._waiters[target]
        waiters.remove(waiter)
        if not waiters:
            del self._waiters[target]

    def _may_stay(self, pooled: PooledConnection) -> bool:
        """Whether it may lie idle: nobody waits, and it is within the worker's limit."""
        return not self._slots.statistics().tasks_waiting and self._has_slot(pooled)

    def _has_slot(self, pooled: PooledConnection) -> bool:
        """Whether it has one of the worker's, if need be from now on."""
        if not pooled.has_slot:
            with suppress(trio.WouldBlock):
                self._slots.acquire_on_behalf_of_nowait(pooled)
                pooled.has_slot = True
        return pooled.has_slot

    def _free_slot(self, pooled: PooledConnection) -> None:
        if pooled.has_slot:
            pooled.has_slot = False
            self._slots.release_on_behalf_of(pooled)

    async def _own(
        self, pooled: PooledConnection, open_credential: OpenCredential, job_id: str
    ) -> None:
        try:
            with pooled.scope:
                judgement = Judgement(self._connector.edition(), trio.current_time())
                opened = await open_credential()
                del open_credential  # a job's, with all that it knows
                async with self._connector.connection(pooled.target, opened, job_id) as connection:
                    pooled.made(connection, opened, judgement)
                    await pooled.serve()
        except SshError as error:
            pooled.failed(error)
        except Exception as error:  # a fault of ours is for whoever waits for the connection
            log.exception("connection_fault")
            pooled.failed(error)
        finally:
            pooled.failed(ConnectionLostError("the connection was given up"))
            self._free_slot(pooled)
            self._pooled[pooled.target].remove(pooled)
            if not self._pooled[pooled.target]:
                del self._pooled[pooled.target]

    async def _is_trusted(self, target: Target, connection: Connection) -> bool:
        try:
            return not connection.judge(await self._connector.check(target))
        except HostKeyError:
            return False


@asynccontextmanager
async def open_pool(connector: Connector, settings: SshSettings) -> AsyncIterator[Pool]:
    """Its connections are closed with it."""
    async with trio.open_nursery() as nursery:
        yield Pool(connector, settings, nursery)
        nursery.cancel_scope.cancel()
