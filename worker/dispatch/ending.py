"""The end of a run in terms of its outcome."""

from dataclasses import dataclass

from worker.dispatch.result import Outcome
from worker.remote.frames import Ended, Reason

# The runner gives a script 5 s between TERM and KILL, and its word may be 30 s late; then the
# connection or the runner is taken for lost.
LATEST_WORD_SECONDS = 35
# The app keeps durations as integers of 32 bits, and a server may say anything.
MAX_WALL_MS = 2**31 - 1


@dataclass(frozen=True, slots=True)
class Ending:
    """How an execution ended; where there is no `exit_code`, the outcome's own stands for it.

    `wall_ms` is how long the script ran by the server's clock, where that is known.
    """

    outcome: Outcome
    error: str | None = None
    exit_code: int | None = None
    wall_ms: int | None = None


def ending_of(frame: Ended, *, limit_seconds: int, output_limit_bytes: int) -> Ending:
    """The run's own end, given the limits that it had."""
    wall_ms = min(frame.wall_ms, MAX_WALL_MS)
    match frame.reason:
        case Reason.EXIT if frame.code == 0:
            return Ending(Outcome.SUCCESS, None, 0, wall_ms)
        case Reason.EXIT:
            error = f"the script exited with {frame.code}"
            return Ending(Outcome.FAILED, error, frame.code, wall_ms)
        case Reason.SIGNAL:
            error = f"the script was ended by signal {frame.code - 128}"
            return Ending(Outcome.FAILED, error, frame.code, wall_ms)
        case Reason.OUTPUT_LIMIT:
            return over_output_limit(output_limit_bytes, frame.code, wall_ms)
        case Reason.TIMEOUT:
            error = f"the script was over its limit of {limit_seconds} s"
            return Ending(Outcome.TIMED_OUT, error, None, wall_ms)
        case Reason.CANCEL:
            return Ending(Outcome.CANCELLED, "the job was cancelled", None, wall_ms)
        case Reason.LOST:
            error = "the run vanished from the server (rebooted, or its processes were killed)"
            return Ending(Outcome.LOST, error, None, wall_ms)
        case Reason.FORGOTTEN:
            return Ending(Outcome.LOST, "the run was forgotten by the server")


def over_output_limit(limit_bytes: int, code: int, wall_ms: int | None = None) -> Ending:
    error = f"the run printed more than its limit of {limit_bytes} bytes"
    return Ending(Outcome.FAILED, error, code, wall_ms)
