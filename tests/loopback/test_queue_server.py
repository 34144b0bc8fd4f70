"""The embedded queue over real HTTP: claims, leases, long polls, who may end a job."""

import sqlite3
import time
from collections import Counter
from contextlib import closing
from pathlib import Path
from typing import Any

import httpx
import pytest
import trio
from starlette.types import Message

from tests.queue_rig import TOKEN, claim, running_queue
from worker.clock import now_ms
from worker.errors import StateError
from worker.queue_server.app import queue_app
from worker.queue_server.arrivals import Arrivals
from worker.queue_server.file import open_database
from worker.queue_server.keys import kept_secret, open_keyring
from worker.queue_server.leases import Leases
from worker.queue_server.model import Priority
from worker.queue_server.serve import ServeSettings, serve
from worker.queue_server.transform import Json
from worker.sealing import SealingKey
from worker.secret import Secret

DONE = {
    "status": "completed",
    "exitCode": 0,
    "output": {"stdout": "hello\n", "stderr": ""},
    "metrics": {"message": "all well"},
}
KEY = "ab" * 32


async def test_a_job_goes_to_one_of_twenty_pollers(tmp_path: Path) -> None:
    with trio.fail_after(25):
        async with running_queue(tmp_path) as queue:
            submitted = {queue.submit() for _ in range(60)}
            taken: Counter[str] = Counter()

            async def poll(worker_id: str) -> None:
                async with queue.client(worker_id) as client:
                    while jobs := await claim(client, batch=2):
                        taken.update(job["id"] for job in jobs)

            async with trio.open_nursery() as pollers:
                for number in range(20):
                    pollers.start_soon(poll, f"worker-{number}")

            assert taken == dict.fromkeys(submitted, 1)


async def test_a_job_goes_to_one_of_twenty_pollers_that_wait_for_it(tmp_path: Path) -> None:
    with trio.fail_after(25):
        async with running_queue(tmp_path) as queue:
            taken: Counter[str] = Counter()

            async def poll(worker_id: str) -> None:
                async with queue.client(worker_id) as client:
                    taken.update(job["id"] for job in await claim(client, batch=1, wait=1))

            async with trio.open_nursery() as pollers:
                for number in range(20):
                    pollers.start_soon(poll, f"worker-{number}")
                await trio.sleep(0.2)
                submitted = {queue.submit() for _ in range(5)}

            assert taken == dict.fromkeys(submitted, 1)


async def test_the_urgent_come_first_then_the_older(tmp_path: Path) -> None:
    with trio.fail_after(25):
        async with running_queue(tmp_path) as queue, queue.client() as client:
            now = now_ms()
            low = queue.submit(priority=Priority.LOW)
            normal = queue.submit(at=now - 1000)
            older = queue.submit(at=now - 2000)
            high = queue.submit(priority=Priority.HIGH)

            jobs = await claim(client)

            assert [job["id"] for job in jobs] == [high, older, normal, low]


@pytest.mark.quiet
async def test_a_poll_that_waits_gets_another_process_job_at_once(tmp_path: Path) -> None:
    with trio.fail_after(25):
        async with running_queue(tmp_path) as queue, queue.client() as client:
            queue.submit()
            await claim(client)
            delays = []

            async def poll(answered: trio.Event) -> None:
                assert await claim(client, wait=5)
                delays.append(trio.current_time() - submitted)
                answered.set()

            for _ in range(5):
                answered = trio.Event()
                async with trio.open_nursery() as nursery:
                    nursery.start_soon(poll, answered)
                    await trio.sleep(0.1)
                    submitted = trio.current_time()
                    queue.submit()
                    await answered.wait()

            assert max(delays) < 0.1


@pytest.mark.quiet
async def test_a_poll_that_waits_gets_a_released_job_and_a_due_one(tmp_path: Path) -> None:
    with trio.fail_after(25):
        async with (
            running_queue(tmp_path) as queue,
            queue.client("worker-1") as first,
            queue.client("worker-2") as second,
        ):
            released = queue.submit()
            await claim(first)
            got: list[str] = []

            async def poll() -> None:
                got.extend(job["id"] for job in await claim(second, wait=3))

            async with trio.open_nursery() as nursery:
                nursery.start_soon(poll)
                await trio.sleep(0.1)
                await first.post(f"/jobs/{released}/release", json={})
            due_at = now_ms() + 300
            due = queue.submit(at=due_at)
            await poll()

            assert got == [released, due]
            assert due_at <= now_ms() < due_at + 200


