"""The rows of jobs, events and executions, as what they are."""

import json
from dataclasses import fields
from sqlite3 import Connection
from typing import Any, TypeAlias

from worker.errors import WorkerError
from worker.queue_server.model import Event, Execution, Job, JobStatus

Row: TypeAlias = tuple[Any, ...]

_JOB_FIELDS = tuple(column.name for column in fields(Job))
_JOB_COLUMNS = ", ".join(
    f"jobs.{name}" if name != "event_name" else "events.name" for name in _JOB_FIELDS
)
JOB = f"SELECT {_JOB_COLUMNS} FROM jobs JOIN events ON events.id = jobs.event_id"  # noqa: S608 ours
_EXECUTION_FIELDS = tuple(column.name for column in fields(Execution))
EXECUTION = f"SELECT {', '.join(_EXECUTION_FIELDS)} FROM executions"  # noqa: S608 our own names


class UnknownNameError(WorkerError):
    """There is no such server, event, job, execution or variable.

    `answer` is how the app says so, without the name.
    """

    def __init__(self, what: str, name: object) -> None:
        super().__init__(f"there is no {what} {name!r}")
        self.answer = f"{what.capitalize()} not found"


def load_job(tx: Connection, job_id: str) -> Job:
    """Raises UnknownNameError."""
    row = tx.execute(f"{JOB} WHERE jobs.id = ?", (job_id,)).fetchone()
    if row is None:
        raise UnknownNameError("job", job_id)
    return job_of(row)


def load_event(tx: Connection, event_id: int) -> Event:
    return Event(
        *tx.execute(
            "SELECT id, name, version, script_type, content FROM events WHERE id = ?", (event_id,)
        ).fetchone()
    )


def load_execution(tx: Connection, execution_id: str, *, job_id: str | None = None) -> Execution:
    """Of `job_id`, if that is given. Raises UnknownNameError."""
    row = tx.execute(
        f"{EXECUTION} WHERE id = ?1 AND job_id = coalesce(?2, job_id)", (execution_id, job_id)
    ).fetchone()
    if row is None:
        raise UnknownNameError("execution", execution_id)
    return execution_of(row)


def job_of(row: Row) -> Job:
    """`row` is one of `JOB`."""
    values = dict(zip(_JOB_FIELDS, row, strict=True))
    values["status"] = JobStatus(values["status"])
    values["payload"] = json.loads(values["payload"])
    values["result"] = values["result"] and json.loads(values["result"])
    return Job(**values)


def execution_of(row: Row) -> Execution:
    """`row` is one of `EXECUTION`."""
    values = dict(zip(_EXECUTION_FIELDS, row, strict=True))
    values["metadata"] = json.loads(values["metadata"])
    kept = values["execution_metadata"]
    values["execution_metadata"] = kept and json.loads(kept)
    return Execution(**values)
