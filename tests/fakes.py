"""The outside of the worker for tests on virtual time: no socket, no thread."""

import json
from collections import defaultdict, deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, cast

import msgspec
import trio

from worker.api import wire
from worker.api.client import Claim, QueueClient
from worker.database import Database
from worker.errors import QueueRefusedError, QueueUnavailableError
from worker.relay import Relay
from worker.state.directory import BEGUN, MIGRATIONS, SPOOLS
from worker.state.marks import Marks
from worker.state.outbox import Outbox
from worker.state.runs import RunStore
from worker.state.seal import StateSeal
from worker.state.spool import Spools

NO_ANSWER = QueueUnavailableError("the queue API cannot be reached")
FAULT = QueueUnavailableError("the queue API answered 500", 500)
BUSY = QueueUnavailableError("the queue API answered 503", 503)


def refused(status: int) -> QueueRefusedError:
    return QueueRefusedError(status, "no")


@dataclass(frozen=True, slots=True)
class Lost:
    """The call takes effect, its answer does not come."""


@dataclass(frozen=True, slots=True)
class Slow:
    """The call takes so long, then succeeds."""

    seconds: float


Fault = Exception | Lost | Slow


@dataclass(frozen=True, slots=True)
class Call:
    at: float
    method: str
    subject: str
    body: Any = field(repr=False)


@dataclass(slots=True)
class FakeQueue:
    """The app's rules as recorded: a row is made once, with servers that exist; a job has no
    guard, but where it has one of `tokens`; polls are answered from `claims`, and held for 25 s
    when there is none."""

    long_polls: bool = True
    servers: frozenset[str] = frozenset("123456789")
    claims: deque[Sequence[wire.JobBody | wire.BadJob] | Exception] = field(default_factory=deque)
    polls: list[tuple[float, int]] = field(default_factory=list)
    statuses: dict[str, str] = field(default_factory=lambda: defaultdict(lambda: "claimed"))
    results: dict[str, Any] = field(default_factory=dict)
    rows: dict[str, list[str]] = field(default_factory=dict)
    tokens: dict[str, str] = field(default_factory=dict)
    completions: list[tuple[str, str]] = field(default_factory=list)
    calls: list[Call] = field(default_factory=list)
    orphans: list[str] = field(default_factory=list)
    polling: int = 0
    most_polling: int = 0
    _faults: dict[tuple[str, str], deque[Fault]] = field(default_factory=dict)
    _news: trio.Event = field(default_factory=trio.Event)

    @property
    def client(self) -> QueueClient:
        return cast("QueueClient", self)

    def offer(self, *jobs: wire.JobBody | wire.BadJob) -> None:
        self.claims.append(jobs)
        self._news.set()

    def fault(self, method: str, subject: str, *faults: Fault) -> None:
        """What happens to the next such calls, one after another."""
        self._faults.setdefault((method, subject), deque()).extend(faults)

    def said(self, *methods: str) -> list[tuple[str, str]]:
        """Method and subject of each call, of these methods if any are given."""
        return [(c.method, c.subject) for c in self.calls if not methods or c.method in methods]

    def times(self, method: str, subject: str) -> list[float]:
        return [c.at for c in self.calls if (c.method, c.subject) == (method, subject)]

    async def claim(self, count: int) -> Claim:
        self.polls.append((trio.current_time(), count))
        self.polling += 1
        self.most_polling = max(self.most_polling, self.polling)
        try:
            await trio.lowlevel.checkpoint()
            if not self.claims and self.long_polls:
                with trio.move_on_after(25):
                    self._news = trio.Event()
                    await self._news.wait()
        finally:
            self.polling -= 1
        answer = self.claims.popleft() if self.claims else ()
        if isinstance(answer, Exception):
            raise answer
        return Claim(tuple(answer), self.long_polls)

    async def orphaned(self) -> tuple[str, ...]:
        await trio.lowlevel.checkpoint()
        return tuple(self.orphans)

    async def read_job(self, job_id: str) -> wire.JobRowBody:
        await self._call("read", job_id, None, lambda: None)
        if self.statuses[job_id] == "another's":
            raise refused(403)
        return wire.JobRowBody(
            id=job_id, status=self.statuses[job_id], result=self.results.get(job_id)
        )

    async def report_running(
        self, job_id: str, *, claim: str | None = None, rows: Iterable[wire.RowBody] = ()
    ) -> wire.JobRowBody:
        def start() -> None:
            self._put_rows(job_id, rows, claim)
            if claim is None or self.statuses[job_id] == "claimed":
                self._end(job_id, "running", None)

        await self._call("status", job_id, None, start)
        return wire.JobRowBody(id=job_id, status=self.statuses[job_id])

    async def put_rows(self, job_id: str, rows: Sequence[wire.RowBody], *, claim: str) -> None:
        await self._call("rows", job_id, rows, lambda: self._put_rows(job_id, rows, claim))

    async def create_execution(self, execution_id: str, body: bytes) -> None:
        told = json.loads(body)

        def create() -> None:
            if execution_id in self.rows or told.get("serverId", "1") not in self.servers:
                raise FAULT
            self.rows[execution_id] = ["queued"]

        await self._call("create", execution_id, told, create)

    async def update_execution(self, execution_id: str, body: bytes) -> None:
        told = json.loads(body)

        def update() -> None:
            if execution_id not in self.rows:
                raise refused(404)
            self.rows[execution_id].append(told["status"])

        await self._call("update", execution_id, told, update)

    async def complete(self, job_id: str, body: bytes, *, claim: str | None = None) -> None:
        told = json.loads(body)

        def complete() -> None:
            self._put_rows(job_id, _rows_in(body), claim)
            self.completions.append((job_id, told["status"]))
            self._end(job_id, told["status"], told)

        await self._call("complete", job_id, told, complete)

    async def fail(self, job_id: str, body: bytes, *, claim: str | None = None) -> None:
        told = json.loads(body)

        def fail() -> None:
            self._put_rows(job_id, _rows_in(body), claim)
            self._end(job_id, "failed", told)

        await self._call("fail", job_id, told, fail)

    async def release(self, job_id: str, body: bytes) -> None:
        told = json.loads(body)
        await self._call("release", job_id, told, lambda: self._end(job_id, "queued", None))

    def _put_rows(self, job_id: str, rows: Iterable[wire.RowBody], claim: str | None) -> None:
        if claim is not None and claim != self.tokens.get(job_id):
            raise refused(403)
        for row in rows:
            if row.create:
                self.rows.setdefault(row.id, ["queued"])
            if row.update:
                self.rows[row.id].append(json.loads(bytes(row.update))["status"])

    def _end(self, job_id: str, status: str, result: object) -> None:
        self.statuses[job_id] = status
        self.results[job_id] = result

    async def _call(
        self, method: str, subject: str, body: object, effect: Callable[[], None]
    ) -> None:
        self.calls.append(Call(trio.current_time(), method, subject, body))
        await trio.lowlevel.checkpoint()
        faults = self._faults.get((method, subject))
        fault = faults.popleft() if faults else None
        if isinstance(fault, Slow):
            await trio.sleep(fault.seconds)
        elif isinstance(fault, Exception):
            raise fault
        effect()
        if isinstance(fault, Lost):
            raise NO_ANSWER


