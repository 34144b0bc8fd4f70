"""Entries on their way to the API, and what becomes of them."""

from collections.abc import Awaitable, Callable, Sequence

import trio
from msgspec import Raw

from worker.amended import as_cancelled, shortened
from worker.api import wire
from worker.api.client import QueueClient
from worker.errors import ProtocolError, QueueRefusedError, QueueUnavailableError
from worker.report import cancelled_entry, row_of
from worker.state.outbox import FINAL_KINDS, Entry, Kind, QueuedEntry
from worker.verdicts import Delivered, Disowned, Later, Parked, Verdict, Void, judge, later

# A row that cannot be told so often, while the API answers what is asked before it, is given up:
# rows are best effort and never block `complete`.
ROW_ATTEMPTS = 4
# In six minutes or so, by the outbox's pauses; what the API says it does not have may be a route
# that is away.
MISSING_ATTEMPTS = 20
# An entry that is older may be of a job that is another's by now; a lease is longer.
FRESH_MS = 10_000


class Delivery:
    """How an entry is told; it changes nothing here.

    `has_runs` says whether the state knows of runs of a job, `now` is in Unix milliseconds.
    """

    def __init__(
        self,
        client: QueueClient,
        has_runs: Callable[[str], Awaitable[bool]],
        now: Callable[[], int],
    ) -> None:
        self._client = client
        self._has_runs = has_runs
        self._now = now
        # How often a row could not be told, or its job was not there, by its entry: failures of an
        # outage are none of these.
        self._faults: dict[tuple[int, int], int] = {}

    async def attempt(self, queued: QueuedEntry, claim: str | None) -> Verdict:
        try:
            if queued.entry.kind in FINAL_KINDS:
                return await self._say_last(queued, claim)
            return await self._say_row(queued)
        except (QueueRefusedError, QueueUnavailableError, ProtocolError) as error:
            is_guarded = claim is not None and queued.entry.kind is not Kind.RELEASE
            return judge(queued.entry, error, is_guarded=is_guarded)

    async def attempt_together(
        self, go: Sequence[QueuedEntry], claim: str
    ) -> list[tuple[QueuedEntry, Verdict]]:
        """All of a job's entries by one call, which takes effect as a whole and only if the job is
        ours; empty if they are to be told one by one, for that says which is at fault."""
        rows = [row_of(queued.entry) for queued in go if queued.entry.kind not in FINAL_KINDS]
        last = go[-1].entry
        try:
            match last.kind:
                case Kind.RELEASE:
                    return []
                case Kind.COMPLETE:
                    body = wire.with_rows(last.body, rows)
                    await self._client.complete(last.job_id, body, claim=claim)
                case Kind.FAIL:
                    body = wire.with_rows(last.body, rows)
                    await self._client.fail(last.job_id, body, claim=claim)
                case _:
                    await self._client.put_rows(last.job_id, rows, claim=claim)
        except QueueRefusedError as error:
            return [(go[0], Disowned(str(error)))] if error.status == 403 else []
        except (QueueUnavailableError, ProtocolError) as error:
            # Any of them may have been heard of.
            return [(queued, later(error)) for queued in go]
        return [(queued, Delivered()) for queued in go]

    async def say_live(
        self, job_id: str, execution_id: str, body: bytes, claim: str | None
    ) -> bool:
        """Whether a row heard what it will hear again."""
        try:
            if claim is None:
                await self._client.update_execution(execution_id, body)
            else:
                row = wire.RowBody(id=execution_id, update=Raw(body))
                await self._client.put_rows(job_id, [row], claim=claim)
        except (QueueRefusedError, QueueUnavailableError, ProtocolError):
            return False
        return True

    async def _say_row(self, queued: QueuedEntry) -> Verdict:
        """Rows never block the job's end: one that fails time and again while the API answers
        other calls is given up.

        One that waited may be of a job that is another worker's by now, whose row it would
        overwrite: the app has no guard of its own.
        """
        waited = queued.attempts > 0 or self._now() - queued.created_at > FRESH_MS
        row = (queued.id, queued.created_at)
        try:
            if waited and not await self._is_ours(queued.entry.job_id):
                self._faults.pop(row, None)
                return Disowned("the job is another worker's")
        except (QueueUnavailableError, ProtocolError) as error:
            return later(error)
        faults = self._faults.pop(row, 0) + 1
        try:
            verdict = await self._send_row(queued.entry)
        except (QueueUnavailableError, ProtocolError) as error:
            verdict = judge(queued.entry, error)
        if not isinstance(verdict, Later):
            return verdict
        if faults >= ROW_ATTEMPTS:
            return Parked(verdict.reason)
        self._faults[row] = faults
        return verdict

    async def _is_ours(self, job_id: str) -> bool:
        try:
            await self._client.read_job(job_id)
        except QueueRefusedError as error:
            return error.status != 403
        return True

    async def _send_row(self, entry: Entry) -> Verdict:
        try:
            await self._send(entry)
        except QueueRefusedError as error:
            if error.status != 404 or entry.kind is Kind.CREATE:
                raise
            # The row is not there: the app refuses a create with a server that it does not have.
            body = wire.encode(wire.CreateExecutionBody(job_id=entry.job_id))
            await self._client.create_execution(entry.subject, body)
            await self._send(entry)
        return Delivered()

    async def _say_last(self, queued: QueuedEntry, claim: str | None) -> Verdict:
        """Say how a job ended, after a look at whose it is: the app has no guard of its own.

        So a `complete` whose answer was lost is not sent twice, which would fire the event's
        follow-up actions again.
        """
        entry = queued.entry
        key = (queued.id, queued.created_at)
        missing = self._faults.pop(key, 0) + 1
        try:
            job = await self._client.read_job(entry.job_id)
        except QueueRefusedError as error:
            match error.status:
                case 403:
                    return Disowned(str(error))
                case 404 if missing >= MISSING_ATTEMPTS:
                    return Parked(str(error))
                case 404:
                    self._faults[key] = missing
            # Anything else says nothing of whose the job is.
            return Later(str(error))
        # A cancelled job has a result only once it was completed as such.
        if job.status in wire.FINAL_STATUSES or (
            job.status == "cancelled" and job.result is not None
        ):
            said = queued.attempts > 0  # by an earlier attempt whose answer was lost
            return Delivered() if said else Disowned(f"the job is {job.status}")
        if job.status == "cancelled":
            if entry.kind is Kind.FAIL:
                return Disowned("the job is cancelled")
            if entry.kind is Kind.COMPLETE:
                entry = as_cancelled(entry)
            elif await self._has_runs(entry.job_id):
                # A release would queue it again; its runs are ended at the next start.
                return Void("the job is cancelled")
            else:
                entry = cancelled_entry(entry.job_id, "it was given back", self._now())
        await self._send_shortened(entry, claim)
        return Delivered()

    async def _send_shortened(self, entry: Entry, claim: str | None) -> None:
        """A result that something on the way finds too large is sent with less output."""
        while True:
            await trio.lowlevel.checkpoint()
            try:
                return await self._send(entry, claim)
            except QueueRefusedError as error:
                shorter = shortened(entry) if error.status == 413 else None
                if shorter is None:
                    raise
                entry = shorter

    async def _send(self, entry: Entry, claim: str | None = None) -> None:
        match entry.kind:
            case Kind.CREATE:
                await self._client.create_execution(entry.subject, entry.body)
            case Kind.RUNNING | Kind.UPDATE:
                await self._client.update_execution(entry.subject, entry.body)
            case Kind.COMPLETE:
                await self._client.complete(entry.subject, entry.body, claim=claim)
            case Kind.FAIL:
                await self._client.fail(entry.subject, entry.body, claim=claim)
            case Kind.RELEASE:
                await self._client.release(entry.subject, entry.body)
