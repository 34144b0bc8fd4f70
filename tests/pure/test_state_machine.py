"""The state against models in plain Python, over many histories: the outbox alone, and the outbox
with the jobs' store and their spools, as the relay and the jobs write to them."""

import itertools
import shutil
import sqlite3
from collections.abc import Callable, Coroutine, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from functools import cache, partial
from pathlib import Path
from typing import TypeVar, cast

import pytest
from hypothesis import Phase, settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    RuleBasedStateMachine,
    initialize,
    invariant,
    precondition,
    rule,
    run_state_machine_as_test,
)

from tests.captures import new_path
from tests.due import first_due
from worker.api.client import QueueClient
from worker.database import Database
from worker.last_words import LastWord
from worker.relay import Relay
from worker.state import runs
from worker.state.directory import BEGUN, DATABASE, MIGRATIONS, SPOOLS
from worker.state.marks import Marks
from worker.state.outbox import (
    FINAL_KINDS,
    GO_ENTRIES,
    PARKED_MS,
    PATIENCE_MS,
    Entry,
    Kind,
    Outbox,
    QueuedEntry,
)
from worker.state.run_files import MARK
from worker.state.runs import DAY_MS, KEPT_MS, JobState, KeptJob, RunStore
from worker.state.seal import StateSeal
from worker.state.spool import Spool, Spools
from worker.verdicts import Delivered, Disowned, Later, Parked, Verdict, Void

T = TypeVar("T")

# Few, so that they meet.
JOBS = ("a", "b")
KEPT_JOBS = 1
# Entries, in a row; not worth a rule of their own.
FEW = 4
NOON = 50 * DAY_MS
FAR = 10_000 * DAY_MS
MINUTE_MS = 60_000
HOUR_MS = 60 * MINUTE_MS
SPOOL_LIMIT = 10_000

# Many short histories find more than a few long ones; a failure is shrunk as one.
MANY = settings(
    stateful_step_count=50, report_multiple_bugs=False, phases=(Phase.generate, Phase.shrink)
)
jobs = st.sampled_from(JOBS)
numbers = st.integers(0, 3)
spans = st.sampled_from((1, 999, MINUTE_MS, PATIENCE_MS, PATIENCE_MS + 1, DAY_MS, PARKED_MS))
# Those that act on one another more often.
kinds = st.sampled_from((*Kind, Kind.RUNNING, Kind.UPDATE))
fates = st.sampled_from(("arrives", "has to wait", "is refused"))
# Whole hours, within which no two writes are made at the same time.
hours = st.sampled_from((1, 24, 7 * 24 - 1, 7 * 24, 30 * 24 - 1, 30 * 24))


def one_of(found: Sequence[T], number: int) -> T:
    return found[number % len(found)]


# The outbox as a list.


@dataclass
class Line:
    """An entry of the ledger. No two have the same body."""

    entry: Entry
    created_at: int
    due_at: int
    attempts: int = 0
    parked: str | None = None

    def is_due(self, now: int) -> bool:
        return not 0 < self.due_at - now <= PATIENCE_MS


class Ledger:
    """What the outbox is to have, in the order in which it was put there."""

    def __init__(self, lines: Sequence[Line] = ()) -> None:
        self.lines = list(lines)

    def copy(self) -> "Ledger":
        return Ledger([replace(line) for line in self.lines])

    def put(self, *entries: Entry, now: int, rows_due_at: int | None = None) -> None:
        for entry in entries:
            if entry.kind is Kind.UPDATE:
                self._strike(partial(gives_way, entry))
            if entry.kind in FINAL_KINDS:
                for line in self.waiting(entry.job_id):
                    line.due_at = line.due_at if line.attempts else now
            due_at = now if entry.kind in FINAL_KINDS else rows_due_at or now
            self.lines.append(Line(entry, created_at=now, due_at=due_at))

    def delivered(self, entry: Entry) -> None:
        self._strike(lambda line: line.entry == entry)

    def postpone(self, entry: Entry, *, due_at: int) -> None:
        for line in self._lines_of(entry):
            line.attempts, line.due_at = line.attempts + 1, due_at

    def park(self, entry: Entry, reason: str) -> None:
        for line in self._lines_of(entry):
            line.parked = reason

    def drop_job(self, job_id: str) -> None:
        self._strike(lambda line: line.parked is None and line.entry.job_id == job_id)

    def supersede(self, job_id: str) -> None:
        self._strike(
            lambda line: (
                line.parked is None
                and line.entry.job_id == job_id
                and line.entry.kind is Kind.RELEASE
            )
        )

    def take_up(self) -> None:
        for line in self.waiting():
            line.attempts = max(1, line.attempts)

    def sweep(self, *, now: int) -> None:
        self._strike(lambda line: line.parked is not None and line.created_at <= now - PARKED_MS)

    def waiting(self, job_id: str | None = None) -> list[Line]:
        return [
            line
            for line in self.lines
            if line.parked is None and job_id in (None, line.entry.job_id)
        ]

    def parked(self) -> list[tuple[str, str, str]]:
        return [
            (line.entry.job_id, line.entry.subject, line.parked)
            for line in self.lines
            if line.parked is not None
        ]

    def heads(self) -> list[Line]:
        """The first of each job, the longest overdue first."""
        first: dict[str, Line] = {}
        for line in self.waiting():
            first.setdefault(line.entry.job_id, line)
        places = {id(line): place for place, line in enumerate(self.lines)}
        return sorted(first.values(), key=lambda line: (line.due_at, places[id(line)]))

    def due(self, now: int) -> list[Line]:
        return [line for line in self.heads() if line.is_due(now)]

    def has_last(self, job_id: str) -> bool:
        ends = (Kind.COMPLETE, Kind.FAIL)
        return any(line.entry.kind in ends for line in self.waiting(job_id))

    def _lines_of(self, entry: Entry) -> list[Line]:
        return [line for line in self.lines if line.entry == entry]

    def _strike(self, condition: Callable[[Line], bool]) -> None:
        self.lines = [line for line in self.lines if not condition(line)]


