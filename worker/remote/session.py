"""One execution's way to its server, over as many connections as it takes."""

import itertools
import random
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from typing import TypeVar

import structlog
import trio

from worker.errors import (
    ConnectError,
    ConnectionLostError,
    DeployError,
    NoChannelError,
    RunnerMissingError,
)
from worker.remote import runner, waiting
from worker.remote.attachment import Attachment, Offsets
from worker.remote.connection import Connection
from worker.remote.credentials import Credentials
from worker.remote.deployments import Deployments, Source, UsableRunner
from worker.remote.forgetting import Forgetting
from worker.remote.pool import Pool
from worker.remote.pooled import PooledConnection
from worker.remote.target import Target
from worker.state.runner_cache import ServerKey

log = structlog.get_logger()

T = TypeVar("T")

PAUSE_FIRST_SECONDS = 0.2
PAUSE_MOST_SECONDS = 10


@dataclass(frozen=True, slots=True)
class Remote:
    """What reaches servers for the whole worker."""

    pool: Pool
    deployments: Deployments
    forgetting: Forgetting = field(default_factory=Forgetting)


@dataclass(frozen=True, slots=True)
class _There:
    """A connection and what can be called behind it."""

    pooled: PooledConnection
    connection: Connection
    runner: UsableRunner


class ServerSession:
    """A connection and a runner behind it, made where there is none.

    What it attaches to is one task's at a time; `signal` and `answer` go beside that. `doing`
    says in a word or two what takes so long, `source` where the runner came from, `was_kept` that
    the last connection for that was there before, and `has_sent` that a payload is on its way, so
    that a run may have started.
    """

    def __init__(
        self,
        remote: Remote,
        server_id: str,
        target: Target,
        credentials: Credentials,
        *,
        job_id: str,
        has_sent: bool = False,
    ) -> None:
        self._pool = remote.pool
        self._deployments = remote.deployments
        self._forgetting = remote.forgetting
        self._target = target
        self._key = ServerKey(server_id, target.host, target.port, target.user)
        self._credentials = credentials
        self._job_id = job_id
        # Where it is attached, or is to be.
        self._pooled: PooledConnection | None = None
        self._attachment: Attachment | None = None
        self._run: waiting.WaitingRun | None = None
        self._unverified: UsableRunner | None = None
        self._pause = PAUSE_FIRST_SECONDS
        self.doing = "waiting for a connection"
        self.source: Source | None = None
        self.was_kept = False
        self.has_sent = has_sent

    async def take_place(self, *, urgent: bool = False) -> None:
        """Wait for the worker's own limit on connections, unless it is `urgent`."""
        if self._pooled is None:
            self._pooled = await self._place(urgent=urgent)

    async def start(self, request: waiting.RunRequest) -> Attachment:
        """Send the payload and attach; `verified` is to follow once the runner has answered."""

        async def start(there: _There) -> Attachment:
            self.doing = "starting the run"
            verify = there.runner.verify_sha256
            self._unverified = there.runner if verify else None
            run = None if verify else there.pooled.spares.take(request)
            if run is None:
                run = await waiting.prepare(
                    there.connection, there.runner.path, verify_sha256=verify
                )
            self._run = run
            self.has_sent = True
            return await run.begin(request)

        return await self._attached(start)

    def unstage(self, execution_id: str) -> None:
        """What was made ready for the run, and is not used by now, goes away."""
        self._pool.unstage(self._target, execution_id)

    async def attach(self, execution_id: str, offsets: Offsets) -> Attachment:
        self.unstage(execution_id)
        # It goes on meanwhile: were it to wait for others' ends, its own would not be heard of.
        return await self._attached(
            lambda there: runner.attach(there.connection, there.runner.path, execution_id, offsets),
            urgent=True,
        )

    async def signal(self, execution_id: str, reason: str = "cancel") -> None:
        """End the run as `reason` says: cancel or timeout."""
        await self._call(
            lambda there: runner.signal(there.connection, there.runner.path, execution_id, reason),
            urgent=True,
        )

    async def answer(self, execution_id: str, call_id: str, answer: bytes) -> None:
        """Answer a helper call."""
        await self._call(
            lambda there: runner.answer(
                there.connection, there.runner.path, execution_id, call_id, answer
            ),
            urgent=True,
        )

    async def forget(self, execution_id: str) -> None:
        await self._forgetting.forget(self._target, execution_id, self._forget_all)

    async def _forget_all(self, execution_ids: Sequence[str]) -> None:
        async def forget(there: _There) -> None:
            run = there.pooled.spares.any()
            if run is None or not await run.forget(execution_ids):
                await runner.forget(there.connection, there.runner.path, execution_ids)

        await self._call(forget)

    async def list_runs(self) -> tuple[runner.RunOnServer, ...]:
        return await self._call(lambda there: runner.list_runs(there.connection, there.runner.path))

    async def verified(self) -> None:
        """The runner has answered, so its digest, where it was to be compared, was right."""
        if self._unverified is not None and self._pooled is not None:
            known = await self._deployments.verified(self._key, self._unverified)
            self._pooled.know_runner(known)
            self._unverified = None

    async def drop_runner(self) -> None:
        """What was taken for a runner is none: it is deployed before the next use."""
        self._pool.forget_runner(self._target)
        await self._deployments.missing(self._key)

    async def pause(self) -> None:
        """Look for another connection, after a while: full jitter, doubled each time."""
        if self._pooled is not None:
            self._pooled.retire()
        self.close()
        pause = self._pause
        self._pause = min(pause * 2, PAUSE_MOST_SECONDS)
        await trio.sleep(random.uniform(0, pause))  # noqa: S311  jitter, not a secret

    def made_progress(self) -> None:
        """The server is of use again: the next pause is a short one."""
        self._pause = PAUSE_FIRST_SECONDS

    def close(self) -> None:
        """Detach, and leave the connection to others."""
        run, self._run = self._run, None
        if run is not None and run.is_waiting and self._pooled is not None:
            self._pooled.spares.give_back(run)
        elif self._attachment is not None:
            self._attachment.close()
        self._attachment = None
        if self._pooled is not None:
            self._pool.leave(self._pooled)
            self._pooled = None

    async def _place(self, *, urgent: bool = False) -> PooledConnection:
        opened = partial(self._credentials.opened, self._target.credential)
        return await self._pool.place(self._target, opened, self._job_id, urgent=urgent)

    async def _attached(
        self, attach: Callable[[_There], Awaitable[Attachment]], *, urgent: bool = False
    ) -> Attachment:
        if self._attachment is not None:  # of a try that failed
            self._attachment.close()
        while True:
            await self.take_place(urgent=urgent)
            if self._pooled is None:
                raise AssertionError("there is a place once it was taken")
            self.was_kept = self._pooled.is_made
            try:
                self._attachment = await self._use(self._pooled, attach)
            except NoChannelError as error:
                log.debug("connection_full", error=str(error))
            else:
                return self._attachment
            self.close()

    async def _call(self, call: Callable[[_There], Awaitable[T]], *, urgent: bool = False) -> T:
        """A verb of the runner; one that is missing is deployed before the next."""
        while True:
            pooled = await self._place(urgent=urgent)
            try:
                return await self._use(pooled, call)
            except (NoChannelError, RunnerMissingError) as error:
                failure = error
            finally:
                self._pool.leave(pooled)
            if isinstance(failure, RunnerMissingError):
                await self.drop_runner()
                raise failure
            log.debug("connection_full", error=str(failure))

    async def _use(self, pooled: PooledConnection, use: Callable[[_There], Awaitable[T]]) -> T:
        """Raises NoChannelError if it is to be tried over another connection."""
        for refusals in itertools.count(1):
            self.doing = "connecting"
            connection = await self._pool.connection(pooled)
            if pooled.opened is not None:
                self._credentials.learn(pooled.opened)
            try:
                return await use(_There(pooled, connection, await self._runner(pooled, connection)))
            except NoChannelError as error:
                refusal = error
            except ConnectionLostError:
                pooled.retire()  # it may hang, although its keepalives are answered
                raise
            if not await self._pool.made_room(pooled, connection, refusals):
                raise refusal
        raise AssertionError("a count has no end")

    async def _runner(self, pooled: PooledConnection, connection: Connection) -> UsableRunner:
        known = pooled.runner
        if known is None:
            self.doing = "deploying the runner"
            known = await self._deployments.runner(self._key, connection)
            log.debug("runner_ready", source=known.source, path=known.path)
            if known.verify_sha256 is None:
                pooled.know_runner(replace(known, source=Source.CACHED))
        self.source = self.source or known.source
        return known


async def forget_for_sure(session: ServerSession, execution_id: str) -> None:
    """Forget the run, within the caller's scope, over as many connections as that takes.

    Raises WorkerError if the server, or its runner, will not.
    """
    while True:
        try:
            await session.forget(execution_id)
        except (ConnectError, ConnectionLostError, DeployError, RunnerMissingError) as error:
            log.debug("forget_failed", error=str(error))
        else:
            return
        await session.pause()
