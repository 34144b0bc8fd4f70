"""How an execution and a job end."""

from dataclasses import dataclass, field
from enum import StrEnum

import msgspec


class Phase(StrEnum):
    SETUP = "setup"
    EXECUTION = "execution"
    CLEANUP = "cleanup"


class Outcome(StrEnum):
    SUCCESS = "success"
    FAILED = "failed"
    TIMED_OUT = "timed_out"
    CANCELLED = "cancelled"
    UNREACHABLE = "unreachable"
    NOT_DEPLOYED = "not_deployed"
    LOST = "lost"


# What stands for an exit code where the script gave none.
EXIT_CODES = {
    Outcome.SUCCESS: 0,
    Outcome.TIMED_OUT: 124,
    Outcome.CANCELLED: 130,
    Outcome.UNREACHABLE: 255,
    Outcome.NOT_DEPLOYED: 126,
    Outcome.LOST: 125,
}


class JobStatus(StrEnum):
    """The statuses that `complete` knows."""

    COMPLETED = "completed"
    FAILED = "failed"
    TIMEOUT = "timeout"
    CANCELLED = "cancelled"


@dataclass(frozen=True, slots=True)
class PhaseTimes:
    """Milliseconds; None for a phase that was not reached."""

    setup_ms: int | None = None
    execution_ms: int | None = None


@dataclass(frozen=True, slots=True)
class ServerResult:
    """How one execution ended. Times ending in `_at` are UTC epoch ms.

    `error` is for people: None on success; `runner` is deployed, cached, or None where the
    runner was not reached. `script_output`, as JSON, and `condition` are what the script said.
    """

    execution_id: str
    server_id: str
    server_name: str
    outcome: Outcome
    exit_code: int
    started_at: int
    ended_at: int
    times: PhaseTimes = PhaseTimes()
    error: str | None = None
    runner: str | None = None
    script_output: bytes | None = field(default=None, repr=False)
    condition: bool | None = None

    def to_json(self) -> bytes:
        return msgspec.json.encode(self)

    @classmethod
    def from_json(cls, text: bytes) -> "ServerResult":
        """The result as `to_json` told it."""
        return msgspec.json.decode(text, type=cls)


@dataclass(frozen=True, slots=True)
class JobResult:
    status: JobStatus
    exit_code: int
    message: str
