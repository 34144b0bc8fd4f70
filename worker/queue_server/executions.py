"""The SQL of executions; each function is a part of its caller's transaction."""

import json
from datetime import UTC, datetime
from sqlite3 import Connection
from typing import Any

from msgspec import UNSET

from worker.clock import rfc3339
from worker.queue_server import rows
from worker.queue_server.bodies import CreateExecution, ExecutionRow, UpdateExecution, as_text
from worker.queue_server.model import Execution, Job
from worker.queue_server.transform import Json, execution_context


def create(tx: Connection, execution_id: str, body: CreateExecution, now: int) -> Execution:
    """Raises sqlite3.IntegrityError if it is there already, or its job or server is not."""
    tx.execute(
        """
        INSERT INTO executions (id, job_id, server_id, server_name, metadata, created_at,
                                updated_at)
        VALUES (?, ?, ?, ?, ?, ?, ?)
        """,
        (
            execution_id,
            body.job_id,
            body.server_id,
            as_text(body.server_name),
            json.dumps({} if body.metadata is UNSET else body.metadata),
            now,
            now,
        ),
    )
    return rows.load_execution(tx, execution_id)


def put(tx: Connection, job_id: str, row: ExecutionRow, now: int) -> None:
    """Create what is not there yet, and merge what there is to be merged.

    A server that is gone meanwhile is left out. Raises UnknownNameError if there is no such
    execution of that job then.
    """
    if row.create is not None:
        tx.execute(
            """
            INSERT INTO executions (id, job_id, server_id, server_name, metadata, created_at,
                                    updated_at)
            VALUES (?1, ?2, (SELECT id FROM servers WHERE id = ?3), ?4, '{}', ?5, ?5)
            ON CONFLICT (id) DO NOTHING
            """,
            (row.id, job_id, row.create.server_id, as_text(row.create.server_name), now),
        )
    if row.update is not None:
        _merge(tx, rows.load_execution(tx, row.id, job_id=job_id), row.update, now)


def update(tx: Connection, execution_id: str, body: UpdateExecution, now: int) -> Execution:
    """Merge what `body` has into the row; never ends the job. Raises UnknownNameError."""
    _merge(tx, rows.load_execution(tx, execution_id), body, now)
    return rows.load_execution(tx, execution_id)


def _merge(tx: Connection, execution: Execution, body: UpdateExecution, now: int) -> None:
    changes: dict[str, Any] = {"updated_at": now}
    for name in body.__struct_fields__:
        value = getattr(body, name)
        if value is not UNSET and name != "metadata":
            changes[name] = _column(name, value)
    if body.metadata is not UNSET:
        changes["metadata"] = json.dumps(_merged(execution.metadata, body.metadata))
    tx.execute(
        f"UPDATE executions SET {', '.join(f'{name} = ?' for name in changes)} "  # noqa: S608 ours
        "WHERE id = ?",
        (*changes.values(), execution.id),
    )


def add_output(tx: Connection, execution_id: str, output: object, timestamp: str, now: int) -> None:
    """Into the execution's metadata and, until `complete` replaces it, the job's result (s20).

    Raises UnknownNameError.
    """
    added = {"output": output, "outputTimestamp": timestamp}
    execution = rows.load_execution(tx, execution_id)
    _set_metadata(tx, execution, added, now)
    job = rows.load_job(tx, execution.job_id)
    if not job.status.is_final:
        tx.execute(
            "UPDATE jobs SET result = ?, updated_at = ? WHERE id = ?",
            (json.dumps(_merged(job.result, added)), now, job.id),
        )


def add_condition(tx: Connection, execution_id: str, condition: bool, now: int) -> None:
    """Into the execution's metadata, and nowhere else (s20). Raises UnknownNameError."""
    execution = rows.load_execution(tx, execution_id)
    added = {"condition": condition, "conditionTimestamp": rfc3339(now)}
    _set_metadata(tx, execution, added, now)


def context(tx: Connection, execution_id: str) -> Json:
    """Raises UnknownNameError."""
    job = rows.load_job(tx, rows.load_execution(tx, execution_id).job_id)
    return context_within(tx, execution_id, job)


def context_within(tx: Connection, execution_id: str, job: Job) -> Json:
    """Of an execution of that job, which no worker may have created yet."""
    return execution_context(execution_id, job, rows.load_event(tx, job.event_id))


def _set_metadata(tx: Connection, execution: Execution, added: Json, now: int) -> None:
    tx.execute(
        "UPDATE executions SET metadata = ?, updated_at = ? WHERE id = ?",
        (json.dumps(_merged(execution.metadata, added)), now, execution.id),
    )


def _merged(old: object, added: Json) -> Json:
    return {**old, **added} if isinstance(old, dict) else added


def _column(name: str, value: object) -> object:
    """`value` as the column `name` keeps it."""
    if isinstance(value, datetime):
        # A time without an offset is UTC, as all of ours are.
        moment = value if value.tzinfo else value.replace(tzinfo=UTC)
        return int(moment.timestamp() * 1000)
    if name == "execution_metadata":
        return None if value is None else json.dumps(value)
    if name in {"output", "error"}:
        return as_text(value)
    return value