@dataclass(frozen=True, slots=True)
class Rig:
    queue: FakeQueue
    relay: Relay
    outbox: Outbox
    runs: RunStore
    database: Database

    def parked(self) -> list[tuple[str, str]]:
        return [(job_id, subject) for job_id, subject, _ in self.outbox.parked()]


@contextmanager
def relay_rig() -> Iterator[Rig]:
    """A relay over a database in memory, by the virtual clock."""
    database = Database(":memory:", MIGRATIONS, inline=True)
    queue = FakeQueue()
    outbox = Outbox(database)
    with TemporaryDirectory() as folder:
        spools, marks = Spools(Path(folder, SPOOLS)), Marks(Path(folder, BEGUN))
        runs = RunStore(database, StateSeal(bytes(32)), spools, marks, boot="one")
        now = lambda: round(trio.current_time() * 1000)  # noqa: E731  shorter so
        relay = Relay(queue.client, outbox, runs, database, now=now)
        try:
            yield Rig(queue, relay, outbox, runs, database)
        finally:
            database.close()


class _Ended(msgspec.Struct):
    executions: tuple[wire.RowBody, ...] = ()


def _rows_in(body: bytes) -> tuple[wire.RowBody, ...]:
    return msgspec.json.decode(body, type=_Ended).executions


def in_order(wanted: Iterable[object], found: Iterable[object]) -> bool:
    """Whether all of `wanted` are in `found`, in their order."""
    rest = iter(found)
    return all(each in rest for each in wanted)
