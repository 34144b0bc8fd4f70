"""One job on one server: its phases, each under its own cancel scope."""

from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from functools import partial

import structlog
import trio

from worker.clock import now_ms
from worker.dispatch.ending import Ending
from worker.dispatch.following import Following, OutputSink
from worker.dispatch.helper_calls import HelperCalls
from worker.dispatch.plan import Plan, PlannedExecution
from worker.dispatch.result import EXIT_CODES, Outcome, Phase, PhaseTimes, ServerResult
from worker.dispatch.setup import Setup
from worker.errors import WorkerError
from worker.log_forms import printable
from worker.remote.attachment import Offsets
from worker.remote.credentials import Credentials
from worker.remote.session import Remote, ServerSession, forget_for_sure
from worker.settings import Settings
from worker.trigger import Trigger

log = structlog.get_logger()

# What is left of a cleanup when the worker is to end.
HASTE_SECONDS = 5
MAX_ERROR_CHARACTERS = 1000

NOTHING_RECEIVED = Offsets()


@dataclass(frozen=True, slots=True)
class Resumption:
    """What an earlier worker left of an execution.

    A run that `has_begun` is attached to from `offsets` on; of another it is not known whether
    it has, where it `may_have_begun`.
    """

    may_have_begun: bool
    has_begun: bool = False
    offsets: Offsets = NOTHING_RECEIVED


class ServerExecution:
    """One child of the fan-out.

    `run` says how the execution ended, `clean_up` forgets the run on the server; a run that goes
    on when they are cancelled is not touched by that. `sink` is called with what the script prints,
    `still_ours` when somebody else has, or had, the run; `calls` are its script's.
    """

    def __init__(
        self,
        plan: Plan,
        execution: PlannedExecution,
        remote: Remote,
        settings: Settings,
        *,
        credentials: Credentials,
        cancelled: Trigger,
        still_ours: Callable[[], Awaitable[bool]],
        sink: OutputSink,
        calls: HelperCalls,
        resumption: Resumption | None = None,
    ) -> None:
        self._execution = execution
        self._settings = settings
        self._cancelled = cancelled
        self._calls = calls
        self._resumption = resumption or Resumption(may_have_begun=False)
        self._started_at = now_ms()
        server = execution.server
        # Where it is, and since when, in Unix milliseconds.
        self.phase, self.phase_since = Phase.SETUP, self._started_at
        self._on_begun: Callable[[], object] = lambda: None
        self._session: ServerSession | None = None
        self._phases: tuple[Setup, Following] | None = None
        if server.target is None:
            return
        self._session = ServerSession(
            remote,
            server.id,
            server.target,
            credentials,
            job_id=plan.job_id,
            has_sent=self._resumption.may_have_begun,
        )
        self._phases = (
            Setup(plan, execution, self._session, settings, cancelled, still_ours),
            Following(
                plan,
                execution,
                self._session,
                settings,
                cancelled=cancelled,
                still_ours=still_ours,
                sink=sink,
                calls=calls,
                on_begun=self._begun,
                offsets=self._resumption.offsets,
                was_heard_of=self._resumption.has_begun,
            ),
        )

    @property
    def may_have_begun(self) -> bool:
        """Whether a payload is on its way, so that a run may have started."""
        return self._session is not None and self._session.has_sent

    async def run(self, on_begun: Callable[[], object]) -> ServerResult:
        """Only cancellation leaves this; every failure is an outcome.

        `on_begun` is called once the script is known to run.
        """
        self._on_begun = on_begun
        server = self._execution.server
        structlog.contextvars.bind_contextvars(
            execution_id=self._execution.id, server_id=server.id, server=server.name
        )
        if self._session is None or self._phases is None:
            await trio.lowlevel.checkpoint()
            return self._result(Ending(Outcome.UNREACHABLE, server.fault))
        try:
            return await self._run_phases(self._session, *self._phases)
        except Exception as error:  # a fault of ours in one child is that child's
            log.exception("execution_fault")
            fault = f"a fault of the worker: {type(error).__name__}: {error}"
            return self._result(Ending(Outcome.LOST, fault))
        finally:
            self._session.unstage(self._execution.id)
            self._session.close()

    async def clean_up(self, haste: Trigger) -> bool:
        """Forget the run, within that phase's limit; whether nothing of it is left.

        It goes on when it is cancelled, but not for long: `haste` is set then. What stays the
        runner sweeps away in time.
        """
        if self._session is None or not self._session.has_sent:
            return True
        structlog.contextvars.bind_contextvars(phase=Phase.CLEANUP)
        self._enter(Phase.CLEANUP)
        began = trio.current_time()
        failure: str | None = "over its limit"
        limit = trio.CancelScope(shield=True)
        limit.deadline = trio.current_time() + self._settings.phases.cleanup_seconds
        with limit, haste.armed(partial(_hasten, limit)):
            failure = await self._forget(self._session)
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

    async def _run_phases(
        self, session: ServerSession, setup: Setup, following: Following
    ) -> ServerResult:
        # A job that was cancelled meanwhile is not started, but its run may have been.
        left = self._resumption
        if left.has_begun or (left.may_have_begun and self._cancelled.is_set()):
            # A cancel does not wait for others' ends.
            waiting = trio.CancelScope()
            with waiting, self._cancelled.armed(waiting.cancel):
                await session.take_place()
            self._enter(Phase.EXECUTION)
            return self._result(await following.run(None))
        begun = await setup.run()
        if not isinstance(begun, Ending):
            attachment, started = begun
            following.begin(started)
            self._enter(Phase.EXECUTION)
            return self._result(await following.run(attachment))
        result = self._result(begun)
        if session.has_sent:
            await setup.end_stray_run()
        return result

    def _begun(self) -> None:
        self._on_begun()

    def _enter(self, phase: Phase) -> None:
        self.phase, self.phase_since = phase, now_ms()

    def _result(self, ending: Ending) -> ServerResult:
        return ServerResult(
            execution_id=self._execution.id,
            server_id=self._execution.server.id,
            server_name=self._execution.server.name,
            outcome=ending.outcome,
            exit_code=EXIT_CODES[ending.outcome] if ending.exit_code is None else ending.exit_code,
            started_at=self._started_at,
            ended_at=now_ms(),
            times=self._times(ending.wall_ms),
            error=None if ending.error is None else _told(ending.error),
            runner=self._session.source if self._session is not None else None,
            script_output=self._calls.output,
            condition=self._calls.condition,
        )

    def _times(self, wall_ms: int | None) -> PhaseTimes:
        if self._phases is None:
            return PhaseTimes(setup_ms=0)
        setup, following = self._phases
        now = trio.current_time()
        setup_ms = max(0, _ms((following.began or now) - setup.began))
        if following.began is None:
            return PhaseTimes(setup_ms)
        return PhaseTimes(setup_ms, _ms(now - following.began) if wall_ms is None else wall_ms)


def _hasten(cleanup: trio.CancelScope) -> None:
    cleanup.deadline = min(cleanup.deadline, trio.current_time() + HASTE_SECONDS)


def _told(error: str) -> str:
    """One line, that moves no cursor: a part of it may be a server's own words."""
    return printable(" ".join(error.split())[:MAX_ERROR_CHARACTERS])


def _ms(seconds: float) -> int:
    return round(seconds * 1000)
