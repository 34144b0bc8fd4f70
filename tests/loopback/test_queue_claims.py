"""Claims of the embedded queue: what is said under one counts as long as the job is under it."""

from pathlib import Path
from typing import Any

import httpx
import pytest
import trio

from tests.queue_rig import QueueRig, claim, running_queue
from worker.api.wire import decode_claim
from worker.clock import now_ms
from worker.queue_server.model import Script, ScriptType

END = {"status": "completed", "exitCode": 0, "output": {"stdout": "out\n", "stderr": ""}}


def under(token: str) -> dict[str, str]:
    return {"X-Claim-Token": token}


def created(row: str, server: str = "1") -> dict[str, Any]:
    return {"id": row, "create": {"jobId": "any", "serverId": server, "serverName": "web-1"}}


def updated(row: str, status: str = "COMPLETED") -> dict[str, Any]:
    return {"id": row, "update": {"status": status, "exitCode": 0}}


async def start(
    client: httpx.AsyncClient, job_id: str, token: str, *rows: dict[str, Any]
) -> httpx.Response:
    body = {"status": "running", "executions": rows}
    return await client.put(f"/jobs/{job_id}/status", json=body, headers=under(token))


async def put_rows(
    client: httpx.AsyncClient, job_id: str, token: str, *rows: dict[str, Any]
) -> httpx.Response:
    return await client.post(
        f"/jobs/{job_id}/executions", json={"executions": rows}, headers=under(token)
    )


async def complete(
    client: httpx.AsyncClient, job_id: str, token: str, *rows: dict[str, Any], **end: object
) -> httpx.Response:
    body = {**END, **end, "executions": rows}
    return await client.post(f"/jobs/{job_id}/complete", json=body, headers=under(token))


async def fail(client: httpx.AsyncClient, job_id: str, token: str) -> httpx.Response:
    return await client.post(f"/jobs/{job_id}/fail", json={"error": "no"}, headers=under(token))


def statuses(queue: QueueRig, job_id: str) -> dict[str, str]:
    return {row.id: row.status for row in queue.store.report(job_id).executions}


async def test_half_of_a_surrogate_pair_is_its_jobs_own_affair(tmp_path: Path) -> None:
    script = Script(ScriptType.BASH, "true", input="\ud800")
    with trio.fail_after(25):
        async with running_queue(tmp_path) as queue, queue.client() as client:
            good = queue.submit()
            bad = queue.store.submit_script("odd", script, ["web-1"], now_ms())
            answer = await client.get("/jobs/queue?batchSize=10")

    assert answer.status_code == 200
    assert {job.id for job in decode_claim(answer.content)} == {bad, good}


async def test_what_is_said_under_an_earlier_claim_changes_nothing(tmp_path: Path) -> None:
    with trio.fail_after(25):
        async with running_queue(tmp_path) as queue, queue.client() as client:
            job_id = queue.submit()
            (first,) = await claim(client)
            old = first["claimToken"]
            await client.post(f"/jobs/{job_id}/release", json={})
            between = await complete(client, job_id, old)
            (second,) = await claim(client)  # by the same worker
            new = second["claimToken"]
            await start(client, job_id, new, created("e1"))

            late = [
                await start(client, job_id, old, created("e2")),
                await put_rows(client, job_id, old, updated("e1")),
                await complete(client, job_id, old, updated("e1")),
                await fail(client, job_id, old),
            ]

            assert old != new
            assert [answer.status_code for answer in (between, *late)] == [403] * 5
            assert queue.status(job_id) == "running"
            assert statuses(queue, job_id) == {"e1": "queued"}
            ended = await complete(client, job_id, new, updated("e1"))
            assert ended.json()["job"]["status"] == "completed"
            assert statuses(queue, job_id) == {"e1": "COMPLETED"}


@pytest.mark.parametrize("how", ["released", "lease over", "cancelled"])
async def test_a_claim_says_whether_another_worker_may_have_begun_with_the_job(
    how: str, tmp_path: Path
) -> None:
    with trio.fail_after(25):
        async with running_queue(tmp_path, lease_seconds=0.2) as queue, queue.client() as client:
            job_id = queue.submit()
            (first,) = await claim(client)
            if how == "released":
                await client.post(f"/jobs/{job_id}/release", json={})
            if how == "cancelled":  # handed out for its runs to be ended
                queue.store.cancel(job_id, now_ms())
            await trio.sleep(0.3)
            (second,) = await claim(client)

    assert (first["mayHaveBegun"], second["mayHaveBegun"]) == (False, True)


