"""The requests, as loosely as the app reads them.

worker/api/wire.py has what our own worker sends, in full; the app asks for less, and the
recorded contract (tests/contract) is what these structs must take. A field that was left out
is UNSET where the app tells that from null.
"""

from datetime import datetime
from typing import Annotated, Any, TypeAlias

import msgspec
from msgspec import UNSET, Meta, Struct, UnsetType

from worker.queue_server.model import JobEnd, JobStatus

Time: TypeAlias = datetime | UnsetType | None
# What SQLite has room for.
Number: TypeAlias = Annotated[int, Meta(ge=-(2**63), le=2**63 - 1)]
# SQLite makes a number of "3", as PostgreSQL does, and refuses "x".
Whole: TypeAlias = Number | str | UnsetType | None


class Body(Struct, frozen=True, kw_only=True, rename="camel"):
    """Unknown fields are ignored, as by the app."""


class Named(Body, frozen=True):
    """Acknowledge, health and metrics: who speaks, and what is looked at besides."""

    orchestrator_id: str = ""
    metrics: Any = None


class Heartbeat(Body, frozen=True):
    orchestrator_id: str = ""
    running_jobs: tuple[str, ...] = ()


class StatusDetails(Body, frozen=True):
    exit_code: Number | None = None
    message: str | None = None


class CreateExecution(Body, frozen=True):
    job_id: str = ""
    server_id: Number | str | None = None
    server_name: Any = None
    metadata: Any = UNSET


class UpdateExecution(Body, frozen=True):
    """The names are the columns of `executions`."""

    status: str | UnsetType = UNSET
    started_at: Time = UNSET
    completed_at: Time = UNSET
    exit_code: Whole = UNSET
    output: Any = UNSET
    error: Any = UNSET
    metadata: dict[str, Any] | UnsetType = UNSET
    setup_started_at: Time = UNSET
    setup_completed_at: Time = UNSET
    execution_started_at: Time = UNSET
    execution_completed_at: Time = UNSET
    cleanup_started_at: Time = UNSET
    cleanup_completed_at: Time = UNSET
    setup_duration: Whole = UNSET
    execution_duration: Whole = UNSET
    cleanup_duration: Whole = UNSET
    total_duration: Whole = UNSET
    execution_metadata: Any = UNSET


class ExecutionRow(Body, frozen=True):
    """One of a job's executions, as what is said of the job may have them along."""

    id: str
    create: CreateExecution | None = None
    update: UpdateExecution | None = None


class Executions(Body, frozen=True):
    executions: tuple[ExecutionRow, ...] = ()


class Status(Executions, frozen=True):
    status: Any = None
    details: StatusDetails | None = None


class Complete(Executions, frozen=True):
    status: str | None = None
    exit_code: Number | None = None
    output: Any = None
    metrics: Any = UNSET
    script_output: Any = UNSET
    condition: Any = UNSET

    def to_end(self) -> JobEnd:
        """What the app makes of it (s04, s07, s08): a word that it does not know is a success."""
        outcome = self.status.lower() if self.status else ""
        if outcome not in {"completed", "failed", "timeout", "cancelled"}:
            outcome = "completed" if self.status or not self.exit_code else "failed"
        status = JobStatus.FAILED if outcome == "timeout" else JobStatus(outcome)
        result = {
            "exitCode": self.exit_code or 0,
            "metrics": self.metrics,
            "scriptOutput": self.script_output,
            "condition": self.condition,
        }
        output = self.output if isinstance(self.output, dict) else {"stdout": self.output}
        return JobEnd(
            status=status,
            outcome=outcome,
            result={name: value for name, value in result.items() if value is not UNSET},
            stdout=as_text(output.get("stdout")),
            stderr=as_text(output.get("stderr")),
        )


class Fail(Executions, frozen=True):
    error: str = ""
    exit_code: Number | None = None

    def to_end(self) -> JobEnd:
        code = 1 if self.exit_code is None else self.exit_code
        return JobEnd(JobStatus.FAILED, "failed", {"exitCode": code}, stderr=self.error)


class Release(Body, frozen=True):
    message: str = ""


class ScriptOutput(Body, frozen=True):
    output: Any = None
    timestamp: str | None = None


class ScriptData(Body, frozen=True):
    """A script's output, as the runtime API has it."""

    data: Any


class Condition(Body, frozen=True):
    condition: bool


class Variable(Body, frozen=True):
    value: Any


def as_text(value: object) -> str | None:
    """None stays None, as in a column that may be empty."""
    return None if value is None else as_json_text(value)


def as_json_text(value: object) -> str:
    """A text as it is, anything else as JSON."""
    return value if isinstance(value, str) else msgspec.json.encode(value).decode()
