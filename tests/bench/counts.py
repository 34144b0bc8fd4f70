"""Rows of calls and commits per job, and of a worker that has nothing to do."""

import json
import sqlite3
import struct
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import ExitStack, closing, contextmanager
from pathlib import Path

from tests.bench.bed import Bed, Worker, open_bed
from tests.bench.bench import Bench, Experiment
from tests.bench.fleet import open_fleet
from tests.bench.rows import Measured, Row, at_most, measured
from tests.faults.api_proxy import ApiProxy
from tests.faults.background import open_background

# https://www.sqlite.org/fileformat2.html#walformat
WAL_HEADER_BYTES = 32
FRAME_HEADER = struct.Struct(">6I")

# The counts of today: fewer is better, and more is a regression.
API_CALLS = Row(
    "api-calls-per-job", "calls", "of a job of one server, its claim included", at_most(3), digits=1
)
APP_CALLS = Row(
    "app-calls-per-job", "calls", "the same where claims have no tokens", at_most(7), digits=1
)
COMMITS = Row(
    "commits-per-job", "commits", "to the worker's state, job of one server", at_most(4), digits=1
)
IDLE_CPU = Row("idle-cpu", "%", "of a core, no job, one server used just before", at_most(0.2))


def run(bench: Bench) -> list[Measured]:
    with ExitStack() as stack:
        room = bench.room("counts")
        fleet = stack.enter_context(open_fleet(1))
        bed = stack.enter_context(open_bed(room))
        proxy = ApiProxy(stack.enter_context(open_background()), bed.port)
        (name,) = bed.add(fleet.servers)
        results = []
        for calls in (API_CALLS, APP_CALLS):
            if bench.wants(calls.name, *([COMMITS.name] if calls is API_CALLS else [])):
                proxy.hides_tokens = calls is APP_CALLS
                worker = bed.start_worker(API_ENDPOINT=f"http://127.0.0.1:{proxy.port}")
                bed.run("true", [name])
                worker.settle()
                told, committed = _per_job(bench, bed, proxy, worker, name)
                results.append(measured(calls.name, *told))
                if calls is API_CALLS:
                    results.append(measured(COMMITS.name, committed))
                worker.stop()
        if bench.wants(IDLE_CPU.name):
            worker = bed.start_worker()
            bed.run("true", [name])
            worker.settle()
            results.append(_idle(bench, worker))
            worker.stop()
    return results


def _per_job(
    bench: Bench, bed: Bed, proxy: ApiProxy, worker: Worker, name: str
) -> tuple[tuple[list[float], str], list[float]]:
    """One job after the other, each to the end of what follows it: calls, with a note of their
    routes, and commits."""
    calls: list[float] = []
    commits: list[float] = []
    first = _told(proxy)
    with _wal_kept(bed.state() / "state.db") as wal:
        for _ in range(bench.pick(2 * bench.rounds, 2)):
            told, committed = _told(proxy), _commits(wal)
            bed.run("true", [name])
            worker.settle()
            calls.append((_told(proxy) - told).total())
            commits.append(_commits(wal) - committed)
    routes = _told(proxy) - first
    note = ", ".join(f"{route} {count / len(calls):g}" for route, count in sorted(routes.items()))
    return (calls, note), commits


def _told(proxy: ApiProxy) -> Counter[str]:
    """By route, the calls so far that were of jobs; a poll that brought none is of none."""
    return Counter(
        call.route
        for call in proxy.calls
        if call.answer
        and call.route != "heartbeat"
        and not (call.route == "claim" and not json.loads(call.answer)["jobs"])
    )


@contextmanager
def _wal_kept(database: Path) -> Iterator[Path]:
    """While somebody reads from before it, nothing in the write-ahead log is written over."""
    with closing(sqlite3.connect(database, isolation_level=None)) as reader:
        reader.execute("BEGIN")
        reader.execute("SELECT count(*) FROM sqlite_schema").fetchone()
        yield database.with_name(database.name + "-wal")


def _commits(wal: Path) -> int:
    """The frames that end a transaction: they say how large the database is after it."""
    data = wal.read_bytes()
    page_bytes = struct.unpack_from(">I", data, 8)[0]
    salts = struct.unpack_from(">2I", data, 16)
    count = 0
    step = FRAME_HEADER.size + page_bytes
    for at in range(WAL_HEADER_BYTES, len(data) - step + 1, step):
        _, pages_after, *frame_salts, _, _ = FRAME_HEADER.unpack_from(data, at)
        if tuple(frame_salts) != salts:
            break  # left from before the log was begun anew
        count += pages_after > 0
    return count


def _idle(bench: Bench, worker: Worker) -> Measured:
    # Two heartbeats.
    seconds = bench.pick(30, 3)
    shares = []
    for _ in range(min(bench.rounds, 3)):
        before = worker.cpu_seconds
        time.sleep(seconds)
        shares.append(100 * (worker.cpu_seconds - before) / seconds)
    return measured(IDLE_CPU.name, shares)


COUNTS = Experiment("counts", (API_CALLS, APP_CALLS, COMMITS, IDLE_CPU), run)
