"""The jobs of this worker: each one run from its claim to its result in the outbox."""

from collections import Counter
from collections.abc import Awaitable, Callable, Mapping, Sequence
from functools import partial

import structlog
import trio

from worker import logs
from worker.api import wire
from worker.api.wire import JobBody
from worker.beginnings import Beginnings
from worker.clock import now_ms
from worker.crew import Crew, Surroundings
from worker.dispatch.aggregate import aggregate
from worker.dispatch.fanout import fan_out
from worker.dispatch.plan import Plan, plan_job
from worker.dispatch.result import ServerResult
from worker.errors import JobError, ProtocolError, SealedValueError, first_of
from worker.flight import Flight
from worker.last_words import LastWord
from worker.live import tell_live_forever
from worker.ownership import Ownership
from worker.report import (
    cancelled_entry,
    complete_entry,
    create_entries,
    fail_entry,
    release_entry,
    row_of,
)
from worker.snapshot import JobNow
from worker.state.history import JobEnd
from worker.state.outbox import Entry
from worker.state.runs import JobState, KeptJob
from worker.telemetry import JobTrace

log = structlog.get_logger()

RELEASE_SECONDS = 5
# No event tells of a file that can be opened again.
UNREADABLE_SECONDS = 2.0


class Jobs:
    """The registry of jobs in flight, and what the jobs' nursery runs."""

    def __init__(self, around: Surroundings, ownership: Ownership) -> None:
        self._around = around
        self._relay = around.relay
        self._relay.letting_go = self._letting_go
        self._relay.claim_of = self._claim_of
        self._runs = around.runs
        self._telemetry = around.telemetry
        self._settings = around.settings
        self._ownership = ownership
        self._beginnings = Beginnings(around, ownership)
        self._flights: dict[str, Flight] = {}
        self._counts: Counter[str] = Counter()
        # Those in flight whose plan is known, with when they began.
        self._crews: dict[str, tuple[Plan, Crew, int]] = {}

    @property
    def ids(self) -> tuple[str, ...]:
        return tuple(self._flights)

    def take_counts(self) -> dict[str, int]:
        """Jobs by status and executions by outcome that have ended since this was last asked."""
        counts, self._counts = self._counts, Counter()
        return dict(counts)

    def give_back_counts(self, counts: Mapping[str, int]) -> None:
        """They were not heard: they are told with the next."""
        self._counts.update(counts)

    @property
    def now(self) -> tuple[JobNow, ...]:
        return tuple(
            JobNow(
                job_id=job_id,
                event_id=plan.event_id,
                since=began_at,
                executions=tuple(child.now for child in crew.children),
            )
            for job_id, (plan, crew, began_at) in self._crews.items()
        )

    def admit(
        self, job_id: str, free_slot: Callable[[], None], *, claim: str | None = None
    ) -> bool:
        """Whether the job is new here; a claim of one that is in flight is a duplicate, and the
        flight goes on under it.

        `free_slot` is called once, when an admitted job's result is in the outbox.
        """
        if self.has(job_id):
            self._flights[job_id].claim = claim
            return False
        self._flights[job_id] = Flight(job_id, free_slot, claim=claim)
        return True

    def has(self, job_id: str) -> bool:
        """Whether the job is in flight, and the API has not heard its end yet."""
        flight = self._flights.get(job_id)
        return flight is not None and not flight.is_over

    def _claim_of(self, job_id: str) -> str | None:
        flight = self._flights.get(job_id)
        return None if flight is None else flight.claim

    def cancel(self, job_id: str) -> None:
        flight = self._flights.get(job_id)
        if flight is not None:
            flight.cancel()

    def _letting_go(self, job_id: str) -> Callable[[], None]:
        """Of the flight that the job has now, for it is another's. Once its end is told, what
        becomes of that says so."""
        flight = self._flights.get(job_id)

        def let_go() -> None:
            if flight is not None and not flight.is_settled:
                flight.disown()

        return let_go

    def cancel_all(self) -> None:
        for job_id in self.ids:
            self.cancel(job_id)

    async def run(self, job: JobBody) -> None:
        """Run an admitted job; when this returns, its end is in the outbox.

        Cancellation hands the job over: its runs go on, and it goes back to the queue, unless
        the job was cancelled, which is then said of it.
        """
        await self._see_through(job.id, partial(self._start, job))

    async def take_up(self, kept: KeptJob, last_word: LastWord | None) -> None:
        """Go on with an admitted job that an earlier worker left in the state, as `run` does.

        `last_word` is that of a job whose end is in the outbox, or with the API, already.
        """
        await self._see_through(kept.job_id, partial(self._go_on, kept, last_word))

    async def _see_through(self, job_id: str, what: Callable[[Flight], Awaitable[None]]) -> None:
        flight = self._flights[job_id]
        structlog.contextvars.bind_contextvars(job_id=job_id)
        try:
            await self._run_or_refuse(flight, what)
            flight.is_settled = True
        finally:
            # Only cancellation comes here unsettled; it may be one of a group, so it is not caught.
            if not flight.is_settled:
                with trio.move_on_after(RELEASE_SECONDS, shield=True):
                    await self._part_from(flight)
            flight.free_slot()
            # A job that was handed out again while its last run was cleaned up has a new flight.
            if self._flights.get(job_id) is flight:
                del self._flights[job_id]

    async def _run_or_refuse(
        self, flight: Flight, what: Callable[[Flight], Awaitable[None]]
    ) -> None:
        try:
            await what(flight)
        except JobError as error:
            await self.refuse(flight.job_id, str(error))
        except Exception as error:  # a fault of ours fails that job, not the worker
            log.exception("job_fault")
            if not flight.is_settled:
                first = first_of(error)
                fault = f"a fault of the worker: {type(first).__name__}: {first}"
                await self._put_failure(flight.job_id, logs.masked(fault))

    async def refuse(self, job_id: str, fault: str) -> None:
        """A job that cannot be run as it stands; the fault names the field."""
        log.error("job_refused", job_id=job_id, error=fault)
        self._telemetry.refused()
        await self._put_failure(job_id, fault)

    async def _put_failure(self, job_id: str, fault: str) -> None:
        now = now_ms()
        await self._relay.put(
            fail_entry(job_id, fault, now=now),
            also=partial(self._runs.failed, job_id, fault, now=now),
        )

    async def _part_from(self, flight: Flight) -> None:
        """Leave a job before its end."""
        if flight.cancelled.is_set():
            log.info("job_cut_short")
            entry = cancelled_entry(
                flight.job_id, "the worker stopped before the runs had ended", now_ms()
            )
            await self._relay.put(entry, also=partial(self._runs.drop, flight.job_id))
        else:
            log.info("job_handed_over")
            # What the state has of it stays until the API has taken it back.
            await self._relay.put(release_entry(flight.job_id, "the worker is stopping"))

    async def _start(self, job: JobBody, flight: Flight) -> None:
        plan = self._plan(job)
        trace = self._telemetry.job(plan, flight.admitted_at)
        structlog.contextvars.bind_contextvars(**trace.log_fields)
        began_at = now_ms()
        is_alone = len(self._flights) == 1
        beginning = self._beginnings.of(plan, job, flight, began_at, is_alone=is_alone)
        async with beginning as is_ours:
            if is_ours:
                await self._run_begun(plan, flight, trace, began_at)

    async def _run_begun(self, plan: Plan, flight: Flight, trace: JobTrace, began_at: int) -> None:
        trace.started(began_at)
        log.info("job_started", event_id=plan.event_id, servers=len(plan.executions))
        # A job that was cancelled meanwhile is not started; but a worker before may have done so.
        is_left = flight.cancelled.is_set() or flight.may_have_begun
        crew = await _once_readable(
            partial(Crew, plan, self._around, flight, self._ownership, trace=trace, is_left=is_left)
        )
        logs.mask_with(crew.masker.mask_text)
        report = partial(self._report, plan, crew, flight, trace, began_at)
        await self._fly(plan, flight, crew, report, began_at)

    async def _go_on(self, kept: KeptJob, last_word: LastWord | None, flight: Flight) -> None:
        try:
            job = wire.decode_job(self._runs.open_claim(kept))
            masks = self._runs.open_masks(kept)
        except (SealedValueError, ProtocolError) as error:
            log.warning("kept_plan_unreadable", error=str(error))
            await self._give_back(kept)
            return
        flight.claim = job.claim_token
        plan = self._plan(job)
        trace = JobTrace()
        if last_word is not None:
            flight.settle()
        elif not await self._ownership.may_start(flight, map(row_of, create_entries(plan))):
            await self._relay.drop(kept.job_id)
            return
        else:
            if flight.claim is not None and not flight.has_rows:
                await self._relay.put(*create_entries(plan))
            trace = self._telemetry.job(plan, flight.admitted_at)
            trace.started(now_ms())
            structlog.contextvars.bind_contextvars(**trace.log_fields)
        log.info("job_taken_up", state=kept.state, servers=len(plan.executions))
        crew = await _once_readable(
            partial(
                Crew,
                plan,
                self._around,
                flight,
                self._ownership,
                trace=trace,
                is_left=True,
                kept=kept,
                masks=masks,
            )
        )
        logs.mask_with(crew.masker.mask_text)
        report = (
            partial(self._report, plan, crew, flight, trace, kept.began_at)
            if last_word is None
            else partial(self._hear, last_word, flight)
        )
        await self._fly(plan, flight, crew, report, kept.began_at)

    async def _give_back(self, kept: KeptJob) -> None:
        """A job whose plan is lost: its runs are for whoever claims it, or for the runner's
        janitor where it is over."""
        if kept.state is JobState.RUNNING:
            await self._relay.put(release_entry(kept.job_id, "its plan cannot be read any more"))
        else:
            await self._around.database.run(partial(self._runs.finish, kept.job_id))

    def _plan(self, job: JobBody) -> Plan:
        return plan_job(
            job,
            sealing_key=self._settings.encryption_key,
            max_execution_seconds=self._settings.phases.max_execution_seconds,
            mask_names=self._settings.jobs.mask_names,
        )

    async def _fly(
        self,
        plan: Plan,
        flight: Flight,
        crew: Crew,
        report: Callable[[tuple[ServerResult, ...]], Awaitable[bool]],
        began_at: int,
    ) -> None:
        shown = self._crews[plan.job_id] = (plan, crew, began_at)
        try:
            with flight.scope:
                async with trio.open_nursery() as nursery:
                    nursery.start_soon(self._tell_of_begun, plan, flight, crew)
                    nursery.start_soon(self._ownership.watch_forever, flight)
                    if seconds := self._settings.jobs.live_output_seconds:
                        nursery.start_soon(
                            tell_live_forever, self._relay, plan.job_id, crew.children, seconds
                        )
                    await fan_out(crew.children, report)
                    nursery.cancel_scope.cancel()
        finally:
            if self._crews.get(plan.job_id) is shown:
                del self._crews[plan.job_id]
        # Not what a new flight of the job, handed out again meanwhile, has to say.
        if self._flights.get(plan.job_id) is not flight:
            return
        if flight.is_disowned:
            await self._relay.drop(plan.job_id)
        elif crew.is_clean:
            await self._around.database.run(partial(self._runs.finish, plan.job_id))

    async def _tell_of_begun(self, plan: Plan, flight: Flight, crew: Crew) -> None:
        await self._beginnings.tell(plan, flight)
        await crew.begun.tell_forever(self._relay, plan.job_id)

    async def _report(
        self,
        plan: Plan,
        crew: Crew,
        flight: Flight,
        trace: JobTrace,
        began_at: int,
        results: Sequence[ServerResult],
    ) -> bool:
        """Put the job's end into the outbox; whether the API has accepted it."""
        job = aggregate(
            results,
            cancelled=flight.cancelled.is_set(),
            policy=self._settings.jobs.exit_code_policy,
        )
        ended_at = now_ms()
        last = crew.ends.last

        def entries() -> list[Entry]:
            end = complete_entry(
                plan,
                job,
                results,
                crew.captures,
                started_at=began_at,
                ended_at=ended_at,
                share=crew.share_bytes,
            )
            return [*last.entries(), end]

        def keep() -> None:
            last.keep()
            end = JobEnd(job.status, job.exit_code, job.message)
            self._runs.reported(plan.job_id, now=ended_at, end=end)

        last_word = await self._relay.put_last(plan.job_id, entries, also=keep)
        flight.settle()
        self._counts[f"jobs_{job.status}"] += 1
        self._counts.update(f"executions_{result.outcome}" for result in results)
        log.info(
            "job_ended",
            status=job.status,
            exit_code=job.exit_code,
            message=job.message,
            duration_ms=ended_at - began_at,
        )
        trace.ended(job.status, began_at, ended_at)
        return await self._hear(last_word, flight, results)

    async def _hear(
        self, last_word: LastWord, flight: Flight, _results: Sequence[ServerResult]
    ) -> bool:
        """However long the API is away: what it has not accepted, the runs on the servers hold."""
        await last_word.said.wait()
        flight.is_over = True
        return last_word.accepted


async def _once_readable(make: Callable[[], Crew]) -> Crew:
    """A crew looks at what its job has printed so far, and a file cannot always be opened."""
    while True:
        try:
            return make()
        except OSError as error:
            log.warning("spool_unreadable", error=error.strerror)
        await trio.sleep(UNREADABLE_SECONDS)
