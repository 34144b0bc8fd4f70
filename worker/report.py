"""From a job's results to what the API is told: bodies for the outbox."""

import sys
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import replace
from itertools import accumulate
from typing import Any

from msgspec import UNSET, Raw, UnsetType

from worker.api import wire
from worker.clock import rfc3339
from worker.dispatch.aggregate import MAX_NAMES
from worker.dispatch.capture import Capture
from worker.dispatch.output import interleave
from worker.dispatch.plan import Plan, PlannedExecution
from worker.dispatch.result import EXIT_CODES, JobResult, JobStatus, Outcome, ServerResult
from worker.remote.frames import Stream
from worker.state.outbox import Entry, Kind

MAX_COMPLETE_BYTES = 8 * 1024 * 1024
# The part of it that scripts' own output may take: unlike what they print, it cannot be cut.
MAX_SCRIPT_OUTPUT_BYTES = 4 * 1024 * 1024

# The app takes 3 s longer over an update of more.
LIVE_BYTES = 48 * 1024

# How the app itself joins the two streams where there is one field.
STDERR_HEADING = "\n--- STDERR ---\n"

# Upper case is the quiet form: the app stores it as it is and leaves the job alone, where
# `completed` would end the job with this one execution's result.
_ROW_STATUS = {
    Outcome.SUCCESS: "COMPLETED",
    Outcome.TIMED_OUT: "TIMEOUT",
    Outcome.CANCELLED: "CANCELLED",
}

NULL = Raw(b"null")

Captures = Mapping[Stream, Capture]


def clean(output: bytes) -> str:
    """Output as the API can take it: a NUL is a 500 for ever, JSON knows no invalid UTF-8."""
    return clean_text(output.decode(errors="replace"))


def clean_text(text: str) -> str:
    return text.replace("\0", "")


def create_entry(plan: Plan, execution: PlannedExecution) -> Entry:
    """The row of one execution.

    The app takes only ids of servers that it has, so others are left out.
    """
    server = execution.server
    known = server.id.isascii() and server.id.isdigit()
    body = wire.CreateExecutionBody(
        job_id=plan.job_id, server_id=server.id if known else None, server_name=server.name
    )
    return Entry(plan.job_id, Kind.CREATE, execution.id, wire.encode(body))


def row_of(entry: Entry) -> wire.RowBody:
    """What an entry says of an execution, to go along with what is said of its job."""
    body = Raw(entry.body)
    if entry.kind is Kind.CREATE:
        return wire.RowBody(id=entry.subject, create=body)
    return wire.RowBody(id=entry.subject, update=body)


def create_entries(plan: Plan) -> list[Entry]:
    return [create_entry(plan, execution) for execution in plan.executions]


def running_entry(plan: Plan, execution: PlannedExecution, *, now: int) -> Entry:
    body = wire.UpdateExecutionBody(
        status="running", started_at=rfc3339(now), execution_started_at=rfc3339(now)
    )
    return Entry(plan.job_id, Kind.RUNNING, execution.id, wire.encode(body))


def live_body(captures: Captures) -> bytes:
    """What a script has printed so far, for its row."""
    output = _printed(captures, LIVE_BYTES)
    return wire.encode(wire.UpdateExecutionBody(status="running", output=output))


def _printed(captures: Captures, limit: int) -> str:
    """Both streams under the limit each, as the app itself joins them."""
    stdout, stderr = (
        clean(b"".join(block for _, block in captures[stream].blocks(limit))) for stream in Stream
    )
    return stdout + (f"{STDERR_HEADING}{stderr}" if stderr else "")


def update_entry(plan: Plan, result: ServerResult, captures: Captures) -> Entry:
    """The execution's final row, in the quiet form: it never says `completedAt`."""
    times = result.times
    setup_end = result.started_at + (times.setup_ms or 0)
    ran = times.execution_ms is not None
    body = wire.UpdateExecutionBody(
        status=_ROW_STATUS.get(result.outcome, "FAILED"),
        started_at=rfc3339(result.started_at),
        exit_code=result.exit_code,
        output=_printed(captures, sys.maxsize),
        error=clean_text(result.error) if result.error else None,
        setup_started_at=rfc3339(result.started_at),
        setup_completed_at=rfc3339(setup_end),
        execution_started_at=rfc3339(setup_end) if ran else None,
        execution_completed_at=rfc3339(result.ended_at),
        setup_duration=times.setup_ms,
        execution_duration=times.execution_ms,
        total_duration=result.ended_at - result.started_at,
        execution_metadata={"outcome": result.outcome, "runner": result.runner},
    )
    return Entry(plan.job_id, Kind.UPDATE, result.execution_id, wire.encode(body))


