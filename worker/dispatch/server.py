"""One job on one server: its phases, each under its own cancel scope."""

import random
from collections.abc import Callable
from contextlib import AsyncExitStack
from dataclasses import dataclass, field

import structlog
import trio

from worker.clock import now_ms
from worker.dispatch.plan import Plan, PlannedExecution
from worker.dispatch.result import EXIT_CODES, Outcome, Phase, PhaseTimes, ServerResult
from worker.errors import (
    ConnectError,
    ConnectionLostError,
    DeployError,
    ProtocolError,
    RunForgottenError,
    RunnerMissingError,
    RunRefusedError,
    SshError,
    WorkerError,
)
from worker.remote import runner
from worker.remote.connection import Connection
from worker.remote.connector import Connector
from worker.remote.credentials import OpenedCredential, open_credential
from worker.remote.deployments import Deployments, UsableRunner
from worker.remote.frames import Ended, Output, Reason, Started, Stream, Superseded
from worker.remote.payload import Payload
from worker.remote.target import Target
from worker.settings import Settings
from worker.state.runner_cache import ServerKey

log = structlog.get_logger()

# The runner gives a script so long between TERM and KILL.
END_GRACE_SECONDS = 5
# How late the runner's word may be; then the connection or the runner is taken for lost.
LATE_SECONDS = 30
# A run that may have started although the setup phase ended without its word.
STRAY_SECONDS = 10
RECONNECT_FIRST_SECONDS = 0.2
RECONNECT_MOST_SECONDS = 10
# A runner that is deployed and then not there is somebody else's doing; once more, then give up.
START_ATTEMPTS = 3

OutputSink = Callable[[Stream, bytes], None]


@dataclass(frozen=True, slots=True)
class Remote:
    """What the executions of this worker share."""

    settings: Settings
    connector: Connector
    deployments: Deployments


@dataclass(slots=True)
class _Progress:
    """What is known of an execution so far; its result can be told at any moment."""

    started_at: int = field(default_factory=now_ms)
    began: float = field(default_factory=trio.current_time)
    execution_began: float | None = None
    doing: str = "waiting for a connection"
    payload_sent: bool = False
    runner: str | None = None
    received: dict[Stream, int] = field(default_factory=lambda: dict.fromkeys(Stream, 0))


