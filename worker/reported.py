"""One execution with its row at the API and its result in the state."""

from functools import partial

import structlog
import trio

from worker import logs
from worker.clock import now_ms
from worker.dispatch.plan import Plan, PlannedExecution
from worker.dispatch.result import ServerResult
from worker.dispatch.server import ServerExecution
from worker.masked import mask_result
from worker.masking import Masker
from worker.printed import Printed
from worker.relay import Relay
from worker.report import running_entry, update_entry
from worker.state.runs import RunStore

log = structlog.get_logger()

# A run that is over sooner is told of once, by its final row.
RUNNING_AFTER_SECONDS = 1.0


class ReportedExecution:
    """A child of the fan-out; `known` is its result, where an earlier worker had it already."""

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
        known: ServerResult | None,
    ) -> None:
        self._plan = plan
        self._execution = execution
        self._inner = inner
        self._printed = printed
        self._masker = masker
        self._relay = relay
        self._runs = runs
        self._known = known
        # Whether nothing of the run is left on the server.
        self.is_clean = False

    async def run(self) -> ServerResult:
        """How the execution ended; its final row is in the outbox then, and it in the state."""
        if self._known is not None:
            await trio.lowlevel.checkpoint()
            return self._known
        logs.mask_with(self._masker.mask_text)
        async with trio.open_nursery() as nursery:
            nursery.start_soon(self._announce)
            result = mask_result(await self._inner.run(), self._masker)
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
        await self._relay.put_made(
            lambda: (update_entry(self._plan, result, self._printed.captures),),
            also=partial(
                self._runs.ended,
                self._plan.job_id,
                self._execution.id,
                result.to_json(),
                has_run=result.runner is not None,
            ),
        )
        return result

    async def clean_up(self) -> None:
        self.is_clean = await self._inner.clean_up()

    def close(self) -> None:
        self._printed.close()

    async def _announce(self) -> None:
        await self._inner.begun.wait()
        started_at = now_ms()
        self._printed.begin()
        await trio.sleep(RUNNING_AFTER_SECONDS)
        await self._relay.put(running_entry(self._plan, self._execution, now=started_at))
