"""Rows of memory: fresh servers all at once, and connections that nobody uses just now."""

from contextlib import ExitStack

from tests.bench import processes
from tests.bench.bed import open_bed
from tests.bench.bench import Bench, Experiment
from tests.bench.fleet import forget_runners, open_fleet
from tests.bench.rows import Measured, Row, at_most, measured, unmeasured

KIB, MIB = 1024, 1024 * 1024
FRESH_SERVERS = 50
# The first one's peak stays with the process, so it is what comes after it that counts.
BATCHES, BATCH_SERVERS = 4, 50

FRESH = Row(
    "memory-fresh",
    "MiB",
    "RSS at its peak, the runner deployed to 50 servers at once",
    at_most(90),
    digits=1,
)
CONNECTION = Row(
    "pooled-connection-memory",
    "KiB",
    "RSS per connection that is kept and idle",
    at_most(150),
    digits=0,
)


def run(bench: Bench) -> list[Measured]:
    peaks = []
    with ExitStack() as stack:
        room = bench.room("memory")
        size = bench.pick(FRESH_SERVERS, 10)
        fleet = stack.enter_context(open_fleet(size))
        bed = stack.enter_context(open_bed(room))
        names = bed.add(fleet.servers)
        for number in range(bench.rounds):
            forget_runners(fleet)
            worker = bed.start_worker(f"state-{number}")
            bed.run("echo hi", names)
            worker.settle()
            peaks.append(processes.peak_rss_bytes(worker.pid) / MIB)
            worker.stop()
    return [measured(FRESH.name, peaks)]


def run_pooled(bench: Bench) -> list[Measured]:
    """Batches of servers one after the other: the slope after the first one."""
    samples = []
    with ExitStack() as stack:
        room = bench.room("pooled")
        size = bench.pick(BATCH_SERVERS, 5)
        fleet = stack.enter_context(open_fleet(BATCHES * size))
        bed = stack.enter_context(open_bed(room))
        names = bed.add(fleet.servers)
        for _ in range(min(bench.rounds, 3)):
            worker = bed.start_worker()
            rss = []
            for first in range(0, len(names), size):
                bed.run("echo hi", names[first : first + size])
                worker.settle()
                rss.append(processes.rss_bytes(worker.pid))
            kept = processes.connections(worker.pid, fleet.port)
            worker.stop()
            if kept < len(names):
                why = f"{kept} of {len(names)} connections are kept after a job"
                return unmeasured([CONNECTION.name], why)
            samples.append((rss[-1] - rss[0]) / (len(names) - size) / KIB)
    return [measured(CONNECTION.name, samples)]


MEMORY = Experiment("memory", (FRESH,), run)
POOLED = Experiment("pooled", (CONNECTION,), run_pooled)
