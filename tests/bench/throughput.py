"""Rows of small jobs on one warm server, through the queue."""

import random
import time
from contextlib import ExitStack
from dataclasses import dataclass
from statistics import median

from tests.bench import processes
from tests.bench.bed import Bed, Worker, open_bed
from tests.bench.bench import Bench, Experiment
from tests.bench.fleet import open_fleet
from tests.bench.rows import Measured, Row, at_least, at_most, measured, ratios
from worker.clock import now_ms

# How many a worker has in flight: enough to have it busy all the time.
JOBS_AT_ONCE = 32
BUSY = {
    "JOBS_MAX_CONCURRENT": str(JOBS_AT_ONCE),
    "JOBS_POLL_BATCH_SIZE": str(JOBS_AT_ONCE),
}
# Each of its runs then finds a connection, a started runner and code that has run before.
WARM_UP_JOBS = 2 * JOBS_AT_ONCE
# All are submitted before the first is due, so that submitting costs nothing that counts.
SUBMIT_MS_PER_JOB = 4
AHEAD_MS = 500
# Pauses between submissions, so that they come at any moment of whatever ticks.
PAUSE_SECONDS = (0.1, 0.25)
# The shell's own clock: no process is started for it.
WHEN = 'printf "%s\\n" "$EPOCHREALTIME"'
PRINTING = "echo out; echo err >&2"

JOBS_PER_SECOND = Row(
    "jobs-per-second", "jobs/s", "one worker process, script `true`", at_least(150), digits=0
)
PRINTING_JOBS = Row(
    "printing-jobs", "x", "jobs/s of a script that prints on both streams, against `true`"
)
TWO_WORKERS = Row("two-workers", "x", "jobs/s of two worker processes, against one", at_least(1.8))
# One worker alone has the queue and its servers' shells keep two processors busy. Held to this,
# workers are what decides how many jobs are done.
HELD_SHARE = 0.2
TWO_HELD_WORKERS = Row(
    "two-held-workers",
    "x",
    f"the same, each worker held to {HELD_SHARE:g} of a processor",
    at_least(1.8),
)
START_LATENCY = Row(
    "start-latency",
    "ms",
    "from before the submission to the script's first instruction",
    at_most(15),
    digits=1,
)


@dataclass(frozen=True, slots=True)
class _Rate:
    """`cpu_seconds`: what each job cost the workers."""

    per_second: float
    cpu_seconds: float


def run(bench: Bench) -> list[Measured]:
    results = []
    with ExitStack() as stack:
        room = bench.room("throughput")
        fleet = stack.enter_context(open_fleet(1))
        bed = stack.enter_context(open_bed(room))
        (name,) = bed.add(fleet.servers)
        if bench.wants(START_LATENCY.name):
            results.append(_start_latency(bench, bed, name))
        if bench.wants(JOBS_PER_SECOND.name, TWO_WORKERS.name, TWO_HELD_WORKERS.name):
            results += _rates(bench, bed, name)
        if bench.wants(PRINTING_JOBS.name):
            results.append(_printing(bench, bed, name))
    return results


def _start_latency(bench: Bench, bed: Bed, name: str) -> Measured:
    chance = random.Random(5)  # noqa: S311  the same pauses each time
    worker = bed.start_worker()
    bed.run(WHEN, [name])
    submitted = {}
    for _ in range(bench.pick(10 * bench.rounds, 5)):
        time.sleep(chance.uniform(*PAUSE_SECONDS))
        before = time.time()
        submitted[bed.submit(WHEN, [name])] = before
        bed.finish()
    worker.stop()
    return measured(
        START_LATENCY.name,
        (1000 * (_first_instruction(bed, job) - before) for job, before in submitted.items()),
    )


def _first_instruction(bed: Bed, job_id: str) -> float:
    (execution,) = bed.report(job_id).executions
    return float((execution.output or "").split()[0])


def _rates(bench: Bench, bed: Bed, name: str) -> list[Measured]:
    jobs = bench.pick(400, 40)
    wants_free = bench.wants(JOBS_PER_SECOND.name, TWO_WORKERS.name)
    free: list[tuple[_Rate, _Rate]] = []
    held: list[tuple[_Rate, _Rate]] = []
    for _ in range(bench.rounds):
        if wants_free:
            free.append(_one_and_two(bed, name, jobs))
        if bench.wants(TWO_HELD_WORKERS.name):
            held.append(_one_and_two(bed, name, jobs // 2, share=HELD_SHARE))
    results = []
    if free:
        cpu = f"{1000 * median(one.cpu_seconds for one, _ in free):.1f} ms CPU of the worker each"
        results.append(measured(JOBS_PER_SECOND.name, [one.per_second for one, _ in free], cpu))
        results.append(_scaling(TWO_WORKERS, free))
    if held:
        results.append(_scaling(TWO_HELD_WORKERS, held))
    return results


def _printing(bench: Bench, bed: Bed, name: str) -> Measured:
    jobs = bench.pick(400, 40)
    worker = bed.start_worker("state-1", **BUSY)
    pairs = [
        (_rate(bed, name, jobs, [worker]), _rate(bed, name, jobs, [worker], script=PRINTING))
        for _ in range(bench.rounds)
    ]
    worker.stop()
    silent, printing = ([rate.per_second for rate in rates] for rates in zip(*pairs, strict=True))
    return measured(PRINTING_JOBS.name, ratios(printing, silent), f"{median(printing):.0f} jobs/s")


def _scaling(row: Row, pairs: list[tuple[_Rate, _Rate]]) -> Measured:
    ones, twos = ([rate.per_second for rate in rates] for rates in zip(*pairs, strict=True))
    return measured(row.name, ratios(twos, ones), f"{median(twos):.0f} jobs/s")


def _one_and_two(bed: Bed, name: str, jobs: int, *, share: float = 1) -> tuple[_Rate, _Rate]:
    worker = bed.start_worker("state-1", **BUSY)
    one = _rate(bed, name, jobs, [worker], share)
    other = bed.start_worker("state-2", **BUSY)
    two = _rate(bed, name, jobs, [worker, other], share)
    other.stop()
    worker.stop()
    return one, two


def _rate(
    bed: Bed,
    name: str,
    jobs: int,
    workers: list[Worker],
    share: float = 1,
    *,
    script: str = "true",
) -> _Rate:
    for _ in range(WARM_UP_JOBS * len(workers)):
        bed.submit(script, [name])
    bed.finish()
    for worker in workers:
        worker.settle()
    before = sum(worker.cpu_seconds for worker in workers)
    with ExitStack() as stack:
        if share < 1:
            stack.enter_context(processes.held([worker.pid for worker in workers], share))
        due_at = now_ms() + AHEAD_MS + SUBMIT_MS_PER_JOB * jobs
        ids = [bed.submit(script, [name], due_at=due_at) for _ in range(jobs)]
        done = bed.finish()
    cost = sum(worker.cpu_seconds for worker in workers) - before
    last = max(done[job].reported_at for job in ids)
    return _Rate(jobs / ((last - due_at) / 1000), cost / jobs)


THROUGHPUT = Experiment(
    "throughput",
    (JOBS_PER_SECOND, PRINTING_JOBS, TWO_WORKERS, TWO_HELD_WORKERS, START_LATENCY),
    run,
)
