"""The outbox's way to the API: in order per job, until the API has it."""

import contextvars
import math
from collections.abc import AsyncIterator, Callable, Iterator, Sequence
from contextlib import asynccontextmanager, contextmanager
from functools import partial
from typing import NoReturn

import structlog
import trio

from worker.api.client import QueueClient
from worker.clock import now_ms
from worker.database import Database
from worker.delivery import Delivery
from worker.last_words import LastWord, LastWords
from worker.state.outbox import Entry, Kind, Outbox, QueuedEntry
from worker.state.runs import JobState, KeptJob, RunStore
from worker.verdicts import Aftermath, Delivered, Disowned, Later, Verdict, log_verdict

log = structlog.get_logger()

# Deliveries at once; a job's own entries go one after another.
CONCURRENT_DELIVERIES = 16
# No look takes longer, and no delivery: an API that hangs holds up each of its calls for 30 s, and
# that with the largest result for some minutes.
LOOK_SECONDS = 60.0
DELIVERY_SECONDS = 600.0
# A command may have put something back that was given up.
IDLE_SECONDS = 15.0
# How long a row waits for company, where many can go at once.
GATHER_MS = 100


class Relay:
    def __init__(
        self,
        client: QueueClient,
        outbox: Outbox,
        runs: RunStore,
        database: Database,
        *,
        now: Callable[[], int] = now_ms,
    ) -> None:
        self._now = now
        self._delivery = Delivery(client, self._has_runs, now)
        self._aftermath = Aftermath(database, outbox, runs, now)
        self._outbox = outbox
        self._runs = runs
        self._database = database
        self._news = trio.Event()
        self._in_flight: set[str] = set()
        # Of these, jobs that are just being started: they do not count as deliveries.
        self._held: set[str] = set()
        # Of those in flight, jobs that were dropped: nothing more is sent of them.
        self._dropped: set[str] = set()
        self._waiting: dict[str, trio.Event] = {}
        self.last_words = LastWords()
        # Gives the action that lets go of a job's present flight. It is done where a delivery finds
        # that the job is another worker's, before the state forgets the job.
        self.letting_go: Callable[[str], Callable[[], object]] = lambda _job_id: lambda: None
        # The token of the claim under which a job is ours, where the queue gives one.
        self.claim_of: Callable[[str], str | None] = lambda _job_id: None
        self._deliveries: trio.Nursery | None = None
        self._context = contextvars.copy_context()
        # While nothing is to be looked for; `_rests_until` is in Unix milliseconds.
        self._rest: trio.CancelScope | None = None
        self._rests_until = math.inf
        # Whether something was due and not taken: its job was in flight, or no place was free.
        self._is_behind = True
        # By when the deliveries mean to have come round, by the loop's clock.
        self.due_at = math.inf

    async def put(self, *entries: Entry, also: Callable[[], object] | None = None) -> None:
        """Keep `entries` until the API has them; they are on disk when this returns.

        `also` writes to the state in the same transaction, off the loop.
        """
        await self.put_made(lambda: entries, also=also)

    async def put_made(
        self, make: Callable[[], Sequence[Entry]], *, also: Callable[[], object] | None = None
    ) -> None:
        """As `put`, of what `make` returns off the loop: much output takes a while to be read."""
        await self._put(make, also, self._now())

    async def put_rows(
        self,
        job_id: str,
        make: Callable[[], Sequence[Entry]],
        *,
        also: Callable[[], object] | None = None,
    ) -> None:
        """As `put_made`, for what is said of executions: where more can go by the same call, it
        waits a moment for others of its job."""
        waits = self.claim_of(job_id) is not None
        due_at = self._now() + (GATHER_MS if waits else 0)
        await self._put(make, also, due_at)

    async def _put(
        self,
        make: Callable[[], Sequence[Entry]],
        also: Callable[[], object] | None,
        rows_due_at: int,
    ) -> None:
        # What is due of these is read when their delivery is over.
        in_flight = frozenset(self._in_flight)

        def keep() -> dict[str, list[QueuedEntry]]:
            entries = make()
            jobs = dict.fromkeys(entry.job_id for entry in entries)
            with self._database.transaction():
                self._outbox.put(entries, now=self._now(), rows_due_at=rows_due_at)
                if also is not None:
                    also()
                return {
                    job: [] if job in in_flight else self._outbox.next_of(job, now=self._now())
                    for job in jobs
                }

        for job_id, go in (await self._database.run(keep)).items():
            if go:
                self._take(job_id, go)
            else:
                self._wake_by(rows_due_at)

    async def put_last(
        self, job_id: str, make: Callable[[], Sequence[Entry]], *, also: Callable[[], object]
    ) -> LastWord:
        """As `put_made`; the last entry ends the job, and its fate matters to the caller."""
        word = LastWord()
        self.last_words.add(job_id, word)
        try:
            await self.put_made(make, also=also)
        except BaseException:
            # Nobody waits for what is not there, and no worker is to be held up by it.
            self.last_words.discard(job_id, word)
            raise
        word.is_kept = True
        return word

    async def take_up(self) -> list[tuple[KeptJob, LastWord | None]]:
        """The jobs that an earlier worker left unfinished; to be called before `run`.

        Those that were reported come with what becomes of that; the others are not given back
        to the queue any more.
        """
        kept, undelivered = await self._database.run(self._take_up)
        reported = [job.job_id for job in kept if job.state is JobState.REPORTED]
        words = {job_id: LastWord(is_kept=True) for job_id in reported}
        for job_id, word in words.items():
            if job_id in undelivered:
                self.last_words.add(job_id, word)
            else:  # had it not been accepted, the job would not be known any more
                word.say(accepted=True)
        return [(job, words.get(job.job_id)) for job in kept]

    def _take_up(self) -> tuple[list[KeptJob], set[str]]:
        with self._database.transaction():
            self._outbox.take_up()
            kept = self._runs.take_up()
            return kept, {job.job_id for job in kept if self._outbox.supersede(job.job_id)}

    @asynccontextmanager
    async def held(self, job_id: str) -> AsyncIterator[None]:
        """Nothing is being said of that job meanwhile."""
        while job_id in self._in_flight:
            await self._waiting.setdefault(job_id, trio.Event()).wait()
        self._in_flight.add(job_id)
        self._held.add(job_id)
        with self._lane(job_id):
            try:
                yield
            finally:
                self._held.discard(job_id)

    async def supersede(self, job_id: str, *, begin: Callable[[], object] | None = None) -> bool:
        """Make way for a new claim; whether the job's end is in the outbox already.

        If it is not, `begin` writes to the state in the same transaction. To be called while the
        job is `held`.
        """

        def make_way() -> bool:
            with self._database.transaction():
                has_last = self._outbox.supersede(job_id)
                if begin is not None and not has_last:
                    begin()
                return has_last

        return await self._database.run(make_way)

    async def drop(self, job_id: str) -> None:
        """Say nothing more of a job that is not ours, and know nothing of it."""
        self.last_words.discard(job_id)
        if job_id in self._in_flight:
            self._dropped.add(job_id)
        await self._database.run(partial(self._aftermath.drop, job_id))

    async def wait_said(self, job_id: str) -> None:
        """Until nothing is left to say of that job."""
        while True:
            # Asked for before the look: that may be old when it is told.
            over = self._waiting.setdefault(job_id, trio.Event())
            if job_id not in await self._database.run(self._outbox.pending_jobs):
                break
            await over.wait()
        if self._waiting.get(job_id) is over:
            del self._waiting[job_id]
            over.set()  # for others, who look again

    async def wait_empty(self) -> None:
        for job_id in await self._database.run(self._outbox.pending_jobs):
            await self.wait_said(job_id)

    async def is_done(self) -> bool:
        """Whether nothing is left to be said or done by the next worker on this state."""
        return not await self._database.run(self._runs.running)

    async def known_jobs(self) -> tuple[str, ...]:
        """The jobs of which something is kept, though it may be given up."""
        return await self._database.run(self._outbox.known_jobs)

    async def pending_jobs(self) -> tuple[str, ...]:
        return await self._database.run(self._outbox.pending_jobs)

    async def run(self) -> NoReturn:
        """Deliver what is due, and go on; what fails for a passing reason is tried for ever."""
        self._context = contextvars.copy_context()
        async with trio.open_nursery() as nursery:
            self._deliveries = nursery
            try:
                while True:
                    self.due_at = trio.current_time() + LOOK_SECONDS
                    self._news, self._is_behind = trio.Event(), False
                    look = partial(self._look, frozenset(self._in_flight), self._now())
                    words = self.last_words.kept(but=self._in_flight)
                    goes, next_due_at, ending = await self._database.run(look)
                    for job_id, go in goes.items():
                        self._take(job_id, go)
                    unsaid = words.keys() - ending - self._in_flight
                    self.last_words.leave((job_id, words[job_id]) for job_id in unsaid)
                    await self._wait_for_work(next_due_at)
            finally:
                self._deliveries = None

    def _look(
        self, in_flight: frozenset[str], now: int
    ) -> tuple[dict[str, list[QueuedEntry]], int | None, frozenset[str]]:
        """What is due, by job, empty for jobs in flight; when the next entry falls due; and the
        jobs whose end is still to be delivered."""
        with self._database.transaction():
            jobs = self._outbox.due_jobs(limit=CONCURRENT_DELIVERIES + 1, now=now)
            goes = {
                job_id: [] if job_id in in_flight else self._outbox.next_of(job_id, now=now)
                for job_id in jobs
            }
            return goes, self._outbox.next_due_at(after=now), self._outbox.ending_jobs()

    def _take(self, job_id: str, go: list[QueuedEntry]) -> None:
        """Have what is due of a job delivered, unless that has to wait for a delivery."""
        has_room = len(self._in_flight) - len(self._held) < CONCURRENT_DELIVERIES
        if go and has_room and job_id not in self._in_flight and self._deliveries is not None:
            self._in_flight.add(job_id)
            # Not in that of whoever put it, whose log it is not.
            self._context.copy().run(self._deliveries.start_soon, self._deliver, job_id, go)
        elif go or job_id in self._in_flight:
            self._is_behind = True
        else:
            self._news.set()  # its delivery has ended since the look began

    async def _wait_for_work(self, due_at: int | None) -> None:
        """Until something is due that was not when the outbox was looked at, or there is news.

        What is put is taken at once; what has to wait for a delivery is looked for at its end.
        """
        seconds = math.inf if due_at is None else (due_at - self._now()) / 1000
        self.due_at = trio.current_time() + DELIVERY_SECONDS if self._in_flight else math.inf
        seconds = min(max(0, seconds), IDLE_SECONDS)
        self._rests_until = self._now() + seconds * 1000
        with trio.move_on_after(seconds) as self._rest:
            await self._news.wait()
        self._rest = None

    def _wake_by(self, due_at: int) -> None:
        """Look at the outbox by then."""
        if self._rest is None:
            self._news.set()
        elif due_at < self._rests_until:
            self._rests_until = due_at
            seconds = max(0, (due_at - self._now()) / 1000)
            self._rest.deadline = min(self._rest.deadline, trio.current_time() + seconds)

    async def say_live(self, job_id: str, execution_id: str, body: bytes) -> bool:
        """Send a row an update that is not kept; whether the API took it.

        Nothing is sent while kept entries of the job are due or on their way, so the order holds.
        """
        has_due = partial(self._outbox.has_due, job_id, now=self._now())
        if await self._database.run(has_due) or job_id in self._in_flight:
            return False
        self._in_flight.add(job_id)
        with self._lane(job_id):
            claim = self.claim_of(job_id)
            return await self._delivery.say_live(job_id, execution_id, body, claim)

    async def _deliver(self, job_id: str, go: list[QueuedEntry]) -> None:
        """Tell of a job for as long as there is something."""
        with self._lane(job_id):
            while go and job_id not in self._dropped:
                # While it is told of, the job may be claimed anew: that is none of this.
                let_go = self.letting_go(job_id)
                told = await self._tell(go)
                self.last_words.note_tried(job_id)
                if any(isinstance(verdict, Disowned) for _, verdict in told):
                    let_go()
                go = await self._record(job_id, told)
                for queued, verdict in told:
                    # What follows one that had to wait may have to wait longer, and was not
                    # looked for behind it.
                    if isinstance(verdict, Later) or queued.attempts:
                        self._is_behind = True
                    if not isinstance(verdict, Later):
                        self._settle(queued.entry, verdict)

    async def _tell(self, go: Sequence[QueuedEntry]) -> list[tuple[QueuedEntry, Verdict]]:
        """All at once where that can be, else one after another, until one must wait or the job is
        found to be another's."""
        claim = self.claim_of(go[0].entry.job_id)
        if claim is not None and not go[0].attempts:
            told = await self._delivery.attempt_together(go, claim)
            if told:
                return told
        told = []
        for queued in go:
            if queued.entry.job_id in self._dropped:
                break
            verdict = await self._delivery.attempt(queued, claim)
            self.due_at = trio.current_time() + DELIVERY_SECONDS  # for the next one
            told.append((queued, verdict))
            if isinstance(verdict, Later | Disowned):
                break
        return told

    @contextmanager
    def _lane(self, job_id: str) -> Iterator[None]:
        """Around what is told of a job that is in flight: one thing after the other."""
        try:
            yield
        finally:
            self._in_flight.discard(job_id)
            self._dropped.discard(job_id)
            if self._is_behind:
                self._news.set()
            waiting = self._waiting.pop(job_id, None)
            if waiting is not None:
                waiting.set()

    def _settle(self, entry: Entry, verdict: Verdict) -> None:
        # A release that is still on its way when the job is claimed anew is not its last word.
        if entry.kind is Kind.COMPLETE or isinstance(verdict, Disowned):
            self.last_words.say(entry.job_id, accepted=isinstance(verdict, Delivered))

    async def _has_runs(self, job_id: str) -> bool:
        return await self._database.run(partial(self._runs.has, job_id))

    async def _record(
        self, job_id: str, told: Sequence[tuple[QueuedEntry, Verdict]]
    ) -> list[QueuedEntry]:
        """Keep what has become of a job's entries; what is to be told of it next."""
        following = await self._database.run(partial(self._aftermath.keep, job_id, told))
        for queued, verdict in told:
            log_verdict(queued.entry, verdict)
        return following