async def test_a_poll_says_that_it_waited_and_answers_empty_in_the_end(tmp_path: Path) -> None:
    with trio.fail_after(25):
        async with running_queue(tmp_path) as queue, queue.client() as client:
            began = trio.current_time()

            answer = await client.get("/jobs/queue", headers={"Prefer": "respond-async, wait=1"})

            assert answer.json() == {"jobs": [], "count": 0}
            assert answer.headers["Preference-Applied"] == "wait=1"
            assert 1 <= trio.current_time() - began < 3


async def test_a_wait_is_capped_and_not_claimed_for_where_none_was_asked(tmp_path: Path) -> None:
    with trio.fail_after(25):
        async with running_queue(tmp_path) as queue, queue.client() as client:
            queue.submit()

            capped = await client.get("/jobs/queue", headers={"Prefer": "wait=999"})
            plain = await client.get("/jobs/queue")

            assert capped.headers["Preference-Applied"] == "wait=60"
            assert "Preference-Applied" not in plain.headers


async def test_a_poller_that_has_gone_gets_no_job(tmp_path: Path) -> None:
    with trio.fail_after(25):
        async with (
            running_queue(tmp_path) as queue,
            queue.client("gone") as gone,
            queue.client("here") as here,
        ):
            with trio.move_on_after(0.2):
                await claim(gone, wait=10)
            job_id = queue.submit()
            await trio.sleep(0.2)  # long enough for a poll that is still there

            jobs = await claim(here)

            assert [job["id"] for job in jobs] == [job_id]


async def test_a_poller_that_goes_while_its_claim_is_made_gives_it_back(tmp_path: Path) -> None:
    left, token = trio.Event(), trio.lowlevel.current_trio_token()

    class LeftLeases(Leases):
        def claim(self, *args: Any, **kwargs: Any) -> tuple[Json, ...]:  # noqa: ANN401 passed on
            jobs = super().claim(*args, **kwargs)
            trio.from_thread.run_sync(left.set, trio_token=token)
            time.sleep(0.05)  # the disconnect is seen while the claim is under way
            return jobs

    async def receive() -> Message:
        await left.wait()
        return {"type": "http.disconnect"}

    async def send(_: Message) -> None:
        await trio.lowlevel.checkpoint()

    headers = {"authorization": f"Bearer {TOKEN}", "x-orchestrator-id": "gone", "prefer": "wait=5"}
    scope = {
        "type": "http",
        "method": "GET",
        "path": "/api/internal/jobs/queue",
        "query_string": b"",
        "headers": [(name.encode(), value.encode()) for name, value in headers.items()],
    }
    with trio.fail_after(25):
        async with running_queue(tmp_path) as queue:
            job_id = queue.submit()
            keyring = open_keyring(queue.database, {})
            with (
                closing(open_database(queue.database, keyring)) as database,
                closing(Arrivals(queue.database)) as arrivals,
            ):
                leases = LeftLeases(database, keyring)
                app = queue_app(database, keyring, leases, arrivals, Secret(TOKEN))
                await app(scope, receive, send)

            assert left.is_set()
            assert queue.status(job_id) == "queued"


async def test_two_servers_on_one_file_never_give_a_job_twice(tmp_path: Path) -> None:
    path = tmp_path / "queue.db"
    keyring = open_keyring(path, {})
    taken: list[str] = []

    def drain(worker_id: str) -> None:
        with closing(open_database(path, keyring)) as database:
            leases = Leases(database, keyring)
            while jobs := leases.claim(worker_id, limit=1, types=None, now=now_ms()):
                taken.extend(job["id"] for job in jobs)

    with trio.fail_after(25):
        async with running_queue(tmp_path) as queue:
            submitted = {queue.submit() for _ in range(100)}
            async with trio.open_nursery() as nursery:
                for number in range(4):
                    nursery.start_soon(trio.to_thread.run_sync, drain, f"worker-{number}")

    assert Counter(taken) == dict.fromkeys(submitted, 1)


async def test_head_does_not_claim(tmp_path: Path) -> None:
    with trio.fail_after(25):
        async with running_queue(tmp_path) as queue, queue.client() as client:
            job_id = queue.submit()

            answer = await client.head("/jobs/queue")

            assert answer.status_code == 405
            assert queue.status(job_id) == "queued"


