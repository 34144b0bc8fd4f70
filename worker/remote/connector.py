"""Connections, their host keys checked and pinned; few at a time to one server."""

from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager

import trio

from worker.database import Database
from worker.remote.connection import Connection, open_connection
from worker.remote.credentials import OpenedCredential
from worker.remote.given_keys import GivenKey
from worker.remote.host_keys import HostKeyCheck
from worker.remote.known_hosts import Edition
from worker.remote.refusals import Refusals
from worker.remote.scan import host_key_with
from worker.remote.target import Target
from worker.remote.trust import HostTrust
from worker.remote.windows import Headroom
from worker.settings import SshSettings

# sshd drops at random from 10 unauthenticated connections on (MaxStartups 10:30:100).
HANDSHAKES_PER_SERVER = 8


class Connector:
    """What is known of servers for the whole worker when a connection to one is made."""

    def __init__(self, settings: SshSettings, database: Database) -> None:
        self._settings = settings
        self._trust = HostTrust(settings, database)
        # By fingerprint, the keys that servers' entries gave no more of.
        self._found: dict[str, GivenKey] = {}
        self._refusals = Refusals()
        self._headroom = Headroom()
        self._handshakes: dict[tuple[str, int], trio.CapacityLimiter] = {}

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
                        await self.check(target),
                        keepalive_seconds=self._settings.keepalive_seconds,
                        headroom=self._headroom,
                    )
                )

    def edition(self) -> Edition | None:
        """Another one after every change of known_hosts."""
        return self._trust.edition()

    async def check(self, target: Target) -> HostKeyCheck:
        """What is known of its host key just now.

        Raises ConnectError if that cannot be read, or the server not be asked what it lacks.
        """
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
