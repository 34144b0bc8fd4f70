"""What the embedded queue keeps."""

from dataclasses import dataclass, field
from enum import IntEnum, StrEnum
from typing import Any

# The queue has one user; the app's API wants an id.
USER_ID = "local"


class ScriptType(StrEnum):
    BASH = "BASH"
    PYTHON = "PYTHON"
    NODEJS = "NODEJS"


class JobStatus(StrEnum):
    QUEUED = "queued"
    CLAIMED = "claimed"
    RUNNING = "running"
    COMPLETED = "completed"
    FAILED = "failed"
    CANCELLED = "cancelled"

    @property
    def is_final(self) -> bool:
        return self in {JobStatus.COMPLETED, JobStatus.FAILED, JobStatus.CANCELLED}


class Priority(IntEnum):
    LOW = 0
    NORMAL = 1
    HIGH = 2


@dataclass(frozen=True, slots=True)
class Server:
    """One row of `servers`; the credentials are open ones here, and sealed in the row.

    `host_key` is a public key's line or a fingerprint, one or more of them, one to a line.
    """

    id: int
    name: str
    host: str
    port: int
    username: str
    private_key: str | None = field(default=None, repr=False)
    passphrase: str | None = field(default=None, repr=False)
    password: str | None = field(default=None, repr=False)
    host_key: str | None = None


@dataclass(frozen=True, slots=True)
class Script:
    """What an event runs; `environment` holds open values."""

    type: ScriptType
    content: str
    working_directory: str = ""
    environment: dict[str, str] = field(default_factory=dict, repr=False)
    input: Any = field(default_factory=dict)
    timeout_seconds: int = 3600


@dataclass(frozen=True, slots=True)
class Event:
    id: int
    name: str
    version: int
    script_type: str
    content: str


@dataclass(frozen=True, slots=True)
class Job:
    """One row of `jobs` but for its output, which can be large."""

    number: int
    id: str
    event_id: int
    user_id: str
    type: str
    status: JobStatus
    priority: int
    payload: dict[str, Any] = field(repr=False)
    scheduled_for: int
    orchestrator_id: str | None
    claim_token: str | None = field(repr=False)
    attempts: int
    started_at: int | None
    completed_at: int | None
    reported_at: int | None
    last_error: str | None
    created_at: int
    updated_at: int
    outcome: str | None
    result: dict[str, Any] | None
    event_name: str


@dataclass(frozen=True, slots=True)
class Claimant:
    """Who says something of a job: a worker, and the claim by which it has the job if it says so.

    The app's own workers do not.
    """

    worker_id: str
    claim_token: str | None = None


@dataclass(frozen=True, slots=True)
class JobEnd:
    """How a worker ended a job: `outcome` as it said it, `status` as the app files that."""

    status: JobStatus
    outcome: str
    result: dict[str, Any]
    stdout: str | None = None
    stderr: str | None = None


@dataclass(frozen=True, slots=True)
class Execution:
    """One row of `executions`."""

    id: str
    job_id: str
    server_id: int | None
    server_name: str | None
    status: str
    started_at: int | None
    completed_at: int | None
    exit_code: int | None
    output: str | None
    error: str | None
    metadata: Any
    setup_started_at: int | None
    setup_completed_at: int | None
    execution_started_at: int | None
    execution_completed_at: int | None
    cleanup_started_at: int | None
    cleanup_completed_at: int | None
    setup_duration: int | None
    execution_duration: int | None
    cleanup_duration: int | None
    total_duration: int | None
    execution_metadata: Any
    created_at: int
    updated_at: int

    @property
    def is_over(self) -> bool:
        """By its status alone, which a worker that attaches again sets back to running."""
        return self.status.lower() in {"completed", "failed", "timeout", "cancelled"}


@dataclass(frozen=True, slots=True)
class JobReport:
    """Everything `queue show` prints."""

    job: Job
    executions: tuple[Execution, ...]
    stdout: str
    stderr: str

    @property
    def is_over(self) -> bool:
        """A job that was cancelled while it ran is over when its worker has ended the runs."""
        job = self.job
        is_ending = job.status is JobStatus.CANCELLED and job.orchestrator_id is not None
        return job.status.is_final and (job.reported_at is not None or not is_ending)

    @property
    def exit_code(self) -> int | None:
        """The job's exit code, once it is over; a job that nobody ran has 130 or 1."""
        if not self.is_over:
            return None
        code = (self.job.result or {}).get("exitCode")
        if isinstance(code, int):
            return code
        return 130 if self.job.status is JobStatus.CANCELLED else 1

    @property
    def message(self) -> str:
        metrics = (self.job.result or {}).get("metrics")
        message = metrics.get("message") if isinstance(metrics, dict) else None
        if isinstance(message, str):
            return message
        # A job that never ran has its reason where `fail` puts it.
        return self.job.last_error or self.stderr.partition("\n")[0]
