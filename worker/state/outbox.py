"""What the API must hear, kept until it has."""

from collections.abc import Sequence
from dataclasses import dataclass
from enum import StrEnum

from worker.database import Database


class Kind(StrEnum):
    """What an entry is: the route, and how its delivery is judged (see `worker.verdicts`)."""

    CREATE = "create"
    RUNNING = "running"
    UPDATE = "update"
    COMPLETE = "complete"
    FAIL = "fail"
    RELEASE = "release"


# With one of these the API has heard all that there is to say of a job.
FINAL_KINDS = (Kind.COMPLETE, Kind.FAIL, Kind.RELEASE)

# How long an entry that was given up is there for an operator to see.
PARKED_MS = 30 * 86_400_000
# What is told in one go of one job; each may be as large as a result.
GO_ENTRIES = 16
GO_BYTES = 1024 * 1024
# What is due so far in the future was so under a clock that has been set back.
PATIENCE_MS = 300_000


@dataclass(frozen=True, slots=True)
class Entry:
    """`subject` is the execution's id for rows and the job's id for the rest."""

    job_id: str
    kind: Kind
    subject: str
    body: bytes


@dataclass(frozen=True, slots=True)
class QueuedEntry:
    """An entry with its place in the outbox; `attempts` counts those without success.

    `created_at` is in Unix milliseconds.
    """

    id: int
    entry: Entry
    attempts: int
    created_at: int


@dataclass(frozen=True, slots=True)
class WaitingEntry:
    """An entry as an operator sees it; `parked` is why it will not be tried again."""

    id: int
    job_id: str
    kind: Kind
    subject: str
    size_bytes: int
    attempts: int
    created_at: int
    due_at: int
    parked: str | None


