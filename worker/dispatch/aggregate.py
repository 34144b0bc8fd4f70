"""From the servers' results to the job's."""

from collections.abc import Sequence

from worker.dispatch.result import JobResult, JobStatus, Outcome, ServerResult
from worker.settings import ExitCodePolicy

# Names in the message; the full list is in the metrics.
MAX_NAMES = 10

# The app takes "timeout" or "timed out" in an error for a timed-out job, so neither stands here.
_WORDS = {
    Outcome.FAILED: "failed",
    Outcome.TIMED_OUT: "over limit",
    Outcome.CANCELLED: "cancelled",
    Outcome.UNREACHABLE: "unreachable",
    Outcome.NOT_DEPLOYED: "not deployed",
    Outcome.LOST: "lost",
}


def aggregate(
    results: Sequence[ServerResult], *, cancelled: bool, policy: ExitCodePolicy
) -> JobResult:
    """All succeeded: completed; some: completed, with a message; none: failed, or timeout when
    that is why all of them failed. A cancelled job is cancelled whatever its servers did.

    The exit code is the sum of the servers' own, or, under `partial100`, 100 + the failed
    servers for a partial success.
    """
    succeeded = sum(result.outcome is Outcome.SUCCESS for result in results)
    exit_code = sum(result.exit_code for result in results)
    count = f"{succeeded} of {len(results)} servers succeeded"
    reasons = _reasons(results)
    if cancelled:
        return JobResult(JobStatus.CANCELLED, exit_code, f"CANCELLED: {count}{reasons}")
    if succeeded == len(results):
        return JobResult(JobStatus.COMPLETED, exit_code, f"SUCCESS: {count}")
    if succeeded:
        if policy is ExitCodePolicy.PARTIAL100:
            exit_code = 100 + len(results) - succeeded
        return JobResult(JobStatus.COMPLETED, exit_code, f"PARTIAL SUCCESS: {count}{reasons}")
    if all(result.outcome is Outcome.TIMED_OUT for result in results):
        return JobResult(JobStatus.TIMEOUT, exit_code, f"OVER LIMIT: {count}{reasons}")
    return JobResult(JobStatus.FAILED, exit_code, f"FAILURE: {count}{reasons}")


def _reasons(results: Sequence[ServerResult]) -> str:
    """For example ` (failed: db-1 exit 7; unreachable: web-3)`; empty when all succeeded."""
    unsuccessful = [result for result in results if result.outcome is not Outcome.SUCCESS]
    groups: dict[Outcome, list[str]] = {}
    for result in unsuccessful[:MAX_NAMES]:
        groups.setdefault(result.outcome, []).append(_name(result))
    parts = [f"{_WORDS[outcome]}: {', '.join(names)}" for outcome, names in groups.items()]
    if len(unsuccessful) > MAX_NAMES:
        parts.append(f"and {len(unsuccessful) - MAX_NAMES} more")
    return f" ({'; '.join(parts)})" if parts else ""


def _name(result: ServerResult) -> str:
    if result.outcome is Outcome.FAILED:
        return f"{result.server_name} exit {result.exit_code}"
    return result.server_name
