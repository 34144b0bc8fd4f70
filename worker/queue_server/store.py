"""What operators put into the queue, and see of it."""

import json
import secrets
import string
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from sqlite3 import Connection
from typing import Self

from worker.database import Database
from worker.queue_server import events, servers
from worker.queue_server.bell import ring
from worker.queue_server.file import open_database
from worker.queue_server.keys import Keyring
from worker.queue_server.model import USER_ID, Job, JobReport, Priority, Script, Server
from worker.queue_server.rows import (
    EXECUTION,
    JOB,
    UnknownNameError,
    execution_of,
    job_of,
    load_job,
)

_ID_CHARACTERS = string.ascii_letters + string.digits


class Store:
    """Every method is one transaction, and takes the time as `now`, UTC epoch milliseconds.

    What comes in is in the database when a method, or `Database.run`, returns.
    """

    def __init__(self, database: Database, path: Path, keyring: Keyring) -> None:
        self._database = database
        self._path = path
        self._keyring = keyring

    @classmethod
    def open(cls, path: Path, keyring: Keyring) -> Self:
        """Raises StateError or OSError, as `open_database` does."""
        return cls(open_database(path, keyring), path, keyring)

    @property
    def database(self) -> Database:
        return self._database

    def close(self) -> None:
        self._database.close()

    def put_server(self, server: Server, now: int) -> int:
        """The id of `server`, which is kept when one of that name is replaced."""
        with self._database.transaction() as tx:
            return servers.put(tx, self._keyring, server, now)

    def put_event(self, name: str, script: Script, server_names: Sequence[str], now: int) -> int:
        """The id of the event; one of that name is replaced, and its version counted up.

        Raises UnknownNameError if a server is not known.
        """
        with self._database.transaction() as tx:
            return events.put(tx, self._keyring, name, script, server_names, now)

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
            event_id = events.find(tx, event)
            if event_id is None:
                raise UnknownNameError("event", event)
            return self._insert_job(
                tx, event_id, now, priority, scheduled_for or now, environment or {}
            )

    def submit_script(
        self,
        name: str,
        script: Script,
        server_names: Sequence[str],
        now: int,
        *,
        priority: Priority = Priority.NORMAL,
        scheduled_for: int | None = None,
    ) -> str:
        """The id of a new job that runs `script`, given on the spot. Raises UnknownNameError."""
        with self._database.transaction() as tx:
            event_id = events.insert(
                tx, self._keyring, name, script, server_names, now, on_the_spot=True
            )
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
            "environment": json.loads(sealed) | self._keyring.seal_environment(environment),
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
