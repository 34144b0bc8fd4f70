"""Whose job it is, and what the API must hear, when the API answers oddly."""

import functools
import sqlite3
from collections.abc import Callable
from contextlib import closing
from pathlib import Path

import httpx
import pytest
import trio

from tests.queue_rig import running_queue
from tests.worker_rig import (
    WorkerRig,
    outcomes,
    running_worker,
    until_exists,
    until_idle,
    worker_on,
)
from worker import delivery
from worker.api.client import QueueClient
from worker.clock import now_ms
from worker.demo.sshd import Sshd
from worker.remote.connection import Connection

Answer = Callable[[str], int | None]


def gateway(monkeypatch: pytest.MonkeyPatch, answer: Answer) -> None:
    """Something before the API answers some paths itself, with a status and no JSON."""
    send = QueueClient._send

    @functools.wraps(send)
    async def through_gateway(
        self: QueueClient, method: str, path: str, *rest: object
    ) -> httpx.Response:
        status = answer(path)
        if status is None:
            return await send(self, method, path, *rest)  # type: ignore[arg-type]  # passed on
        await trio.lowlevel.checkpoint()
        return httpx.Response(status, request=httpx.Request(method, f"http://gateway/{path}"))

    monkeypatch.setattr(QueueClient, "_send", through_gateway)


def waiting_script(mark: Path, go: Path) -> str:
    return f"echo x >>{mark}; until [ -e {go} ]; do sleep 0.05; done; echo out"


def runs(sshd: Sshd) -> list[str]:
    return [run.name for run in (sshd.server.home / ".cache" / "cronium" / "runs").iterdir()]


async def test_a_run_of_a_job_that_is_anothers_now_is_not_forgotten(
    sshd: Sshd, tmp_path: Path
) -> None:
    mark, go = tmp_path / "mark", tmp_path / "go"
    async with running_worker(tmp_path) as rig:
        names = rig.add(sshd.server)
        with trio.fail_after(60):
            job_id = rig.submit(waiting_script(mark, go), names)
            await until_exists(mark)
            with rig.queue.store.database.transaction() as tx:
                tx.execute("UPDATE jobs SET orchestrator_id = 'other' WHERE id = ?", (job_id,))
            go.touch()
            await until_idle(rig)

    assert len(runs(sshd)) == 1


