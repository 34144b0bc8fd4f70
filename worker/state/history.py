"""What became of jobs, for an operator: written with the rest of the state, read by commands."""

from collections.abc import Mapping
from dataclasses import dataclass, field

import msgspec

from worker.database import Database

# Of each stream of an execution, its first and last half.
STREAM_BYTES = 16 * 1024

_names = msgspec.json.Decoder(dict[str, str])


@dataclass(frozen=True, slots=True)
class Begun:
    """What is known of a job at its start: its event, and its servers' names by execution ids."""

    event: str = ""
    servers: Mapping[str, str] = field(default_factory=dict)


NOT_TOLD = Begun()


@dataclass(frozen=True, slots=True)
class JobEnd:
    """How a job ended, as the API is told."""

    status: str
    exit_code: int
    message: str


@dataclass(frozen=True, slots=True)
class KeptOutput:
    """What is kept of an execution's two streams, its secrets masked."""

    stdout: bytes = b""
    stderr: bytes = b""


@dataclass(frozen=True, slots=True)
class PastJob:
    """`ended_at` and `end` are None of a job that still runs; `end` is so, too, where an earlier
    release has written it. `servers` are names by execution ids."""

    job_id: str
    event: str
    began_at: int
    ended_at: int | None
    end: JobEnd | None
    servers: Mapping[str, str]


@dataclass(frozen=True, slots=True)
class PastExecution:
    """`result` is JSON, as `ServerResult.from_json` reads it."""

    execution_id: str
    result: bytes = field(repr=False)
    # None where none was kept, or it had to make way for others'.
    output: KeptOutput | None = field(repr=False)


class History:
    def __init__(self, database: Database) -> None:
        self._database = database

    def recent(self, limit: int, *, failed: bool = False) -> list[PastJob]:
        """The newest jobs first; with `failed` those that ended otherwise than all well."""
        with self._database.transaction() as tx:
            rows = tx.execute(
                """
                SELECT job_id, event, began_at, ended_at, status, exit_code, message, servers
                FROM jobs WHERE NOT ? OR status <> 'completed' OR exit_code <> 0
                ORDER BY began_at DESC, job_id LIMIT ?
                """,
                (failed, limit),
            ).fetchall()
        return [_job(*row) for row in rows]

    def job(self, job_id: str) -> PastJob | None:
        with self._database.transaction() as tx:
            row = tx.execute(
                """
                SELECT job_id, event, began_at, ended_at, status, exit_code, message, servers
                FROM jobs WHERE job_id = ?
                """,
                (job_id,),
            ).fetchone()
        return None if row is None else _job(*row)

    def executions(self, job_id: str) -> list[PastExecution]:
        """Those of a job that have ended."""
        with self._database.transaction() as tx:
            rows = tx.execute(
                """
                SELECT execution_id, result, stdout, stderr
                FROM executions LEFT JOIN outputs USING (execution_id)
                WHERE job_id = ? ORDER BY executions.rowid
                """,
                (job_id,),
            ).fetchall()
        return [
            PastExecution(
                execution_id, result, None if stdout is None else KeptOutput(stdout, stderr)
            )
            for execution_id, result, stdout, stderr in rows
        ]

    def keep_output(self, execution_id: str, output: KeptOutput, *, now: int) -> None:
        """To be called in the transaction that keeps how the execution ended; nothing if its job
        has been dropped meanwhile."""
        with self._database.transaction() as tx:
            tx.execute(
                """
                INSERT INTO outputs (execution_id, ended_at, stdout, stderr)
                SELECT execution_id, ?, ?, ? FROM executions WHERE execution_id = ?
                """,
                (now, output.stdout, output.stderr, execution_id),
            )

    def sweep(self, *, limit_bytes: int) -> None:
        """Keep the newest outputs, so much of them together; the rest goes with the jobs."""
        with self._database.transaction() as tx:
            tx.execute(
                """
                DELETE FROM outputs WHERE execution_id IN (
                    SELECT execution_id FROM (
                        SELECT execution_id, sum(length(stdout) + length(stderr)) OVER (
                            ORDER BY ended_at DESC, execution_id ROWS UNBOUNDED PRECEDING
                        ) AS bytes FROM outputs
                    ) WHERE bytes > ?
                )
                """,
                (limit_bytes,),
            )


def _job(
    job_id: str,
    event: str | None,
    began_at: int,
    ended_at: int | None,
    status: str | None,
    exit_code: int | None,
    message: str | None,
    servers: str | None,
) -> PastJob:
    end = None
    if status is not None:
        end = JobEnd(status, exit_code or 0, message or "")
    names = _names.decode(servers) if servers else {}
    return PastJob(job_id, event or "", began_at, ended_at, end, names)