def gives_way(update: Entry, line: Line) -> bool:
    """Whether `line` is the `running` that the final `update` makes needless."""
    has_gone_out = line.attempts > 0 or line.parked is not None
    is_its = line.entry.kind is Kind.RUNNING and line.entry.subject == update.subject
    return is_its and not has_gone_out


def in_order_of(put: list[Entry], heard: list[Entry]) -> bool:
    """Whether each job's entries were heard in the order in which they were put."""
    places = {entry.body: place for place, entry in enumerate(put)}
    return all(
        earlier.job_id != later.job_id or places[earlier.body] <= places[later.body]
        for earlier, later in itertools.combinations(heard, 2)
    )


class OutboxMachine(RuleBasedStateMachine):
    """As under the relay, at most one entry of a job is under way."""

    def __init__(self) -> None:
        super().__init__()
        self.database = Database(":memory:", MIGRATIONS)
        self.outbox = Outbox(self.database)
        self.ledger = Ledger()
        self.now = NOON
        self.under_way: dict[str, QueuedEntry] = {}
        self.put: list[Entry] = []
        self.heard: list[Entry] = []

    def teardown(self) -> None:
        self.database.close()

    def heads(self) -> list[QueuedEntry]:
        return first_due(self.outbox, limit=len(JOBS), now=self.now)

    def ready(self) -> list[str]:
        """The jobs of which an entry is due that is not under way."""
        due = [line.entry.job_id for line in self.ledger.due(self.now)]
        return [job_id for job_id in due if job_id not in self.under_way]

    def first(self, job_id: str) -> QueuedEntry:
        (queued,) = [queued for queued in self.heads() if queued.entry.job_id == job_id]
        return queued

    def idle(self) -> list[str]:
        pending = [line.entry.job_id for line in self.ledger.heads()]
        return [job_id for job_id in pending if job_id not in self.under_way]

    @rule(
        job_id=jobs,
        what=st.lists(st.tuples(kinds, st.integers(1, 2)), min_size=1, max_size=4),
        rows_wait=st.sampled_from((0, 100)),
    )
    def entries_are_put(
        self, job_id: str, what: list[tuple[Kind, int]], rows_wait: int = 0
    ) -> None:
        entries = [
            Entry(
                job_id,
                kind,
                job_id if kind in FINAL_KINDS else f"exec_{job_id}_{number}",
                b"%d" % (len(self.put) + place),
            )
            for place, (kind, number) in enumerate(what)
        ]
        self.put += entries
        rows_due_at = self.now + rows_wait
        self.outbox.put(entries, now=self.now, rows_due_at=rows_due_at)
        self.ledger.put(*entries, now=self.now, rows_due_at=rows_due_at)

    @precondition(lambda self: self.ready())
    @rule(number=numbers)
    def one_goes_out(self, number: int) -> None:
        job_id = one_of(self.ready(), number)
        self.under_way[job_id] = self.first(job_id)

    @precondition(lambda self: self.under_way)
    @rule(number=numbers, fate=fates)
    def it_arrives_or_not(self, number: int, fate: str) -> None:
        self.meet(self.under_way.pop(one_of(sorted(self.under_way), number)), fate)

    @precondition(lambda self: self.ready())
    @rule(number=numbers, fate=fates)
    def one_goes_out_and_arrives_or_not(self, number: int, fate: str) -> None:
        self.meet(self.first(one_of(self.ready(), number)), fate)

    def meet(self, queued: QueuedEntry, fate: str) -> None:
        match fate:
            case "arrives":
                self.heard.append(queued.entry)
                self.outbox.delivered(queued.id)
                self.ledger.delivered(queued.entry)
            case "has to wait":
                self.outbox.postpone(queued.id, due_at=self.now + MINUTE_MS)
                self.ledger.postpone(queued.entry, due_at=self.now + MINUTE_MS)
            case "is refused":
                self.outbox.park(queued.id, "refused")
                self.ledger.park(queued.entry, "refused")

    @precondition(lambda self: self.ledger.waiting())
    @rule(number=numbers)
    def a_job_is_dropped(self, number: int) -> None:
        job_id = one_of(self.outbox.pending_jobs(), number)
        self.outbox.drop_job(job_id)
        self.ledger.drop_job(job_id)

    @precondition(lambda self: self.idle())
    @rule(number=numbers)
    def a_job_is_claimed_anew(self, number: int) -> None:
        job_id = one_of(self.idle(), number)
        self.ledger.supersede(job_id)
        assert self.outbox.supersede(job_id) == self.ledger.has_last(job_id)

    @precondition(lambda self: self.under_way)
    @rule()
    def the_worker_is_killed(self) -> None:
        self.under_way.clear()
        self.outbox.take_up()
        self.ledger.take_up()

    @rule(span=spans, is_back=st.booleans())
    def time_passes_or_the_clock_is_set_back_and_the_old_is_swept(
        self, span: int, is_back: bool
    ) -> None:
        self.now += -span if is_back else span
        self.outbox.sweep(now=self.now)
        self.ledger.sweep(now=self.now)

    @precondition(lambda self: not self.under_way and len(self.ledger.waiting()) > FEW)
    @rule()
    def all_that_waits_arrives(self) -> None:
        waiting = self.ledger.waiting()
        arrived = []
        while queued := first_due(self.outbox, limit=1, now=FAR):
            arrived.append(queued[0].entry)
            self.outbox.delivered(queued[0].id)
            self.ledger.delivered(queued[0].entry)
        self.heard += arrived
        assert sorted(arrived, key=lambda entry: int(entry.body)) == [
            line.entry for line in waiting
        ]

    @invariant()
    def the_heads_are_each_jobs_first(self) -> None:
        heads = self.heads()
        found = [(queued.entry, queued.attempts) for queued in heads]
        assert found == [(line.entry, line.attempts) for line in self.ledger.due(self.now)]
        assert first_due(self.outbox, limit=1, now=self.now) == heads[:1]

    @invariant()
    def what_goes_together_begins_with_a_head_that_is_due_and_was_never_tried(self) -> None:
        due = [line.entry.job_id for line in self.ledger.due(self.now)]
        for job_id in JOBS:
            lines = self.ledger.waiting(job_id) if job_id in due else []
            fresh = list(itertools.takewhile(lambda line: not line.attempts, lines))
            ends = [n for n, line in enumerate(fresh, 1) if line.entry.kind in FINAL_KINDS]
            together = fresh[: min([GO_ENTRIES, *ends])]
            found = [queued.entry for queued in self.outbox.next_of(job_id, now=self.now)]
            assert found == [line.entry for line in (together or lines[:1])]

    @invariant()
    def whoever_waits_for_the_next_is_woken_in_time(self) -> None:
        due = self.ledger.due(self.now)
        waits = [line.due_at for line in self.ledger.heads() if line not in due]
        next_due_at = self.outbox.next_due_at(after=self.now)
        if waits:
            assert next_due_at == min(waits)
            assert next_due_at <= self.now + PATIENCE_MS
        else:
            assert next_due_at is None or next_due_at > self.now + PATIENCE_MS

    @invariant()
    def the_jobs_are_known(self) -> None:
        pending = {line.entry.job_id for line in self.ledger.waiting()}
        assert self.outbox.pending_jobs() == tuple(sorted(pending))
        known = {line.entry.job_id for line in self.ledger.lines}
        assert self.outbox.known_jobs() == tuple(sorted(known))
        for job_id in JOBS:
            assert self.outbox.has_last(job_id) == self.ledger.has_last(job_id)

    @invariant()
    def what_was_given_up_can_be_seen(self) -> None:
        assert self.outbox.parked() == self.ledger.parked()

    @invariant()
    def each_job_is_heard_in_order_and_nothing_twice(self) -> None:
        assert in_order_of(self.put, self.heard)
        assert len({entry.body for entry in self.heard}) == len(self.heard)