async def test_the_end_of_the_server_answers_those_who_wait(tmp_path: Path) -> None:
    with trio.fail_after(25):
        answers = []

        async def poll(client: httpx.AsyncClient) -> None:
            answers.append(await claim(client, wait=30))

        async with trio.open_nursery() as nursery, running_queue(tmp_path) as queue:
            client = queue.client()
            nursery.start_soon(poll, client)
            await trio.sleep(0.2)
        await client.aclose()

        assert answers == [[]]


@pytest.mark.quiet
async def test_a_lease_that_is_not_renewed_is_over(tmp_path: Path) -> None:
    with trio.fail_after(25):
        async with (
            running_queue(tmp_path, lease_seconds=0.4) as queue,
            queue.client("silent") as silent,
            queue.client("next") as other,
        ):
            job_id = queue.submit()
            await claim(silent)
            await silent.put(f"/jobs/{job_id}/status", json={"status": "running"})
            began = trio.current_time()

            (job,) = await claim(other, wait=3)

            assert (job["id"], job["attempts"]) == (job_id, 0)
            assert 0.2 < trio.current_time() - began < 0.6
            late = await silent.post(f"/jobs/{job_id}/complete", json=DONE)
            assert late.status_code == 403
            assert queue.status(job_id) == "claimed"


async def test_a_job_cancelled_under_a_worker_that_is_gone_is_given_to_another_to_be_ended(
    tmp_path: Path,
) -> None:
    async with (
        running_queue(tmp_path, lease_seconds=0.3) as queue,
        queue.client("worker-1") as first,
        queue.client("worker-2") as second,
    ):
        with trio.fail_after(10):
            job_id = queue.submit()
            never_claimed = queue.submit()
            await claim(first, batch=1)
            queue.store.cancel(job_id, now_ms())
            queue.store.cancel(never_claimed, now_ms())
            at_once = await claim(second)
            await trio.sleep(0.4)
            later = await claim(second)
            body = {"orchestratorId": "worker-2", "timestamp": "2026-01-01T00:00:00Z"}
            job = (await second.post(f"/jobs/{job_id}/acknowledge", json=body)).json()["job"]
            end = {"status": "cancelled", "exitCode": 130, "output": {"stdout": "", "stderr": ""}}
            ended = await second.post(
                f"/jobs/{job_id}/complete", json={**end, "timestamp": "2026-01-01T00:00:00Z"}
            )
            await trio.sleep(0.4)
            again = await claim(second)

    assert (at_once, [each["id"] for each in later], again) == ([], [job_id], [])
    assert (job["status"], ended.status_code) == ("cancelled", 200)


async def test_a_heartbeat_that_names_the_job_renews_its_lease(tmp_path: Path) -> None:
    with trio.fail_after(25):
        async with (
            running_queue(tmp_path, lease_seconds=1.5) as queue,
            queue.client("busy") as busy,
            queue.client("next") as other,
        ):
            queue.submit()
            queue.submit()
            named, forgotten = (job["id"] for job in await claim(busy))
            for _ in range(4):
                await trio.sleep(0.4)
                await _heartbeat(busy, "busy", [named])
                await _heartbeat(other, "next", [forgotten])  # not its own: renews nothing

            jobs = await claim(other)

            assert [job["id"] for job in jobs] == [forgotten]


async def test_only_the_claimer_may_end_start_or_release_a_job(tmp_path: Path) -> None:
    with trio.fail_after(25):
        async with (
            running_queue(tmp_path) as queue,
            queue.client("mine") as mine,
            queue.client("other") as other,
        ):
            job_id = queue.submit()
            await claim(mine)

            answers = [
                await other.post(f"/jobs/{job_id}/complete", json=DONE),
                await other.post(f"/jobs/{job_id}/fail", json={"error": "no"}),
                await other.post(f"/jobs/{job_id}/release", json={}),
                await other.put(f"/jobs/{job_id}/status", json={"status": "running"}),
            ]

            assert [answer.status_code for answer in answers] == [403] * 4
            assert queue.status(job_id) == "claimed"


async def test_a_second_complete_changes_nothing(tmp_path: Path) -> None:
    with trio.fail_after(25):
        async with running_queue(tmp_path) as queue, queue.client() as client:
            job_id = queue.submit()
            await claim(client)

            first = await client.post(f"/jobs/{job_id}/complete", json=DONE)
            again = await client.post(
                f"/jobs/{job_id}/complete", json={**DONE, "status": "failed", "exitCode": 9}
            )
            release = await client.post(f"/jobs/{job_id}/release", json={})

            assert first.json() == again.json() == release.json()
            report = queue.store.report(job_id)
            assert (report.exit_code, report.stdout, report.message) == (0, "hello\n", "all well")


