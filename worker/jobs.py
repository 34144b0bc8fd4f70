"""The jobs of this worker: each one run from its claim to its result in the outbox."""

import itertools
from collections.abc import Callable, Sequence
from functools import partial
from typing import NoReturn

import structlog
import trio

from worker.api.client import QueueClient
from worker.api.wire import JobBody
from worker.clock import now_ms
from worker.dispatch.aggregate import aggregate
from worker.dispatch.fanout import fan_out
from worker.dispatch.plan import Plan, plan_job
from worker.dispatch.result import ServerResult
from worker.errors import JobError, ProtocolError, QueueRefusedError, QueueUnavailableError
from worker.relay import FINAL_STATUSES, Relay
from worker.remote.credentials import Credentials
from worker.remote.session import Remote
from worker.report import (
    cancelled_entry,
    complete_entry,
    create_entry,
    fail_entry,
    release_entry,
    share_bytes,
)
from worker.reported import ReportedExecution
from worker.settings import Settings
from worker.state.outbox import Entry

log = structlog.get_logger()

# How long a claimed job waits for an API that has just stopped answering, before it starts anyway.
ACKNOWLEDGE_SECONDS = 10
RELEASE_SECONDS = 5


class _Flight:
    """A job in flight in this process."""

    def __init__(self, free_slot: Callable[[], None]) -> None:
        self.cancelled = trio.Event()
        # The API has heard, or will hear from the outbox, how the job ended.
        self.is_settled = False
        # It has heard: what is left is to clean up.
        self.is_over = False
        # It is another's, or was over before we could say so.
        self.is_disowned = False
        # Around all that is done on servers.
        self.scope = trio.CancelScope()
        self._free_slot = free_slot
        self._holds_slot = True

    def disown(self) -> None:
        """The job is another's now, or over: leave its runs alone and say nothing of it."""
        self.is_settled = self.is_over = self.is_disowned = True
        self.scope.cancel()

    def free_slot(self) -> None:
        if self._holds_slot:
            self._holds_slot = False
            self._free_slot()


