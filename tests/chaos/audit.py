"""The four facts at the end, and what is wrong beside them."""

import os
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path
from time import monotonic, sleep

from tests.chaos.stage import Job, Stage
from tests.chaos.told import differences
from worker.queue_server.model import Job as JobRow
from worker.queue_server.model import JobReport, JobStatus

PROCESSES = "a process on a server"
LOOK_SECONDS = 0.2


class Fact(StrEnum):
    DOUBLE_STARTS = "double_starts"
    LOST_BYTES = "lost_bytes"
    DOUBLE_COMPLETES = "double_completes"
    LEFTOVERS = "leftovers"


@dataclass(frozen=True, slots=True)
class Finding:
    fact: Fact
    text: str
    count: int = 1


def audit(stage: Stage, reports: dict[str, JobReport]) -> list[Finding]:
    """To be called when all jobs are over and the workers have been drained."""
    lost = (finding for job in stage.jobs for finding in _lost(stage, job, reports[job.id]))
    return [*_double_starts(stage), *lost, *_double_completes(stage), *left(stage)]


def wait_clean(stage: Stage, seconds: float, *, are_drained: bool) -> None:
    """Until nothing is left over, or that long: what a job's end is followed by takes a while.

    Workers that are not drained have a shell on each server wait for the next run.
    """
    deadline = monotonic() + seconds
    looks = _looks(stage)
    if not are_drained:
        del looks[PROCESSES]
    while monotonic() < deadline and any(each for look in looks.values() for each in look()):
        sleep(LOOK_SECONDS)


def left(stage: Stage) -> Iterator[Finding]:
    """What is still there of runs, of jobs and of what was to be told."""
    for what, look in _looks(stage).items():
        yield from (Finding(Fact.LEFTOVERS, f"{what}: {each}") for each in look())


def _looks(stage: Stage) -> dict[str, Callable[[], Iterator[object]]]:
    return {
        "a job is not over": lambda: (
            f"{job.submission.number}, {row.status}: {job.id}" for job, row in stage.unfinished()
        ),
        "a run on a server": lambda: _runs(stage),
        "half of a runner": lambda: (
            path for station in stage.stations for path in _root(station.home).glob(".new*")
        ),
        PROCESSES: lambda: (
            f"{pid}: {_command_line(pid)}" for sshd in stage.sshds for pid in sshd.processes()
        ),
        "in the outbox": lambda: _rows(
            stage, "SELECT kind, subject, attempts FROM outbox WHERE parked IS NULL"
        ),
        "a job in the state": lambda: _rows(
            stage, "SELECT job_id, state FROM jobs WHERE state != 'finished'"
        ),
        "a run in the state": lambda: (
            path for seat in stage.seats for path in seat.kept_of_runs()
        ),
    }


def _double_starts(stage: Stage) -> Iterator[Finding]:
    lines = stage.starts.read_text().splitlines() if stage.starts.exists() else []
    starts = [line.split() for line in lines]
    by_target = Counter(f"job {job} on {server}" for _, job, server in starts)
    names = {(execution, job, server) for execution, job, server in starts}
    by_id = Counter(execution for execution, _, _ in names)
    for what, count in (by_target + by_id).items():
        if count > 1:
            yield Finding(Fact.DOUBLE_STARTS, f"{what} was started {count} times", count - 1)


def _lost(stage: Stage, job: Job, report: JobReport) -> Iterator[Finding]:
    if report.job.reported_at is None:
        return  # nobody has said anything of it: cancelled in the queue, or left over
    for difference in differences(report, job.shape, was_cancelled=job.id in stage.cancelled):
        number, kind = job.submission.number, job.submission.kind
        where = f"job {number} ({kind}) {job.id}: {difference.what}"
        yield Finding(Fact.LOST_BYTES, where, difference.lost_bytes)


def _double_completes(stage: Stage) -> Iterator[Finding]:
    ends = Counter(
        call.subject for route in ("complete", "fail") for call in stage.api.accepted(route)
    )
    for job_id, count in ends.items():
        if count > 1:
            text = f"the end of {job_id} was accepted {count} times"
            yield Finding(Fact.DOUBLE_COMPLETES, text, count - 1)


def _runs(stage: Stage) -> Iterator[Path]:
    """But for those of jobs that nobody is handed once more, which are for the runner's own
    janitor."""
    rows = stage.site.store.jobs(len(stage.jobs))
    excused = {row.id for row in rows if _is_nobodys(stage, row)}
    ours = [job.id for job in stage.jobs if job.id not in excused]
    homes = [_root(station.home) for station in stage.stations]
    # Where the runner goes when a home cannot be written; other programs' runs are there too.
    elsewhere = [Path(top) / f"cronium-{os.getuid()}" for top in ("/var/tmp", "/tmp")]  # noqa: S108
    for root in [*homes, *elsewhere]:
        for path in root.glob("runs/*"):
            if any(job_id in path.name for job_id in ours):
                yield path
        for path in root.glob("rooms/*/for.*"):
            if any(job_id in path.name for job_id in ours):
                yield path


def _is_nobodys(stage: Stage, row: JobRow) -> bool:
    """Reported by a worker whose state was lost; or cancelled in the queue, where one that stopped
    had put it back."""
    if row.reported_at is not None:
        return row.orchestrator_id in stage.lost_ids
    return row.status is JobStatus.CANCELLED and row.orchestrator_id is None


def _rows(stage: Stage, statement: str) -> Iterator[str]:
    for seat in stage.seats:
        for row in seat.rows(statement):
            yield f"worker {seat.name}: {' '.join(map(str, row))}"


def _root(home: Path) -> Path:
    return home / ".cache" / "cronium"


def _command_line(pid: int) -> str:
    try:
        return Path(f"/proc/{pid}/cmdline").read_bytes().replace(b"\0", b" ").decode().strip()
    except OSError:
        return "ended"