async def test_an_execution_update_never_ends_the_job(tmp_path: Path) -> None:
    with trio.fail_after(25):
        async with running_queue(tmp_path) as queue, queue.client() as client:
            job_id = queue.submit()
            await claim(client)
            path = f"/executions/exec_{job_id}_1_0"
            created = await client.post(path + "/create", json={"jobId": job_id, "serverId": "1"})

            updated = await client.put(
                path + "/update",
                json={
                    "status": "completed",
                    "completedAt": "2026-11-23T08:00:00.123456+01:00",
                    "metadata": {"a": 1},
                    "executionMetadata": {},
                },
            )
            merged = await client.put(path + "/update", json={"metadata": {"b": 2}})

            assert (created.status_code, updated.status_code) == (200, 200)
            row = merged.json()["execution"]
            assert row["completedAt"] == "2026-11-23T07:00:00.123Z"
            assert (row["metadata"], row["executionMetadata"]) == ({"a": 1, "b": 2}, {})
            assert queue.status(job_id) == "claimed"


async def test_a_cancelled_job_is_told_until_it_is_ended_and_never_revived(
    tmp_path: Path,
) -> None:
    with trio.fail_after(25):
        async with running_queue(tmp_path) as queue, queue.client() as client:
            job_id, other_id = queue.submit(), queue.submit()
            await claim(client)
            queue.store.cancel(job_id, now_ms())

            told = await _heartbeat(client, "worker-1", [job_id, other_id])
            told_unasked = await _heartbeat(client, "worker-1", [])
            revived = await client.put(f"/jobs/{job_id}/status", json={"status": "running"})
            read = await client.post(
                f"/jobs/{job_id}/acknowledge", json={"orchestratorId": "worker-1"}
            )
            ended = await client.post(
                f"/jobs/{job_id}/complete", json={**DONE, "status": "cancelled", "exitCode": 130}
            )
            told_after = await _heartbeat(client, "worker-1", [job_id, other_id])

            assert (told, told_unasked, told_after) == ([job_id], [job_id], [])
            assert revived.json()["job"]["status"] == "cancelled"
            assert read.json()["job"]["status"] == "cancelled"
            assert ended.json()["job"]["result"]["exitCode"] == 130
            assert queue.store.report(job_id).stdout == "hello\n"


async def test_a_cancelled_job_is_not_handed_out(tmp_path: Path) -> None:
    with trio.fail_after(25):
        async with running_queue(tmp_path) as queue, queue.client() as client:
            queue.store.cancel(queue.submit(), now_ms())

            assert await claim(client) == []


@pytest.mark.parametrize(
    ("body", "status"),
    [
        (b'{"error": "nul \\u0000"}', 500),
        (b'{"error": "a path: C:\\\\u0000"}', 200),
        (b'{"error": "three \\\\\\u0000"}', 500),
        (b'{"error": "' + b"x" * (50 * 1024 * 1024 - 13) + b'"}', 200),
        (b'{"error": "' + b"x" * (50 * 1024 * 1024 - 12) + b'"}', 413),
    ],
    ids=["nul", "backslash", "backslash-nul", "50-mb", "more-than-50-mb"],
)
async def test_bodies_that_the_app_would_refuse_are_refused(
    body: bytes, status: int, tmp_path: Path
) -> None:
    with trio.fail_after(60):
        async with running_queue(tmp_path) as queue, queue.client() as client:
            job_id = queue.submit()
            await claim(client)

            answer = await client.post(f"/jobs/{job_id}/fail", content=body)

            assert answer.status_code == status