class Jobs:
    """The registry of jobs in flight, and what the jobs' nursery runs."""

    def __init__(
        self, client: QueueClient, relay: Relay, remote: Remote, settings: Settings
    ) -> None:
        self._client = client
        self._relay = relay
        self._remote = remote
        self._settings = settings
        self._flights: dict[str, _Flight] = {}

    @property
    def ids(self) -> tuple[str, ...]:
        return tuple(self._flights)

    def admit(self, job_id: str, free_slot: Callable[[], None]) -> bool:
        """Whether the job is new here; a claim of one that is in flight is a duplicate.

        `free_slot` is called once, when an admitted job's result is in the outbox.
        """
        flight = self._flights.get(job_id)
        if flight is not None and not flight.is_over:
            return False
        self._flights[job_id] = _Flight(free_slot)
        return True

    def cancel(self, job_id: str) -> None:
        flight = self._flights.get(job_id)
        if flight is not None and not flight.cancelled.is_set():
            log.info("job_cancelling", job_id=job_id)
            flight.cancelled.set()

    def cancel_all(self) -> None:
        for job_id in self.ids:
            self.cancel(job_id)

    async def run(self, job: JobBody) -> None:
        """Run an admitted job; when this returns, its end is in the outbox.

        Cancellation hands the job over: its runs go on, and it goes back to the queue, unless
        the job was cancelled, which is then said of it.
        """
        flight = self._flights[job.id]
        structlog.contextvars.bind_contextvars(job_id=job.id)
        try:
            await self._run_or_refuse(job, flight)
            flight.is_settled = True
        finally:
            # Only cancellation comes here unsettled; it may be one of a group, so it is not caught.
            if not flight.is_settled:
                log.info("job_cut_short" if flight.cancelled.is_set() else "job_handed_over")
                with trio.move_on_after(RELEASE_SECONDS, shield=True):
                    await self._relay.put(_parting_entry(job.id, flight))
            flight.free_slot()
            # A job that was handed out again while its last run was cleaned up has a new flight.
            if self._flights.get(job.id) is flight:
                del self._flights[job.id]

    async def _run_or_refuse(self, job: JobBody, flight: _Flight) -> None:
        try:
            await self._run(job, flight)
        except JobError as error:
            await self.refuse(job.id, str(error))
        except Exception as error:  # a fault of ours fails that job, not the worker
            log.exception("job_fault")
            if not flight.is_settled:
                fault = f"a fault of the worker: {type(error).__name__}: {error}"
                await self._relay.put(fail_entry(job.id, fault, now=now_ms()))

    async def refuse(self, job_id: str, fault: str) -> None:
        """A job that cannot be run as it stands; the fault names the field."""
        log.error("job_refused", job_id=job_id, error=fault)
        await self._relay.put(fail_entry(job_id, fault, now=now_ms()))

    async def _run(self, job: JobBody, flight: _Flight) -> None:
        plan = plan_job(
            job,
            sealing_key=self._settings.encryption_key,
            max_execution_seconds=self._settings.phases.max_execution_seconds,
        )
        if await self._relay.supersede(plan.job_id):
            log.info("result_stored_already")
            return
        if not await self._may_start(plan):
            return
        started_at = now_ms()
        log.info("job_started", event_id=plan.event_id, servers=len(plan.executions))
        await self._relay.put(*(create_entry(plan, execution) for execution in plan.executions))
        order = itertools.count()
        credentials = Credentials(self._settings.encryption_key)
        children = [
            ReportedExecution(
                plan,
                execution,
                self._remote,
                self._relay,
                self._settings,
                credentials=credentials,
                cancelled=flight.cancelled,
                still_ours=partial(self._still_ours, plan.job_id, flight),
                order=order,
            )
            for execution in plan.executions
        ]

        async def report(results: tuple[ServerResult, ...]) -> bool:
            return await self._report(plan, results, children, flight, started_at)

        with flight.scope:
            async with trio.open_nursery() as nursery:
                nursery.start_soon(self._look_forever, plan.job_id, flight)
                await fan_out(children, report)
                nursery.cancel_scope.cancel()
        # Not what a new flight of the job, handed out again meanwhile, has to say.
        if flight.is_disowned and self._flights.get(plan.job_id) is flight:
            await self._relay.drop(plan.job_id)

    async def _look_forever(self, job_id: str, flight: _Flight) -> NoReturn:
        """Learn of a cancel, and of a job that is no longer ours, from the job itself."""
        while True:
            await trio.sleep(self._settings.jobs.cancel_poll_seconds)
            if not flight.is_settled:
                await self._still_ours(job_id, flight)

    async def _still_ours(self, job_id: str, flight: _Flight) -> bool:
        """Whether the job is, as far as is known; an API that does not answer says nothing."""
        try:
            job = await self._client.read_job(job_id)
        except QueueRefusedError as error:
            if error.status != 403:
                return True
            reason = str(error)
        except (QueueUnavailableError, ProtocolError):
            return True
        else:
            if job.status == "cancelled":
                self.cancel(job_id)
            if job.status not in FINAL_STATUSES:
                return True
            reason = f"the job is {job.status}"
        if flight.is_settled:
            return True  # it is over because we have said so
        log.warning("job_disowned", job_id=job_id, reason=reason)
        flight.disown()
        return False

    async def _may_start(self, plan: Plan) -> bool:
        """Whether the job is still ours; an API that has stopped answering does not hold it up."""
        try:
            with trio.fail_after(ACKNOWLEDGE_SECONDS):
                job = await self._client.read_job(plan.job_id)
                if job.status not in (*FINAL_STATUSES, "cancelled"):
                    # Never sent late, since it revives a cancelled job.
                    await self._client.report_running(plan.job_id)
        except QueueRefusedError as error:
            # Anything but 403 says nothing of whose the job is: it was claimed, so it is run.
            log.warning(
                "job_disowned" if error.status == 403 else "acknowledge_failed", error=str(error)
            )
            return error.status != 403
        except (QueueUnavailableError, ProtocolError, trio.TooSlowError) as error:
            log.warning("acknowledge_failed", error=str(error) or "no answer")
            return True
        if job.status == "cancelled":
            self.cancel(plan.job_id)
        elif job.status in FINAL_STATUSES:
            log.warning("job_disowned", reason=f"the job is {job.status}")
            return False
        return True

    async def _report(
        self,
        plan: Plan,
        results: Sequence[ServerResult],
        children: Sequence[ReportedExecution],
        flight: _Flight,
        started_at: int,
    ) -> bool:
        """Put the job's end into the outbox; whether the API has it within the cleanup's limit."""
        job = aggregate(
            results,
            cancelled=flight.cancelled.is_set(),
            policy=self._settings.jobs.exit_code_policy,
        )
        ended_at = now_ms()
        last_word = await self._relay.put_last(
            plan.job_id,
            partial(
                complete_entry,
                plan,
                job,
                results,
                {child.id: child.captures for child in children},
                started_at=started_at,
                ended_at=ended_at,
                share=share_bytes(len(children), self._settings.jobs.output_limit_bytes),
            ),
        )
        flight.is_settled = True
        flight.free_slot()
        log.info(
            "job_ended",
            status=job.status,
            exit_code=job.exit_code,
            message=job.message,
            duration_ms=ended_at - started_at,
        )
        # Not accepted means that the runs on the servers hold the only copy, or are another's.
        with trio.move_on_after(self._settings.phases.cleanup_seconds):
            await last_word.said.wait()
        flight.is_over = last_word.said.is_set()
        return last_word.accepted


def _parting_entry(job_id: str, flight: _Flight) -> Entry:
    """What the API hears of a job that the worker leaves before its end."""
    if flight.cancelled.is_set():
        return cancelled_entry(job_id, "the worker stopped before the runs had ended", now_ms())
    return release_entry(job_id, "the worker is stopping")
