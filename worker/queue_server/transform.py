"""The job transformer: rows become the JSON that the Cronium app sends."""

from collections.abc import Callable, Sequence
from dataclasses import fields
from typing import Any

from worker.clock import rfc3339
from worker.queue_server.model import Event, Execution, Job, Server

Json = dict[str, Any]

NANOSECONDS_PER_UNIT = {
    "SECONDS": 1_000_000_000,
    "MINUTES": 60_000_000_000,
    "HOURS": 3_600_000_000_000,
    "DAYS": 86_400_000_000_000,
}
DEFAULT_TIMEOUT_NANOSECONDS = 3_600_000_000_000

# The app's table: its highest stored priority, 3, falls through to the default (s13).
WIRE_PRIORITY = {0: 1, 1: 5, 2: 10}
DEFAULT_WIRE_PRIORITY = 5


def claimed_job(
    job: Job,
    event: Event,
    servers: Sequence[Server],
    target: Server | None,
    open_value: Callable[[str], str],
) -> Json:
    """One element of `jobs` in the answer to a claim.

    `servers` are the event's as they are now, `target` the server that the payload names, None
    if it is gone; `open_value` is applied to each environment value. The script is the one at
    submit, the name and the servers are today's, as in the app.
    """
    payload = job.payload
    target_id = payload.get("target", {}).get("serverId")
    on_servers = target_id is not None or bool(servers)
    if target_id is None and servers:
        target, target_id = servers[0], servers[0].id
    metadata = {
        "logId": job.number,
        "eventName": event.name,
        "triggeredBy": "manual",
        "originalType": job.type,
        "eventId": str(event.id) if on_servers else event.id,
        "userId": job.user_id,
    }
    if on_servers:
        metadata |= {"eventVersion": event.version, "serverId": str(target_id)}
    if len(servers) > 1:
        metadata |= {
            "servers": [server_details(server) for server in servers],
            "multiServer": True,
            "serverCount": len(servers),
        }
    return {
        "id": job.id,
        "type": "ssh" if on_servers else "container",
        "priority": WIRE_PRIORITY.get(job.priority, DEFAULT_WIRE_PRIORITY),
        "createdAt": rfc3339(job.created_at),
        "scheduledFor": rfc3339(job.scheduled_for),
        "attempts": job.attempts,
        "execution": _execution(payload, on_servers, target_id, target, open_value),
        "metadata": metadata,
    }


def _execution(
    payload: Json,
    on_servers: bool,
    target_id: int | None,
    target: Server | None,
    open_value: Callable[[str], str],
) -> Json:
    script = payload["script"]
    execution = {
        "environment": {
            name: open_value(value) for name, value in payload.get("environment", {}).items()
        },
        "timeout": timeout_nanoseconds(payload.get("timeout")),
        "inputData": payload.get("input", {}),
        "variables": {},
        "target": _target(target_id, target) if on_servers else {"type": "local"},
        "script": {
            "type": script["type"],
            "content": script["content"],
            "workingDirectory": script.get("workingDirectory", ""),
        },
    }
    if "retries" in payload:
        execution["retryPolicy"] = {
            "maxAttempts": payload["retries"],
            "backoffType": "exponential",
            "backoffDelay": 5,
        }
    return execution


def _target(target_id: int | None, target: Server | None) -> Json:
    named = {"type": "server", "serverId": str(target_id)}
    return named if target is None else {**named, "serverDetails": server_details(target)}


def server_details(server: Server) -> Json:
    """A server with its credentials in the open; what it has not is left out."""
    given = {
        "privateKey": server.private_key,
        "passphrase": server.passphrase,
        "password": server.password,
        "hostKey": server.host_key,
    }
    return {
        "id": str(server.id),
        "name": server.name,
        "host": server.host,
        "port": server.port,
        "username": server.username,
        **{name: value for name, value in given.items() if value is not None},
    }


def timeout_nanoseconds(timeout: Json | None) -> int:
    if timeout is None:
        return DEFAULT_TIMEOUT_NANOSECONDS
    return int(timeout["value"]) * NANOSECONDS_PER_UNIT[timeout["unit"]]


def job_row(job: Job) -> Json:
    """A job as acknowledge, status, complete, fail, release and orphaned answer it."""
    return {
        "id": job.id,
        "eventId": job.event_id,
        "userId": job.user_id,
        "type": job.type,
        "status": job.status,
        "priority": job.priority,
        "payload": {**job.payload, "executionLogId": job.number},
        "scheduledFor": rfc3339(job.scheduled_for),
        "orchestratorId": job.orchestrator_id,
        "startedAt": _time(job.started_at),
        "completedAt": _time(job.completed_at),
        "result": job.result,
        "attempts": job.attempts,
        "lastError": job.last_error,
        "metadata": job_metadata(job),
        "createdAt": rfc3339(job.created_at),
        "updatedAt": rfc3339(job.updated_at),
    }


def job_metadata(job: Job) -> Json:
    return {"logId": job.number, "eventName": job.event_name, "triggeredBy": "manual"}


def execution_row(execution: Execution) -> Json:
    """An execution as create and update answer it."""
    row = {}
    for column in fields(execution):
        value = getattr(execution, column.name)
        row[camel(column.name)] = _time(value) if column.name.endswith("_at") else value
    return row


def execution_context(execution_id: str, job: Job, event: Event) -> Json:
    return {
        "executionId": execution_id,
        "jobId": job.id,
        "eventId": str(job.event_id),
        "userId": job.user_id,
        "metadata": {**job_metadata(job), **job.payload, "executionLogId": job.number},
        "event": {
            "id": str(event.id),
            "name": event.name,
            "type": event.script_type,
            "content": event.content,
            "runLocation": "REMOTE",
            "serverId": None,
        },
        "user": {"id": job.user_id, "email": "", "name": job.user_id},
    }


def camel(name: str) -> str:
    first, *rest = name.split("_")
    return first + "".join(word.capitalize() for word in rest)


def _time(at: int | None) -> str | None:
    return None if at is None else rfc3339(at)
