"""The runner on a known server: from the cache, or deployed once."""

import contextlib
from collections.abc import AsyncIterator
from dataclasses import dataclass, replace
from enum import StrEnum

import stamina
import trio

from worker.clock import now_ms
from worker.database import Database
from worker.errors import DeployError
from worker.remote.artifact import Artifact
from worker.remote.connection import Connection
from worker.remote.runner import deploy
from worker.state.runner_cache import CachedRunner, RunnerCache, ServerKey

DEPLOY_ATTEMPTS = 3
# How long a note in the cache may wait for room on a full disk: no run depends on it.
ROOM_SECONDS = 2.0


class Source(StrEnum):
    DEPLOYED = "deployed"
    CACHED = "cached"


@dataclass(frozen=True, slots=True)
class UsableRunner:
    """`verify_sha256` is given where the digest must be compared before use; else the runner may be
    called as it is for `good_for_seconds`."""

    path: str
    source: Source
    verify_sha256: str | None
    good_for_seconds: float = 0


class Deployments:
    """Concurrent executions on one server deploy once; the rest find the cache filled."""

    def __init__(
        self, database: Database, artifact: Artifact, *, verify_after_seconds: float
    ) -> None:
        self._database = database
        self._cache = RunnerCache(database)
        self._artifact = artifact
        self._verify_after_ms = verify_after_seconds * 1000
        self._locks: dict[ServerKey, tuple[trio.Lock, int]] = {}

    async def runner(self, key: ServerKey, connection: Connection) -> UsableRunner:
        """A runner that can be called at once.

        Raises DeployError if it had to be deployed and could not be.
        """
        async with self._locked(key):
            cached = await self._cached(key)
            # A server that was made anew behind its address has another key and an empty disk.
            if cached is not None and cached.host_key == connection.host_key.fingerprint:
                age_ms = now_ms() - cached.verified_at
                if 0 <= age_ms <= self._verify_after_ms:  # a clock set back verifies
                    good_for = (self._verify_after_ms - age_ms) / 1000
                    return UsableRunner(cached.path, Source.CACHED, None, good_for)
                return UsableRunner(cached.path, Source.CACHED, self._artifact.sha256)
            path = await self._deploy(connection)
            runner = CachedRunner(
                self._artifact.version,
                self._artifact.sha256,
                path,
                connection.host_key.fingerprint,
                now_ms(),
            )
            await self._database.run(lambda: self._cache.put(key, runner))
            return UsableRunner(path, Source.DEPLOYED, None, self._verify_after_ms / 1000)

    async def verified(self, key: ServerKey, runner: UsableRunner) -> UsableRunner:
        """The runner answered after its digest was compared."""
        # Where that cannot be kept, it is compared once more.
        with trio.move_on_after(ROOM_SECONDS):
            await self._database.run(lambda: self._cache.verified(key, now=now_ms()))
        good_for = self._verify_after_ms / 1000
        return replace(runner, verify_sha256=None, good_for_seconds=good_for)

    async def missing(self, key: ServerKey) -> None:
        """No usable runner answered: the next call deploys."""
        await self._database.run(lambda: self._cache.drop(key))

    async def _cached(self, key: ServerKey) -> CachedRunner | None:
        with trio.move_on_after(ROOM_SECONDS):
            return await self._database.run(lambda: self._cache.use(key, self._artifact.sha256))
        return await self._database.run(lambda: self._cache.find(key, self._artifact.sha256))

    async def _deploy(self, connection: Connection) -> str:
        async for attempt in stamina.retry_context(
            on=DeployError, attempts=DEPLOY_ATTEMPTS, wait_initial=0.2, wait_max=2, timeout=None
        ):
            with attempt:
                return await deploy(connection, self._artifact)
        raise AssertionError("stamina ends with a result or an error")

    @contextlib.asynccontextmanager
    async def _locked(self, key: ServerKey) -> AsyncIterator[None]:
        """One at a time per server; a lock lives as long as somebody wants it."""
        lock, users = self._locks.get(key, (trio.Lock(), 0))
        self._locks[key] = (lock, users + 1)
        try:
            async with lock:
                yield
        finally:
            lock, users = self._locks.pop(key)
            if users > 1:
                self._locks[key] = (lock, users - 1)
