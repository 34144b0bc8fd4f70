"""The embedded queue's SQL: every method is one transaction, and takes the time as `now`."""

import json
import secrets
import string
from collections.abc import Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from sqlite3 import Connection
from typing import Self

from worker.database import Database
from worker.errors import WorkerError
from worker.queue_server import executions
from worker.queue_server.bell import ring
from worker.queue_server.bodies import ExecutionRow
from worker.queue_server.file import open_database
from worker.queue_server.keys import Keyring
from worker.queue_server.model import (
    USER_ID,
    Claimant,
    Job,
    JobEnd,
    JobReport,
    JobStatus,
    Priority,
    Script,
    Server,
)
from worker.queue_server.rows import (
    EXECUTION,
    JOB,
    Row,
    UnknownNameError,
    execution_of,
    job_of,
    load_event,
    load_job,
)
from worker.queue_server.transform import Json, claimed_job

LEASE_SECONDS = 60.0
MAX_ORPHANS = 100

RELEASED = "Released back to queue after orchestrator restart"
LEASE_EXPIRED = "Lease expired: the worker sent no heartbeat that named the job"

_ID_CHARACTERS = string.ascii_letters + string.digits

_SERVER = (
    "SELECT id, name, host, port, username, private_key, passphrase, password, host_key "
    "FROM servers"
)


class NotClaimedError(WorkerError):
    """The job is not claimed by this worker, or not any more."""


