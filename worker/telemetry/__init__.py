"""What is told of the worker's work to whoever measures it: nothing, unless that is configured.

Nothing here raises or waits, and no error's text leaves the worker by it.
"""

from collections.abc import Mapping
from dataclasses import dataclass

from worker.api.transport import ApiCall
from worker.dispatch.plan import Plan, PlannedExecution
from worker.dispatch.result import ServerResult
from worker.snapshot import WorkerNow

_NO_FIELDS: Mapping[str, str] = {}


@dataclass(frozen=True, slots=True)
class StateNow:
    """Of the state file: entries of the outbox, since when the oldest waits (Unix ms), runners."""

    waiting: int
    parked: int
    oldest_at: int | None
    runners: int


class ExecutionTrace:
    """Of one execution; `log_fields` are for what is logged of it."""

    log_fields = _NO_FIELDS

    def ended(self, result: ServerResult, received_bytes: int) -> None: ...

    def cleaned_up(self, began_at: int, ended_at: int, *, is_clean: bool) -> None: ...


class JobTrace:
    """Of one job, from its claim on; one that is left to another worker is not told of."""

    log_fields = _NO_FIELDS

    def started(self, now: int) -> None:
        """It is the worker's to run."""

    def execution(self, execution: PlannedExecution) -> ExecutionTrace:  # noqa: ARG002  for those who trace
        return ExecutionTrace()

    def ended(self, status: str, began_at: int, ended_at: int) -> None: ...


class Telemetry:
    """Points in time are Unix milliseconds, durations seconds."""

    is_on = False

    def api_called(self, call: ApiCall) -> None: ...

    def polled(self, seconds: float, jobs: int) -> None: ...

    def refused(self) -> None:
        """A job could not be run as it stood."""

    def job(self, plan: Plan, claimed_at: int) -> JobTrace:  # noqa: ARG002  for those who trace
        return JobTrace()

    def observe(self, now: WorkerNow) -> None: ...

    def observe_state(self, now: StateNow) -> None: ...

    def close(self) -> None:
        """Send what is left; waits for it, a few seconds at most."""
