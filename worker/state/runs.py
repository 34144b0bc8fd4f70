"""Jobs whose runs are to be followed or forgotten, for a worker that starts anew."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from enum import StrEnum
from functools import partial

import msgspec

from worker.database import Database
from worker.secret import Secret
from worker.state.history import NOT_TOLD, Begun, History, JobEnd, KeptOutput
from worker.state.marks import Marks
from worker.state.seal import StateSeal
from worker.state.spool import Spool, Spools

DAY_MS = 86_400_000
# How long the state tells what became of a job, and of how many.
KEPT_MS = 7 * DAY_MS
KEPT_JOBS = 10_000

_texts = msgspec.json.Decoder(list[str])


class JobState(StrEnum):
    """`running`: its runs are to be followed; `reported`: they are to be forgotten once the API
    has the job's end; `finished`: nothing is left to do."""

    RUNNING = "running"
    REPORTED = "reported"
    FINISHED = "finished"


@dataclass(frozen=True, slots=True)
class KeptJob:
    """`results` has what is known of ended executions, as JSON, by their ids, and `sealed_masks`
    what their scripts have added to what is masked."""

    job_id: str
    state: JobState
    began_at: int
    sealed_claim: bytes = field(repr=False)
    results: Mapping[str, bytes] = field(repr=False)
    sealed_masks: Mapping[str, bytes] = field(repr=False)