async def test_a_server_that_is_away_is_waited_for_where_the_script_may_run_already(
    sshd: Sshd, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("worker.dispatch.setup.CONNECT_ATTEMPTS", 1)
    mark, go = tmp_path / "mark", tmp_path / "go"
    async with running_queue(tmp_path) as queue:
        with trio.fail_after(60):
            async with worker_on(queue, tmp_path / "first") as first:
                names = first.add(sshd.server)
                job_id = first.submit(waiting_script(mark, go), names)
                await until_exists(mark)
            sshd.stop()
            go.touch()
            async with worker_on(queue, tmp_path / "second") as second:
                await second.until(job_id, "running")
                await trio.sleep(2)
                sshd.start()
                report = await second.finished(job_id)
                await until_idle(second)

    assert outcomes(report) == {sshd.server.name: ("success", 0)}
    assert report.executions[0].output == "out\n"
    assert mark.read_text() == "x\n"
    assert runs(sshd) == []


@pytest.mark.parametrize("status", [404, 308, 400])
async def test_a_result_is_not_dropped_because_a_gateway_does_not_know_the_route_for_a_while(
    status: int, sshd: Sshd, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    mark, go = tmp_path / "mark", tmp_path / "go"
    odd = False
    gateway(monkeypatch, lambda path: status if odd and path.endswith("/acknowledge") else None)
    async with running_worker(tmp_path) as rig:
        names = rig.add(sshd.server)
        with trio.fail_after(60):
            job_id = rig.submit(waiting_script(mark, go), names)
            await until_exists(mark)
            odd = True
            go.touch()
            with trio.move_on_after(2):
                await until_idle(rig)
            odd = False

            report = await rig.finished(job_id)

    assert report.job.status == "completed"


async def test_a_row_that_never_gets_through_does_not_hold_up_the_jobs_end(
    sshd: Sshd, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("worker.verdicts.MOST_PAUSE_SECONDS", 0.05)
    gateway(monkeypatch, lambda path: 504 if path.endswith("/update") else None)
    async with running_worker(tmp_path) as rig:
        names = rig.add(sshd.server)

        with trio.fail_after(60):
            report = await rig.run("echo hello", names)

    assert report.job.status == "completed"


async def test_a_complete_that_is_refused_leaves_the_runs_output_on_the_server(
    sshd: Sshd, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    refused = trio.Event()

    def answer(path: str) -> int | None:
        if not path.endswith("/complete"):
            return None
        refused.set()
        return 409

    gateway(monkeypatch, answer)
    async with running_worker(tmp_path) as rig:
        names = rig.add(sshd.server)
        with trio.fail_after(60):
            rig.submit("echo hello", names)
            await refused.wait()
            await until_idle(rig)

    assert len(runs(sshd)) == 1


async def test_a_release_of_an_earlier_claim_does_not_release_the_job_that_runs_now(
    sshd: Sshd, tmp_path: Path
) -> None:
    mark, go = tmp_path / "mark", tmp_path / "go"
    async with running_worker(tmp_path) as rig:
        names = rig.add(sshd.server)
        with trio.fail_after(60):
            job_id = rig.submit(waiting_script(mark, go), names, at=now_ms() + 500)
            # As a drain left it while the API was down; its next attempt comes after the claim.
            with rig.database.transaction() as tx:
                tx.execute(
                    """
                    INSERT INTO outbox (job_id, kind, subject, body, created_at, due_at, attempts)
                    VALUES (?1, 'release', ?1, X'7B7D', ?2, ?3, 3)
                    """,
                    (job_id, now_ms(), now_ms() + 1000),
                )
            await until_exists(mark)
            await trio.sleep(2)
            status = rig.queue.status(job_id)
            go.touch()
            await until_idle(rig)

    assert status == "running"


async def test_a_claim_that_is_answered_while_the_worker_drains_goes_back_to_the_queue(
    sshd: Sshd, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    send = QueueClient._send
    answered = trio.Event()

    @functools.wraps(send)
    async def slow_answer(
        self: QueueClient, method: str, path: str, *rest: object
    ) -> httpx.Response:
        response = await send(self, method, path, *rest)  # type: ignore[arg-type]  # passed on
        if path.startswith("jobs/queue") and b"job_" in response.content:
            answered.set()
            await trio.sleep(0.3)  # the last of it is on its way
        return response

    monkeypatch.setattr(QueueClient, "_send", slow_answer)
    async with running_queue(tmp_path) as queue:
        async with worker_on(queue, tmp_path / "state") as rig:
            job_id = rig.submit("true", rig.add(sshd.server))
            with trio.fail_after(60):
                await answered.wait()
            rig.drain.set()

        assert queue.status(job_id) == "queued"


def give_to_another(rig: WorkerRig, job_id: str) -> None:
    with rig.queue.store.database.transaction() as tx:
        tx.execute("UPDATE jobs SET orchestrator_id = 'other' WHERE id = ?", (job_id,))


async def test_a_job_that_is_anothers_now_is_left_alone_while_it_runs(
    sshd: Sshd, tmp_path: Path
) -> None:
    mark, go = tmp_path / "mark", tmp_path / "go"
    async with running_worker(tmp_path, {"CRONIUM_CANCEL_POLL": "1s"}) as rig:
        names = rig.add(sshd.server)
        with trio.fail_after(60):
            job_id = rig.submit(waiting_script(mark, go), names)
            await until_exists(mark)

            give_to_another(rig, job_id)
            await until_idle(rig)

        assert rig.queue.status(job_id) == "running"
        assert len(runs(sshd)) == 1
        assert sshd.processes()
        assert rig.rows("SELECT * FROM outbox") == []


@pytest.mark.parametrize("claimed_by", ["another worker", "this worker"])
async def test_a_job_that_is_claimed_anew_just_before_its_end_is_told_is_ended_if_it_is_ours(
    sshd: Sshd, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, claimed_by: str
) -> None:
    complete = QueueClient.complete
    worker = "other" if claimed_by == "another worker" else None

    async def too_late(self: QueueClient, job_id: str, body: bytes, *, claim: str | None) -> None:
        with rig.queue.store.database.transaction() as tx:
            tx.execute(
                """
                UPDATE jobs SET claim_token = 'later',
                    orchestrator_id = coalesce(?, orchestrator_id)
                WHERE id = ?
                """,
                (worker, job_id),
            )
        await complete(self, job_id, body, claim=claim)

    monkeypatch.setattr(QueueClient, "complete", too_late)
    async with running_worker(tmp_path) as rig:
        names = rig.add(sshd.server)
        with trio.fail_after(60):
            job_id = rig.submit("echo out", names)
            await rig.until(job_id, "running")
            await until_idle(rig)

        report = rig.queue.store.report(job_id)
        assert rig.rows("SELECT * FROM outbox") == []
        if claimed_by == "this worker":
            assert report.job.status == "completed"
            assert [row.status for row in report.executions] == ["COMPLETED"]
            assert runs(sshd) == []
        else:
            assert (report.job.status, report.job.result) == ("running", None)
            assert [row.status for row in report.executions] == ["queued"]
            assert len(runs(sshd)) == 1


async def test_a_cancel_is_learned_of_from_the_job_where_heartbeats_do_not_tell(
    sshd: Sshd, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("worker.service.HEARTBEAT_SECONDS", 600)
    mark, go = tmp_path / "mark", tmp_path / "go"
    async with running_worker(tmp_path, {"CRONIUM_CANCEL_POLL": "1s"}) as rig:
        names = rig.add(sshd.server)
        with trio.fail_after(60):
            job_id = rig.submit(waiting_script(mark, go), names)
            await until_exists(mark)

            rig.queue.store.cancel(job_id, now_ms())
            report = await rig.finished(job_id)

    assert report.job.status == "cancelled"
    assert outcomes(report) == {names[0]: ("cancelled", 130)}


async def test_of_two_workers_on_one_run_the_newer_reports_and_the_older_lets_go(
    sshd: Sshd, tmp_path: Path
) -> None:
    mark, go = tmp_path / "mark", tmp_path / "go"
    # With its one slot taken the older one claims nothing more.
    async with running_worker(tmp_path, {"CRONIUM_JOBS_MAX_CONCURRENT": "1"}) as older:
        names = older.add(sshd.server)
        with trio.fail_after(60):
            job_id = older.submit(waiting_script(mark, go), names)
            await until_exists(mark)
            # As a lease that ran out while the older one was stopped.
            with older.queue.store.database.transaction() as tx:
                tx.execute(
                    "UPDATE jobs SET status = 'queued', orchestrator_id = NULL WHERE id = ?",
                    (job_id,),
                )
            async with worker_on(older.queue, tmp_path / "state-2") as newer:
                await until_idle(older)
                go.touch()
                report = await newer.finished(job_id)

    assert report.executions[0].output == "out\n"
    assert mark.read_text() == "x\n"


async def test_a_look_that_meets_our_own_report_does_not_disown_the_job(
    sshd: Sshd, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    send = QueueClient._send
    hold, held = False, trio.Event()

    @functools.wraps(send)
    async def slow_look(self: QueueClient, method: str, path: str, *rest: object) -> httpx.Response:
        nonlocal hold
        if path.endswith("/acknowledge") and hold:
            hold = False
            held.set()
            await trio.sleep(1)
        response = await send(self, method, path, *rest)  # type: ignore[arg-type]  # passed on
        if path.endswith("/complete"):
            await trio.sleep(1.5)  # as the app's does, over 100 kB
        return response

    monkeypatch.setattr(QueueClient, "_send", slow_look)
    mark, go = tmp_path / "mark", tmp_path / "go"
    async with running_worker(tmp_path, {"CRONIUM_CANCEL_POLL": "1s"}) as rig:
        names = rig.add(sshd.server)
        with trio.fail_after(60):
            job_id = rig.submit(waiting_script(mark, go), names)
            await until_exists(mark)
            hold = True
            await held.wait()
            go.touch()
            await rig.finished(job_id)
            await until_idle(rig)

    assert runs(sshd) == []


async def test_a_job_that_comes_back_while_its_old_flight_closes_is_reported(
    sshd: Sshd, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    close = Connection.close
    slow = True

    async def slow_close(self: Connection) -> None:
        nonlocal slow
        if slow:
            slow = False
            await trio.sleep(1.9)
        await close(self)

    monkeypatch.setattr(Connection, "close", slow_close)
    down = False
    gateway(monkeypatch, lambda path: 503 if down and path.endswith("/complete") else None)
    mark, go = tmp_path / "mark", tmp_path / "go"
    async with running_worker(tmp_path, {"CRONIUM_CANCEL_POLL": "1s"}) as rig:
        names = rig.add(sshd.server)
        with trio.fail_after(60):
            job_id = rig.submit(waiting_script(mark, go), names)
            await until_exists(mark)
            give_to_another(rig, job_id)
            while (flight := rig.flight(job_id)) is not None and not flight.is_settled:
                await trio.sleep(0.01)
            go.touch()
            down = True
            with rig.queue.store.database.transaction() as tx:
                tx.execute(
                    "UPDATE jobs SET status = 'queued', orchestrator_id = NULL WHERE id = ?",
                    (job_id,),
                )
            await trio.sleep(2.5)
            down = False
            report = await rig.finished(job_id)

    assert report.executions[0].output == "out\n"


async def test_a_job_that_was_deleted_while_it_ran_does_not_stay_with_the_worker(
    sshd: Sshd, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(delivery, "MISSING_ATTEMPTS", 3)
    mark, go = tmp_path / "mark", tmp_path / "go"
    async with running_worker(tmp_path) as rig:
        names = rig.add(sshd.server)
        with trio.fail_after(20):
            job_id = rig.submit(waiting_script(mark, go), names)
            await until_exists(mark)
            with closing(sqlite3.connect(rig.queue.database)) as queue:
                queue.execute("DELETE FROM executions")
                queue.execute("DELETE FROM jobs")
                queue.commit()
            go.touch()
            await until_idle(rig)

        assert (job_id, "complete") in rig.rows(
            "SELECT job_id, kind FROM outbox WHERE parked IS NOT NULL"
        )