# The outbox with the jobs' store and their spools.


class WriteError(Exception):
    """A write that fails; the worker goes on."""


class KilledError(BaseException):
    """The worker is gone; nothing of it is to run after this."""


class Trouble:
    """What cuts off a write: `error`, when the writes have passed so many points more."""

    def __init__(self) -> None:
        self._error: type[BaseException] | None = None
        self._points = 0
        self._is_near = False

    def plan(self, error: type[BaseException], points: int) -> None:
        self._error, self._points = error, points

    @contextmanager
    def ahead(self) -> Iterator[None]:
        """Around a write, which may see it."""
        self._is_near = True
        try:
            yield
        finally:
            self._is_near = False

    def point(self, error: type[BaseException]) -> None:
        """A point at which the write can be ended by `error`."""
        if self._is_near and self._error is error:
            self._points -= 1
            if self._points < 0:
                self._error = None
                raise error


class FragileDatabase(Database):
    """Fails, or is killed, before a commit; is killed after one."""

    def __init__(self, path: Path, trouble: Trouble) -> None:
        super().__init__(path, MIGRATIONS)
        self._trouble = trouble
        self.commits = 0
        # Only the machine's own end would need it.
        self._connection.execute("PRAGMA synchronous = OFF")
        self._connection.set_trace_callback(self._count)

    def _count(self, statement: str) -> None:
        self.commits += statement == "COMMIT"

    async def run(self, work: Callable[[], T]) -> T:
        return work()

    @contextmanager
    def transaction(self) -> Iterator[sqlite3.Connection]:
        is_outermost = not self._connection.in_transaction
        with super().transaction() as tx:
            yield tx
            if is_outermost:
                self._trouble.point(WriteError)
                self._trouble.point(KilledError)
        if is_outermost:
            self._trouble.point(KilledError)


class FragileSpools(Spools):
    """Can be killed before, between and after the removal of files."""

    def __init__(self, directory: Path, trouble: Trouble) -> None:
        super().__init__(directory)
        self._trouble = trouble

    def remove(self, job_id: str) -> None:
        self._trouble.point(KilledError)
        super().remove(job_id)
        self._trouble.point(KilledError)

    def remove_all_but(self, job_ids: object) -> None:
        kept = list(cast("list[str]", job_ids))
        self._trouble.point(KilledError)
        jobs = {path.name.partition(MARK)[2] for path in self._directory.glob("*")}
        gone = sorted(jobs.difference(kept))
        super().remove_all_but([*kept, *gone[1:]])
        self._trouble.point(KilledError)
        super().remove_all_but(kept)
        self._trouble.point(KilledError)


