"""The start of a job: kept in the state, told to the API, prepared on its servers, all at once."""

from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from functools import partial

import structlog
import trio

from worker.api import wire
from worker.api.wire import JobBody
from worker.clock import now_ms
from worker.crew import Surroundings
from worker.dispatch.plan import Plan, PlannedExecution
from worker.dispatch.setup import run_request
from worker.flight import Flight
from worker.live import RUNNING_AFTER_SECONDS
from worker.notice import Notice
from worker.ownership import Ownership
from worker.report import create_entries, row_of
from worker.state.history import Begun

log = structlog.get_logger()

# Much less than any lease: a worker that stood still for longer asks whose the job is by now.
FRESH_CLAIM_MS = 1000
# With more servers than these the worker is the bottleneck, and nothing is won by preparing.
MOST_STAGED = 8


class Beginnings:
    def __init__(self, around: Surroundings, ownership: Ownership) -> None:
        self._settings = around.settings
        self._pool = around.remote.pool
        self._relay = around.relay
        self._runs = around.runs
        self._ownership = ownership

    @asynccontextmanager
    async def of(
        self, plan: Plan, job: JobBody, flight: Flight, began_at: int, *, is_alone: bool
    ) -> AsyncIterator[bool]:
        """Whether the job is to be started; if so, the state has it, and the API was told, or is
        yet to be by `tell`.

        What servers have prepared and is not started within the block is dropped at its end. Where
        the job `is_alone` that saves time even if the API is not waited for; else it costs some, as
        a run comes in two pieces. One that is not, and is soon over, is told of by its end alone.
        """
        is_sure = _is_surely_ours(job, flight)
        try:
            async with trio.open_nursery() as nursery:
                if len(plan.executions) <= MOST_STAGED and (is_alone or not is_sure):
                    for execution in plan.executions:
                        nursery.start_soon(self._stage, plan, execution)
                if is_sure:
                    is_ours = await self._begin_untold(plan, job, began_at)
                    after_seconds = 0 if is_alone else RUNNING_AFTER_SECONDS
                    flight.notice = Notice(after_seconds=after_seconds)
                else:
                    is_ours = await self._begin(plan, job, flight, began_at)
            yield is_ours
        finally:
            self._unstage(plan)

    async def _stage(self, plan: Plan, execution: PlannedExecution) -> None:
        target = execution.server.target
        if target is None:
            return
        try:
            await self._pool.stage(target, run_request(plan, execution, self._settings))
        except Exception as error:  # noqa: BLE001  it saves time, and is not needed
            log.debug("staging_failed", error=str(error))

    def _unstage(self, plan: Plan) -> None:
        for execution in plan.executions:
            if execution.server.target is not None:
                self._pool.unstage(execution.server.target, execution.id)

    async def _begin(self, plan: Plan, job: JobBody, flight: Flight, began_at: int) -> bool:
        """Keep the job and tell that it runs, before anything of it starts on a server; whether it
        is to be started."""
        begin = self._keeping(plan, job, began_at)
        async with self._relay.held(plan.job_id):
            if flight.claim is None:
                is_over = await self._relay.supersede(plan.job_id)
                is_ours = not is_over and await self._ownership.may_start(flight, ())
            else:
                is_over, is_ours = await self._keep_and_start(plan, flight, begin)
        if is_over:
            log.info("result_stored_already")
        elif is_ours and flight.claim is None:
            await self._relay.put(*create_entries(plan), also=begin)
        elif is_ours and not flight.has_rows:
            await self._relay.put(*create_entries(plan))
        elif flight.claim is not None and not is_ours:
            await self._relay.drop(plan.job_id)
        return is_ours

    def _keeping(self, plan: Plan, job: JobBody, began_at: int) -> Callable[[], object]:
        return partial(
            self._runs.begin, plan.job_id, wire.encode(job), now=began_at, begun=_begun(plan)
        )

    async def _begin_untold(self, plan: Plan, job: JobBody, began_at: int) -> bool:
        """Keep the job, and no more: it is ours, and the API can be told while it runs."""
        begin = self._keeping(plan, job, began_at)
        async with self._relay.held(plan.job_id):
            is_over = await self._relay.supersede(plan.job_id, begin=begin)
        if is_over:
            log.info("result_stored_already")
        return not is_over

    async def tell(self, plan: Plan, flight: Flight) -> None:
        """Tell the API, if it was not, that the job runs; ends the flight where it is not ours."""
        notice = flight.notice
        if notice is None or not await notice.is_due():
            return
        async with self._relay.held(plan.job_id):
            is_ours = await self._ownership.may_start(flight, map(row_of, create_entries(plan)))
        if not is_ours:
            flight.disown()
        elif not flight.has_rows:
            await self._relay.put(*create_entries(plan))
        notice.give()

    async def _keep_and_start(
        self, plan: Plan, flight: Flight, begin: Callable[[], object]
    ) -> tuple[bool, bool]:
        """Both at once: whether the job's end is in the outbox already, and whether it is ours."""
        is_over = False

        async def keep() -> None:
            nonlocal is_over
            is_over = await self._relay.supersede(plan.job_id, begin=begin)

        async with trio.open_nursery() as nursery:
            nursery.start_soon(keep)
            is_ours = await self._ownership.may_start(flight, map(row_of, create_entries(plan)))
        return is_over, is_ours and not is_over


def _is_surely_ours(job: JobBody, flight: Flight) -> bool:
    """Just claimed, under a token, and by no worker before."""
    is_first = flight.claim is not None and job.may_have_begun is False
    return is_first and now_ms() - flight.admitted_at < FRESH_CLAIM_MS


def _begun(plan: Plan) -> Begun:
    servers = {execution.id: execution.server.name for execution in plan.executions}
    return Begun(plan.event_name or plan.event_id, servers)
