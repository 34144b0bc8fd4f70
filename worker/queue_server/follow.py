"""Watching one job to its end."""

import time
from collections.abc import Iterator

from worker.queue_server.model import Execution, Job, JobReport, JobStatus
from worker.queue_server.store import Store

LOOK_SECONDS = 0.2


def follow(store: Store, job_id: str) -> Iterator[str]:
    """A line for each change of the job and of its executions; ends when the job is over.

    A job that was cancelled while it ran is over when its worker has ended the runs.
    Raises UnknownNameError.
    """
    shown: dict[str, str] = {}
    while True:
        report = store.report(job_id)
        for key, line in _lines(report):
            if shown.get(key) != line:
                shown[key] = line
                yield line
        if report.is_over:
            return
        time.sleep(LOOK_SECONDS)


def _lines(report: JobReport) -> Iterator[tuple[str, str]]:
    """The job's comes first, and last where it is over."""
    if not report.is_over:
        yield "", _unfinished(report.job)
    for execution in report.executions:
        yield execution.id, _line(execution)
    if report.is_over:
        job = report.job
        message = f": {report.message}" if report.message else ""
        yield "", f"{job.id}: {state(job)}, exit {report.exit_code}{message}"


def _unfinished(job: Job) -> str:
    if job.status is JobStatus.CANCELLED:
        return f"{job.id}: cancelled; {job.orchestrator_id} ends its runs"
    by_whom = f" by {job.orchestrator_id}" if job.orchestrator_id else ""
    return f"{job.id}: {job.status}{by_whom}"


def _line(execution: Execution) -> str:
    line = f"{server_name(execution)}: {outcome(execution)}"
    if execution.exit_code is not None:
        line += f", exit {execution.exit_code}"
    if execution.total_duration is not None:
        line += f", {execution.total_duration / 1000:.2f} s"
    return line + (f": {execution.error.splitlines()[0]}" if execution.error else "")


def state(job: Job) -> str:
    """As its worker told the end, where it has one: the app files one over its limit as failed."""
    return job.outcome or job.status


def server_name(execution: Execution) -> str:
    return execution.server_name or f"server {execution.server_id}"


def outcome(execution: Execution) -> str:
    """The outcome, where the worker put it into `executionMetadata`; the status otherwise."""
    metadata = execution.execution_metadata
    said = metadata.get("outcome") if isinstance(metadata, dict) else None
    return said if isinstance(said, str) else execution.status.lower()
