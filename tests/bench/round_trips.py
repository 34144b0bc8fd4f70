"""Rows of round trips.

A job's time from its `job_started` to its `execution_ended` in the worker's log is what both
sides compute and what the line takes. The same job over a line of no length has the first part
alone, so the difference divided by the round trip time is the number of round trips. Whatever else
runs on the machine only adds to either, so the least of each side counts. The number comes out
whole but for some hundredths, for timers are late and what is computed while waiting is not waited
for: so it is rounded.
"""

import time
from collections.abc import Iterator, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path

from tests.bench.bed import Bed, Worker, open_bed
from tests.bench.bench import Bench, CannotMeasureError, Experiment
from tests.bench.fleet import open_fleet
from tests.bench.rows import Measured, Row, at_most, measured
from tests.faults.delay_lines import open_lines

ROUND_TRIP_SECONDS = 0.1
SCRIPT = "true"
# After a job its run is forgotten, and all made ready for the next.
PAUSE_SECONDS = {"near": 0.2, "far": 0.2 + 8 * ROUND_TRIP_SECONDS}
# Holds the call that waits on the connection, until the file is there.
HOLD = "until [ -e {} ]; do sleep 0.1; done"
PATIENCE_SECONDS = 10.0
LOOK_SECONDS = 0.01

WARM_SPARE = Row("rtt-warm-spare", "round trips", "warm execution, alone", at_most(1), digits=0)
WARM = Row(
    "rtt-warm",
    "round trips",
    "warm execution beside another, which has the call that waited",
    at_most(3),
    digits=0,
)
COLD = Row("rtt-cold", "round trips", "new connection, runner there", at_most(8), digits=0)
# Its bound is those of the row before and of the row after together.
FRESH = Row("rtt-fresh", "round trips", "new connection, no runner there", at_most(11), digits=0)
FRESH_OVER_COLD = Row(
    "rtt-fresh-over-cold", "round trips", "what deploying the runner adds", at_most(3), digits=0
)


@dataclass(slots=True)
class Times:
    """Seconds of executions, by what they were like; one for each server, in the same order."""

    fresh: list[float] = field(default_factory=list)
    cold: list[float] = field(default_factory=list)
    warm_spare: list[float] = field(default_factory=list)
    warm: list[float] = field(default_factory=list)


def run(bench: Bench) -> list[Measured]:
    """A line of no length and a long one take turns, each to servers of its own."""
    count = bench.pick(bench.rounds, 2)
    times = {way: Times() for way in PAUSE_SECONDS}
    with ExitStack() as stack:
        room = bench.room("round-trips")
        fleet = stack.enter_context(open_fleet(2 * count))
        bed = stack.enter_context(open_bed(room))
        near, far = (fleet.servers[at::2] for at in range(2))
        names = {
            "near": bed.add(stack.enter_context(open_lines(near, 0))),
            "far": bed.add(stack.enter_context(open_lines(far, ROUND_TRIP_SECONDS))),
        }
        worker = bed.start_worker()
        for way, name in _turns(names):
            times[way].fresh.append(_alone(bed, worker, name))
        time.sleep(PAUSE_SECONDS["far"])
        worker.stop()
        # Started anew, it knows of the runners and has no connections.
        worker = bed.start_worker()
        for way, name in _turns(names):
            times[way].cold.append(_alone(bed, worker, name))
        time.sleep(PAUSE_SECONDS["far"])
        for way, name in _turns(names):
            _alone(bed, worker, name)  # what was pooled may have been given up meanwhile
            time.sleep(PAUSE_SECONDS[way])
            times[way].warm_spare.append(_alone(bed, worker, name))
            time.sleep(PAUSE_SECONDS[way])
            times[way].warm.append(_beside(bed, worker, room / f"release-{name}", name))
        worker.stop()
    far_times, near_times = times["far"], times["near"]
    fresh = _round_trips(far_times.fresh, near_times.fresh)
    cold = _round_trips(far_times.cold, near_times.cold)
    return [
        _whole(WARM_SPARE, _round_trips(far_times.warm_spare, near_times.warm_spare)),
        _whole(WARM, _round_trips(far_times.warm, near_times.warm)),
        _whole(COLD, cold),
        _whole(FRESH, fresh),
        _whole(FRESH_OVER_COLD, fresh - cold),
    ]


def _turns(names: dict[str, list[str]]) -> Iterator[tuple[str, str]]:
    for at in range(len(names["near"])):
        for way, servers in names.items():
            yield way, servers[at]


def _alone(bed: Bed, worker: Worker, name: str) -> float:
    job = bed.run(SCRIPT, [name]).id
    return worker.following_seconds([job])[job]


def _beside(bed: Bed, worker: Worker, release: Path, name: str) -> float:
    """A job on a server where another is running, until the file `release` is there."""
    holding = bed.submit(HOLD.format(release), [name])
    _wait(worker, "execution_started", holding)
    job = bed.submit(SCRIPT, [name])
    _wait(worker, "execution_ended", job)
    release.touch()
    bed.finish()
    return worker.following_seconds([job])[job]


def _wait(worker: Worker, event: str, job: str) -> None:
    deadline = time.monotonic() + PATIENCE_SECONDS
    while job not in worker.moments(event):
        if time.monotonic() > deadline:
            raise CannotMeasureError(f"no {event} of a job")
        time.sleep(LOOK_SECONDS)


def _round_trips(far: Sequence[float], near: Sequence[float]) -> float:
    return (min(far) - min(near)) / ROUND_TRIP_SECONDS


def _whole(row: Row, trips: float) -> Measured:
    return measured(row.name, [round(trips)], f"{trips:.2f} before rounding")


ROUND_TRIPS = Experiment("round-trips", (WARM_SPARE, WARM, COLD, FRESH, FRESH_OVER_COLD), run)
