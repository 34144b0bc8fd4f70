"""The recorded requests of the contract, sent to the embedded queue."""

import json
from datetime import datetime
from pathlib import Path
from typing import Any

import httpx
import pytest
import trio

from tests.contract_files import steps
from tests.queue_rig import TOKEN, running_queue
from worker.clock import now_ms
from worker.queue_server.store import Store

EVERY = range(1000)

# Which steps; what is left out is state that only the app can be in, or a route that is not ours.
SCENARIOS = {
    "s01_auth_and_routes": [step for step in range(16) if step not in {3, 14}],
    "s02_orchestrator_routes": range(11),
    "s03_single_success": EVERY,
    "s04_single_failure": EVERY,
    "s05_three_servers_success": EVERY,
    "s07_timeout": EVERY,
    "s09_unclaimed_and_foreign": EVERY,
    "s10_release": [0, 1, 2, 3, 4, 5, 10],
    "s11_orphaned": EVERY,
    "s12_cancel": EVERY,
    "s13_claim_params": range(10),
    "s15_bad_execution_input": [*range(15), *range(16, 29), *range(32, 36), 40, 44, 45, 46, 48],
    "s17_env_and_credentials": [9, 10],
    "s20_script_runtime_routes": EVERY,
    "s22_quiet_final_execution_rows": [*range(8), 9, 10, 12, 13, 14, 15],
}

# Where the embedded queue is meant to differ (api-contract.md, extensions): the status code, and
# what the job then is.
DIFFERENT: dict[tuple[str, int], tuple[int, dict[str, Any]]] = {
    ("s09_unclaimed_and_foreign", 0): (403, {}),  # nobody claimed it
    ("s09_unclaimed_and_foreign", 2): (200, {}),  # and so it comes here
    ("s09_unclaimed_and_foreign", 3): (403, {}),  # another one did
    ("s10_release", 5): (403, {}),
    ("s12_cancel", 7): (200, {"status": "cancelled", "startedAt": None}),
    ("s12_cancel", 15): (200, {"status": "cancelled", "result": {"exitCode": 0}}),
    ("s22_quiet_final_execution_rows", 12): (200, {}),  # no follow-up actions here
}

# The values that must be the recorded ones; of the others it is the type.
TELLING = {
    "attempts", "count", "error", "exitCode", "host", "jobId", "lastError", "orchestratorId",
    "output", "port", "privateKey", "result", "serverId", "serverName", "status", "success",
    "timeout", "type", "username",
}  # fmt: skip


@pytest.mark.parametrize("scenario", SCENARIOS)
async def test_the_recorded_requests_get_the_recorded_answers(
    scenario: str, tmp_path: Path
) -> None:
    with trio.fail_after(60):
        async with (
            running_queue(tmp_path) as queue,
            httpx.AsyncClient(base_url=queue.address) as client,
        ):
            for number, step in enumerate(steps(scenario)):
                if number in SCENARIOS[scenario]:
                    _seed(queue.store, step)
                    _cancel(queue.store, step)
                    if "request" in step:
                        answer = await _send(client, step["request"])
                        _compare(scenario, number, step["response"], answer)


async def _send(client: httpx.AsyncClient, request: dict[str, Any]) -> httpx.Response:
    headers = {
        name: value.replace("<INTERNAL_API_KEY>", TOKEN)
        for name, value in request["headers"].items()
    }
    if "rawBody" in request:
        content = request["rawBody"].encode("latin-1")
    else:
        content = json.dumps(request["body"]).encode() if "body" in request else b""
    return await client.request(
        request["method"], request["path"], headers=headers, content=content
    )


def _compare(scenario: str, number: int, recorded: dict[str, Any], answer: httpx.Response) -> None:
    where = f"{scenario} step {number}: {answer.status_code} {answer.text[:2000]}"
    if (scenario, number) in DIFFERENT:
        status, values = DIFFERENT[scenario, number]
        assert answer.status_code == status, where
        for name, value in values.items():
            assert answer.json()["job"][name] == value, where
        return
    assert answer.status_code == recorded["status"], where
    if "location" in recorded:
        assert answer.headers["Location"] == recorded["location"], where
    elif recorded["body"] == "":
        assert answer.content == b"", where
    else:
        assert answer.content.startswith((b"{", b"[")), where
        body = answer.json()
        if isinstance(body, dict):
            body.pop("cancelledJobs", None)  # the extensions
            body.pop("details", None)
            for job in body.get("jobs", ()):
                job["execution"].pop("environmentSealed", None)
                job.pop("claimToken")
                job.pop("mayHaveBegun")
        recorded_body = recorded["body"]
        if isinstance(recorded_body, dict):
            recorded_body = {**recorded_body}
            recorded_body.pop("details", None)  # of the app's own SQL
        assert _telling(body) == _telling(recorded_body), where


