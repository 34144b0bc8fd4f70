"""Rows of small jobs on one warm server, through the queue."""

import random
import time
from contextlib import ExitStack
from statistics import median

from tests.bench.bed import Bed, Worker, open_bed
from tests.bench.bench import Bench, Experiment
from tests.bench.fleet import open_fleet
from tests.bench.rows import Measured, Row, at_least, at_most, measured, ratios
from worker.clock import now_ms

# How many a worker has in flight: enough to have it busy all the time.
JOBS_AT_ONCE = "32"
WARM_UP_JOBS = 8
# All are submitted before the first is due, so that submitting costs nothing that counts.
SUBMIT_MS_PER_JOB = 4
AHEAD_MS = 500
# Pauses between submissions, so that they come at any moment of whatever ticks.
PAUSE_SECONDS = (0.1, 0.25)
# The shell's own clock: no process is started for it.
WHEN = 'printf "%s\\n" "$EPOCHREALTIME"'

JOBS_PER_SECOND = Row(
    "jobs-per-second", "jobs/s", "one worker process, script `true`", at_least(150), digits=0
)
TWO_WORKERS = Row("two-workers", "x", "jobs/s of two worker processes, against one", at_least(1.8))
START_LATENCY = Row(
    "start-latency",
    "ms",
    "from before the submission to the script's first instruction",
    at_most(15),
    digits=1,
)


def run(bench: Bench) -> list[Measured]:
    results = []
    with ExitStack() as stack:
        room = bench.room("throughput")
        fleet = stack.enter_context(open_fleet(1))
        bed = stack.enter_context(open_bed(room))
        (name,) = bed.add(fleet.servers)
        if bench.wants(START_LATENCY.name):
            results.append(_start_latency(bench, bed, name))
        if bench.wants(JOBS_PER_SECOND.name, TWO_WORKERS.name):
            results += _rates(bench, bed, name)
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
    environ = {
        "JOBS_MAX_CONCURRENT": JOBS_AT_ONCE,
        "JOBS_POLL_BATCH_SIZE": JOBS_AT_ONCE,
    }
    one: list[float] = []
    two: list[float] = []
    cpu: list[float] = []
    for _ in range(bench.rounds):
        worker = bed.start_worker("state-1", **environ)
        rate, cost = _rate(bed, name, jobs, [worker])
        one.append(rate)
        cpu.append(cost)
        if bench.wants(TWO_WORKERS.name):
            other = bed.start_worker("state-2", **environ)
            two.append(_rate(bed, name, jobs, [worker, other])[0])
            other.stop()
        worker.stop()
    results = [
        measured(JOBS_PER_SECOND.name, one, f"{1000 * median(cpu):.1f} ms CPU of the worker each")
    ]
    if two:
        note = f"{median(two):.0f} jobs/s"
        results.append(measured(TWO_WORKERS.name, ratios(two, one), note))
    return results


def _rate(bed: Bed, name: str, jobs: int, workers: list[Worker]) -> tuple[float, float]:
    """Jobs per second, and the workers' CPU seconds for each."""
    for _ in range(WARM_UP_JOBS * len(workers)):
        bed.submit("true", [name])
    bed.finish()
    for worker in workers:
        worker.settle()
    before = sum(worker.cpu_seconds for worker in workers)
    due_at = now_ms() + AHEAD_MS + SUBMIT_MS_PER_JOB * jobs
    ids = [bed.submit("true", [name], due_at=due_at) for _ in range(jobs)]
    done = bed.finish()
    cost = sum(worker.cpu_seconds for worker in workers) - before
    last = max(done[job].reported_at for job in ids)
    return jobs / ((last - due_at) / 1000), cost / jobs


THROUGHPUT = Experiment("throughput", (JOBS_PER_SECOND, TWO_WORKERS, START_LATENCY), run)