@dataclass
class ModelJob:
    """`received` counts the bytes in the spools, `begun` has the runs that are marked so; `last` is
    the entry that tells how it ended."""

    state: JobState
    claim: bytes
    boot: int
    began_at: int
    executions: tuple[str, ...]
    ended_at: int = 0
    last: Entry | None = None
    results: dict[str, bytes] = field(default_factory=dict)
    received: dict[str, int] = field(default_factory=dict)
    begun: set[str] = field(default_factory=set)
    # The executions whose results lost their output when the machine went down.
    lost: set[str] = field(default_factory=set)

    def copy(self) -> "ModelJob":
        return replace(
            self,
            results=dict(self.results),
            received=dict(self.received),
            begun=set(self.begun),
            lost=set(self.lost),
        )

    def keep(self, execution_id: str, result: bytes) -> None:
        self.results[execution_id] = result
        self.lost.discard(execution_id)


@dataclass
class Model:
    ledger: Ledger = field(default_factory=Ledger)
    jobs: dict[str, ModelJob] = field(default_factory=dict)

    def copy(self) -> "Model":
        return Model(self.ledger.copy(), {job_id: job.copy() for job_id, job in self.jobs.items()})

    def with_state(self, *states: JobState) -> list[str]:
        return [job_id for job_id, job in self.jobs.items() if job.state in states]

    def unfinished(self) -> list[str]:
        """The oldest first."""
        found = self.with_state(JobState.RUNNING, JobState.REPORTED)
        return sorted(found, key=lambda job_id: (self.jobs[job_id].began_at, job_id))

    def drop(self, job_id: str) -> None:
        self.jobs.pop(job_id, None)

    def disown(self, job_id: str) -> None:
        self.ledger.drop_job(job_id)
        self.drop(job_id)

    def report(self, job_id: str, last: Entry, *, now: int) -> None:
        job = self.jobs[job_id]
        job.state, job.ended_at, job.last = JobState.REPORTED, now, last

    def finish(self, job_id: str) -> None:
        job = self.jobs[job_id]
        job.state, job.received, job.begun = JobState.FINISHED, {}, set()

    def judge(self, entry: Entry, verdict: Verdict) -> None:
        match verdict:
            case Delivered():
                self.ledger.delivered(entry)
                if entry.kind is Kind.RELEASE:
                    self.drop(entry.job_id)
            case Later():
                self.ledger.postpone(entry, due_at=0)
            case Parked(reason):
                self.ledger.park(entry, reason)
                if entry.kind in FINAL_KINDS:
                    self.drop(entry.job_id)
            case Void():
                self.ledger.delivered(entry)
            case Disowned():
                self.disown(entry.job_id)

    def sweep(self, *, now: int) -> None:
        finished = self.with_state(JobState.FINISHED)
        finished.sort(key=lambda job_id: self.jobs[job_id].ended_at)
        too_many = finished[:-KEPT_JOBS]
        old = [
            job_id
            for job_id in self.with_state(JobState.FINISHED, JobState.REPORTED)
            if self.jobs[job_id].ended_at <= now - KEPT_MS and not self.ledger.waiting(job_id)
        ]
        for job_id in {*too_many, *old}:
            self.drop(job_id)


UNREACHABLE = b"unreachable"


def printed(execution_id: str, count: int) -> bytes:
    """The first bytes of what the run prints; they tell whose they are."""
    return (execution_id.encode() * count)[:count]


def done(work: Coroutine[object, object, T]) -> T:
    """What `work` returns; over a database that is called inline it has nothing to wait for."""
    try:
        work.send(None)
    except StopIteration as stop:
        return cast("T", stop.value)
    raise AssertionError("it waits")


@cache
def empty_database() -> Path:
    path = new_path()
    Database(path, MIGRATIONS).close()
    return path


