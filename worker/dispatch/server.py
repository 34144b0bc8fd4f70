"""One job on one server: its phases, each under its own cancel scope."""

import math
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field
from functools import partial

import structlog
import trio

from worker.clock import now_ms
from worker.dispatch.helper_calls import HelperCalls
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
    SupersededError,
    WorkerError,
)
from worker.remote.credentials import Credentials
from worker.remote.frames import Call, Ended, Output, Reason, Started, Stream, Superseded
from worker.remote.payload import Payload
from worker.remote.runner import NO_SUCH_RUN_STATUS, Attachment, Offsets, RunRequest
from worker.remote.session import Remote, ServerSession, forget_for_sure
from worker.settings import Settings

log = structlog.get_logger()

# The runner gives a script so long between TERM and KILL.
END_GRACE_SECONDS = 5
# How late the runner's word may be; then the connection or the runner is taken for lost.
LATE_SECONDS = 30
# However late it is, a run whose output still comes is not lost.
UNHEARD_SECONDS = 30
# What is left of a cleanup when the worker is to end.
HASTE_SECONDS = 5
# A run that may have started although the setup phase ended without its word.
STRAY_SECONDS = 20
# A runner that is deployed and then not there is somebody else's doing; once more, then give up.
START_ATTEMPTS = 3
# An sshd that is started anew is away for a second or two; a server without one is told of soon.
CONNECT_ATTEMPTS = 6
# Answers on their way at once: sshd has 10 channels for a connection, and may have fewer.
ANSWERS_AT_ONCE = 4
ANSWER_ATTEMPTS = 4

NOTHING_RECEIVED = Offsets()

OutputSink = Callable[[Stream, bytes], Awaitable[None]]


@dataclass(frozen=True, slots=True)
class Resumption:
    """What an earlier worker left of an execution.

    A run that `has_begun` is attached to from `offsets` on; of another it is not known whether
    it has, where it `may_have_begun`.
    """

    may_have_begun: bool
    has_begun: bool = False
    offsets: Offsets = NOTHING_RECEIVED


@dataclass(slots=True)
class _Progress:
    """What is known of an execution so far; its result can be told at any moment."""

    started_at: int = field(default_factory=now_ms)
    began: float = field(default_factory=trio.current_time)
    execution_began: float | None = None
    received: dict[Stream, int] = field(default_factory=lambda: dict.fromkeys(Stream, 0))


