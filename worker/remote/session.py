"""One server, reached over as many connections as it takes."""

import random
from collections.abc import Awaitable
from contextlib import AsyncExitStack
from dataclasses import dataclass

import structlog
import trio

from worker.errors import ConnectError, ConnectionLostError, DeployError, RunnerMissingError
from worker.remote import runner
from worker.remote.connection import Connection
from worker.remote.connector import Connector
from worker.remote.credentials import Credentials
from worker.remote.deployments import Deployments, Source, UsableRunner
from worker.remote.target import Target
from worker.state.runner_cache import ServerKey

log = structlog.get_logger()

PAUSE_FIRST_SECONDS = 0.2
PAUSE_MOST_SECONDS = 10


@dataclass(frozen=True, slots=True)
class Remote:
    """What reaches servers for the whole worker."""

    connector: Connector
    deployments: Deployments


class ServerSession:
    """A connection and a runner behind it, made where there is none; used by one task at a time.

    `doing` says in a word or two what takes so long, `source` where the runner came from, and
    `has_sent` that a payload has gone out, so that a run may have started.
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
        self._remote = remote
        self._target = target
        self._key = ServerKey(server_id, target.host, target.port, target.user)
        self._credentials = credentials
        self._job_id = job_id
        self._stack = AsyncExitStack()
        self._has_slot = False
        self._connection: Connection | None = None
        self._runner: UsableRunner | None = None
        self._pause = PAUSE_FIRST_SECONDS
        self.doing = "waiting for a connection"
        self.source: Source | None = None
        self.has_sent = has_sent

    async def take_slot(self) -> None:
        """Wait for the worker's own limit on connections."""
        if not self._has_slot:
            await self._stack.enter_async_context(self._remote.connector.slot())
            self._has_slot = True

    async def start(self, request: runner.RunRequest) -> runner.Attachment:
        """Send the payload and attach; `verified` is to follow once the runner has answered."""
        connection, usable = await self._reach()
        self.doing = "starting the run"
        self.has_sent = True
        return await self._stack.enter_async_context(
            runner.start(connection, usable.path, request, verify_sha256=usable.verify_sha256)
        )

    async def attach(self, execution_id: str, offsets: runner.Offsets) -> runner.Attachment:
        connection, usable = await self._reach()
        return await self._stack.enter_async_context(
            runner.attach(connection, usable.path, execution_id, offsets)
        )

    async def signal(self, execution_id: str) -> None:
        """End the run as cancelled."""
        connection, usable = await self._reach()
        await self._call(runner.signal(connection, usable.path, execution_id, "cancel"))

    async def signal_beside(self, execution_id: str) -> bool:
        """As `signal`, from another task and over the connection that there is; False if none."""
        if self._connection is None:
            return False
        usable = await self._find_runner(self._connection)
        await self._call(runner.signal(self._connection, usable.path, execution_id, "cancel"))
        return True

    async def answer_beside(self, execution_id: str, call_id: str, answer: bytes) -> bool:
        """Answer a helper call, from another task and over the connection that there is.

        False if there is none: the next attachment brings the call again.
        """
        if self._connection is None:
            return False
        usable = await self._find_runner(self._connection)
        await self._call(
            runner.answer(self._connection, usable.path, execution_id, call_id, answer)
        )
        return True

    async def forget(self, execution_id: str) -> None:
        connection, usable = await self._reach()
        await self._call(runner.forget(connection, usable.path, [execution_id]))

    async def verified(self) -> None:
        """The runner has answered, so its digest, where it was to be compared, was right."""
        if self._runner is not None and self._runner.verify_sha256:
            await self._remote.deployments.verified(self._key)

    async def drop_runner(self) -> None:
        """What was taken for a runner is none: it is deployed before the next use."""
        await self._remote.deployments.missing(self._key)
        self._runner = None

    async def yield_when_crowded(self) -> None:
        """Wait until another execution needs a connection, and give this one up."""
        await self._remote.connector.crowded()
        await self.close()

    async def pause(self) -> None:
        """Close, and wait before the next try: full jitter, doubled each time."""
        await self.close()
        pause = self._pause
        self._pause = min(pause * 2, PAUSE_MOST_SECONDS)
        await trio.sleep(random.uniform(0, pause))  # noqa: S311  jitter, not a secret

    def made_progress(self) -> None:
        """The server is of use again: the next pause is a short one."""
        self._pause = PAUSE_FIRST_SECONDS

    async def close(self) -> None:
        """Give up the connection, and the slot for it."""
        stack, self._stack = self._stack, AsyncExitStack()
        self._connection, self._has_slot = None, False
        await stack.aclose()

    async def _call(self, call: Awaitable[None]) -> None:
        """A verb of the runner; one that is missing is deployed before the next."""
        missing = None
        try:
            await call
        except RunnerMissingError as error:
            missing = error
        if missing is not None:
            await self.drop_runner()
            raise missing

    async def _reach(self) -> tuple[Connection, UsableRunner]:
        await self.take_slot()
        if self._connection is None:
            self.doing = "opening the credential"
            credential = await self._credentials.opened(self._target.credential)
            self.doing = "connecting"
            self._connection = await self._stack.enter_async_context(
                self._remote.connector.connection(self._target, credential, self._job_id)
            )
        return self._connection, await self._find_runner(self._connection)

    async def _find_runner(self, connection: Connection) -> UsableRunner:
        if self._runner is None:
            self.doing = "deploying the runner"
            self._runner = await self._remote.deployments.runner(self._key, connection)
            self.source = self.source or self._runner.source
            log.debug("runner_ready", source=self._runner.source, path=self._runner.path)
        return self._runner


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