@pytest.mark.parametrize(
    ("method", "path", "body", "field"),
    [
        ("PUT", "/executions/exec_1/update", {"exitCode": 2**63}, "exitCode"),
        ("PUT", "/executions/exec_1/update", {"setupDuration": -(2**63) - 1}, "setupDuration"),
        ("POST", "/executions/exec_2/create", {"jobId": "j", "serverId": 10**40}, "serverId"),
        (
            "POST",
            "/jobs/{job}/executions",
            {"executions": [{"id": "exec_2", "create": {"serverId": 2**63}}]},
            "executions[0].create.serverId",
        ),
        ("POST", "/jobs/{job}/complete", {"exitCode": 2**63}, "exitCode"),
    ],
)
async def test_a_number_that_is_too_large_is_named_and_not_taken(
    method: str, path: str, body: dict[str, Any], field: str, tmp_path: Path
) -> None:
    with trio.fail_after(5):
        async with running_queue(tmp_path) as queue, queue.client() as client:
            job_id = queue.submit()
            await claim(client)
            await client.post("/executions/exec_1/create", json={"jobId": job_id, "serverId": 1})
            before = queue.store.report(job_id)

            answer = await client.request(method, path.format(job=job_id), json=body)

            # The status is the app's (s15).
            assert answer.status_code == 500
            assert answer.json()["details"].endswith(f"at `$.{field}`")
            assert queue.store.report(job_id) == before


async def test_a_wait_of_more_digits_than_any_number_has_is_capped(tmp_path: Path) -> None:
    with trio.fail_after(5):
        async with running_queue(tmp_path) as queue, queue.client() as client:
            queue.submit()

            answer = await client.get("/jobs/queue", headers={"Prefer": f"wait={'9' * 5000}"})

            assert answer.headers["Preference-Applied"] == "wait=60"


@pytest.mark.parametrize(
    ("environ", "opened"), [({}, False), ({"CRONIUM_ENCRYPTION_KEY": KEY}, True)]
)
async def test_credentials_are_claimed_in_the_open_and_environments_as_the_worker_can_read_them(
    environ: dict[str, str], opened: bool, tmp_path: Path
) -> None:
    with trio.fail_after(25):
        async with running_queue(tmp_path, environ=environ) as queue, queue.client() as client:
            job_id = queue.submit()
            (job,) = await claim(client)
            value = job["execution"]["environment"]["GREETING"]

            assert job["execution"]["target"]["serverDetails"]["privateKey"] == "KEY"
            assert (SealingKey(Secret(KEY)).open(value) if opened else value) == "hello"
            row = await client.post(
                f"/jobs/{job_id}/acknowledge", json={"orchestratorId": "worker-1"}
            )
            assert "hello" not in str(row.json()["job"]["payload"]["environment"])
            stored = sqlite3.connect(queue.database)
            credentials = stored.execute("SELECT private_key FROM servers").fetchall()
            stored.close()
            assert "KEY" not in str(credentials)


async def test_a_job_of_two_servers_lists_both(tmp_path: Path) -> None:
    with trio.fail_after(25):
        async with running_queue(tmp_path) as queue, queue.client() as client:
            queue.submit(servers=2)

            (job,) = await claim(client)

            assert [server["name"] for server in job["metadata"]["servers"]] == ["web-1", "web-2"]
            assert job["metadata"]["serverCount"] == 2


async def test_a_port_in_use_is_an_os_error(tmp_path: Path) -> None:
    with trio.fail_after(25):
        async with running_queue(tmp_path) as queue:
            database = tmp_path / "second.db"
            port = int(queue.address.rsplit(":", 1)[1])
            keys = open_keyring(database, {})
            second = ServeSettings(database, keys, Secret(TOKEN), port=port)
            with pytest.raises(OSError, match="in use"):
                await serve(second, trio.sleep_forever, print)


def test_a_database_under_another_key_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "queue.db"
    open_database(path, open_keyring(path, {})).close()

    with pytest.raises(StateError, match="another key"):
        open_database(path, open_keyring(path, {"CRONIUM_ENCRYPTION_KEY": KEY}))


def test_a_kept_secret_is_made_once_and_only_ours(tmp_path: Path) -> None:
    path = tmp_path / "deep" / "token"

    first = kept_secret(path, lambda: "first")
    second = kept_secret(path, lambda: "second")

    assert first.reveal() == second.reveal() == "first"
    assert path.stat().st_mode & 0o777 == 0o600
    assert list(path.parent.iterdir()) == [path]


async def _heartbeat(client: httpx.AsyncClient, worker_id: str, jobs: list[str]) -> list[str]:
    capacity = {"maxJobs": 5, "currentJobs": len(jobs), "availableSlots": 5 - len(jobs)}
    body = {
        "orchestratorId": worker_id,
        "timestamp": "2026-11-23T08:00:00Z",
        "runningJobs": jobs,
        "capacity": capacity,
    }
    answer = await client.post("/orchestrator/heartbeat", json=body)
    assert answer.status_code == 200
    cancelled: list[str] = answer.json()["cancelledJobs"]
    return cancelled