class ServerExecution:
    """One child of the fan-out.

    `run` says how the execution ended, `clean_up` forgets the run on the server, `close` gives
    up the connection; a run that goes on is not touched by that. `begun` is set when the script
    is known to run, `sink` called with what it prints, `still_ours` when somebody else attaches;
    `calls` are its script's.
    """

    def __init__(
        self,
        plan: Plan,
        execution: PlannedExecution,
        remote: Remote,
        settings: Settings,
        *,
        credentials: Credentials,
        cancelled: trio.Event,
        still_ours: Callable[[], Awaitable[bool]],
        sink: OutputSink,
        calls: HelperCalls,
        resumption: Resumption | None = None,
    ) -> None:
        self._plan = plan
        self._execution = execution
        self._settings = settings
        self._cancelled = cancelled
        self._still_ours = still_ours
        self._sink = sink
        self._calls = calls
        self._answers = trio.CapacityLimiter(ANSWERS_AT_ONCE)
        self._resumption = resumption or Resumption(may_have_begun=False)
        offsets = self._resumption.offsets
        self._progress = _Progress()
        self._progress.received = {Stream.STDOUT: offsets.stdout, Stream.STDERR: offsets.stderr}
        self.begun = trio.Event()
        server = execution.server
        self._session = (
            ServerSession(
                remote,
                server.id,
                server.target,
                credentials,
                job_id=plan.job_id,
                has_sent=self._resumption.may_have_begun,
            )
            if server.target is not None
            else None
        )

    async def run(self) -> ServerResult:
        """Only cancellation leaves this; every failure is an outcome."""
        server = self._execution.server
        structlog.contextvars.bind_contextvars(
            execution_id=self._execution.id, server_id=server.id, server=server.name
        )
        if self._session is None:
            await trio.lowlevel.checkpoint()
            return self._result(Outcome.UNREACHABLE, server.fault)
        try:
            return await self._run_phases(self._session)
        except Exception as error:  # a fault of ours in one child is that child's
            log.exception("execution_fault")
            fault = f"a fault of the worker: {type(error).__name__}: {error}"
            return self._result(Outcome.LOST, fault)

    async def yield_connection(self) -> None:
        """Once the execution has ended: give the connection up when another one needs it, or
        when its job's end is long in coming."""
        if self._session is not None:
            with trio.move_on_after(self._settings.phases.cleanup_seconds):
                await self._session.yield_when_crowded()
            await self._session.close()

    async def clean_up(self) -> bool:
        """Forget the run, within that phase's limit; whether nothing of it is left.

        What stays the runner sweeps away in time.
        """
        if self._session is None or not self._session.has_sent:
            return True
        structlog.contextvars.bind_contextvars(phase=Phase.CLEANUP)
        began = trio.current_time()
        failure: str | None = "over its limit"
        async with trio.open_nursery() as nursery:
            seconds = self._settings.phases.cleanup_seconds
            with trio.move_on_after(seconds, shield=True) as limit:
                # Outside the shield on purpose: it tells when the worker is to end.
                nursery.start_soon(_hasten, limit)  # noqa: ASYNC111  cancelled before the scope ends
                failure = await self._forget(self._session)
            nursery.cancel_scope.cancel()
        if failure is None:
            log.info("cleanup_ended", cleanup_ms=_ms(trio.current_time() - began))
        else:
            log.warning("cleanup_failed", error=failure)
        return failure is None

    async def _forget(self, session: ServerSession) -> str | None:
        """Why the run could not be forgotten; None when it was."""
        try:
            await forget_for_sure(session, self._execution.id)
        except WorkerError as error:
            return str(error)
        return None

    async def close(self) -> None:
        if self._session is not None:
            await self._session.close()

    async def _run_phases(self, session: ServerSession) -> ServerResult:
        # A job that was cancelled meanwhile is not started, but its run may have been.
        left = self._resumption
        if left.has_begun or (left.may_have_begun and self._cancelled.is_set()):
            await session.take_slot()
            return await self._execute(session, None)
        begun = await self._set_up(session)
        if not isinstance(begun, ServerResult):
            attachment, started = begun
            self._begin(started)
            return await self._execute(session, attachment)
        if session.has_sent:
            await self._end_stray_run(session)
        return begun

    # Setup

    async def _set_up(self, session: ServerSession) -> ServerResult | tuple[Attachment, Started]:
        structlog.contextvars.bind_contextvars(phase=Phase.SETUP)
        seconds = self._settings.phases.setup_seconds
        begun = None
        async with trio.open_nursery() as nursery:
            nursery.start_soon(self._give_up_setup, session, nursery.cancel_scope)
            # Waiting for the worker's own limit is not the server's fault: no setup time passes.
            await session.take_slot()
            self._progress.began = trio.current_time()
            with trio.move_on_after(seconds) as limit:
                begun = await self._try_to_start(session)
            if limit.cancelled_caught:
                error = f"setup was over its limit of {seconds:g} s while {session.doing}"
                begun = self._result(Outcome.UNREACHABLE, error)
            nursery.cancel_scope.cancel()
        return begun or self._result(Outcome.CANCELLED, "the job was cancelled during setup")

    async def _give_up_setup(self, session: ServerSession, setup: trio.CancelScope) -> None:
        await self._cancelled.wait()
        # From the payload on the run may have started: it is given the time to be heard of, and
        # to be signalled then; after that it is ended as one that nobody follows.
        if session.has_sent:
            await trio.sleep(END_GRACE_SECONDS + LATE_SECONDS)
        setup.cancel()

    async def _try_to_start(
        self, session: ServerSession
    ) -> ServerResult | tuple[Attachment, Started]:
        try:
            return await self._start(session)
        except (DeployError, RunnerMissingError, RunRefusedError) as error:
            return self._result(Outcome.NOT_DEPLOYED, str(error))
        except RunForgottenError as error:
            return self._result(Outcome.LOST, str(error))
        except (SshError, ProtocolError) as error:
            return self._result(Outcome.UNREACHABLE, str(error))

    async def _start(self, session: ServerSession) -> tuple[Attachment, Started]:
        """Connected, runner there, run started or found going; deployed anew where it is missing.

        A connection lost before the run's first word says nothing of whether it started: `run`
        is sent again, which starts nothing twice, until the setup limit.
        """
        attempts = 0
        while True:
            try:
                return await self._start_once(session)
            except (RunnerMissingError, ConnectError, ConnectionLostError) as error:
                failure = error
            if isinstance(failure, RunnerMissingError) or not session.has_sent:
                attempts += 1
            refused = isinstance(failure, ConnectError) and not session.has_sent
            if attempts >= (CONNECT_ATTEMPTS if refused else START_ATTEMPTS):
                raise failure
            log.info("start_failed", error=str(failure))
            if isinstance(failure, RunnerMissingError):
                await session.drop_runner()
            else:
                await session.pause()

    async def _start_once(self, session: ServerSession) -> tuple[Attachment, Started]:
        plan = self._plan
        payload = Payload(
            interpreter=plan.interpreter,
            script=plan.script,
            environment=plan.environment_of(self._execution),
            directory=plan.directory,
            input=plan.input,
            output_limit_bytes=self._settings.jobs.run_max_output_bytes,
        )
        request = RunRequest(self._execution.id, plan.limit_seconds, payload.encode())
        attachment = await session.start(request)
        started = await _first_word(attachment)
        await session.verified()
        return attachment, started

    async def _end_stray_run(self, session: ServerSession) -> None:
        """After a setup that failed with the payload sent: nothing may go on unfollowed."""
        failure = "no answer"
        with trio.move_on_after(STRAY_SECONDS):
            while True:
                try:
                    await session.signal(self._execution.id)
                    # Its tombstone stops a start that is only on its way; one that has come
                    # between is refused here, and signalled in the next turn.
                    await session.forget(self._execution.id)
                except WorkerError as error:
                    failure = str(error)
                else:
                    return
                await session.pause()
        log.warning("stray_run_not_ended", error=failure)

    # Execution

    def _begin(self, started: Started) -> None:
        # A server may say anything; more than the limit has not passed for us.
        elapsed = min(started.elapsed_ms / 1000, self._plan.limit_seconds)
        self._progress.execution_began = trio.current_time() - elapsed
        self.begun.set()
        log.info("execution_started", state=started.state)

    def _latest_end(self) -> float:
        """When the run must have been heard of; the runner has the limit, this is for a runner
        or a server that is gone."""
        began = self._progress.execution_began or trio.current_time()
        return began + self._plan.limit_seconds + END_GRACE_SECONDS + LATE_SECONDS

    async def _execute(self, session: ServerSession, attachment: Attachment | None) -> ServerResult:
        """Follow the run to its end; without an `attachment`, one is to be made."""
        structlog.contextvars.bind_contextvars(phase=Phase.EXECUTION)
        result = None
        with trio.move_on_at(self._latest_end()) as limit:
            async with trio.open_nursery() as nursery:
                nursery.start_soon(self._signal_when_cancelled, session, limit)
                result = await self._follow(session, attachment, limit, nursery)
                nursery.cancel_scope.cancel()
        if result is not None:
            return result
        if self._cancelled.is_set():
            error = "the job was cancelled, and nothing was heard of the run after that"
            return self._result(Outcome.CANCELLED, error)
        error = "nothing was heard of the run until long after its limit"
        return self._result(Outcome.LOST, error)

    async def _follow(
        self,
        session: ServerSession,
        attachment: Attachment | None,
        limit: trio.CancelScope,
        calls: trio.Nursery,
    ) -> ServerResult:
        """Take in what the run prints until it ends, over as many connections as it needs."""
        try:
            while True:
                attachment = attachment or await self._attach(session)
                try:
                    return await self._take_in(session, attachment, limit, calls)
                except (
                    ConnectionLostError,
                    ProtocolError,
                    RunnerMissingError,
                    SupersededError,
                ) as error:
                    failure = error
                if isinstance(failure, SupersededError) and not await self._still_ours():
                    await trio.sleep_forever()  # whoever asked cancels the whole job
                log.warning("connection_lost", error=str(failure))
                if isinstance(failure, RunnerMissingError):
                    await session.drop_runner()
                attachment = None
                await session.pause()
        except RunRefusedError as error:
            was_heard_of = self._resumption.has_begun or self.begun.is_set()
            if error.status == NO_SUCH_RUN_STATUS and not was_heard_of:
                return self._result(Outcome.CANCELLED, "the job was cancelled before its start")
            return self._result(Outcome.LOST, f"the run vanished from the server: {error}")
        except SshError as error:
            return self._result(Outcome.LOST, str(error))

    async def _take_in(
        self,
        session: ServerSession,
        attachment: Attachment,
        limit: trio.CancelScope,
        calls: trio.Nursery,
    ) -> ServerResult:
        """Take in what comes over one connection, until the run or the connection ends.

        What the script asks for is answered in `calls`, so that nothing waits for that here.
        """
        while True:
            match await attachment.receive():
                case Started() as started if not self.begun.is_set():
                    self._begin(started)
                    limit.deadline = min(limit.deadline, self._latest_end())
                case Output(stream, data):
                    session.made_progress()
                    # However long that takes: the sink waits where its disk is full.
                    latest, limit.deadline = limit.deadline, math.inf
                    await self._sink(stream, data)
                    self._progress.received[stream] += len(data)
                    latest = min(latest, limit.deadline)  # a cancel may have come meanwhile
                    # A run that is over may still have much to hand on, over a slow line.
                    limit.deadline = max(latest, trio.current_time() + UNHEARD_SECONDS)
                case Call(call_id, request) as call if call.can_be_answered:
                    session.made_progress()
                    # At once, for the run's end may be the next to come.
                    if waiting := self._calls.take(call_id, request):
                        deliver = partial(self._deliver, session, call_id)
                        calls.start_soon(self._calls.answer, waiting, deliver)
                case Ended() as ended:
                    return self._ended(ended)
                case Superseded():
                    raise SupersededError("another worker has attached to the run")

    async def _deliver(self, session: ServerSession, call_id: str, answer: bytes) -> None:
        """Hand the script its answer, or leave that to the next attachment."""
        failure: WorkerError | None = None
        for attempt in range(ANSWER_ATTEMPTS):
            try:
                async with self._answers:
                    await session.answer_beside(self._execution.id, call_id, answer)
            except WorkerError as error:
                failure = error
            else:
                return
            await trio.sleep(2**attempt)
        log.warning("answer_failed", error=str(failure))

    async def _attach(self, session: ServerSession) -> Attachment:
        """Connect for as long as it takes, within the caller's scope; a refusal is final."""
        received = self._progress.received
        while True:
            try:
                return await session.attach(
                    self._execution.id, Offsets(received[Stream.STDOUT], received[Stream.STDERR])
                )
            except (ConnectError, ConnectionLostError, DeployError) as error:
                log.debug("reconnect_failed", error=str(error))
            await session.pause()

    async def _signal_when_cancelled(self, session: ServerSession, limit: trio.CancelScope) -> None:
        """Ask the runner to end the run, over connections as they come and go."""
        await self._cancelled.wait()
        log.info("run_cancelling")
        # A server that is gone does not hold up the job's end for the rest of its time.
        latest = trio.current_time() + END_GRACE_SECONDS + LATE_SECONDS
        limit.deadline = min(limit.deadline, latest)
        while True:
            try:
                if await session.signal_beside(self._execution.id):
                    return
            except SshError as error:
                log.warning("signal_failed", error=str(error))
            await trio.sleep(1)

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
                limit = self._settings.jobs.run_max_output_bytes
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
            execution_ms = _ms(now - progress.execution_began) if wall_ms is None else wall_ms
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
            runner=self._session.source if self._session is not None else None,
            script_output=self._calls.output,
            condition=self._calls.condition,
        )


async def _first_word(attachment: Attachment) -> Started:
    while True:
        match await attachment.receive():
            case Started() as started:
                return started
            case Ended(reason=reason):
                # A tombstone is the one thing that comes before the run's first word.
                raise RunForgottenError(f"the run is {reason}: it was reported before")


async def _hasten(cleanup: trio.CancelScope) -> None:
    """When the worker is to end, what is left of the cleanup has a moment."""
    try:
        await trio.sleep_forever()
    finally:
        cleanup.deadline = min(cleanup.deadline, trio.current_time() + HASTE_SECONDS)


def _ms(seconds: float) -> int:
    return round(seconds * 1000)
