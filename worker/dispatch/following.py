"""The execution phase: a run is followed to its end, over as many connections as it needs."""

import math
from collections.abc import Awaitable, Callable
from functools import partial

import structlog
import trio

from worker.dispatch.ending import LATEST_WORD_SECONDS, Ending, ending_of, over_output_limit
from worker.dispatch.helper_calls import HelperCalls
from worker.dispatch.plan import Plan, PlannedExecution
from worker.dispatch.result import Outcome, Phase
from worker.errors import (
    AuthenticationError,
    ConnectError,
    ConnectionLostError,
    DeployError,
    ProtocolError,
    RunnerMissingError,
    RunRefusedError,
    SshError,
    SupersededError,
    WorkerError,
)
from worker.remote.attachment import NO_SUCH_RUN_STATUS, Attachment, Offsets
from worker.remote.frames import Call, Ended, Output, Reason, Started, Stream, Superseded
from worker.remote.session import ServerSession
from worker.settings import Settings
from worker.trigger import Trigger

log = structlog.get_logger()

# A run whose output still comes is not lost, late as it is, unless it comes slower than this.
UNHEARD_SECONDS = 30
SLOWEST_BYTES_PER_SECOND = 20_000
# The runner looks once a second whether a run is over its limit, and gives it 5 s to end; where
# even more than this comes on top of the limit, the run is not heard to its end.
OVERSHOOT_BYTES = 1024 * 1024 * 1024
KILLED = 137
# Answers on their way at once: sshd has 10 channels for a connection, and may have fewer.
ANSWERS_AT_ONCE = 4
ANSWER_ATTEMPTS = 4

# A login is refused for a while where its server cannot read its keys just then. Not asked for more
# often: an account may be locked after a few refusals.
REFUSED_SECONDS = (60, 120, 240, 480)

# To have the runner end what its supervisor did not: 5 s of grace, and what a connection takes.
END_SECONDS = 15

OutputSink = Callable[[Stream, bytes], Awaitable[None]]