async def test_a_lease_that_ran_out_ends_its_claim(tmp_path: Path) -> None:
    with trio.fail_after(25):
        async with (
            running_queue(tmp_path, lease_seconds=0.2) as queue,
            queue.client() as client,
            queue.client("worker-2") as other,
        ):
            job_id = queue.submit()
            (mine,) = await claim(client)
            await trio.sleep(0.3)
            assert await claim(other, batch=0) == []  # the queue looks for leases that are over

            late = await complete(client, job_id, mine["claimToken"])

            assert late.status_code == 403
            assert queue.status(job_id) == "queued"


async def test_a_job_is_started_once_with_its_rows(tmp_path: Path) -> None:
    with trio.fail_after(25):
        async with running_queue(tmp_path) as queue, queue.client() as client:
            job_id = queue.submit(servers=2)
            (job,) = await claim(client)
            token = job["claimToken"]
            rows = [created("e1"), created("e2", server="2"), created("e3", server="999")]

            first = await start(client, job_id, token, *rows)
            await put_rows(client, job_id, token, updated("e1"))
            again = await start(client, job_id, token, *rows)

            assert again.json()["job"]["startedAt"] == first.json()["job"]["startedAt"]
            report = queue.store.report(job_id)
            servers = {row.id: row.server_id for row in report.executions}
            assert servers == {"e1": 1, "e2": 2, "e3": None}
            assert statuses(queue, job_id) == {"e1": "COMPLETED", "e2": "queued", "e3": "queued"}


async def test_a_job_that_nobody_said_was_running_started_with_its_first_execution(
    tmp_path: Path,
) -> None:
    with trio.fail_after(25):
        async with running_queue(tmp_path) as queue, queue.client() as client:
            job_id = queue.submit(servers=2)
            (job,) = await claim(client)
            late, soon = updated("e1"), updated("e2")
            late["update"]["startedAt"] = "2026-01-02T03:04:06.000Z"
            soon["update"]["startedAt"] = "2026-01-02T03:04:05.000Z"
            rows = [created("e1"), late, created("e2", server="2"), soon]

            ended = await complete(client, job_id, job["claimToken"], *rows)

            assert ended.json()["job"]["startedAt"] == "2026-01-02T03:04:05.000Z"


async def test_a_job_that_was_cancelled_is_not_revived_and_ends_as_such(tmp_path: Path) -> None:
    with trio.fail_after(25):
        async with running_queue(tmp_path) as queue, queue.client() as client:
            job_id = queue.submit()
            (job,) = await claim(client)
            token = job["claimToken"]
            queue.store.cancel(job_id, now_ms())

            started = await start(client, job_id, token, created("e1"))
            ended = await complete(client, job_id, token, updated("e1"))

            assert started.json()["job"]["status"] == "cancelled"
            assert ended.json()["job"]["status"] == "cancelled"
            job_now = queue.store.report(job_id).job
            assert (job_now.outcome, job_now.reported_at is not None) == ("cancelled", True)
            assert statuses(queue, job_id) == {"e1": "COMPLETED"}


async def test_what_is_said_after_the_end_changes_nothing(tmp_path: Path) -> None:
    with trio.fail_after(25):
        async with running_queue(tmp_path) as queue, queue.client() as client:
            job_id = queue.submit()
            (job,) = await claim(client)
            token = job["claimToken"]
            await complete(client, job_id, token, created("e1"), updated("e1"))

            late = [
                await complete(client, job_id, token, updated("e1", "FAILED"), status="failed"),
                await put_rows(client, job_id, token, updated("e1", "running")),
                await start(client, job_id, token, created("e2")),
            ]

            assert [answer.status_code for answer in late] == [200] * 3
            assert queue.status(job_id) == "completed"
            assert statuses(queue, job_id) == {"e1": "COMPLETED"}


@pytest.mark.parametrize("bad", ["another job's", "none"])
async def test_rows_are_kept_all_or_none(bad: str, tmp_path: Path) -> None:
    with trio.fail_after(25):
        async with running_queue(tmp_path) as queue, queue.client() as client:
            first_id, second_id = queue.submit(), queue.submit()
            tokens = {job["id"]: job["claimToken"] for job in await claim(client)}
            await put_rows(client, second_id, tokens[second_id], created("theirs"))
            rows = [created("e1"), updated("theirs" if bad == "another job's" else "nobody")]

            put = await put_rows(client, first_id, tokens[first_id], *rows)
            ended = await complete(client, first_id, tokens[first_id], *rows)

            assert (put.status_code, ended.status_code) == (404, 404)
            assert queue.status(first_id) == "claimed"
            assert statuses(queue, first_id) == {}
            assert statuses(queue, second_id) == {"theirs": "queued"}
