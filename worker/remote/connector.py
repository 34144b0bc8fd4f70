"""Connections within the worker's limits, their host keys checked and pinned."""

from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager

import asyncssh
import stamina
import trio

from worker.clock import now_ms
from worker.database import Database
from worker.errors import ConnectionDroppedError
from worker.remote.connection import Connection, open_connection
from worker.remote.credentials import OpenedCredential
from worker.remote.host_keys import HostKeyCheck
from worker.remote.refusals import Refusals
from worker.remote.target import Target
from worker.settings import HostKeyPolicy, SshSettings
from worker.state.host_keys import HostKeys

# sshd drops at random from 10 unauthenticated connections on (MaxStartups 10:30:100).
HANDSHAKES_PER_SERVER = 8
DROPPED_ATTEMPTS = 6


class Connector:
    """What all executions of this worker share to reach servers."""

    def __init__(self, settings: SshSettings, database: Database) -> None:
        self._settings = settings
        self._database = database
        self._known_hosts = (
            asyncssh.read_known_hosts(str(settings.known_hosts)) if settings.known_hosts else None
        )
        self._pins = HostKeys(database)
        self._refusals = Refusals()
        self._slots = trio.CapacityLimiter(settings.max_connections)
        self._crowding = trio.Event()
        self._handshakes: dict[tuple[str, int], trio.CapacityLimiter] = {}

    async def crowded(self) -> None:
        """Until somebody waits for a slot that is not there."""
        while not self._slots.statistics().tasks_waiting:
            await self._crowding.wait()

    @asynccontextmanager
    async def slot(self) -> AsyncIterator[None]:
        """The right to one connection, within the worker's limit.

        Whoever holds one idly is asked for it, see `crowded`.
        """
        holder = object()  # a task may hold several
        if not self._slots.available_tokens:
            self._crowding.set()
            self._crowding = trio.Event()
        await self._slots.acquire_on_behalf_of(holder)
        try:
            yield
        finally:
            self._slots.release_on_behalf_of(holder)

    @asynccontextmanager
    async def connection(
        self, target: Target, credential: OpenedCredential, job_id: str
    ) -> AsyncIterator[Connection]:
        """A connection, its host key checked, and pinned on first use.

        One that a busy sshd dropped is tried again, with jitter; nothing else is.
        """
        async with AsyncExitStack() as stack:
            pinned = await self._database.run(lambda: self._pins.pinned(target.host, target.port))
            check = HostKeyCheck(self._settings.host_keys, self._known_hosts, pinned)
            connection = await self._enter(stack, target, credential, check)
            if pinned is None and self._settings.host_keys is not HostKeyPolicy.OFF:
                await self._pin(target, connection, job_id)
            yield connection

    async def _pin(self, target: Target, connection: Connection, job_id: str) -> None:
        """Pin what the server showed; another connection may have pinned another key meanwhile."""
        shown = connection.host_key.public_line
        pinned = await self._database.run(
            lambda: self._pins.pin(target.host, target.port, shown, job_id=job_id, now=now_ms())
        )
        HostKeyCheck(HostKeyPolicy.ACCEPT_NEW, None, pinned).judge_line(shown)

    async def _enter(
        self,
        stack: AsyncExitStack,
        target: Target,
        credential: OpenedCredential,
        check: HostKeyCheck,
    ) -> Connection:
        async for attempt in stamina.retry_context(
            on=ConnectionDroppedError,
            attempts=DROPPED_ATTEMPTS,
            wait_initial=0.1,
            wait_max=3,
            timeout=None,
        ):
            with attempt:
                async with self._handshake(target):
                    # Inside, so that of many servers behind one sshd the rest heed the first.
                    with self._refusals.heeded(target):
                        return await stack.enter_async_context(
                            open_connection(
                                target,
                                credential,
                                check,
                                keepalive_seconds=self._settings.keepalive_seconds,
                            )
                        )
        raise AssertionError("stamina ends with a result or an error")

    @asynccontextmanager
    async def _handshake(self, target: Target) -> AsyncIterator[None]:
        address = (target.host, target.port)
        limiter = self._handshakes.setdefault(address, trio.CapacityLimiter(HANDSHAKES_PER_SERVER))
        try:
            async with limiter:
                yield
        finally:
            statistics = limiter.statistics()
            if not statistics.borrowed_tokens and not statistics.tasks_waiting:
                self._handshakes.pop(address, None)