class Following:
    """`on_begun` is called once the script is known to run; `began` is since when, by the loop's
    clock.

    `sink` is called with what it prints from `offsets` on, `still_ours` when somebody else
    attaches; `calls` are the script's. A run that `was_heard_of` and is not there has vanished.
    """

    def __init__(
        self,
        plan: Plan,
        execution: PlannedExecution,
        session: ServerSession,
        settings: Settings,
        *,
        cancelled: Trigger,
        still_ours: Callable[[], Awaitable[bool]],
        sink: OutputSink,
        calls: HelperCalls,
        on_begun: Callable[[], object],
        offsets: Offsets,
        was_heard_of: bool,
    ) -> None:
        self._plan = plan
        self._execution = execution
        self._session = session
        self._output_limit = settings.jobs.run_max_output_bytes
        self._most_bytes = self._output_limit + OVERSHOOT_BYTES
        self._cancelled = cancelled
        self._still_ours = still_ours
        self._sink = sink
        self._calls = calls
        self._answers = trio.CapacityLimiter(ANSWERS_AT_ONCE)
        self._on_begun = on_begun
        self._received = {Stream.STDOUT: offsets.stdout, Stream.STDERR: offsets.stderr}
        self._was_heard_of = was_heard_of
        self._failure: str | None = None  # of the last connection
        self._held_up = 0.0  # how long the sink took
        self._latest_word = math.inf  # once it was cancelled
        self._since = 0.0
        self.began: float | None = None

    async def run(self, attachment: Attachment | None) -> Ending:
        """Follow the run to its end; without an `attachment`, one is to be made."""
        structlog.contextvars.bind_contextvars(phase=Phase.EXECUTION)
        self._since = trio.current_time()
        result = None
        with trio.move_on_at(self._latest_end()) as limit:
            async with trio.open_nursery() as nursery:
                signal = partial(nursery.start_soon, self._signal, limit)
                with self._cancelled.armed(signal):
                    result = await self._follow(attachment, limit, nursery)
                nursery.cancel_scope.cancel()
        if result is not None:
            return result
        if self._cancelled.is_set():
            error = "the job was cancelled, and nothing was heard of the run after that"
            return Ending(Outcome.CANCELLED, error)
        await self._end_unheard()
        error = "nothing was heard of the run's end until long after its limit"
        if self._failure:
            error = f"{error}; {self._failure}"
        return Ending(Outcome.LOST, error)

    async def _follow(
        self,
        attachment: Attachment | None,
        limit: trio.CancelScope,
        calls: trio.Nursery,
    ) -> Ending:
        """Take in what the run prints until it ends, over as many connections as it needs."""
        try:
            while True:
                attachment = attachment or await self._attach()
                try:
                    return await self._take_in(attachment, limit, calls)
                except (
                    ConnectionLostError,
                    ProtocolError,
                    RunnerMissingError,
                    SupersededError,
                ) as error:
                    failure = error
                if isinstance(failure, SupersededError):
                    await self._leave_if_not_ours()
                self._failure = str(failure)
                log.warning("connection_lost", error=self._failure)
                if isinstance(failure, RunnerMissingError):
                    await self._session.drop_runner()
                attachment = None
                await self._session.pause()
        except RunRefusedError as error:
            was_heard_of = self._was_heard_of or self.began is not None
            if error.status == NO_SUCH_RUN_STATUS and not was_heard_of:
                return Ending(Outcome.CANCELLED, "the job was cancelled before its start")
            await self._leave_if_not_ours()
            return Ending(Outcome.LOST, f"the run vanished from the server: {error}")
        except SshError as error:
            return Ending(Outcome.LOST, str(error))

    async def _take_in(
        self,
        attachment: Attachment,
        limit: trio.CancelScope,
        calls: trio.Nursery,
    ) -> Ending:
        """Take in what comes over one connection, until the run or the connection ends.

        What the script asks for is answered in `calls`, so that nothing waits for that here.
        """
        while True:
            match await attachment.receive():
                case Started() as started if self.began is None:
                    self.begin(started)
                    limit.deadline = min(limit.deadline, self._latest_end())
                case Output(stream, data):
                    self._session.made_progress()
                    # However long that takes: the sink waits where its disk is full.
                    latest, limit.deadline = limit.deadline, math.inf
                    before = trio.current_time()
                    await self._sink(stream, data)
                    self._held_up += trio.current_time() - before
                    self._received[stream] += len(data)
                    if sum(self._received.values()) > self._most_bytes:
                        return over_output_limit(self._output_limit, KILLED)
                    latest = min(latest, limit.deadline)  # a cancel may have come meanwhile
                    limit.deadline = max(latest, self._latest_output())
                case Call(call_id, request) as call if call.can_be_answered:
                    self._session.made_progress()
                    # At once, for the run's end may be the next to come.
                    if waiting := self._calls.take(call_id, request):
                        deliver = partial(self._deliver, call_id)
                        calls.start_soon(self._calls.answer, waiting, deliver)
                case Ended() as ended:
                    if ended.reason is Reason.FORGOTTEN:
                        await self._leave_if_not_ours()
                    return ending_of(
                        ended,
                        limit_seconds=self._plan.limit_seconds,
                        output_limit_bytes=self._output_limit,
                    )
                case Superseded():
                    raise SupersededError("another worker has attached to the run")

    async def _deliver(self, call_id: str, answer: bytes) -> None:
        """Hand the script its answer, or leave that to the next attachment."""
        failure: WorkerError | None = None
        for attempt in range(ANSWER_ATTEMPTS):
            if attempt:
                await trio.sleep(2 ** (attempt - 1))
            try:
                async with self._answers:
                    await self._session.answer(self._execution.id, call_id, answer)
            except WorkerError as error:
                failure = error
            else:
                return
        log.warning("answer_failed", error=str(failure))

    async def _attach(self) -> Attachment:
        """Connect for as long as it takes, within the caller's scope; a refusal is final, but for
        that of a login only in the end."""
        refusals = iter(REFUSED_SECONDS)
        while True:
            try:
                return await self._session.attach(
                    self._execution.id, Offsets(*(self._received[stream] for stream in Stream))
                )
            except (ConnectError, ConnectionLostError, DeployError) as error:
                log.debug("reconnect_failed", error=str(error))
                seconds = 0
            except AuthenticationError as error:
                seconds = next(refusals, 0)
                if not seconds:
                    raise
                self._failure = str(error)
                log.warning("reconnect_refused", error=self._failure, seconds=seconds)
            await trio.sleep(seconds)
            await self._session.pause()

    async def _leave_if_not_ours(self) -> None:
        """What another worker has told of the run is to stay."""
        if not await self._still_ours():
            await trio.sleep_forever()  # whoever asked cancels the whole job

    async def _end_unheard(self) -> None:
        """Its runner should have ended it, and may not be there to do so."""
        try:
            with trio.move_on_after(END_SECONDS):
                await self._session.signal(self._execution.id, "timeout")
        except SshError as error:
            log.warning("signal_failed", error=str(error))

    async def _signal(self, limit: trio.CancelScope) -> None:
        """Ask the runner to end the run, over connections as they come and go."""
        log.info("run_cancelling")
        # A server that is gone does not hold up the job's end for the rest of its time.
        self._latest_word = trio.current_time() + LATEST_WORD_SECONDS
        limit.deadline = min(limit.deadline, self._latest_word)
        while True:
            try:
                await self._session.signal(self._execution.id)
            except SshError as error:
                log.warning("signal_failed", error=str(error))
            else:
                return
            await trio.sleep(1)

    def begin(self, started: Started) -> None:
        # A server may say anything; more than the limit has not passed for us.
        elapsed = min(started.elapsed_ms / 1000, self._plan.limit_seconds)
        self.began = trio.current_time() - elapsed
        self._on_begun()
        log.info("execution_started", state=started.state)

    def _latest_end(self) -> float:
        """When the run must have been heard of; the runner has the limit, this is for a runner
        or a server that is gone."""
        began = self.began or self._since
        return min(began + self._plan.limit_seconds + LATEST_WORD_SECONDS, self._latest_word)

    def _latest_output(self) -> float:
        """Until when more is waited for, now that something came: a run that is over may still
        have much to hand on, over a slow line; but not for ever, a byte now and then."""
        earned = sum(self._received.values()) / SLOWEST_BYTES_PER_SECOND + self._held_up
        soon = trio.current_time() + UNHEARD_SECONDS
        return min(soon, self._latest_end() + UNHEARD_SECONDS + earned)
