"""The whole way to one server, step by step, as a job goes it."""

import secrets
from collections.abc import Iterator
from contextlib import AsyncExitStack, closing, contextmanager

import trio

from worker.checkup import Finding, Say, Verdict, failed
from worker.database import Database
from worker.errors import (
    AuthenticationError,
    DeployError,
    HostKeyError,
    SshError,
    WorkerError,
)
from worker.remote import runner
from worker.remote.artifact import load_artifact
from worker.remote.connection import Connection
from worker.remote.connector import Connector
from worker.remote.credentials import open_credential
from worker.remote.deployments import Deployments
from worker.remote.frames import Ended
from worker.remote.loop import open_loop
from worker.remote.payload import Interpreter, Payload
from worker.remote.target import Target
from worker.remote.waiting import RunRequest, prepare
from worker.settings import Settings
from worker.state.runner_cache import ServerKey

NAME = "check"
TRIAL_SECONDS = 30
TOOLS = ("bash", "python3", "node", "setsid", "sha256sum")
# Marked, for a start-up file may print as well.
LOOK = f"""
printf '\\n<<%s\\n' "$(uname -sr)"
for tool in {" ".join(TOOLS)}; do
    command -v $tool >/dev/null 2>&1 && printf '<<%s\\n' $tool
done
exit 0
"""


class _StoppedError(Exception):
    """A step failed, and was told of."""


class Trial:
    def __init__(self, target: Target, loaded: Settings, database: Database, say: Say) -> None:
        self._target = target
        self._loaded = loaded
        self._database = database
        self._say = say

    async def run(self) -> None:
        """Each step is told of when it has ended; the first that fails is the last.

        A host key that is new is pinned, as a job would do it. Nothing else stays on the server
        but the runner.
        """
        try:
            async with open_loop(), AsyncExitStack() as stack:
                connection = await self._connect(stack)
                await self._look_around(connection)
                path = await self._deploy(connection)
                await self._run_true(connection, path)
        except* _StoppedError:
            pass  # the connection's own tasks make a group of it

    async def _connect(self, stack: AsyncExitStack) -> Connection:
        connector = Connector(self._loaded.ssh, self._database)
        began = trio.current_time()
        with self._step("connection"):
            opened = open_credential(self._target.credential, self._loaded.encryption_key)
            connection = await stack.enter_async_context(
                connector.connection(self._target, opened, NAME)
            )
        key = connection.host_key.fingerprint
        self._done("connection", f"{self._target}, host key {key}", began)
        return connection

    async def _look_around(self, connection: Connection) -> None:
        began = trio.current_time()
        with self._step("shell"), closing(await connection.exec("sh")) as channel:
            await channel.send_all(LOOK.encode())
            channel.send_eof()
            said = await runner.read_answer(channel)
        found = [
            line[2:] for line in said.decode(errors="replace").splitlines() if line[:2] == "<<"
        ]
        if not found:
            self._say(failed("shell", "it runs no `sh`", "see the account's login shell"))
            raise _StoppedError
        system, *tools = found
        missing = [tool for tool in TOOLS if tool not in tools]
        without = f"; without {', '.join(missing)}" if missing else ""
        self._done("shell", f"{system}, with {', '.join(tools)}{without}", began)

    async def _deploy(self, connection: Connection) -> str:
        began = trio.current_time()
        target = self._target
        with self._step("runner"):
            deployments = Deployments(
                self._database,
                load_artifact(),
                verify_after_seconds=self._loaded.ssh.runner_verify_after_seconds,
            )
            key = ServerKey(NAME, target.host, target.port, target.user)
            await deployments.missing(key)  # what is there is to be looked at
            path = (await deployments.runner(key, connection)).path
        self._done("runner", path, began)
        return path

    async def _run_true(self, connection: Connection, path: str) -> None:
        began = trio.current_time()
        payload = Payload(Interpreter.BASH, b"true\n", {}, "", b"null", 0)
        request = RunRequest(f"{NAME}-{secrets.token_hex(8)}", TRIAL_SECONDS, payload)
        with self._step("script"):
            attachment = await (await prepare(connection, path)).begin(request)
            with closing(attachment):
                while not isinstance(frame := await attachment.receive(), Ended):
                    pass
            await runner.forget(connection, path, [request.execution_id])
        if frame.code:
            told = f"`true` ended with {frame.code} ({frame.reason})"
            self._say(failed("script", told, "see whether bash works there"))
            raise _StoppedError
        self._done("script", "`true` ran, and was forgotten", began)

    @contextmanager
    def _step(self, subject: str) -> Iterator[None]:
        failure: WorkerError | None = None
        try:
            with trio.fail_after(self._loaded.phases.setup_seconds):
                yield
        except trio.TooSlowError:
            failure = SshError(f"not within {self._loaded.phases.setup_seconds:g} s")
        except WorkerError as error:
            failure = error
        if failure is not None:
            self._say(failed(subject, str(failure), _advice(failure)))
            raise _StoppedError

    def _done(self, subject: str, told: str, began: float) -> None:
        seconds = trio.current_time() - began
        self._say(Finding(Verdict.PASSED, subject, told, seconds=seconds))


def _advice(error: WorkerError) -> str:
    match error:
        case HostKeyError():
            return "if that is right: `cronium-worker hosts trust`"
        case AuthenticationError():
            return "see the account's authorized_keys, and the key or password given here"
        case DeployError():
            return "see whether the account's home or /var/tmp can be written"
        case _:
            return "see whether sshd runs there and lets this machine through"