class Store:
    """Every text that comes in is in the database when a method, or `Database.run`, returns."""

    def __init__(
        self,
        database: Database,
        path: Path,
        keyring: Keyring,
        *,
        lease_seconds: float = LEASE_SECONDS,
    ) -> None:
        self._database = database
        self._path = path
        self._keyring = keyring
        self._lease_ms = int(lease_seconds * 1000)

    @classmethod
    def open(cls, path: Path, keyring: Keyring, *, lease_seconds: float = LEASE_SECONDS) -> Self:
        """Raises StateError or OSError, as `open_database` does."""
        return cls(open_database(path, keyring), path, keyring, lease_seconds=lease_seconds)

    @property
    def database(self) -> Database:
        return self._database

    def close(self) -> None:
        self._database.close()

    # Servers and events

    def put_server(self, server: Server, now: int) -> int:
        """The id of `server`, which is kept when one of that name is replaced."""
        with self._database.transaction() as tx:
            row = tx.execute(
                """
                INSERT INTO servers (name, host, port, username, private_key, passphrase, password,
                                     host_key, created_at, updated_at)
                VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?)
                ON CONFLICT (name) DO UPDATE SET
                    host = excluded.host, port = excluded.port, username = excluded.username,
                    private_key = excluded.private_key, passphrase = excluded.passphrase,
                    password = excluded.password, host_key = excluded.host_key,
                    updated_at = excluded.updated_at
                RETURNING id
                """,
                (
                    server.name,
                    server.host,
                    server.port,
                    server.username,
                    self._keyring.seal(server.private_key),
                    self._keyring.seal(server.passphrase),
                    self._keyring.seal(server.password),
                    server.host_key,
                    now,
                    now,
                ),
            ).fetchone()
            return int(row[0])

    def server(self, server_id: int) -> Server:
        """Raises UnknownNameError."""
        with self._database.transaction() as tx:
            row = tx.execute(f"{_SERVER} WHERE id = ?", (server_id,)).fetchone()
        if row is None:
            raise UnknownNameError("server", server_id)
        return self._open_server(row)

    def put_event(self, name: str, script: Script, servers: Sequence[str], now: int) -> int:
        """The id of the event; one of that name is replaced, and its version counted up.

        Raises UnknownNameError if a server is not known.
        """
        with self._database.transaction() as tx:
            known = tx.execute(
                "SELECT id FROM events WHERE name = ? AND NOT on_the_spot", (name,)
            ).fetchone()
            if known is None:
                return self._insert_event(tx, name, script, servers, now, on_the_spot=False)
            tx.execute(
                """
                UPDATE events SET version = version + 1, script_type = ?, content = ?,
                    working_directory = ?, environment = ?, input = ?, timeout_seconds = ?,
                    updated_at = ?
                WHERE id = ?
                """,
                (*self._script_row(script), now, known[0]),
            )
            self._set_event_servers(tx, known[0], servers)
            return int(known[0])

    def _insert_event(
        self,
        tx: Connection,
        name: str,
        script: Script,
        servers: Sequence[str],
        now: int,
        *,
        on_the_spot: bool,
    ) -> int:
        (event_id,) = tx.execute(
            """
            INSERT INTO events (script_type, content, working_directory, environment, input,
                                timeout_seconds, name, on_the_spot, created_at, updated_at)
            VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?) RETURNING id
            """,
            (*self._script_row(script), name, on_the_spot, now, now),
        ).fetchone()
        self._set_event_servers(tx, event_id, servers)
        return int(event_id)

    def _script_row(self, script: Script) -> tuple[str | int, ...]:
        return (
            script.type,
            script.content,
            script.working_directory,
            json.dumps(self._seal_environment(script.environment)),
            json.dumps(script.input),
            script.timeout_seconds,
        )

    def _seal_environment(self, environment: dict[str, str]) -> dict[str, str]:
        return {name: self._keyring.key.seal(value) for name, value in environment.items()}

    @staticmethod
    def _set_event_servers(tx: Connection, event_id: int, servers: Sequence[str]) -> None:
        tx.execute("DELETE FROM event_servers WHERE event_id = ?", (event_id,))
        for position, name in enumerate(dict.fromkeys(servers)):
            found = tx.execute("SELECT id FROM servers WHERE name = ?", (name,)).fetchone()
            if found is None:
                raise UnknownNameError("server", name)
            tx.execute("INSERT INTO event_servers VALUES (?, ?, ?)", (event_id, found[0], position))

    # Jobs, from the outside

    def submit(
        self,
        event: str,
        now: int,
        *,
        priority: Priority = Priority.NORMAL,
        scheduled_for: int | None = None,
        environment: dict[str, str] | None = None,
    ) -> str:
        """The id of a new job of the event named `event`.

        `environment` is added to the event's own. Raises UnknownNameError.
        """
        with self._database.transaction() as tx:
            found = tx.execute(
                "SELECT id FROM events WHERE name = ? AND NOT on_the_spot", (event,)
            ).fetchone()
            if found is None:
                raise UnknownNameError("event", event)
            return self._insert_job(
                tx, found[0], now, priority, scheduled_for or now, environment or {}
            )

    def submit_script(
        self,
        name: str,
        script: Script,
        servers: Sequence[str],
        now: int,
        *,
        priority: Priority = Priority.NORMAL,
        scheduled_for: int | None = None,
    ) -> str:
        """The id of a new job that runs `script`, given on the spot. Raises UnknownNameError."""
        with self._database.transaction() as tx:
            event_id = self._insert_event(tx, name, script, servers, now, on_the_spot=True)
            return self._insert_job(tx, event_id, now, priority, scheduled_for or now, {})

    def _insert_job(
        self,
        tx: Connection,
        event_id: int,
        now: int,
        priority: Priority,
        scheduled_for: int,
        environment: dict[str, str],
    ) -> str:
        script_type, content, directory, sealed, event_input, timeout = tx.execute(
            """
            SELECT script_type, content, working_directory, environment, input, timeout_seconds
            FROM events WHERE id = ?
            """,
            (event_id,),
        ).fetchone()
        target = tx.execute(
            "SELECT server_id FROM event_servers WHERE event_id = ? ORDER BY position LIMIT 1",
            (event_id,),
        ).fetchone()
        payload = {
            "input": json.loads(event_input),
            "script": {
                "type": script_type,
                "content": content,
                **({"workingDirectory": directory} if directory else {}),
            },
            "target": {} if target is None else {"serverId": target[0]},
            "timeout": {"unit": "SECONDS", "value": timeout},
            "environment": json.loads(sealed) | self._seal_environment(environment),
        }
        job_id = "job_" + "".join(secrets.choice(_ID_CHARACTERS) for _ in range(12))
        tx.execute(
            """
            INSERT INTO jobs (id, event_id, user_id, status, priority, payload, scheduled_for,
                              created_at, updated_at)
            VALUES (?, ?, ?, 'queued', ?, ?, ?, ?, ?)
            """,
            (job_id, event_id, USER_ID, priority, json.dumps(payload), scheduled_for, now, now),
        )
        self._database.after_commit(partial(ring, self._path))
        return job_id

    def jobs(self, limit: int) -> list[Job]:
        """The newest first."""
        with self._database.transaction() as tx:
            rows = tx.execute(f"{JOB} ORDER BY jobs.number DESC LIMIT ?", (limit,))
            return [job_of(row) for row in rows]

    def report(self, job_id: str) -> JobReport:
        """Raises UnknownNameError."""
        with self._database.transaction() as tx:
            job = load_job(tx, job_id)
            rows = tx.execute(f"{EXECUTION} WHERE job_id = ? ORDER BY created_at, id", (job_id,))
            found = tuple(execution_of(row) for row in rows)
            stdout, stderr = tx.execute(
                "SELECT stdout, stderr FROM jobs WHERE id = ?", (job_id,)
            ).fetchone()
            return JobReport(job, found, stdout or "", stderr or "")

    def cancel(self, job_id: str, now: int) -> Job:
        """The job after it; one that is over already stays as it is. Raises UnknownNameError."""
        with self._database.transaction() as tx:
            tx.execute(
                """
                UPDATE jobs SET status = 'cancelled', completed_at = ?1, updated_at = ?1
                WHERE id = ?2 AND status IN ('queued', 'claimed', 'running')
                """,
                (now, job_id),
            )
            return load_job(tx, job_id)

    # Jobs, from a worker

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
        rows = tx.execute(
            f"""
            {_SERVER} JOIN event_servers ON server_id = id
            WHERE event_id = ? ORDER BY position
            """,
            (job.event_id,),
        )
        servers = [self._open_server(row) for row in rows]
        target_id = job.payload["target"].get("serverId")
        target = next((server for server in servers if server.id == target_id), None)
        if target is None and target_id is not None:
            row = tx.execute(f"{_SERVER} WHERE id = ?", (target_id,)).fetchone()
            target = None if row is None else self._open_server(row)
        claimed = claimed_job(
            job, load_event(tx, job.event_id), servers, target, self._keyring.environment_value
        )
        if not self._keyring.shared and claimed["execution"]["environment"]:
            # A plain value can look like a sealed one; the app, which seals all, does not say.
            claimed["execution"]["environmentSealed"] = False
        # A job that was cancelled is handed out for its runs to be ended.
        has_been_held = job.last_error is not None or job.status is JobStatus.CANCELLED
        return {**claimed, "claimToken": job.claim_token, "mayHaveBegun": has_been_held}

    def _open_server(self, row: Row) -> Server:
        server_id, name, host, port, username, *sealed, host_key = row
        private_key, passphrase, password = map(self._keyring.open_credential, sealed)
        return Server(
            server_id, name, host, port, username, private_key, passphrase, password, host_key
        )

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
