"""Connections within the worker's limits, their host keys checked and pinned."""

from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager

import trio

from worker.database import Database
from worker.remote.connection import Connection, open_connection
from worker.remote.credentials import OpenedCredential
from worker.remote.given_keys import GivenKey
from worker.remote.host_keys import HostKeyCheck
from worker.remote.refusals import Refusals
from worker.remote.scan import host_key_with
from worker.remote.target import Target
from worker.remote.trust import HostTrust
from worker.settings import SshSettings

# sshd drops at random from 10 unauthenticated connections on (MaxStartups 10:30:100).
HANDSHAKES_PER_SERVER = 8


class Connector:
    """What all executions of this worker share to reach servers."""

    def __init__(self, settings: SshSettings, database: Database) -> None:
        self._settings = settings
        self._trust = HostTrust(settings, database)
        # By fingerprint, the keys that servers' entries gave no more of.
        self._found: dict[str, GivenKey] = {}
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
        """A connection, its host key checked, and pinned on first use."""
        async with AsyncExitStack() as stack:
            connection = await self._enter(stack, target, credential)
            if connection.is_new:
                await self._trust.pin(target, connection.host_key, job_id)
            yield connection

    async def _enter(
        self, stack: AsyncExitStack, target: Target, credential: OpenedCredential
    ) -> Connection:
        async with self._handshake(target):
            # Inside, so that of many servers behind one sshd the rest heed the first.
            with self._refusals.heeded(target):
                return await stack.enter_async_context(
                    open_connection(
                        target,
                        credential,
                        await self._check(target),
                        keepalive_seconds=self._settings.keepalive_seconds,
                    )
                )

    async def _check(self, target: Target) -> HostKeyCheck:
        given = tuple(self._found.get(each.fingerprint, each) for each in target.host_keys)
        if given and not any(each.line for each in given):
            # A fingerprint does not say which kind of key to ask for.
            found = await host_key_with(target.address, [each.fingerprint for each in given])
            self._found[found.fingerprint] = GivenKey(found.fingerprint, found.public_line)
            given = (self._found[found.fingerprint], *given)
        return await self._trust.check(target, given)

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