def _telling(value: Any, name: str = "") -> Any:  # noqa: ANN401 any JSON
    """Keys, types and the values that matter."""
    if name in TELLING and not isinstance(value, dict):
        return value
    if isinstance(value, dict):
        return {key: _telling(entry, key) for key, entry in value.items()}
    if isinstance(value, list):
        return [_telling(entry) for entry in value]
    return type(value).__name__


def _cancel(store: Store, step: dict[str, Any]) -> None:
    """What a user did in the app just before, or instead of, the request."""
    if "jobs.cancel" in step.get("note", ""):
        if "answer" in step:
            job_id = step["answer"]["body"]["result"]["data"]["json"]["data"]["id"]
        else:
            job_id = step["request"]["path"].split("/")[4]
        store.cancel(job_id, now_ms())


def _seed(store: Store, step: dict[str, Any]) -> None:
    """The jobs of the step as they were in the app, where they are not there yet."""
    body = step.get("response", {}).get("body")
    if not isinstance(body, dict):
        body = {}
    for job in body.get("jobs", ()):
        if job["metadata"]["triggeredBy"] == "manual":
            _insert(store, job["id"], _from_claim(job))
    if isinstance(row := body.get("job"), dict):
        _insert(store, row["id"], row)
    if "answer" in step:
        row = step["answer"]["body"]["result"]["data"]["json"]["data"]
        _insert(store, row["id"], row)
    if "credentials" in step.get("request", {}).get("path", ""):
        with store.database.transaction() as tx:
            _insert_server(tx, store, {"id": 1, "name": "srv", **body.get("credentials", {})})


def _from_claim(job: dict[str, Any]) -> dict[str, Any]:
    execution, metadata = job["execution"], job["metadata"]
    servers = metadata.get("servers") or [execution["target"]["serverDetails"]]
    payload = {
        "input": execution["inputData"],
        "script": {name: execution["script"][name] for name in ("type", "content")},
        "target": {"serverId": int(execution["target"]["serverId"])},
        "timeout": {"unit": "SECONDS", "value": execution["timeout"] // 1_000_000_000},
        "environment": execution["environment"],
    }
    if "retryPolicy" in execution:
        payload["retries"] = execution["retryPolicy"]["maxAttempts"]
    return {
        "eventId": metadata["eventId"],
        "userId": metadata["userId"],
        "payload": payload,
        "createdAt": job["createdAt"],
        "servers": servers,
    }


def _insert(store: Store, job_id: str, row: dict[str, Any]) -> None:
    payload = {key: value for key, value in row["payload"].items() if key != "executionLogId"}
    created_at = int(datetime.fromisoformat(row["createdAt"]).timestamp() * 1000)
    with store.database.transaction() as tx:
        if tx.execute("SELECT 1 FROM jobs WHERE id = ?", (job_id,)).fetchone():
            return
        tx.execute(
            """
            INSERT INTO events (id, name, script_type, content, timeout_seconds, created_at,
                                updated_at)
            VALUES (?1, 'event ' || ?1, 'BASH', ?2, 30, 0, 0) ON CONFLICT DO NOTHING
            """,
            (int(row["eventId"]), payload["script"]["content"]),
        )
        default = [{"id": 1, "name": "srv", "host": "127.0.0.1", "port": 22, "username": "deploy"}]
        for position, server in enumerate(row.get("servers", default)):
            _insert_server(tx, store, server)
            tx.execute(
                "INSERT INTO event_servers VALUES (?, ?, ?) ON CONFLICT DO NOTHING",
                (int(row["eventId"]), int(server["id"]), position),
            )
        tx.execute(
            """
            INSERT INTO jobs (id, event_id, user_id, status, priority, payload, scheduled_for,
                              created_at, updated_at)
            VALUES (?1, ?2, ?3, 'queued', 1, ?4, ?5, ?5, ?5)
            """,
            (job_id, int(row["eventId"]), row["userId"], json.dumps(payload), created_at),
        )


def _insert_server(tx: Any, store: Store, server: dict[str, Any]) -> None:  # noqa: ANN401 sqlite3's
    key = server.get("privateKey")
    tx.execute(
        """
        INSERT INTO servers (id, name, host, port, username, private_key, created_at, updated_at)
        VALUES (?, ?, ?, ?, ?, ?, 0, 0)
        ON CONFLICT DO UPDATE SET name = excluded.name, host = excluded.host,
            port = excluded.port, private_key = excluded.private_key
        """,
        (
            int(server["id"]),
            server["name"],
            server.get("host", "127.0.0.1"),
            server.get("port", 22),
            server.get("username", "deploy"),
            store._keyring.seal(key),
        ),
    )


def test_every_deviation_is_of_a_step_that_is_replayed() -> None:
    assert all(number in SCENARIOS[scenario] for scenario, number in DIFFERENT)
