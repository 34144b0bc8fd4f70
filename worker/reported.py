"""One execution with its row at the API and its result in the state."""

from collections.abc import Callable
from functools import partial

import structlog
import trio

from worker import logs
from worker.clock import now_ms
from worker.dispatch.plan import Plan, PlannedExecution
from worker.dispatch.result import ServerResult
from worker.dispatch.server import NOTHING_RECEIVED, ServerExecution
from worker.ends import End, Ends
from worker.masked import mask_result
from worker.masking import Masker
from worker.notice import Notice
from worker.printed import Printed
from worker.relay import Relay
from worker.report import create_entry, live_body, running_entry, update_entry
from worker.snapshot import ExecutionNow
from worker.state.outbox import Entry
from worker.state.runs import RunStore
from worker.telemetry import ExecutionTrace
from worker.trigger import Trigger

log = structlog.get_logger()


class ReportedExecution:
    """A child of the fan-out.

    `known` is its result, where an earlier worker had it already. Of each stream `kept_bytes` stay
    in the history. `on_begun` is called with this child once its script is known to run. Of its end
    nothing is said before the API has had `notice` of its job, or along with that.
    """

    def __init__(
        self,
        plan: Plan,
        execution: PlannedExecution,
        inner: ServerExecution,
        printed: Printed,
        masker: Masker,
        relay: Relay,
        ends: Ends,
        runs: RunStore,
        *,
        trace: ExecutionTrace,
        known: ServerResult | None,
        kept_bytes: int,
        notice: Notice | None,
        on_begun: Callable[["ReportedExecution"], object],
    ) -> None:
        self._plan = plan
        self._execution = execution
        self._inner = inner
        self._printed = printed
        self._masker = masker
        self._relay = relay
        self._ends = ends
        self._runs = runs
        self._trace = trace
        self._known = known
        self._result = known
        self._notice = notice
        self._on_begun = on_begun
        # In Unix milliseconds.
        self._begun_at: int | None = None
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
        offsets = self._printed.offsets
        return offsets.stdout + offsets.stderr

    def running_entry(self) -> Entry | None:
        """That its script runs; None once that is over."""
        if self._result is not None or self._begun_at is None:
            return None
        return running_entry(self._plan, self._execution, now=self._begun_at)

    def live_body(self) -> bytes | None:
        """What its row has not heard yet of what the script prints; None if that is nothing."""
        offsets = self._printed.offsets
        if self._result is not None or offsets in (self._told_live, NOTHING_RECEIVED):
            return None
        try:
            body = live_body(self._printed.captures)
        except OSError as error:  # no more files, for a moment: the final row has it all
            log.debug("spool_unreadable", error=error.strerror)
            return None
        self._told_live = offsets
        return body

    async def run(self) -> ServerResult:
        """How the execution ended; that is on disk then, or held back for the job's own end."""
        if self._known is not None:
            await trio.lowlevel.checkpoint()
            return self._known
        logs.mask_with(self._masker.mask_text)
        structlog.contextvars.bind_contextvars(**self._trace.log_fields)
        # From here on, which is before the final row, its row is not told that it runs.
        result = self._result = mask_result(await self._inner.run(self._begun), self._masker)
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
        is_last = self._ends.count()
        if self._notice is not None:
            await self._notice.wait_given(is_last=is_last)
        end = End(partial(self._final_entries, result), partial(self._keep, result))
        if is_last:
            self._ends.last = end
        else:
            await self._relay.put_rows(self._plan.job_id, end.entries, also=end.keep)
        return result

    def _final_entries(self, result: ServerResult) -> list[Entry]:
        is_made = self._notice is None or not self._notice.goes_along
        made = [] if is_made else [create_entry(self._plan, self._execution)]
        return [*made, update_entry(self._plan, result, self._printed.captures)]

    def _keep(self, result: ServerResult) -> None:
        self._runs.ended(
            self._plan.job_id,
            self._execution.id,
            result.to_json(),
            has_run=result.runner is not None,
            output=self._printed.kept(self._kept_bytes),
            now=result.ended_at,
        )

    async def clean_up(self, haste: Trigger) -> None:
        began_at = now_ms()
        self.is_clean = await self._inner.clean_up(haste)
        self._trace.cleaned_up(began_at, now_ms(), is_clean=self.is_clean)

    def close(self) -> None:
        self._printed.close()

    def _begun(self) -> None:
        self._begun_at = now_ms()
        self._mark_begun()
        self._on_begun(self)

    def _mark_begun(self) -> None:
        """Where there is no room for that, it is not marked: the server knows as well."""
        try:
            self._runs.mark_begun(self._plan.job_id, self._execution.id)
        except OSError as error:
            log.warning("spool_unwritable", error=error.strerror)
