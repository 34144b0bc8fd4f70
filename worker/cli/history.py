"""`cronium-worker history`: the jobs that this worker ran."""

from collections.abc import Iterator
from contextlib import contextmanager

import click

from worker.cli.parameters import MOST_ROWS
from worker.cli.printing import print_json, print_table
from worker.cli.state import opened_state
from worker.clock import rfc3339
from worker.shown.names import folded
from worker.shown.timeline import duration
from worker.state.history import History, PastJob


@contextmanager
def opened_history() -> Iterator[History]:
    with opened_state() as database:
        yield History(database)


@click.command
@click.option(
    "--limit",
    type=click.IntRange(1, MOST_ROWS),
    default=20,
    show_default=True,
    help="How many at most.",
)
@click.option("--failed", is_flag=True, help="Only jobs that did not succeed everywhere.")
@click.option("--json", "as_json", is_flag=True, help="Print a JSON array.")
def history(limit: int, failed: bool, as_json: bool) -> None:
    """List the jobs that this worker ran, the newest first.

    Taken from CRONIUM_STATE_DIR, where they are kept for 7 days, 10000 at most; a worker may be
    running on it.

    \b
    Examples:
      cronium-worker history --failed
      cronium-worker history --limit 100 --json
    """
    with opened_history() as past:
        jobs = past.recent(limit, failed=failed)
    if as_json:
        print_json([job_row(job) for job in jobs])
        return
    print_table(
        ("job", "event", "status", "exit", "began", "took", "servers", "message"),
        [
            (
                job.job_id,
                job.event,
                status(job),
                "" if job.end is None else str(job.end.exit_code),
                rfc3339(job.began_at),
                "" if job.ended_at is None else duration(job.ended_at - job.began_at),
                folded(job.servers.values()),
                "" if job.end is None else job.end.message,
            )
            for job in jobs
        ],
    )


def status(job: PastJob) -> str:
    if job.end is not None:
        return job.end.status
    return "running" if job.ended_at is None else "ended"


def job_row(job: PastJob) -> dict[str, object]:
    return {
        "job_id": job.job_id,
        "event": job.event,
        "status": status(job),
        "exit_code": None if job.end is None else job.end.exit_code,
        "message": None if job.end is None else job.end.message,
        "began_at": rfc3339(job.began_at),
        "ended_at": None if job.ended_at is None else rfc3339(job.ended_at),
        "servers": list(job.servers.values()),
    }