def complete_entry(
    plan: Plan,
    job: JobResult,
    results: Sequence[ServerResult],
    captures: Mapping[str, Captures],
    *,
    started_at: int,
    ended_at: int,
    share: int,
) -> Entry:
    """The job's end, at most 8 MiB whatever its output escapes to; `share` is `share_bytes`."""
    script_output, left_out = _script_output(results)
    if left_out:
        job = replace(job, message=f"{job.message}; {_left_out(left_out)}")
    metrics = _metrics(job, results, started_at, ended_at)
    while True:
        output = _output(job, results, captures, share)
        body = wire.encode(
            wire.CompleteBody(
                status=job.status,
                exit_code=job.exit_code,
                output=output,
                metrics=metrics,
                script_output=script_output,
                condition=_condition(results),
                timestamp=rfc3339(ended_at),
            )
        )
        if len(body) <= MAX_COMPLETE_BYTES or not share:
            return Entry(plan.job_id, Kind.COMPLETE, plan.job_id, body)
        # Prefixes and escapes take their part; a tenth to spare ends this in a few turns.
        share = share * MAX_COMPLETE_BYTES // len(body) * 9 // 10


def _script_output(results: Sequence[ServerResult]) -> tuple[Any, list[str]]:
    """What the scripts said: one server's as it is, of several by their names, UNSET if none did;
    and the servers whose output has no room, where null stands in its place.

    The smallest have it first, so that as many as can be are told.
    """
    said = {
        name: result.script_output
        for name, result in zip(_names(results), results, strict=True)
        if result.script_output is not None
    }
    sizes = sorted((len(value), name) for name, value in said.items())
    totals = accumulate(size for size, _ in sizes)
    without = {
        name
        for (_, name), total in zip(sizes, totals, strict=True)
        if total > MAX_SCRIPT_OUTPUT_BYTES
    }
    values = {name: NULL if name in without else Raw(value) for name, value in said.items()}
    told = (values if len(results) > 1 else next(iter(values.values()))) if values else UNSET
    return told, [name for name in said if name in without]


def _left_out(names: Sequence[str]) -> str:
    shown = ", ".join(names[:MAX_NAMES])
    more = f" and {len(names) - MAX_NAMES} more" if len(names) > MAX_NAMES else ""
    limit = MAX_SCRIPT_OUTPUT_BYTES // (1024 * 1024)
    return f"script output left out, over {limit} MiB together: {shown}{more}"


def _names(results: Sequence[ServerResult]) -> list[str]:
    """The servers' names, and their ids where two have the same."""
    count = Counter(result.server_name for result in results)
    return [
        result.server_name
        if count[result.server_name] == 1
        else f"{result.server_name} ({result.server_id})"
        for result in results
    ]


def _condition(results: Sequence[ServerResult]) -> bool | UnsetType:
    """True only if every server that set one set true."""
    said = [result.condition for result in results if result.condition is not None]
    return all(said) if said else UNSET


def share_bytes(servers: int, output_limit_bytes: int) -> int:
    """What each stream of each of so many servers may have of one `complete`."""
    return min(output_limit_bytes, MAX_COMPLETE_BYTES // (len(Stream) * servers))


def fail_entry(job_id: str, error: str, *, now: int) -> Entry:
    """A job that never ran."""
    body = wire.FailBody(error=clean_text(error), exit_code=1, timestamp=rfc3339(now))
    return Entry(job_id, Kind.FAIL, job_id, wire.encode(body))


def cancelled_entry(job_id: str, message: str, now: int) -> Entry:
    """A cancelled job whose results are not known."""
    body = wire.CompleteBody(
        status=JobStatus.CANCELLED,
        exit_code=EXIT_CODES[Outcome.CANCELLED],
        output=wire.OutputBody(stderr=f"[cronium] CANCELLED: {message}\n"),
        timestamp=rfc3339(now),
    )
    return Entry(job_id, Kind.COMPLETE, job_id, wire.encode(body))


def release_entry(job_id: str, message: str) -> Entry:
    return Entry(job_id, Kind.RELEASE, job_id, wire.encode(wire.ReleaseBody(message=message)))


def _output(
    job: JobResult,
    results: Sequence[ServerResult],
    captures: Mapping[str, Captures],
    share: int,
) -> wire.OutputBody:
    """The servers' lines, prefixed; the job's message last on stdout and, unless all succeeded,
    first on stderr, since `complete` has no field for it."""

    def lines(stream: Stream) -> str:
        return clean(
            interleave(
                (result.server_name, captures[result.execution_id][stream].blocks(share))
                for result in results
            )
        )

    message = f"[cronium] {job.message}\n"
    errors = "".join(
        f"[{result.server_name}] [cronium] {clean_text(result.error)}\n"
        for result in results
        if result.error
    )
    succeeded = all(result.outcome is Outcome.SUCCESS for result in results)
    return wire.OutputBody(
        stdout=lines(Stream.STDOUT) + message,
        stderr=("" if succeeded and job.status is JobStatus.COMPLETED else message + errors)
        + lines(Stream.STDERR),
    )


def _metrics(
    job: JobResult, results: Sequence[ServerResult], started_at: int, ended_at: int
) -> dict[str, Any]:
    return {
        "startTime": rfc3339(started_at),
        "endTime": rfc3339(ended_at),
        "duration": ended_at - started_at,
        "message": job.message,
        "servers": [
            {
                "id": result.server_id,
                "name": result.server_name,
                "executionId": result.execution_id,
                "outcome": result.outcome,
                "exitCode": result.exit_code,
                "setupMs": result.times.setup_ms,
                "executionMs": result.times.execution_ms,
                "error": clean_text(result.error) if result.error else None,
                "runner": result.runner,
            }
            for result in results
        ],
    }