class StateMachine(RuleBasedStateMachine):
    """What a worker writes, and what the next one finds; a result counts what its run printed."""

    def __init__(self) -> None:
        super().__init__()
        self.monkeypatch = pytest.MonkeyPatch()
        self.monkeypatch.setattr(runs, "KEPT_JOBS", KEPT_JOBS)
        self.folder = new_path()
        self.folder.mkdir()
        shutil.copyfile(empty_database(), self.folder / DATABASE)
        self.seal = StateSeal(bytes(32))
        self.trouble = Trouble()
        self.model = Model()
        self.boot = 1
        self.clock = NOON
        self.writes = 0
        # Since anything was written.
        self.starts = 0
        self.put: list[Entry] = []
        self.heard: list[Entry] = []
        self.handed_over: set[str] = set()
        self.words: dict[str, LastWord] = {}
        self.open()

    def teardown(self) -> None:
        self.database.close()
        shutil.rmtree(self.folder)
        self.monkeypatch.undo()

    def open(self) -> None:
        self.database = FragileDatabase(self.folder / DATABASE, self.trouble)
        self.outbox = Outbox(self.database)
        spools = FragileSpools(self.folder / SPOOLS, self.trouble)
        marks = Marks(self.folder / BEGUN)
        self.runs = RunStore(self.database, self.seal, spools, marks, boot=f"boot-{self.boot}")
        client = cast("QueueClient", None)
        self.relay = Relay(client, self.outbox, self.runs, self.database, now=self.now)

    def now(self) -> int:
        """The same for all of a write, and another for the next."""
        return self.clock + self.writes

    # What the worker and the state have.

    def in_flight(self) -> list[str]:
        running = self.model.with_state(JobState.RUNNING)
        return [job_id for job_id in running if job_id not in self.handed_over]

    def not_in_flight(self) -> list[str]:
        return [job_id for job_id in JOBS if job_id not in self.in_flight()]

    def unended(self) -> list[tuple[str, str]]:
        """Job and execution of those whose end, or whose output, is still to come."""
        return [
            (job_id, execution_id)
            for job_id in self.in_flight()
            for job in [self.model.jobs[job_id]]
            for execution_id in job.executions
            if execution_id not in job.results or execution_id in job.lost
        ]

    def accepted(self) -> list[str]:
        """The jobs whose end the API has taken, so that their runs can be forgotten."""
        return [
            job_id
            for job_id in self.model.with_state(JobState.REPORTED)
            if job_id in self.words and self.words[job_id].accepted
        ]

    def orphans(self) -> list[str]:
        """Jobs that the worker does not know, though perhaps what became of them."""
        known = {*self.outbox.known_jobs(), *self.model.unfinished()}
        return [job_id for job_id in JOBS if job_id not in known]

    def spooled(self) -> dict[str, dict[str, int]]:
        """How many bytes lie there, by job and execution; they are those that were printed."""
        found: dict[str, dict[str, int]] = {}
        for path in (self.folder / SPOOLS).glob(f"*{MARK}*"):
            spool = Spool(path, SPOOL_LIMIT)
            name, _, job_id = path.name.partition(MARK)
            execution_id = Path(name).stem
            assert spool.read(0, spool.received) == printed(execution_id, spool.received)
            found.setdefault(job_id, {})[execution_id] = spool.received
        return found

    def marked(self) -> dict[str, set[str]]:
        """The runs that are known to have begun, by job."""
        found: dict[str, set[str]] = {}
        for path in (self.folder / BEGUN).glob(f"?*{MARK}*"):
            execution_id, _, job_id = path.name.partition(MARK)
            found.setdefault(job_id, set()).add(execution_id)
        return found

    def results(self) -> dict[str, dict[str, bytes]]:
        with self.database.transaction() as tx:
            rows = tx.execute("SELECT job_id, execution_id, result FROM executions").fetchall()
        found: dict[str, dict[str, bytes]] = {}
        for job_id, execution_id, result in rows:
            found.setdefault(job_id, {})[execution_id] = result
        return found

    # Writes, and what becomes of them.

    def entry(self, job_id: str, kind: Kind, subject: str = "") -> Entry:
        entry = Entry(job_id, kind, subject or job_id, b"%d" % len(self.put))
        self.put.append(entry)
        return entry

    def do(
        self, write: Callable[[], object], change: Callable[[Model], object], *, about: str = ""
    ) -> bool:
        """Whether `write` went through; its `change` is made to the model if it was committed.

        Where it was cut off, what lies there of the job it is `about` may be gone, or not yet.
        """
        changed = self.model.copy()
        change(changed)
        commits = self.database.commits
        error: BaseException | None = None
        try:
            with self.trouble.ahead():
                write()
        except (WriteError, KilledError) as trouble:
            error = trouble
        self.writes, self.starts = self.writes + 1, 0
        if self.database.commits > commits:
            self.model = changed
        if error is not None and about in self.model.unfinished():
            self.model.jobs[about].received = self.spooled().get(about, {})
            self.model.jobs[about].begun = self.marked().get(about, set())
        if isinstance(error, KilledError):
            self.start_anew()
        return error is None

    def keep(
        self,
        *entries: Entry,
        also: Callable[[], object] | None = None,
        change: Callable[[Model], object] = lambda _: None,
        about: str = "",
    ) -> bool:
        """As `do`, of entries that are put with what belongs to them."""

        def put(model: Model) -> None:
            model.ledger.put(*entries, now=self.now())
            change(model)

        return self.do(lambda: done(self.relay.put(*entries, also=also)), put, about=about)

    def start_anew(self) -> None:
        """A new worker takes up what there is; if it is killed meanwhile, another."""
        while not self.takes_up():
            pass

    def takes_up(self) -> bool:
        self.database.close()
        self.open()
        found = self.model.copy()
        taken = None
        try:
            with self.trouble.ahead():
                taken = done(self.relay.take_up())
        except (WriteError, KilledError):
            pass
        if self.database.commits:
            self.model.ledger.take_up()
            for job_id in self.model.unfinished():
                self.model.ledger.supersede(job_id)
                self.model.jobs[job_id].boot = self.boot
        if taken is None:
            return False
        self.check_jobs(found, [job for job, _ in taken])
        self.check_words(taken)
        self.words = {job.job_id: word for job, word in taken if word is not None}
        self.handed_over = set()
        self.starts += 1
        return True

    def check_jobs(self, model: Model, taken: list[KeptJob]) -> None:
        assert [kept.job_id for kept in taken] == model.unfinished()
        for kept in taken:
            job = model.jobs[kept.job_id]
            assert (kept.state, kept.began_at) == (job.state, job.began_at)
            assert self.runs.open_claim(kept) == job.claim
            assert kept.results.items() <= job.results.items()
            assert kept.results == job.results or job.lost
            if kept.state is JobState.RUNNING:
                self.check_output(kept.results, self.spooled().get(kept.job_id, {}))
            # What has lost its output need not be kept any longer.
            left = self.model.jobs[kept.job_id]
            left.results = self.results().get(kept.job_id, {})
            left.lost &= left.results.keys()

    def check_output(self, results: Mapping[str, bytes], received: Mapping[str, int]) -> None:
        for execution_id, result in results.items():
            if result != UNREACHABLE:
                assert received.get(execution_id, 0) == int(result), "a result without its output"

    def check_words(self, taken: list[tuple[KeptJob, LastWord | None]]) -> None:
        for kept, word in taken:
            assert (word is None) == (kept.state is JobState.RUNNING)
            if word is not None:
                is_said = not self.outbox.has_last(kept.job_id)
                assert (word.said.is_set(), word.accepted) == (is_said, is_said)

    # What befalls the worker.

    @rule(error=st.sampled_from((WriteError, KilledError)), points=st.integers(0, 8))
    def one_of_the_next_writes_is_going_to_be_cut_off(
        self, error: type[BaseException], points: int
    ) -> None:
        self.trouble.plan(error, points)

    @precondition(lambda self: self.model.unfinished() and self.starts < 2)
    @rule()
    def the_worker_is_killed(self) -> None:
        self.start_anew()

    @precondition(lambda self: self.spooled())
    @rule(damage=st.lists(st.sampled_from(("synced", "empty", "cut", "gone")), min_size=4))
    def the_machine_goes_down(self, damage: list[str]) -> None:
        for path, how in zip((self.folder / SPOOLS).glob("*"), damage, strict=False):
            if how == "gone":
                path.unlink()
            elif how != "synced":
                path.write_bytes(path.read_bytes()[:-1] if how == "cut" else b"")
        self.boot += 1
        for job in self.model.jobs.values():
            job.lost |= {name for name, result in job.results.items() if result != UNREACHABLE}
            job.received, job.begun = {}, set()
        self.start_anew()

    @rule(span=hours, is_back=st.booleans())
    def time_passes(self, span: int, is_back: bool) -> None:
        """Or the clock is set back; and the old is swept."""
        self.clock += (-span if is_back else span) * HOUR_MS
        now = self.now()
        self.do(lambda: self.runs.sweep(now=now), lambda model: model.sweep(now=now))
        self.do(lambda: self.outbox.sweep(now=now), lambda model: model.ledger.sweep(now=now))

    # What the worker does.

    @initialize()
    def the_worker_has_a_job(self) -> None:
        self.begin(JOBS[0], attempt=0)

    @precondition(lambda self: self.not_in_flight())
    @rule(number=numbers, attempt=st.integers(0, 1), is_answer_lost=st.booleans())
    def a_job_is_claimed(self, number: int, attempt: int, is_answer_lost: bool) -> None:
        job_id = one_of(self.not_in_flight(), number)
        if is_answer_lost and job_id in self.orphans():
            self.keep(self.entry(job_id, Kind.RELEASE))
            return
        has_last: list[bool] = []
        if not self.do(
            lambda: has_last.append(done(self.relay.supersede(job_id))),
            lambda model: model.ledger.supersede(job_id),
        ):
            return
        assert has_last == [self.model.ledger.has_last(job_id)]
        if has_last == [False]:
            self.begin(job_id, attempt)

    def begin(self, job_id: str, attempt: int) -> None:
        executions = tuple(f"exec_{job_id}_{server}_{attempt}" for server in (1, 2))
        entries = [self.entry(job_id, Kind.CREATE, execution) for execution in executions]
        claim, now = b"plan %d" % self.writes, self.now()
        job = ModelJob(JobState.RUNNING, claim, self.boot, now, executions)
        if self.keep(
            *entries,
            also=partial(self.runs.begin, job_id, claim, now=now),
            change=lambda model: model.jobs.update({job_id: job}),
            about=job_id,
        ):
            self.handed_over.discard(job_id)
            self.words.pop(job_id, None)

    @precondition(lambda self: self.unended())
    @rule(number=numbers, count=st.integers(0, 20))
    def output_is_received(self, number: int, count: int) -> None:
        self.receive(*one_of(self.unended(), number), count)

    def receive(self, job_id: str, execution_id: str, count: int) -> None:
        self.runs.mark_begun(job_id, execution_id)
        spool = self.runs.spool(job_id, execution_id, "stdout", limit=SPOOL_LIMIT)
        start, end = spool.received, spool.received + count
        spool.write(printed(execution_id, end)[start:])
        spool.close()
        job = self.model.jobs[job_id]
        job.received[execution_id] = end
        job.begun.add(execution_id)
        self.starts = 0

    @precondition(lambda self: self.unended())
    @rule(number=numbers, count=st.none() | st.integers(0, 20))
    def an_execution_ends(self, number: int, count: int | None) -> None:
        job_id, execution_id = one_of(self.unended(), number)
        result = UNREACHABLE
        if count is not None:
            self.receive(job_id, execution_id, count)
            result = b"%d" % self.model.jobs[job_id].received[execution_id]
        self.keep(
            self.entry(job_id, Kind.UPDATE, execution_id),
            also=partial(
                self.runs.ended, job_id, execution_id, result, has_run=result != UNREACHABLE
            ),
            change=lambda model: model.jobs[job_id].keep(execution_id, result),
        )

    @precondition(lambda self: self.in_flight())
    @rule(number=numbers)
    def a_job_ends(self, number: int) -> None:
        """And with it the last of its executions, or that was known before."""
        job_id, now = one_of(self.in_flight(), number), self.now()
        left = [execution_id for of, execution_id in self.unended() if of == job_id][-1:]
        rows = [self.entry(job_id, Kind.UPDATE, execution_id) for execution_id in left]
        last = self.entry(job_id, Kind.COMPLETE)
        words: list[LastWord] = []

        def keep() -> None:
            for execution_id in left:
                self.runs.ended(job_id, execution_id, UNREACHABLE, has_run=False)
            self.runs.reported(job_id, now=now)

        def put_last() -> None:
            words.append(done(self.relay.put_last(job_id, lambda: (*rows, last), also=keep)))

        def reported(model: Model) -> None:
            model.ledger.put(*rows, last, now=now)
            for execution_id in left:
                model.jobs[job_id].keep(execution_id, UNREACHABLE)
            model.report(job_id, last, now=now)

        if self.do(put_last, reported):
            self.words[job_id] = words[0]

    @precondition(lambda self: self.in_flight())
    @rule(number=numbers, kind=st.sampled_from((Kind.FAIL, Kind.COMPLETE, Kind.RELEASE, None)))
    def a_job_is_parted_from(self, number: int, kind: Kind | None) -> None:
        """It fails, is cut short, is given back, or is found to be another's."""
        job_id = one_of(self.in_flight(), number)
        if kind is None:
            self.do(
                lambda: done(self.relay.drop(job_id)),
                lambda model: model.disown(job_id),
                about=job_id,
            )
        elif kind is not Kind.RELEASE:
            self.keep(
                self.entry(job_id, kind),
                also=partial(self.runs.drop, job_id),
                change=lambda model: model.drop(job_id),
                about=job_id,
            )
        elif self.keep(self.entry(job_id, kind)):
            self.handed_over.add(job_id)

    # What the API does.

    @precondition(lambda self: self.model.ledger.waiting())
    @rule(number=numbers)
    def the_api_hears_all_of_a_job(self, number: int) -> None:
        job_id = one_of(self.outbox.pending_jobs(), number)
        while self.model.ledger.waiting(job_id) and self.tell(job_id, Delivered()):
            pass

    @precondition(lambda self: self.model.ledger.waiting())
    @rule(
        number=numbers,
        verdict=st.sampled_from(
            (Delivered(), Later("busy"), Parked("no"), Void("cancelled"), Disowned("theirs"))
        ),
        to_the_last=st.booleans(),
    )
    def the_api_answers(self, number: int, verdict: Verdict, to_the_last: bool) -> None:
        job_id = one_of(self.outbox.pending_jobs(), number)
        while to_the_last and len(self.model.ledger.waiting(job_id)) > 1:
            if not self.tell(job_id, Delivered()):
                return
        if self.model.ledger.waiting(job_id):
            self.tell(job_id, verdict)

    def tell(self, job_id: str, verdict: Verdict) -> bool:
        """As the relay does once it has its `verdict`; whether that was noted."""
        heads = first_due(self.outbox, limit=len(JOBS), now=FAR)
        (queued,) = [queued for queued in heads if queued.entry.job_id == job_id]
        entry = queued.entry
        if isinstance(verdict, Void | Disowned) and entry.kind not in FINAL_KINDS:
            verdict = Parked("no")  # a row says nothing of whose the job is
        if isinstance(verdict, Void) and entry.kind is not Kind.RELEASE:
            verdict = Delivered()  # only what gives a job back becomes void
        if isinstance(verdict, Delivered):
            self.heard.append(entry)
        is_noted = self.do(
            lambda: self.relay._aftermath.keep(job_id, [(queued, verdict)]),
            lambda model: model.judge(entry, verdict),
            about=job_id,
        )
        if is_noted and not isinstance(verdict, Later):
            self.relay._settle(entry, verdict)
            if entry.kind is Kind.COMPLETE and job_id in self.words:
                assert self.words[job_id].accepted == isinstance(verdict, Delivered)
        return is_noted

    @precondition(lambda self: self.accepted())
    @rule(number=numbers)
    def the_runs_of_a_job_are_forgotten(self, number: int) -> None:
        job_id = one_of(self.accepted(), number)
        self.do(lambda: self.runs.finish(job_id), lambda model: model.finish(job_id), about=job_id)

    # What holds at any time.

    def check_all(self) -> None:
        for each in self.invariants:
            each.function(self)

    @invariant()
    def entries_and_jobs_change_together(self) -> None:
        with self.database.transaction() as tx:
            jobs = tx.execute(
                "SELECT job_id, state, began_at, ifnull(ended_at, 0) FROM jobs"
            ).fetchall()
            lines = tx.execute(
                "SELECT job_id, kind, subject, body, attempts, parked FROM outbox ORDER BY id"
            ).fetchall()
        assert set(jobs) == {
            (job_id, job.state, job.began_at, job.ended_at)
            for job_id, job in self.model.jobs.items()
        }
        assert self.runs.running() == tuple(sorted(self.model.with_state(JobState.RUNNING)))
        unfinished = self.model.unfinished()
        assert [job_id for job_id in JOBS if self.runs.has(job_id)] == sorted(unfinished)
        assert [
            (Entry(job_id, Kind(kind), subject, body), attempts, parked)
            for job_id, kind, subject, body, attempts, parked in lines
        ] == [(line.entry, line.attempts, line.parked) for line in self.model.ledger.lines]

    @invariant()
    def results_belong_to_their_job_and_go_with_it(self) -> None:
        expected = {job_id: job.results for job_id, job in self.model.jobs.items() if job.results}
        assert self.results() == expected

    @invariant()
    def an_unfinished_job_has_a_plan_that_opens_and_a_finished_one_has_none(self) -> None:
        with self.database.transaction() as tx:
            plans = dict(tx.execute("SELECT job_id, claim FROM jobs").fetchall())
        opened = {
            job_id: self.seal.open(plan, about=job_id) for job_id, plan in plans.items() if plan
        }
        unfinished = self.model.unfinished()
        assert opened == {job_id: self.model.jobs[job_id].claim for job_id in unfinished}

    @invariant()
    def unfinished_jobs_have_all_that_was_received_and_no_others_have_spools(self) -> None:
        received = {job_id: self.model.jobs[job_id].received for job_id in self.model.unfinished()}
        assert self.spooled() == {job_id: spools for job_id, spools in received.items() if spools}

    @invariant()
    def it_is_known_which_runs_of_unfinished_jobs_have_begun(self) -> None:
        begun = {job_id: self.model.jobs[job_id].begun for job_id in self.model.unfinished()}
        assert self.marked() == {job_id: runs for job_id, runs in begun.items() if runs}

    @invariant()
    def a_result_has_its_output(self) -> None:
        for job_id in self.model.with_state(JobState.RUNNING):
            job = self.model.jobs[job_id]
            backed = {
                execution_id: result
                for execution_id, result in job.results.items()
                if execution_id not in job.lost
            }
            self.check_output(backed, job.received)

    @invariant()
    def how_a_reported_job_ended_is_heard_or_still_to_be_told(self) -> None:
        waiting = [line.entry for line in self.model.ledger.waiting()]
        for job_id in self.model.with_state(JobState.REPORTED):
            assert self.model.jobs[job_id].last in (*waiting, *self.heard)

    @invariant()
    def each_job_is_heard_of_in_order(self) -> None:
        assert in_order_of(self.put, self.heard)