class RunStore:
    """`boot` names the machine's present boot."""

    def __init__(
        self, database: Database, seal: StateSeal, spools: Spools, marks: Marks, *, boot: str
    ) -> None:
        self._database = database
        self._seal = seal
        self._spools = spools
        self._marks = marks
        self._boot = boot
        self._history = History(database)

    def spool(self, job_id: str, execution_id: str, stream: str, *, limit: int) -> Spool:
        """What was received of one stream of a run; it goes with the job."""
        return self._spools.spool(job_id, execution_id, stream, limit=limit)

    def mark_begun(self, job_id: str, execution_id: str) -> None:
        """Mark that a run has begun; it goes with the job. Raises OSError for want of room."""
        self._marks.add(job_id, execution_id)

    def has_begun(self, job_id: str, execution_id: str) -> bool:
        """Whether that is known of a run, perhaps from an earlier worker."""
        return self._marks.has(job_id, execution_id)

    def begin(self, job_id: str, claim: bytes, *, now: int, begun: Begun = NOT_TOLD) -> None:
        """Keep a claimed job; whatever the state had of an earlier claim of it is gone."""
        sealed = self._seal.seal(claim, about=job_id)
        servers = msgspec.json.encode(begun.servers).decode()
        with self._database.transaction() as tx:
            tx.execute("DELETE FROM jobs WHERE job_id = ?", (job_id,))
            tx.execute(
                """
                INSERT INTO jobs (job_id, state, claim, boot, began_at, event, servers)
                VALUES (?, ?, ?, ?, ?, ?, ?)
                """,
                (job_id, JobState.RUNNING, sealed, self._boot, now, begun.event, servers),
            )
            self._remove_files(job_id)

    def keep_masks(self, job_id: str, execution_id: str, masks: Sequence[Secret]) -> None:
        """Keep all that an execution's script has added to what is masked; nothing if its job has
        been dropped meanwhile."""
        content = msgspec.json.encode([mask.reveal() for mask in masks])
        sealed = self._seal.seal(content, about=execution_id)
        with self._database.transaction() as tx:
            tx.execute(
                """
                INSERT OR REPLACE INTO masks (execution_id, job_id, masks)
                SELECT ?, job_id, ? FROM jobs WHERE job_id = ?
                """,
                (execution_id, sealed, job_id),
            )

    def ended(
        self,
        job_id: str,
        execution_id: str,
        result: bytes,
        *,
        has_run: bool = True,
        output: KeptOutput | None = None,
        now: int = 0,
    ) -> None:
        """Keep how an execution ended; nothing if its job has been dropped meanwhile.

        The result of one that `has_run` is of no use without its spools.
        """
        with self._database.transaction() as tx:
            tx.execute(
                """
                INSERT OR REPLACE INTO executions (execution_id, job_id, result, has_run)
                SELECT ?, job_id, ?, ? FROM jobs WHERE job_id = ?
                """,
                (execution_id, result, has_run, job_id),
            )
            if output is not None:
                self._history.keep_output(execution_id, output, now=now)

    def reported(self, job_id: str, *, now: int, end: JobEnd | None = None) -> None:
        """The job's end is in the outbox; to be called in the transaction that puts it there."""
        with self._database.transaction() as tx:
            tx.execute(
                """
                UPDATE jobs SET state = ?, ended_at = ?, status = ?, exit_code = ?, message = ?
                WHERE job_id = ?
                """,
                (JobState.REPORTED, now, *_end(end), job_id),
            )

    def failed(self, job_id: str, fault: str, *, now: int) -> None:
        """Nothing is left to do for a job that could not be run; why is told for a while."""
        with self._database.transaction() as tx:
            self.drop(job_id)
            tx.execute(
                """
                INSERT INTO jobs
                    (job_id, state, boot, began_at, ended_at, status, exit_code, message)
                VALUES (?, ?, ?, ?, ?, ?, ?, ?)
                """,
                (
                    job_id,
                    JobState.FINISHED,
                    self._boot,
                    now,
                    now,
                    *_end(JobEnd("failed", 1, fault)),
                ),
            )

    def finish(self, job_id: str) -> None:
        """The API has the job's end and its runs are forgotten: its plan and files go too."""
        with self._database.transaction() as tx:
            finished = tx.execute(
                "UPDATE jobs SET state = ?, claim = NULL WHERE job_id = ? AND state = ?",
                (JobState.FINISHED, job_id, JobState.REPORTED),
            )
            if finished.rowcount:
                tx.execute("DELETE FROM masks WHERE job_id = ?", (job_id,))
                self._remove_files(job_id)

    def drop(self, job_id: str) -> None:
        """Know nothing of that job any more: it is another's, or its runs are left alone."""
        with self._database.transaction() as tx:
            tx.execute("DELETE FROM jobs WHERE job_id = ?", (job_id,))
            self._remove_files(job_id)

    def take_up(self) -> list[KeptJob]:
        """The jobs that are not finished, the oldest first; theirs are the only spools then.

        Spools are not synced: of runs that were followed before the machine went down, all is to
        be had from the servers once more.
        """
        with self._database.transaction() as tx:
            tx.execute(
                """
                DELETE FROM executions WHERE has_run AND job_id IN (
                    SELECT job_id FROM jobs WHERE state = ? AND boot != ?
                )
                """,
                (JobState.RUNNING, self._boot),
            )
            rows = tx.execute(
                "SELECT job_id FROM jobs WHERE state != ? AND boot = ?",
                (JobState.FINISHED, self._boot),
            ).fetchall()
            whole = [job_id for (job_id,) in rows]
            # Before the new boot is noted: half-written ones must not pass for whole.
            self._spools.remove_all_but(whole)
            self._marks.remove_all_but(whole)
            tx.execute("UPDATE jobs SET boot = ? WHERE state != ?", (self._boot, JobState.FINISHED))
            rows = tx.execute(
                """
                SELECT job_id, state, began_at, claim FROM jobs
                WHERE state != ? ORDER BY began_at, job_id
                """,
                (JobState.FINISHED,),
            ).fetchall()
            return [
                KeptJob(
                    job_id,
                    JobState(state),
                    began_at,
                    claim,
                    self._by_execution("SELECT execution_id, result FROM executions", job_id),
                    self._by_execution("SELECT execution_id, masks FROM masks", job_id),
                )
                for job_id, state, began_at, claim in rows
            ]

    def _by_execution(self, select: str, job_id: str) -> dict[str, bytes]:
        with self._database.transaction() as tx:
            return dict(tx.execute(f"{select} WHERE job_id = ?", (job_id,)).fetchall())

    def has(self, job_id: str) -> bool:
        """Whether that job has runs to be followed or forgotten."""
        with self._database.transaction() as tx:
            row = tx.execute(
                "SELECT 1 FROM jobs WHERE job_id = ? AND state != ?", (job_id, JobState.FINISHED)
            ).fetchone()
        return row is not None

    def running(self) -> tuple[str, ...]:
        """The jobs whose runs are to be followed."""
        with self._database.transaction() as tx:
            rows = tx.execute(
                "SELECT job_id FROM jobs WHERE state = ? ORDER BY job_id", (JobState.RUNNING,)
            ).fetchall()
        return tuple(job_id for (job_id,) in rows)

    def open_claim(self, job: KeptJob) -> bytes:
        """Raises SealedValueError if the state's key is not the one it was sealed under."""
        return self._seal.open(job.sealed_claim, about=job.job_id)

    def open_masks(self, job: KeptJob) -> dict[str, tuple[Secret, ...]]:
        """What scripts have added to what is masked, by their executions' ids.

        Raises SealedValueError as `open_claim` does.
        """
        opened = {
            execution_id: self._seal.open(sealed, about=execution_id)
            for execution_id, sealed in job.sealed_masks.items()
        }
        return {each: tuple(map(Secret, _texts.decode(opened[each]))) for each in opened}

    def sweep(self, *, now: int) -> None:
        """Forget jobs that ended long ago, and the oldest beyond `KEPT_JOBS`.

        Also those whose runs could not be forgotten in that time: the runner's own janitor has
        removed them by now.
        """
        with self._database.transaction() as tx:
            gone = tx.execute(
                """
                DELETE FROM jobs
                WHERE ended_at <= ?
                  AND job_id NOT IN (SELECT job_id FROM outbox WHERE parked IS NULL)
                  OR state = ? AND job_id NOT IN (
                    SELECT job_id FROM jobs WHERE state = ? ORDER BY ended_at DESC LIMIT ?
                  )
                RETURNING job_id
                """,
                (now - KEPT_MS, JobState.FINISHED, JobState.FINISHED, KEPT_JOBS),
            ).fetchall()
            for (job_id,) in gone:
                self._remove_files(job_id)

    def _remove_files(self, job_id: str) -> None:
        # A result without its spools would be one without its output.
        self._database.after_commit(partial(self._spools.remove, job_id))
        self._database.after_commit(partial(self._marks.remove, job_id))


def _end(end: JobEnd | None) -> tuple[str | None, int | None, str | None]:
    return (None, None, None) if end is None else (end.status, end.exit_code, end.message)