class Outbox:
    def __init__(self, database: Database) -> None:
        self._database = database

    def put(self, entries: Sequence[Entry], *, now: int, rows_due_at: int | None = None) -> None:
        """Keep `entries`, in order; they are on disk with the transaction that this is in.

        A final update replaces an update of the same execution that has not gone out yet. Rows
        may be due later than `now`; once there is a job's end to be told, all of it is due.
        """
        with self._database.transaction() as tx:
            for entry in entries:
                due_at = now
                if entry.kind not in FINAL_KINDS:
                    due_at = now if rows_due_at is None else rows_due_at
                else:
                    tx.execute(
                        """
                        UPDATE outbox SET due_at = ?
                        WHERE job_id = ? AND attempts = 0 AND parked IS NULL
                        """,
                        (now, entry.job_id),
                    )
                if entry.kind is Kind.UPDATE:
                    tx.execute(
                        """
                        DELETE FROM outbox
                        WHERE kind = ? AND subject = ? AND attempts = 0 AND parked IS NULL
                        """,
                        (Kind.RUNNING, entry.subject),
                    )
                tx.execute(
                    """
                    INSERT INTO outbox (job_id, kind, subject, body, created_at, due_at)
                    VALUES (?, ?, ?, ?, ?, ?)
                    """,
                    (entry.job_id, entry.kind, entry.subject, entry.body, now, due_at),
                )

    def due_jobs(self, *, limit: int, now: int) -> list[str]:
        """The jobs whose first entry is due; the longest overdue first."""
        with self._database.transaction() as tx:
            rows = tx.execute(
                """
                SELECT job_id FROM outbox
                WHERE id IN (SELECT min(id) FROM outbox WHERE parked IS NULL GROUP BY job_id)
                  AND (due_at <= ? OR due_at > ?)
                ORDER BY due_at, id LIMIT ?
                """,
                (now, now + PATIENCE_MS, limit),
            ).fetchall()
        return [job_id for (job_id,) in rows]

    def next_of(self, job_id: str, *, now: int) -> list[QueuedEntry]:
        """What may be told of a job in one go, in order, if its first entry is due.

        One that was tried before goes alone, and what ends the job last.
        """
        found: list[QueuedEntry] = []
        size = 0
        with self._database.transaction() as tx:
            rows = tx.execute(
                """
                SELECT due_at, id, job_id, kind, subject, body, attempts, created_at FROM outbox
                WHERE job_id = ? AND parked IS NULL ORDER BY id LIMIT ?
                """,
                (job_id, GO_ENTRIES),
            )
            for due_at, *row in rows:
                queued = _queued(*row)
                size += len(queued.entry.body)
                if not found and now < due_at <= now + PATIENCE_MS:
                    break
                if found and (found[0].attempts or queued.attempts or size > GO_BYTES):
                    break
                found.append(queued)
                if queued.entry.kind in FINAL_KINDS:
                    break
        return found

    def next_due_at(self, *, after: int) -> int | None:
        """When the next job's first entry is due, of those that are not due by `after`."""
        with self._database.transaction() as tx:
            (due_at,) = tx.execute(
                """
                SELECT min(due_at) FROM outbox
                WHERE id IN (SELECT min(id) FROM outbox WHERE parked IS NULL GROUP BY job_id)
                  AND due_at > ?
                """,
                (after,),
            ).fetchone()
        return None if due_at is None else int(due_at)

    def delivered(self, entry_id: int) -> None:
        with self._database.transaction() as tx:
            tx.execute("DELETE FROM outbox WHERE id = ?", (entry_id,))

    def postpone(self, entry_id: int, *, due_at: int) -> None:
        with self._database.transaction() as tx:
            tx.execute(
                "UPDATE outbox SET attempts = attempts + 1, due_at = ? WHERE id = ?",
                (due_at, entry_id),
            )

    def park(self, entry_id: int, reason: str) -> None:
        """Never try that entry again; what follows it in its job goes on."""
        with self._database.transaction() as tx:
            tx.execute("UPDATE outbox SET parked = ? WHERE id = ?", (reason, entry_id))

    def drop_job(self, job_id: str) -> None:
        """Forget what was to be said of a job that is no longer ours."""
        with self._database.transaction() as tx:
            tx.execute("DELETE FROM outbox WHERE job_id = ? AND parked IS NULL", (job_id,))

    def supersede(self, job_id: str) -> bool:
        """Make way for a new claim of that job; whether its end is here already, to be delivered.

        A release of the earlier claim would take the job away from under the new one.
        """
        with self._database.transaction() as tx:
            tx.execute(
                "DELETE FROM outbox WHERE job_id = ? AND kind = ? AND parked IS NULL",
                (job_id, Kind.RELEASE),
            )
            return self.has_last(job_id)

    def has_last(self, job_id: str) -> bool:
        """Whether the job's end is still to be delivered."""
        with self._database.transaction() as tx:
            row = tx.execute(
                "SELECT 1 FROM outbox WHERE job_id = ? AND kind IN (?, ?) AND parked IS NULL",
                (job_id, Kind.COMPLETE, Kind.FAIL),
            ).fetchone()
        return row is not None

    def ending_jobs(self) -> frozenset[str]:
        """The jobs whose end is still to be delivered."""
        with self._database.transaction() as tx:
            rows = tx.execute(
                "SELECT job_id FROM outbox WHERE kind IN (?, ?) AND parked IS NULL",
                (Kind.COMPLETE, Kind.FAIL),
            ).fetchall()
        return frozenset(job_id for (job_id,) in rows)

    def pending_jobs(self) -> tuple[str, ...]:
        """The jobs of which something is still to be delivered."""
        with self._database.transaction() as tx:
            rows = tx.execute(
                "SELECT DISTINCT job_id FROM outbox WHERE parked IS NULL ORDER BY job_id"
            ).fetchall()
        return tuple(job_id for (job_id,) in rows)

    def has_due(self, job_id: str, *, now: int) -> bool:
        """Whether something of the job is to be delivered by `now`."""
        with self._database.transaction() as tx:
            row = tx.execute(
                "SELECT 1 FROM outbox WHERE job_id = ? AND parked IS NULL AND due_at <= ?",
                (job_id, now),
            ).fetchone()
        return row is not None

    def known_jobs(self) -> tuple[str, ...]:
        """The jobs that have an entry, parked ones included."""
        with self._database.transaction() as tx:
            rows = tx.execute("SELECT DISTINCT job_id FROM outbox ORDER BY job_id").fetchall()
        return tuple(job_id for (job_id,) in rows)

    def take_up(self) -> None:
        """What an earlier process was killed over may have been heard of already."""
        with self._database.transaction() as tx:
            tx.execute("UPDATE outbox SET attempts = 1 WHERE attempts = 0 AND parked IS NULL")

    def sweep(self, *, now: int) -> None:
        """Forget what was given up long ago."""
        with self._database.transaction() as tx:
            tx.execute(
                "DELETE FROM outbox WHERE parked IS NOT NULL AND created_at <= ?",
                (now - PARKED_MS,),
            )

    def waiting(self) -> tuple[int, int | None]:
        """How many entries are still to be delivered, and when the oldest of them came."""
        with self._database.transaction() as tx:
            count, oldest = tx.execute(
                "SELECT count(*), min(created_at) FROM outbox WHERE parked IS NULL"
            ).fetchone()
        return count, oldest

    def parked(self) -> list[tuple[str, str, str]]:
        """Job, subject and reason of each entry that was given up."""
        with self._database.transaction() as tx:
            return tx.execute(
                "SELECT job_id, subject, parked FROM outbox WHERE parked IS NOT NULL ORDER BY id"
            ).fetchall()

    def all(self) -> list[WaitingEntry]:
        """Every entry, in the order in which they came."""
        with self._database.transaction() as tx:
            rows = tx.execute(
                """
                SELECT id, job_id, kind, subject, length(body), attempts, created_at, due_at, parked
                FROM outbox ORDER BY id
                """
            ).fetchall()
        return [
            WaitingEntry(entry_id, job_id, Kind(kind), *rest)
            for entry_id, job_id, kind, *rest in rows
        ]

    def retry(self, entry_id: int, *, now: int) -> bool:
        """Have an entry tried as soon as may be, though it was given up; False if it is gone."""
        with self._database.transaction() as tx:
            tried = tx.execute(
                "UPDATE outbox SET parked = NULL, due_at = ? WHERE id = ?", (now, entry_id)
            )
        return tried.rowcount > 0

    def drop(self, entry_id: int) -> bool:
        """Say it never; False if it is gone."""
        with self._database.transaction() as tx:
            return tx.execute("DELETE FROM outbox WHERE id = ?", (entry_id,)).rowcount > 0


def _queued(
    entry_id: int,
    job_id: str,
    kind: str,
    subject: str,
    body: bytes,
    attempts: int,
    created_at: int,
) -> QueuedEntry:
    return QueuedEntry(entry_id, Entry(job_id, Kind(kind), subject, body), attempts, created_at)
