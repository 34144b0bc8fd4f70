"""The jobs as workers have them, under a lease: every method is one transaction."""

import json
import secrets
from collections.abc import Sequence
from dataclasses import replace
from sqlite3 import Connection

from worker.database import Database
from worker.errors import WorkerError
from worker.queue_server import executions, servers
from worker.queue_server.bodies import ExecutionRow
from worker.queue_server.keys import Keyring
from worker.queue_server.model import Claimant, Job, JobEnd, JobStatus
from worker.queue_server.rows import JOB, job_of, load_event, load_job
from worker.queue_server.transform import Json, claimed_job

LEASE_SECONDS = 60.0
MAX_ORPHANS = 100

RELEASED = "Released back to queue after orchestrator restart"
LEASE_EXPIRED = "Lease expired: the worker sent no heartbeat that named the job"


class NotClaimedError(WorkerError):
    """The job is not claimed by this worker, or not any more."""


class Leases:
    """What is said of a job is in the database when a method, or `Database.run`, returns.

    `keyring` opens what a claim carries; times are `now`, UTC epoch milliseconds.
    """

    def __init__(
        self, database: Database, keyring: Keyring, *, lease_seconds: float = LEASE_SECONDS
    ) -> None:
        self._database = database
        self._keyring = keyring
        self._lease_ms = int(lease_seconds * 1000)

    def claim(
        self, worker_id: str, *, limit: int, types: Sequence[str] | None, now: int
    ) -> tuple[Json, ...]:
        """Up to `limit` jobs (all, if it is negative), leased to `worker_id`, each with the token
        of this claim.

        The most urgent first; jobs whose lease is over go back to the queue before. So do those
        that were cancelled under a worker that is gone, for their runs to be ended; they stay
        cancelled.
        """
        with self._database.transaction() as tx:
            tx.execute(
                """
                UPDATE jobs SET status = 'queued', orchestrator_id = NULL, claim_token = NULL,
                    lease_until = NULL, started_at = NULL, last_error = ?1, updated_at = ?2
                WHERE status IN ('claimed', 'running') AND lease_until <= ?2
                """,
                (LEASE_EXPIRED, now),
            )
            numbers = tx.execute(
                """
                SELECT number FROM jobs
                WHERE (
                        status = 'queued' AND scheduled_for <= ?1
                        OR status = 'cancelled' AND reported_at IS NULL AND lease_until <= ?1
                    )
                    AND (?2 IS NULL OR type IN (SELECT value FROM json_each(?2)))
                ORDER BY priority DESC, scheduled_for, created_at, number LIMIT ?3
                """,
                (now, None if types is None else json.dumps(types), limit),
            ).fetchall()
            tx.executemany(
                """
                UPDATE jobs SET status = CASE status WHEN 'queued' THEN 'claimed' ELSE status END,
                    orchestrator_id = ?, claim_token = ?, lease_until = ?, updated_at = ?
                WHERE number = ?
                """,
                [
                    (worker_id, secrets.token_urlsafe(9), now + self._lease_ms, now, number)
                    for (number,) in numbers
                ],
            )
            return tuple(self._claimed(tx, number) for (number,) in numbers)

    def _claimed(self, tx: Connection, number: int) -> Json:
        job = job_of(tx.execute(f"{JOB} WHERE jobs.number = ?", (number,)).fetchone())
        listed = servers.of_event(tx, self._keyring, job.event_id)
        target_id = job.payload["target"].get("serverId")
        target = next((server for server in listed if server.id == target_id), None)
        if target is None and target_id is not None:
            target = servers.find(tx, self._keyring, target_id)
        claimed = claimed_job(
            job, load_event(tx, job.event_id), listed, target, self._keyring.environment_value
        )
        if not self._keyring.shared and claimed["execution"]["environment"]:
            # A plain value can look like a sealed one; the app, which seals all, does not say.
            claimed["execution"]["environmentSealed"] = False
        # A job that was cancelled is handed out for its runs to be ended.
        has_been_held = job.last_error is not None or job.status is JobStatus.CANCELLED
        return {**claimed, "claimToken": job.claim_token, "mayHaveBegun": has_been_held}

    def acknowledge(self, job_id: str, worker_id: str) -> Job:
        """Raises UnknownNameError, NotClaimedError."""
        with self._database.transaction() as tx:
            return _load_claimed(tx, job_id, Claimant(worker_id))

    def start(
        self, job_id: str, claimant: Claimant, now: int, *, rows: Sequence[ExecutionRow] = ()
    ) -> Job:
        """Mark the job as running, and keep `rows`; one that is cancelled or over stays so.

        Raises UnknownNameError, NotClaimedError.
        """
        with self._database.transaction() as tx:
            job = _load_claimed(tx, job_id, claimant)
            if job.reported_at is None:
                _put_rows(tx, job_id, rows, now)
            if job.status.is_final:
                return job
            # A worker that comes back says so again.
            tx.execute(
                """
                UPDATE jobs SET status = 'running', started_at = coalesce(started_at, ?1),
                    updated_at = ?1
                WHERE id = ?2
                """,
                (now, job_id),
            )
            return load_job(tx, job_id)

    def put_rows(
        self, job_id: str, claimant: Claimant, now: int, *, rows: Sequence[ExecutionRow]
    ) -> None:
        """Keep what is said of the job's executions, unless its end has been reported.

        Raises UnknownNameError, NotClaimedError.
        """
        with self._database.transaction() as tx:
            if _load_claimed(tx, job_id, claimant).reported_at is None:
                _put_rows(tx, job_id, rows, now)

    def end(
        self,
        job_id: str,
        claimant: Claimant,
        end: JobEnd,
        now: int,
        *,
        rows: Sequence[ExecutionRow] = (),
    ) -> Job:
        """Keep how the job ended, and `rows`; the second time, and for a finished job, change
        nothing.

        A cancelled job keeps its status and gets the result. One that nobody said was running
        started with the first of its executions. Raises UnknownNameError, NotClaimedError.
        """
        with self._database.transaction() as tx:
            job = _load_claimed(tx, job_id, claimant)
            if job.reported_at is not None:
                return job
            _put_rows(tx, job_id, rows, now)
            if job.status is JobStatus.CANCELLED:
                end = replace(end, status=job.status, outcome=job.status)
            tx.execute(
                """
                UPDATE jobs SET status = ?1, outcome = ?2, result = ?3, stdout = ?4, stderr = ?5,
                    started_at = coalesce(
                        started_at, (SELECT min(started_at) FROM executions WHERE job_id = ?7)
                    ),
                    completed_at = ?6, reported_at = ?6, updated_at = ?6, lease_until = NULL
                WHERE id = ?7
                """,
                (
                    end.status,
                    end.outcome,
                    json.dumps(end.result),
                    end.stdout,
                    end.stderr,
                    now,
                    job_id,
                ),
            )
            return load_job(tx, job_id)

    def release(self, job_id: str, worker_id: str, message: str, now: int) -> Job:
        """Back to the queue; a job that is cancelled or over stays so.

        Raises UnknownNameError, NotClaimedError.
        """
        with self._database.transaction() as tx:
            job = _load_claimed(tx, job_id, Claimant(worker_id))
            if job.status.is_final:
                # The worker has let go of it: there is nobody to be told of a cancel.
                tx.execute(
                    "UPDATE jobs SET reported_at = coalesce(reported_at, ?) WHERE id = ?",
                    (now, job_id),
                )
            else:
                tx.execute(
                    """
                    UPDATE jobs SET status = 'queued', orchestrator_id = NULL, claim_token = NULL,
                        lease_until = NULL, started_at = NULL, last_error = ?, updated_at = ?
                    WHERE id = ?
                    """,
                    (message or RELEASED, now, job_id),
                )
            return load_job(tx, job_id)

    def give_back(self, job_ids: Sequence[str], worker_id: str, now: int) -> None:
        """Undo a claim whose answer nobody was there to read."""
        with self._database.transaction() as tx:
            tx.executemany(
                """
                UPDATE jobs SET status = 'queued', orchestrator_id = NULL, claim_token = NULL,
                    lease_until = NULL, updated_at = ?
                WHERE id = ? AND orchestrator_id = ? AND status = 'claimed'
                """,
                [(now, job_id, worker_id) for job_id in job_ids],
            )

    def heartbeat(self, worker_id: str, running: Sequence[str], now: int) -> list[str]:
        """Renew the leases of `running`; of these and of all this worker's, the cancelled ones."""
        with self._database.transaction() as tx:
            named = json.dumps(running)
            tx.execute(
                """
                UPDATE jobs SET lease_until = ?
                WHERE id IN (SELECT value FROM json_each(?)) AND orchestrator_id = ?
                    AND (
                        status IN ('claimed', 'running')
                        OR status = 'cancelled' AND reported_at IS NULL
                    )
                """,
                (now + self._lease_ms, named, worker_id),
            )
            rows = tx.execute(
                """
                SELECT id FROM jobs
                WHERE status = 'cancelled' AND reported_at IS NULL AND orchestrator_id = ?1
                UNION
                SELECT id FROM jobs
                WHERE id IN (SELECT value FROM json_each(?2))
                    AND status = 'cancelled' AND reported_at IS NULL
                """,
                (worker_id, named),
            )
            return [job_id for (job_id,) in rows]

    def orphaned(self, worker_id: str) -> list[Job]:
        """The jobs that are claimed by or running under `worker_id`."""
        with self._database.transaction() as tx:
            rows = tx.execute(
                f"""
                {JOB} WHERE orchestrator_id = ? AND status IN ('claimed', 'running')
                ORDER BY jobs.created_at DESC LIMIT ?
                """,
                (worker_id, MAX_ORPHANS),
            )
            return [job_of(row) for row in rows]


def _load_claimed(tx: Connection, job_id: str, claimant: Claimant) -> Job:
    job = load_job(tx, job_id)
    if job.orchestrator_id != claimant.worker_id:
        raise NotClaimedError("Job not claimed by this orchestrator")
    if claimant.claim_token not in (None, job.claim_token):
        raise NotClaimedError("Job not under this claim any more")
    return job


def _put_rows(tx: Connection, job_id: str, rows: Sequence[ExecutionRow], now: int) -> None:
    for row in rows:
        executions.put(tx, job_id, row, now)
