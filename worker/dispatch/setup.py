"""The setup phase of an execution: from a server's name to a script that runs there."""

from collections.abc import Awaitable, Callable
from functools import partial

import structlog
import trio

from worker.dispatch.ending import LATEST_WORD_SECONDS, Ending
from worker.dispatch.plan import Plan, PlannedExecution
from worker.dispatch.result import Outcome, Phase
from worker.errors import (
    ConnectError,
    ConnectionLostError,
    DeployError,
    PassingConnectError,
    ProtocolError,
    RunForgottenError,
    RunnerMissingError,
    RunRefusedError,
    SshError,
    WorkerError,
)
from worker.remote.attachment import Attachment
from worker.remote.frames import Ended, Reason, Started
from worker.remote.payload import Payload
from worker.remote.session import ServerSession
from worker.remote.waiting import RunRequest
from worker.settings import Settings
from worker.trigger import Trigger

log = structlog.get_logger()

# A run that may have started although the setup phase ended without its word.
STRAY_SECONDS = 20
# A runner that is deployed and then not there is somebody else's doing; once more, then give up.
START_ATTEMPTS = 3
# A busy sshd drops connections at random, and one that is started anew is away for a second or
# two; a server without one is to be told of soon.
CONNECT_ATTEMPTS = 6

Begun = tuple[Attachment, Started]


def run_request(plan: Plan, execution: PlannedExecution, settings: Settings) -> RunRequest:
    payload = Payload(
        interpreter=plan.interpreter,
        script=plan.script,
        environment=plan.environment_of(execution),
        directory=plan.directory,
        input=plan.input,
        output_limit_bytes=settings.jobs.run_max_output_bytes,
    )
    return RunRequest(execution.id, plan.limit_seconds, payload)


class Setup:
    """`began` is when it did, by the loop's clock.

    `still_ours` is called when the run turns out to have been reported by somebody.
    """

    def __init__(
        self,
        plan: Plan,
        execution: PlannedExecution,
        session: ServerSession,
        settings: Settings,
        cancelled: Trigger,
        still_ours: Callable[[], Awaitable[bool]],
    ) -> None:
        self._plan = plan
        self._execution = execution
        self._session = session
        self._settings = settings
        self._cancelled = cancelled
        self._still_ours = still_ours
        # Why the last try came to nothing.
        self._failure: str | None = None
        self.began = trio.current_time()

    async def run(self) -> Ending | Begun:
        structlog.contextvars.bind_contextvars(phase=Phase.SETUP)
        seconds = self._settings.phases.setup_seconds
        begun: Ending | Begun | None = None
        setup = trio.CancelScope()
        with setup, self._cancelled.armed(partial(self._give_up, setup)):
            # Waiting for the worker's own limit is not the server's fault: no setup time passes.
            await self._session.take_place()
            self.began = trio.current_time()
            with trio.move_on_after(seconds) as limit:
                begun = await self._try_to_start()
            if limit.cancelled_caught:
                error = f"setup was over its limit of {seconds:g} s while {self._session.doing}"
                if self._failure:
                    error = f"{self._failure}; {error}"
                begun = Ending(Outcome.UNREACHABLE, error)
        return begun or Ending(Outcome.CANCELLED, "the job was cancelled during setup")

    def _give_up(self, setup: trio.CancelScope) -> None:
        # From the payload on the run may have started: it is given the time to be heard of, and
        # to be signalled then; after that it is ended as one that nobody follows.
        patience = LATEST_WORD_SECONDS if self._session.has_sent else 0
        setup.deadline = trio.current_time() + patience

    async def _try_to_start(self) -> Ending | Begun:
        try:
            return await self._start()
        except (DeployError, RunnerMissingError, RunRefusedError) as error:
            return Ending(Outcome.NOT_DEPLOYED, str(error))
        except RunForgottenError as error:
            forgotten = str(error)
        except (SshError, ProtocolError) as error:
            return Ending(Outcome.UNREACHABLE, str(error))
        # By a worker that had the job while this one stood still: what that told is to stay.
        if not await self._still_ours():
            await trio.sleep_forever()  # whoever asked cancels the whole job
        return Ending(Outcome.LOST, forgotten)

    async def _start(self) -> Begun:
        """Connected, runner there, run started or found going; deployed anew where it is missing.

        A connection lost before the run's first word says nothing of whether it started: `run`
        is sent again, which starts nothing twice, until the setup limit.
        """
        attempts = 0
        while True:
            try:
                return await self._start_once()
            except (RunnerMissingError, ConnectError, ConnectionLostError) as error:
                failure = error
            if isinstance(failure, RunnerMissingError) or not self._may_go_on(failure):
                attempts += 1
                if attempts >= _attempts_for(failure):
                    raise failure
            self._failure = str(failure)
            log.info("start_failed", error=self._failure)
            if isinstance(failure, RunnerMissingError):
                await self._session.drop_runner()
            else:
                await self._session.pause()

    def _may_go_on(self, failure: WorkerError) -> bool:
        """Whether it says nothing against one more try."""
        # Several connections may have died since they were used; each is tried once.
        was_stale = isinstance(failure, ConnectionLostError) and self._session.was_kept
        return was_stale or self._session.has_sent

    async def _start_once(self) -> Begun:
        request = run_request(self._plan, self._execution, self._settings)
        attachment = await self._session.start(request)
        started = await _first_word(attachment)
        await self._session.verified()
        return attachment, started

    async def end_stray_run(self) -> None:
        """After a setup that failed with the payload sent: nothing may go on unfollowed."""
        failure = "no answer"
        with trio.move_on_after(STRAY_SECONDS):
            while True:
                try:
                    await self._session.signal(self._execution.id)
                    # Its tombstone stops a start that is only on its way; one that has come
                    # between is refused here, and signalled in the next turn.
                    await self._session.forget(self._execution.id)
                except WorkerError as error:
                    failure = str(error)
                else:
                    return
                await self._session.pause()
        log.warning("stray_run_not_ended", error=failure)


def _attempts_for(failure: WorkerError) -> int:
    match failure:
        case PassingConnectError():
            return CONNECT_ATTEMPTS
        case ConnectError():
            return 1
        case _:
            return START_ATTEMPTS


async def _first_word(attachment: Attachment) -> Started:
    while True:
        match await attachment.receive():
            case Started() as started:
                return started
            case Ended(reason=Reason.FORGOTTEN):
                raise RunForgottenError("the run is forgotten: it was reported before")
            case Ended(reason=reason):
                raise ProtocolError(f"the runner told the run's end ({reason}) before its start")
