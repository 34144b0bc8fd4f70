"""The row of the stall on a loopback: sshd's Nagle waits for an acknowledgement that is delayed.

It comes and goes with the moment at which the client happens to send, so the mean is what counts.
"""

import time
from contextlib import ExitStack
from statistics import mean

from tests.bench.bed import open_bed
from tests.bench.bench import Bench, Experiment
from tests.bench.fleet import open_fleet
from tests.bench.rows import Measured, Row, at_most
from tests.faults.delay_lines import open_lines

# For the connection to be closed, so that it is not in the way of the next.
PAUSE_SECONDS = 0.2
STALL = Row(
    "first-exec-stall",
    "ms",
    "cold execution straight to sshd, less one over a line that acknowledges at once; mean",
    # A stall is 40 ms long: one in four would be missed.
    at_most(10),
    digits=1,
)


def run(bench: Bench) -> list[Measured]:
    count = bench.pick(4 * bench.rounds, 3)
    times: tuple[list[float], list[float]] = ([], [])
    with ExitStack() as stack:
        room = bench.room("stall")
        fleet = stack.enter_context(open_fleet(2 * count))
        bed = stack.enter_context(open_bed(room))
        straight = bed.add(fleet.servers[:count])
        near = bed.add(stack.enter_context(open_lines(fleet.servers[count:], 0)))
        worker = bed.start_worker()
        bed.run("true", [*straight, *near])
        worker.settle()
        worker.stop()
        worker = bed.start_worker()
        for pair in zip(straight, near, strict=True):
            for kept, name in zip(times, pair, strict=True):
                job = bed.run("true", [name]).id
                kept.append(worker.following_seconds([job])[job])
                time.sleep(PAUSE_SECONDS)
        worker.stop()
    stalls = [1000 * (one - other) for one, other in zip(*times, strict=True)]
    return [Measured(STALL.name, mean(stalls), tuple(stalls))]


STALLS = Experiment("stall", (STALL,), run)