class ServerExecution:
    """One child of the fan-out.

    `run` says how the execution ended, `clean_up` forgets the run on the server, `close` gives
    up the connection; a run that goes on is not touched by that.
    """

    def __init__(
        self,
        plan: Plan,
        execution: PlannedExecution,
        remote: Remote,
        *,
        cancelled: trio.Event,
        started: Callable[[], None],
        sink: OutputSink,
    ) -> None:
        self._plan = plan
        self._execution = execution
        self._remote = remote
        self._cancelled = cancelled
        self._started = started
        self._sink = sink
        self._progress = _Progress()
        self._stack = AsyncExitStack()
        self._connection: Connection | None = None
        self._runner: UsableRunner | None = None

    async def run(self) -> ServerResult:
        """Only cancellation leaves this; every failure is an outcome."""
        server = self._execution.server
        structlog.contextvars.bind_contextvars(
            execution_id=self._execution.id, server_id=server.id, server=server.name
        )
        try:
            result = await self._run_phases()
        except Exception as error:  # a fault of ours in one child is that child's
            log.exception("execution_fault")
            result = self._result(Outcome.LOST, f"a fault of the worker: {error!r}")
        if self._remote.connector.is_crowded:
            await self.close()
        return result

    async def clean_up(self) -> None:
        """Forget the run, within the limit of that phase; what stays is the janitor's."""
        if not self._progress.payload_sent:
            return
        structlog.contextvars.bind_contextvars(phase=Phase.CLEANUP)
        began = trio.current_time()
        seconds = self._remote.settings.phases.cleanup_seconds
        try:
            with trio.CancelScope(shield=True), trio.fail_after(seconds):
                connection, usable = await self._reach()
                await runner.forget(connection, usable.path, [self._execution.id])
        except WorkerError as error:
            log.warning("cleanup_failed", error=str(error))
        except trio.TooSlowError:
            log.warning("cleanup_failed", error=f"over its limit of {seconds:g} s")
        else:
            log.info("cleanup_ended", cleanup_ms=_ms(trio.current_time() - began))

    async def close(self) -> None:
        stack, self._stack = self._stack, AsyncExitStack()
        self._connection = None
        await stack.aclose()

    async def _run_phases(self) -> ServerResult:
        attachment = await self._set_up()
        if isinstance(attachment, ServerResult):
            return attachment
        return await self._execute(*attachment)

    async def _set_up(self) -> ServerResult | tuple[runner.Attachment, Started]:
        structlog.contextvars.bind_contextvars(phase=Phase.SETUP)
        seconds = self._remote.settings.phases.setup_seconds
        result = None
        async with trio.open_nursery() as nursery:
            nursery.start_soon(self._give_up_setup, nursery.cancel_scope)
            with trio.move_on_after(seconds) as limit:
                result = await self._try_to_start()
            nursery.cancel_scope.cancel()
        if result is not None:
            return result
        await self._end_stray_run()
        if limit.cancelled_caught:
            error = f"setup was over its limit of {seconds:g} s while {self._progress.doing}"
            return self._result(Outcome.UNREACHABLE, error)
        return self._result(Outcome.CANCELLED, "the job was cancelled during setup")

    async def _give_up_setup(self, setup: trio.CancelScope) -> None:
        await self._cancelled.wait()
        # From the payload on the run may have started: then it is signalled, not abandoned.
        if not self._progress.payload_sent:
            setup.cancel()

    async def _try_to_start(self) -> ServerResult | tuple[runner.Attachment, Started]:
        if self._execution.server.fault is not None:
            return self._result(Outcome.UNREACHABLE, self._execution.server.fault)
        try:
            return await self._start()
        except (DeployError, RunnerMissingError, RunRefusedError) as error:
            return self._result(Outcome.NOT_DEPLOYED, str(error))
        except RunForgottenError as error:
            return self._result(Outcome.LOST, str(error))
        except (SshError, ProtocolError) as error:
            return self._result(Outcome.UNREACHABLE, str(error))

    async def _start(self) -> tuple[runner.Attachment, Started]:
        """Connected, runner there, run started or found going; deployed anew where it is missing.

        A connection lost before the run's first word says nothing of whether it started: `run`
        is sent again, which starts nothing twice.
        """
        attempt = 0
        while True:
            attempt += 1
            try:
                return await self._start_once()
            except (RunnerMissingError, ConnectionLostError) as error:
                if attempt == START_ATTEMPTS:
                    raise
                failure = error
            log.info("start_failed", error=str(failure))
            if isinstance(failure, RunnerMissingError):
                await self._remote.deployments.missing(self._key)
                self._runner = None
            else:
                await self.close()

    async def _start_once(self) -> tuple[runner.Attachment, Started]:
        connection, usable = await self._reach()
        attachment = await self._send_run(connection, usable)
        started = await self._first_word(attachment)
        if usable.verify_sha256:
            await self._remote.deployments.verified(self._key)
        return attachment, started

    async def _reach(self) -> tuple[Connection, UsableRunner]:
        """The connection, made where there is none, and a runner behind it."""
        target = self._target
        if self._connection is None:
            self._progress.doing = "waiting for a connection"
            credential = self._open_credential(target)
            self._progress.doing = "connecting"
            self._connection = await self._stack.enter_async_context(
                self._remote.connector.connection(target, credential, self._plan.job_id)
            )
        if self._runner is None:
            self._progress.doing = "deploying the runner"
            self._runner = await self._remote.deployments.runner(self._key, self._connection)
            self._progress.runner = self._progress.runner or self._runner.source
            log.debug("runner_ready", source=self._runner.source, path=self._runner.path)
        return self._connection, self._runner

    async def _send_run(self, connection: Connection, usable: UsableRunner) -> runner.Attachment:
        self._progress.doing = "starting the run"
        plan = self._plan
        payload = Payload(
            interpreter=plan.interpreter,
            script=plan.script,
            environment=plan.environment_of(self._execution),
            directory=plan.directory,
            input=plan.input,
            output_limit_bytes=self._remote.settings.jobs.run_max_output_bytes,
        )
        request = runner.RunRequest(self._execution.id, plan.limit_seconds, payload.encode())
        self._progress.payload_sent = True
        return await self._stack.enter_async_context(
            runner.start(
                connection,
                usable.path,
                request,
                verify_sha256=usable.verify_sha256,
                silence_seconds=self._remote.settings.ssh.keepalive_seconds,
            )
        )

    async def _first_word(self, attachment: runner.Attachment) -> Started:
        while True:
            match await attachment.receive():
                case Started() as started:
                    return started
                case Ended(reason=reason):
                    # A tombstone is the one thing that comes before the run's first word.
                    raise RunForgottenError(f"the run is {reason}: it was reported before")

    async def _execute(self, attachment: runner.Attachment, started: Started) -> ServerResult:
        structlog.contextvars.bind_contextvars(phase=Phase.EXECUTION)
        elapsed = started.elapsed_ms / 1000
        self._progress.execution_began = trio.current_time() - elapsed
        self._started()
        log.info("execution_started", state=started.state)
        # The runner has the limit; this one is for a runner or a server that is gone.
        seconds = self._plan.limit_seconds - elapsed + END_GRACE_SECONDS + LATE_SECONDS
        result = None
        async with trio.open_nursery() as nursery:
            nursery.start_soon(self._signal_when_cancelled)
            with trio.move_on_after(seconds):
                result = await self._follow(attachment)
            nursery.cancel_scope.cancel()
        return result or self._result(
            Outcome.LOST, "nothing was heard of the run until long after its limit"
        )

    async def _follow(self, attachment: runner.Attachment) -> ServerResult:
        """Take in what the run prints until it ends, over as many connections as it needs."""
        try:
            while True:
                try:
                    return await self._take_in(attachment)
                except (ConnectionLostError, ProtocolError) as error:
                    log.warning("connection_lost", error=str(error))
                attachment = await self._attach_again()
        except (RunnerMissingError, RunRefusedError) as error:
            return self._result(Outcome.LOST, f"the run vanished from the server: {error}")
        except SshError as error:
            return self._result(Outcome.LOST, str(error))

    async def _take_in(self, attachment: runner.Attachment) -> ServerResult:
        """Take in what comes over one connection, until the run or the connection ends."""
        while True:
            match await attachment.receive():
                case Output(stream, data):
                    self._progress.received[stream] += len(data)
                    self._sink(stream, data)
                case Ended() as ended:
                    return self._ended(ended)
                case Superseded():
                    return self._result(Outcome.LOST, "another worker has attached to the run")

    async def _attach_again(self) -> runner.Attachment:
        """Connect for as long as it takes, within the caller's scope; a refusal is final."""
        pause = RECONNECT_FIRST_SECONDS
        while True:
            await self.close()
            await trio.sleep(random.uniform(0, pause))  # noqa: S311  jitter, not a secret
            pause = min(pause * 2, RECONNECT_MOST_SECONDS)
            try:
                connection, usable = await self._reach()
                received = self._progress.received
                return await self._stack.enter_async_context(
                    runner.attach(
                        connection,
                        usable.path,
                        self._execution.id,
                        runner.Offsets(received[Stream.STDOUT], received[Stream.STDERR]),
                        silence_seconds=self._remote.settings.ssh.keepalive_seconds,
                    )
                )
            except (ConnectError, ConnectionLostError, DeployError) as error:
                log.debug("reconnect_failed", error=str(error))

    async def _signal_when_cancelled(self) -> None:
        await self._cancelled.wait()
        log.info("run_cancelling")
        while True:
            try:
                if self._connection is not None and self._runner is not None:
                    await runner.signal(
                        self._connection, self._runner.path, self._execution.id, "cancel"
                    )
                    return
            except SshError as error:
                log.warning("signal_failed", error=str(error))
            await trio.sleep(1)  # until the connection is there again, or the run's time is over

    async def _end_stray_run(self) -> None:
        """After a setup that ended early: nothing may go on that nobody follows."""
        if not self._progress.payload_sent:
            return
        try:
            with trio.fail_after(STRAY_SECONDS):
                connection, usable = await self._reach()
                await runner.signal(connection, usable.path, self._execution.id, "cancel")
        except (WorkerError, trio.TooSlowError) as error:
            log.warning("signal_failed", error=str(error) or "no answer")

    def _ended(self, frame: Ended) -> ServerResult:
        """The run's own end as an outcome."""
        wall_ms = frame.wall_ms
        match frame.reason:
            case Reason.EXIT if frame.code == 0:
                return self._result(Outcome.SUCCESS, None, 0, wall_ms)
            case Reason.EXIT:
                error = f"the script exited with {frame.code}"
                return self._result(Outcome.FAILED, error, frame.code, wall_ms)
            case Reason.SIGNAL:
                error = f"the script was ended by signal {frame.code - 128}"
                return self._result(Outcome.FAILED, error, frame.code, wall_ms)
            case Reason.OUTPUT_LIMIT:
                limit = self._remote.settings.jobs.run_max_output_bytes
                error = f"the run printed more than its limit of {limit} bytes"
                return self._result(Outcome.FAILED, error, frame.code, wall_ms)
            case Reason.TIMEOUT:
                error = f"the script was over its limit of {self._plan.limit_seconds} s"
                return self._result(Outcome.TIMED_OUT, error, None, wall_ms)
            case Reason.CANCEL:
                return self._result(Outcome.CANCELLED, "the job was cancelled", None, wall_ms)
            case Reason.LOST:
                error = "the run vanished from the server (rebooted, or its processes were killed)"
                return self._result(Outcome.LOST, error, None, wall_ms)
            case Reason.FORGOTTEN:
                return self._result(Outcome.LOST, "the run was forgotten by the server")

    def _result(
        self,
        outcome: Outcome,
        error: str | None,
        exit_code: int | None = None,
        wall_ms: int | None = None,
    ) -> ServerResult:
        progress, now = self._progress, trio.current_time()
        setup_end = progress.execution_began or now
        execution_ms = None
        if progress.execution_began is not None:
            execution_ms = wall_ms or _ms(now - progress.execution_began)
        return ServerResult(
            execution_id=self._execution.id,
            server_id=self._execution.server.id,
            server_name=self._execution.server.name,
            outcome=outcome,
            exit_code=EXIT_CODES[outcome] if exit_code is None else exit_code,
            started_at=progress.started_at,
            ended_at=now_ms(),
            times=PhaseTimes(max(0, _ms(setup_end - progress.began)), execution_ms),
            error=error,
            runner=progress.runner,
        )

    def _open_credential(self, target: Target) -> OpenedCredential:
        return open_credential(target.credential, self._remote.settings.encryption_key)

    @property
    def _target(self) -> Target:
        target = self._execution.server.target
        if target is None:
            raise AssertionError("a server without a target never gets beyond setup")
        return target

    @property
    def _key(self) -> ServerKey:
        target = self._target
        return ServerKey(self._execution.server.id, target.host, target.port, target.user)


def _ms(seconds: float) -> int:
    return round(seconds * 1000)
