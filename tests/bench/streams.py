"""Rows of servers that print much.

Scripts print a file of lines. The worker keeps the first and last half of what is over its output
limit and counts the rest, so that its report shows whether a byte is missing.
"""

import re
import shutil
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from statistics import median

from tests.bench import processes
from tests.bench.bed import Bed, Worker, open_bed
from tests.bench.bench import Bench, CannotMeasureError, Experiment
from tests.bench.fleet import Fleet, open_fleet
from tests.bench.processes import spend
from tests.bench.rows import Measured, Row, at_least, at_most, measured, ratios, unmeasured
from tests.faults.delay_lines import open_lines
from worker.demo.sshd import LocalServer

MIB = 1024 * 1024
LINE = "%015d the quick brown fox jumps over the lazy dog, and the dog does not mind\n"
FAR_SECONDS = 0.05
MANY_BYTES = 10 * MIB
# More than any of them prints.
RUN_MAX_OUTPUT = "4GiB"
LEFT_OUT = re.compile(r"\n\[cronium] \.\.\. (\d+) bytes left out \.\.\.\n")

THROUGHPUT = Row(
    "stream-throughput", "x", "1 GiB, against ssh host cat; output not logged", at_least(0.5)
)
LOGGED = Row("stream-logged", "x", "as stream-throughput, each line an event of the log")
GROWTH = Row(
    "stream-memory", "MiB", "growth of RSS at its peak while 1 GiB comes", at_most(24), digits=1
)
FAR = Row("stream-far", "x", "as stream-throughput, at 50 ms round trip", at_least(1))
MANY = Row(
    "many-streams-memory",
    "MiB",
    "RSS at its peak, 200 servers printing 10 MiB each at once, every byte counted",
    at_most(200),
    digits=0,
)


@dataclass(frozen=True, slots=True)
class Stream:
    """A file that is printed."""

    path: Path
    size: int

    @property
    def script(self) -> str:
        return f"cat '{self.path}'"


