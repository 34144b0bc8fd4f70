"""The children of one job's fan-out, put together."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial

from worker.api.runtime import Runtimes
from worker.api.tokens import Identity
from worker.database import Database
from worker.dispatch.capture import Capture
from worker.dispatch.helper_calls import HelperCalls
from worker.dispatch.plan import Plan, PlannedExecution
from worker.dispatch.result import ServerResult
from worker.dispatch.server import Resumption, ServerExecution
from worker.ends import Ends
from worker.flight import Flight
from worker.live import BegunScripts
from worker.masking import ExecutionMasker, Masker, compiled
from worker.ownership import Ownership
from worker.printed import Orders, Printed
from worker.relay import Relay
from worker.remote.credentials import Credentials
from worker.remote.frames import Stream
from worker.remote.session import Remote
from worker.report import Captures, share_bytes
from worker.reported import ReportedExecution
from worker.secret import Secret
from worker.settings import Settings, secrets_of
from worker.state.history import STREAM_BYTES
from worker.state.runs import KeptJob, RunStore
from worker.telemetry import ExecutionTrace, JobTrace, Telemetry


@dataclass(frozen=True, slots=True)
class Surroundings:
    """What the jobs of a worker share."""

    settings: Settings
    database: Database
    remote: Remote
    relay: Relay
    runs: RunStore
    runtimes: Runtimes
    telemetry: Telemetry


class Crew:
    """One child per server.

    Where a job `is_left`, an earlier worker may have started it: each child looks first for its run
    on the server. `kept` is what this state has of the job: the children go on from there. `masks`
    are the secrets that scripts had added by then (`::add-mask::`), by execution id. `masker` is
    the whole job's; `begun` has each child whose script is known to run, `ends` how they ended.
    """

    def __init__(
        self,
        plan: Plan,
        around: Surroundings,
        flight: Flight,
        ownership: Ownership,
        *,
        trace: JobTrace,
        is_left: bool,
        kept: KeptJob | None = None,
        masks: Mapping[str, Sequence[Secret]] | None = None,
    ) -> None:
        self._plan = plan
        self._around = around
        self._flight = flight
        self._ownership = ownership
        self._trace = trace
        self._is_left = is_left
        self.begun = BegunScripts()
        self._kept = kept
        self._masks = masks or {}
        self._orders = Orders()
        self.masker = Masker(base=compiled(plan.secrets | secrets_of(around.settings)))
        self._credentials = Credentials(around.settings.encryption_key, self.masker.learn)
        self.share_bytes = share_bytes(
            len(plan.executions), around.settings.jobs.output_limit_bytes
        )
        self.captures: dict[str, Captures] = {
            execution.id: self._captures(execution) for execution in plan.executions
        }
        known = {execution.id: self._known_result(execution) for execution in plan.executions}
        running = sum(result is None for result in known.values())
        self.ends = Ends(running)
        self.children = [
            self._child(execution, known[execution.id]) for execution in plan.executions
        ]

    @property
    def is_clean(self) -> bool:
        """Whether nothing of the job is left on any server."""
        return all(child.is_clean for child in self.children)

    def _captures(self, execution: PlannedExecution) -> Captures:
        return {
            stream: Capture(
                self._around.runs.spool(
                    self._plan.job_id,
                    execution.id,
                    stream,
                    limit=self._around.settings.jobs.output_limit_bytes,
                ),
                self.share_bytes,
            )
            for stream in Stream
        }

    def _child(self, execution: PlannedExecution, known: ServerResult | None) -> ReportedExecution:
        settings = self._around.settings
        runs = self._around.runs
        masker = ExecutionMasker(self.masker, self._masks.get(execution.id, ()))
        printed = Printed(
            self.captures[execution.id],
            masker,
            partial(self._keep_masks, execution.id, masker),
            self._orders,
            into_log=settings.logs.output,
        )
        inner = ServerExecution(
            self._plan,
            execution,
            self._around.remote,
            settings,
            credentials=self._credentials,
            cancelled=self._flight.cancelled,
            still_ours=partial(self._ownership.still_ours, self._flight),
            sink=printed.take_in,
            calls=self._helper_calls(execution),
            resumption=self._resumption(execution, printed, known),
        )
        return ReportedExecution(
            self._plan,
            execution,
            inner,
            printed,
            masker,
            self._around.relay,
            self.ends,
            runs,
            trace=self._trace.execution(execution) if known is None else ExecutionTrace(),
            known=known,
            kept_bytes=STREAM_BYTES if settings.jobs.history_bytes else 0,
            notice=self._flight.notice,
            on_begun=self.begun.add,
        )

    async def _keep_masks(self, execution_id: str, masker: ExecutionMasker) -> None:
        keep = self._around.runs.keep_masks
        await self._around.database.run(
            partial(keep, self._plan.job_id, execution_id, masker.added)
        )

    def _helper_calls(self, execution: PlannedExecution) -> HelperCalls:
        plan = self._plan
        identity = Identity(
            plan.job_id, execution.id, plan.user_id, plan.event_id, plan.limit_seconds
        )
        return HelperCalls(plan, execution, self._around.runtimes.of(identity))

    def _known_result(self, execution: PlannedExecution) -> ServerResult | None:
        if self._kept is None or execution.id not in self._kept.results:
            return None
        return ServerResult.from_json(self._kept.results[execution.id])

    def _resumption(
        self, execution: PlannedExecution, printed: Printed, known: ServerResult | None
    ) -> Resumption | None:
        if not self._is_left:
            return None
        if known is not None:
            return Resumption(may_have_begun=known.runner is not None)
        is_marked = self._around.runs.has_begun(self._plan.job_id, execution.id)
        # For some there was no room for a mark, and earlier releases made none.
        has_begun = is_marked or printed.has_spool
        printed.take_up()
        return Resumption(may_have_begun=True, has_begun=has_begun, offsets=printed.offsets)
