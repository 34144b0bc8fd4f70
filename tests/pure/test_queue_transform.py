"""The job transformer against the claims of the real app."""

from datetime import datetime
from operator import itemgetter
from typing import Any

import msgspec
import pytest

from tests.contract_files import claimed_jobs
from worker.api.wire import JobBody, decode_claim
from worker.queue_server.model import Event, Job, JobStatus, Server
from worker.queue_server.transform import claimed_job, timeout_nanoseconds

STORED_PRIORITY = {1: 0, 5: 1, 10: 2}
# Made by the app's scheduler, which the embedded queue has not.
RECORDED = [
    job
    for scenario in (
        "s03_single_success",
        "s05_three_servers_success",
        "s17_env_and_credentials",
        "s18_job_shapes",
        "s22_quiet_final_execution_rows",
    )
    for job in claimed_jobs(scenario)
    if job["metadata"]["triggeredBy"] == "manual"
]


@pytest.mark.parametrize("recorded", RECORDED, ids=itemgetter("id"))
def test_a_claim_is_the_one_that_the_app_made(recorded: dict[str, Any]) -> None:
    claim = _transformed(recorded)

    assert claim == recorded
    assert _order(claim) == _order(recorded)


def test_the_recorded_scenarios_hold_every_kind_of_claim() -> None:
    kinds = {(job["type"], "servers" in job["metadata"], _has_details(job)) for job in RECORDED}

    assert kinds == {
        ("ssh", False, True),
        ("ssh", True, True),
        ("ssh", False, False),
        ("container", False, False),
    }


@pytest.mark.parametrize("recorded", RECORDED, ids=itemgetter("id"))
def test_the_worker_decodes_it(recorded: dict[str, Any]) -> None:
    body = msgspec.json.encode({"jobs": [_transformed(recorded)], "count": 1})

    (job,) = decode_claim(body)

    assert isinstance(job, JobBody)
    assert job.id == recorded["id"]


@pytest.mark.parametrize(
    ("timeout", "nanoseconds"),
    [
        (None, 3_600_000_000_000),
        ({"unit": "SECONDS", "value": 30}, 30_000_000_000),
        ({"unit": "MINUTES", "value": 5}, 300_000_000_000),
        ({"unit": "HOURS", "value": 2}, 7_200_000_000_000),
        ({"unit": "DAYS", "value": 1}, 86_400_000_000_000),
    ],
)
def test_a_timeout_is_in_nanoseconds(timeout: dict[str, Any] | None, nanoseconds: int) -> None:
    assert timeout_nanoseconds(timeout) == nanoseconds


def test_an_event_without_a_target_starts_with_its_first_server() -> None:
    recorded = claimed_jobs("s05_three_servers_success")[0]

    claim = _transformed(recorded, target_in_payload=False)

    assert claim == recorded


def test_credentials_do_not_show_in_a_repr() -> None:
    server = Server(1, "web-1", "host", 22, "deploy", "KEY", "PHRASE", "PASSWORD")

    assert not any(secret in repr(server) for secret in ("KEY", "PHRASE", "PASSWORD"))


def _transformed(recorded: dict[str, Any], *, target_in_payload: bool = True) -> dict[str, Any]:
    """`recorded` taken apart into rows, and put together again by the transformer."""
    execution, metadata = recorded["execution"], recorded["metadata"]
    target = execution["target"]
    details = target.get("serverDetails")
    listed = [_server(entry) for entry in metadata.get("servers", ())]
    payload = {
        "input": execution["inputData"],
        "script": {name: execution["script"][name] for name in ("type", "content")},
        "target": {},
        "timeout": {"unit": "SECONDS", "value": execution["timeout"] // 1_000_000_000},
        "environment": execution["environment"],
    }
    if "serverId" in target and target_in_payload:
        payload["target"] = {"serverId": int(target["serverId"])}
    if "retryPolicy" in execution:
        payload["retries"] = execution["retryPolicy"]["maxAttempts"]
    job = Job(
        number=metadata["logId"],
        id=recorded["id"],
        event_id=int(metadata["eventId"]),
        user_id=metadata["userId"],
        type=metadata["originalType"],
        status=JobStatus.CLAIMED,
        priority=STORED_PRIORITY[recorded["priority"]],
        payload=payload,
        scheduled_for=_epoch_ms(recorded["scheduledFor"]),
        orchestrator_id="worker-1",
        claim_token=None,
        attempts=recorded["attempts"],
        started_at=None,
        completed_at=None,
        reported_at=None,
        last_error=None,
        created_at=_epoch_ms(recorded["createdAt"]),
        updated_at=0,
        outcome=None,
        result=None,
        event_name=metadata["eventName"],
    )
    version = metadata.get("eventVersion", 1)
    event = Event(job.event_id, metadata["eventName"], version, "BASH", "")
    return claimed_job(
        job, event, listed, None if details is None else _server(details), lambda value: value
    )


def _server(details: dict[str, Any]) -> Server:
    return Server(
        id=int(details["id"]),
        name=details["name"],
        host=details["host"],
        port=details["port"],
        username=details["username"],
        private_key=details.get("privateKey"),
        password=details.get("password"),
    )


def _epoch_ms(text: str) -> int:
    return round(datetime.fromisoformat(text).timestamp() * 1000)


def _has_details(job: dict[str, Any]) -> bool:
    return "serverDetails" in job["execution"]["target"]


def _order(value: object) -> object:
    """The keys of `value` in their order, all the way down."""
    if isinstance(value, dict):
        return [(key, _order(entry)) for key, entry in value.items()]
    return [_order(entry) for entry in value] if isinstance(value, list) else None