def test_an_outbox_does_as_a_list_would() -> None:
    run_state_machine_as_test(OutboxMachine, settings=settings(MANY, max_examples=80))


def test_a_state_does_as_its_model_and_can_be_cut_off_at_any_moment() -> None:
    run_state_machine_as_test(StateMachine, settings=settings(MANY, max_examples=80))


# Histories that are too rare to wait for.


@contextmanager
def a_history() -> Iterator[StateMachine]:
    """A job that runs, of which one execution has ended."""
    state = StateMachine()
    try:
        state.begin("a", attempt=0)
        state.an_execution_ends(number=0, count=5)
        state.the_api_hears_all_of_a_job(number=0)
        yield state
    finally:
        state.teardown()


def give_back(state: StateMachine) -> None:
    state.a_job_is_parted_from(number=0, kind=Kind.RELEASE)


def end(state: StateMachine) -> None:
    state.a_job_ends(number=0)


def end_and_tell(state: StateMachine) -> None:
    end(state)
    state.the_api_hears_all_of_a_job(number=0)


Step = Callable[[StateMachine], object]

# Each write to such a state, after what comes before it.
WRITES: dict[str, tuple[Step, Step]] = {
    "claim": (give_back, lambda state: state.begin("a", attempt=1)),
    "result": (lambda _: None, lambda state: state.an_execution_ends(number=0, count=3)),
    "end": (lambda _: None, end),
    "failure": (lambda _: None, lambda state: state.a_job_is_parted_from(0, Kind.FAIL)),
    "disowned": (lambda _: None, lambda state: state.a_job_is_parted_from(0, None)),
    "end refused": (end, lambda state: state.tell("a", Parked("no"))),
    "end disowned": (end, lambda state: state.tell("a", Disowned("theirs"))),
    "given back": (give_back, lambda state: state.tell("a", Delivered())),
    "given back, refused": (give_back, lambda state: state.tell("a", Parked("no"))),
    "given back, void": (give_back, lambda state: state.tell("a", Void("cancelled"))),
    "given back, disowned": (give_back, lambda state: state.tell("a", Disowned("theirs"))),
    "reboot": (lambda _: None, lambda state: state.the_machine_goes_down(damage=["cut"] * 4)),
    "forgotten": (end_and_tell, lambda state: state.the_runs_of_a_job_are_forgotten(number=0)),
    "swept": (end_and_tell, lambda state: state.time_passes(span=7 * 24, is_back=False)),
}


@pytest.mark.parametrize("error", [WriteError, KilledError])
@pytest.mark.parametrize("write", WRITES)
def test_each_write_can_be_cut_off_at_each_point(write: str, error: type[BaseException]) -> None:
    before, step = WRITES[write]
    for points in range(5):
        with a_history() as state:
            before(state)

            state.trouble.plan(error, points)
            step(state)

            state.check_all()
            state.start_anew()
            state.check_all()


def test_a_verdict_on_an_entry_that_is_gone_reaches_no_other() -> None:
    database = Database(":memory:", MIGRATIONS)
    outbox = Outbox(database)
    outbox.put([Entry("a", Kind.RUNNING, "e", b"gone")], now=0)
    (queued,) = first_due(outbox, limit=1, now=0)
    outbox.drop_job("a")
    outbox.put([Entry("a", Kind.FAIL, "a", b"here")], now=0)

    outbox.delivered(queued.id)  # it was under way

    assert [queued.entry.body for queued in first_due(outbox, limit=9, now=0)] == [b"here"]
    database.close()
