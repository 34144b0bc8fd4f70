"""One queue and many servers, with one, two and more worker processes on them."""

import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from signal import SIGTERM

from tests.bench.fleet import open_fleet
from tests.process.worker_process import Site, WorkerProcess, open_site, wait_for
from worker.demo.sshd import LocalServer
from worker.queue_server.model import JobReport

# Of a job whose worker was killed: so long until it is handed out again. Heartbeats come each 15 s.
LEASE = "20s"
SLOTS = "4"
# Most of a job is waiting, so that what is measured is how many go on at once.
SLEEP_SECONDS = 1.5
LINES = 500
EVERYWHERE_EVERY = 40
# Once so many of a stage's jobs have ended, one of its workers is killed.
KILL_AFTER = 0.3
LEAVE_SECONDS = 60.0


@dataclass(frozen=True, slots=True)
class Stage:
    """What came of it: `shares` are the jobs that each worker has ended, `faults` in words."""

    workers: int
    has_killed: bool
    jobs: int
    seconds: float
    shares: tuple[int, ...]
    faults: tuple[str, ...]

    @property
    def jobs_per_second(self) -> float:
        return self.jobs / self.seconds


def run(
    folder: Path,
    counts: Sequence[int],
    *,
    servers: int,
    jobs: int,
    echo: Callable[[str], None],
) -> list[Stage]:
    """A stage for each of `counts` workers, and one more in which one of the most is killed.

    `jobs` is how many each has. Raises CannotMeasureError where there can be no servers.
    """
    with open_fleet(servers) as fleet:
        stages = []
        for index, (count, is_killing) in enumerate(
            [*((each, False) for each in counts), (max(counts), True)]
        ):
            echo(f"{count} workers{', one of them killed' if is_killing else ''}: {jobs} jobs")
            room = folder / f"stage-{index}"
            room.mkdir()
            stages.append(_stage(room, fleet.servers, count, jobs, is_killing))
    return stages


def _stage(
    room: Path, servers: Sequence[LocalServer], count: int, jobs: int, is_killing: bool
) -> Stage:
    ledger = room / "ledger"
    ledger.touch()
    script = (
        f'printf "%s\\n" "$CRONIUM_EXECUTION_ID" >>{ledger}\n'
        f"seq 1 {LINES}\nsleep {SLEEP_SECONDS}\necho the end\n"
    )
    with open_site(room) as site:
        site.start_queue(lease=LEASE)
        names = [site.add(server) for server in servers]
        with _workers(site, count) as workers:
            began = time.monotonic()
            submitted = [site.submit(script, *_targets(names, index)) for index in range(jobs)]
            if is_killing:
                wait_for(lambda: _ended(site) >= KILL_AFTER * jobs, "a part of the jobs' end")
                # Jobs that begin together end together: for a moment nobody may be at work.
                at_work = wait_for(lambda: list(filter(_is_at_work, workers)), "one at work")
                at_work[0].process.kill()
            wait_for(lambda: _ended(site) == jobs, "all jobs' end")
            seconds = time.monotonic() - began
        reports = [site.store.report(job_id) for job_id in submitted]
    ended = [{each["job_id"] for each in worker.events("job_ended")} for worker in workers]
    shares = tuple(map(len, ended))
    faults = (
        *_faults(reports, Counter(ledger.read_text().split())),
        # One that was killed may have had no time to tell the queue of an end.
        *(f"{job_id}: ended by several" for job_id in _shared(ended) if not is_killing),
    )
    return Stage(count, is_killing, jobs, seconds, shares, faults)


def _targets(names: Sequence[str], index: int) -> Sequence[str]:
    """One server, but for a few jobs, which are on all of them."""
    return names if index % EVERYWHERE_EVERY == 0 else names[index % len(names) :][:1]


@contextmanager
def _workers(site: Site, count: int) -> Iterator[list[WorkerProcess]]:
    workers = [
        site.start_worker(f"state-{number}", JOBS_MAX_CONCURRENT=SLOTS, LOG_OUTPUT="off")
        for number in range(count)
    ]
    for worker in workers:
        worker.wait_for_event("worker_started")
    try:
        yield workers
    finally:
        for worker in workers:
            if worker.process.poll() is None:
                worker.process.send_signal(SIGTERM)
        for worker in workers:
            worker.process.wait(LEAVE_SECONDS)


def _ended(site: Site) -> int:
    with site.store.database.transaction() as tx:
        query = "SELECT count(*) FROM jobs WHERE reported_at IS NOT NULL"
        return int(tx.execute(query).fetchone()[0])


def _is_at_work(worker: WorkerProcess) -> bool:
    return len(worker.events("execution_started")) > len(worker.events("execution_ended"))


def _shared(ended: Sequence[set[str]]) -> list[str]:
    counts = Counter(job_id for each in ended for job_id in each)
    return [job_id for job_id, count in counts.items() if count > 1]


def _faults(reports: Sequence[JobReport], started: Counter[str]) -> Iterator[str]:
    printed = "".join(f"{number}\n" for number in range(1, LINES + 1)) + "the end\n"
    for report in reports:
        if report.job.status != "completed":
            yield f"{report.job.id}: {report.job.status}"
        for execution in report.executions:
            if execution.output != printed:
                yield f"{execution.id}: {len(execution.output or '')} bytes of {len(printed)}"
            if (times := started.pop(execution.id, 0)) != 1:
                yield f"{execution.id}: started {times} times"
    for execution_id in started:
        yield f"{execution_id}: started, and not reported"
