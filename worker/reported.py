"""One execution with its row at the API and its result in the state."""

from dataclasses import astuple
from functools import partial

import structlog
import trio

from worker import logs
from worker.clock import now_ms
from worker.dispatch.plan import Plan, PlannedExecution
from worker.dispatch.result import ServerResult
from worker.dispatch.server import NOTHING_RECEIVED, ServerExecution
from worker.masked import mask_result
from worker.masking import Masker
from worker.printed import Printed
from worker.relay import Relay
from worker.report import live_body, running_entry, update_entry
from worker.snapshot import ExecutionNow
from worker.standstill import slept
from worker.state.runs import RunStore
from worker.telemetry import ExecutionTrace

log = structlog.get_logger()

# A run that is over sooner is told of once, by its final row.
RUNNING_AFTER_SECONDS = 1.0


class ReportedExecution:
    """A child of the fan-out; `known` is its result, where an earlier worker had it already;
    of each stream `kept_bytes` are kept beyond the job."""

    def __init__(
        self,
        plan: Plan,
        execution: PlannedExecution,
        inner: ServerExecution,
        printed: Printed,
        masker: Masker,
        relay: Relay,
        runs: RunStore,
        *,
        trace: ExecutionTrace,
        known: ServerResult | None,
        kept_bytes: int,
    ) -> None:
        self._plan = plan
        self._execution = execution
        self._inner = inner
        self._printed = printed
        self._masker = masker
        self._relay = relay
        self._runs = runs
        self._trace = trace
        self._known = known
        self._result = known
        # Up to where its row has heard what the script prints.
        self._told_live = NOTHING_RECEIVED
        self._kept_bytes = kept_bytes
        # Whether nothing of the run is left on the server.
        self.is_clean = False

    @property
    def execution_id(self) -> str:
        return self._execution.id

    @property
    def now(self) -> ExecutionNow:
        """What it is at; once its script's part is over, how that ended."""
        inner, result = self._inner, self._result
        return ExecutionNow(
            server=self._execution.server.name,
            phase=inner.phase if result is None else result.outcome,
            since=inner.phase_since if result is None else result.ended_at,
            received_bytes=self._received_bytes,
        )

    @property
    def _received_bytes(self) -> int:
        return sum(astuple(self._printed.offsets))

    def live_body(self) -> bytes | None:
        """What its row has not heard yet of what the script prints; None if that is nothing."""
        offsets = self._printed.offsets
        if self._result is not None or offsets in (self._told_live, NOTHING_RECEIVED):
            return None
        self._told_live = offsets
        return live_body(self._printed.captures)

    async def run(self) -> ServerResult:
        """How the execution ended; its final row is in the outbox then, and it in the state."""
        if self._known is not None:
            await trio.lowlevel.checkpoint()
            return self._known
        logs.mask_with(self._masker.mask_text)
        structlog.contextvars.bind_contextvars(**self._trace.log_fields)
        async with trio.open_nursery() as nursery:
            nursery.start_soon(self._announce)
            result = self._result = mask_result(await self._inner.run(), self._masker)
            # Before the final row, so that the row's `running` never comes after it.
            nursery.cancel_scope.cancel()
        await self._printed.end()
        structlog.contextvars.unbind_contextvars("phase")
        log.info(
            "execution_ended",
            outcome=result.outcome,
            exit_code=result.exit_code,
            setup_ms=result.times.setup_ms,
            execution_ms=result.times.execution_ms,
            runner=result.runner,
            error=result.error,
        )
        self._trace.ended(result, self._received_bytes)
        await self._relay.put_row(
            self._plan.job_id,
            lambda: update_entry(self._plan, result, self._printed.captures),
            also=partial(self._keep, result),
        )
        return result

    def _keep(self, result: ServerResult) -> None:
        self._runs.ended(
            self._plan.job_id,
            self._execution.id,
            result.to_json(),
            has_run=result.runner is not None,
            output=self._printed.kept(self._kept_bytes),
            now=result.ended_at,
        )

    async def clean_up(self) -> None:
        began_at = now_ms()
        self.is_clean = await self._inner.clean_up()
        self._trace.cleaned_up(began_at, now_ms(), is_clean=self.is_clean)

    def close(self) -> None:
        self._printed.close()

    async def _announce(self) -> None:
        await self._inner.begun.wait()
        started_at = now_ms()
        self._printed.begin()
        while not await slept(RUNNING_AFTER_SECONDS):
            pass  # a look at whose the job is comes first
        await self._relay.put_row(
            self._plan.job_id, partial(running_entry, self._plan, self._execution, now=started_at)
        )