def make_stream(path: Path, size: int) -> Stream:
    """At most `size` bytes of lines that all differ within a MiB."""
    block = "".join(LINE % number for number in range(MIB // len(LINE % 0))).encode()
    with path.open("wb") as file:
        for _ in range(size // len(block)):
            file.write(block)
    return Stream(path, path.stat().st_size)


def check(bed: Bed, job_id: str, stream: Stream) -> None:
    """Raises CannotMeasureError if not every server's every byte has come."""
    for execution in bed.report(job_id).executions:
        head, left_out, tail = _parts(execution.output or "")
        with stream.path.open("rb") as file:
            is_whole = len(head) + left_out + len(tail) == stream.size
            is_whole &= file.read(len(head)) == head
            file.seek(-len(tail), 2)
            is_whole &= file.read() == tail
        if not is_whole:
            raise CannotMeasureError(
                f"of {stream.size} bytes {len(head)}, {left_out} and {len(tail)} have come"
            )


def _parts(output: str) -> tuple[bytes, int, bytes]:
    parts = LEFT_OUT.split(output)
    if len(parts) == 1:
        return b"", 0, output.encode()
    head, count, tail = parts
    return head.encode(), int(count), tail.encode()


@dataclass(slots=True)
class Runs:
    """Wall seconds of each run, ours and the ssh binary's, and bytes by which RSS has grown."""

    ours: list[float]
    ssh: list[float]
    growth: list[float]

    def told(self, size: int) -> str:
        ours, ssh = (size / MIB / median(seconds) for seconds in (self.ours, self.ssh))
        return f"{ours:.0f} against {ssh:.0f} MiB/s"


def run(bench: Bench) -> list[Measured]:
    if not shutil.which("ssh"):
        names = [row.name for row in (THROUGHPUT, LOGGED, GROWTH, FAR) if bench.wants(row.name)]
        return unmeasured(names, "there is no ssh")
    rounds = min(bench.rounds, 3)
    results = []
    with ExitStack() as stack:
        room = bench.room("streams")
        fleet = stack.enter_context(open_fleet(2))
        bed = stack.enter_context(open_bed(room))
        near = fleet.servers[0]
        (far,) = stack.enter_context(open_lines(fleet.servers[1:], FAR_SECONDS))
        bed.add([near, far])
        if bench.wants(THROUGHPUT.name, GROWTH.name):
            stream = make_stream(room / "long", bench.pick(1024, 64) * MIB)
            runs = _in_turn(bed, fleet, near, fleet.servers[0], stream, rounds, log="off")
            results += [
                measured(THROUGHPUT.name, ratios(runs.ssh, runs.ours), runs.told(stream.size)),
                measured(GROWTH.name, (size / MIB for size in runs.growth)),
            ]
        if bench.wants(LOGGED.name):
            stream = make_stream(room / "logged", bench.pick(64, 16) * MIB)
            runs = _in_turn(bed, fleet, near, fleet.servers[0], stream, rounds, log="on")
            note = runs.told(stream.size)
            results.append(measured(LOGGED.name, ratios(runs.ssh, runs.ours), note))
        if bench.wants(FAR.name):
            stream = make_stream(room / "far", bench.pick(256, 16) * MIB)
            runs = _in_turn(bed, fleet, far, fleet.servers[1], stream, rounds, log="off")
            note = runs.told(stream.size)
            results.append(measured(FAR.name, ratios(runs.ssh, runs.ours), note))
    return results


def _in_turn(
    bed: Bed,
    fleet: Fleet,
    server: LocalServer,
    itself: LocalServer,
    stream: Stream,
    rounds: int,
    *,
    log: str,
) -> Runs:
    """`server` is `itself`, perhaps at the near end of a line."""
    runs = Runs([], [], [])
    worker = bed.start_worker(LOG_OUTPUT=log, RUN_MAX_OUTPUT=RUN_MAX_OUTPUT)
    bed.run("true", [server.name])
    for _ in range(rounds):
        runs.ssh.append(_ssh_seconds(fleet, server, itself, stream))
        worker.settle()
        seconds, growth = _our_seconds(bed, worker, server, stream)
        runs.ours.append(seconds)
        runs.growth.append(growth)
    worker.stop()
    return runs


def _our_seconds(
    bed: Bed, worker: Worker, server: LocalServer, stream: Stream
) -> tuple[float, float]:
    before = processes.rss_bytes(worker.pid)
    processes.reset_peak(worker.pid)
    done = bed.run(stream.script, [server.name])
    growth = processes.peak_rss_bytes(worker.pid) - before
    check(bed, done.id, stream)
    return done.wall_seconds, growth


def _ssh_seconds(fleet: Fleet, server: LocalServer, itself: LocalServer, stream: Stream) -> float:
    command = [
        *("ssh", "-F", str(fleet.ssh_config), "-p", str(server.port)),
        *("-o", f"HostName={server.host}", "-o", f"HostKeyAlias=[{itself.host}]:{itself.port}"),
        *(itself.host, stream.script),
    ]
    spent = spend(command, into_nothing=True)
    if spent.status:
        raise CannotMeasureError(f"ssh ended with {spent.status}")
    return spent.wall_seconds


def run_many(bench: Bench) -> list[Measured]:
    peaks: list[float] = []
    walls: list[float] = []
    with ExitStack() as stack:
        room = bench.room("many-streams")
        fleet = stack.enter_context(open_fleet(bench.servers))
        bed = stack.enter_context(open_bed(room))
        names = bed.add(fleet.servers)
        stream = make_stream(room / "stream", MANY_BYTES)
        for _ in range(min(bench.rounds, 2)):
            worker = bed.start_worker(LOG_OUTPUT="off")
            done = bed.run(stream.script, names)
            check(bed, done.id, stream)
            peaks.append(processes.peak_rss_bytes(worker.pid) / MIB)
            walls.append(done.wall_seconds)
            worker.settle()
            worker.stop()
    note = f"{len(names)} servers, wall {median(walls):.1f} s"
    return [measured(MANY.name, peaks, note)]


STREAMS = Experiment("streams", (THROUGHPUT, LOGGED, GROWTH, FAR), run)
MANY_STREAMS = Experiment("many-streams", (MANY,), run_many)
