"""The service in whose nurseries all else runs: its drain, its heartbeat and its reports."""

import json
from collections import Counter
from pathlib import Path
from typing import Any

import httpx
import pytest
import trio

from tests.worker_rig import running_worker, until_exists, until_idle
from worker.api import wire
from worker.api.client import QueueClient
from worker.demo.sshd import Sshd
from worker.errors import QueueUnavailableError
from worker.intake import Intake


async def test_a_second_signal_while_the_claims_are_still_ending_is_bounded(
    sshd: Sshd, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("worker.service.CANCEL_SECONDS", 1.0)
    claim_forever = Intake.claim_forever

    async def slow_end(self: Intake, jobs: trio.Nursery) -> None:
        try:
            await claim_forever(self, jobs)
        finally:
            with trio.move_on_after(1, shield=True):  # as a held job does, with the API down
                await trio.sleep_forever()

    monkeypatch.setattr(Intake, "claim_forever", slow_end)
    mark = tmp_path / "mark"
    async with running_worker(tmp_path, {"CRONIUM_DRAIN_TIMEOUT": "1"}) as rig:
        names = rig.add(sshd.server)
        with trio.fail_after(60):
            rig.submit(f"trap '' TERM; echo x >>{mark}; while :; do sleep 1; done", names)
            await until_exists(mark)
            rig.drain.set()
            await trio.sleep(0.2)
            rig.service.cancel_jobs()
            began = trio.current_time()

            await until_idle(rig)

    assert trio.current_time() - began < 4


async def test_the_limit_of_the_drain_gives_cancelled_jobs_no_more_time(
    sshd: Sshd, tmp_path: Path
) -> None:
    mark = tmp_path / "mark"
    environ = {"CRONIUM_DRAIN_TIMEOUT": "0.3", "CRONIUM_DRAIN_POLICY": "cancel"}
    async with running_worker(tmp_path, environ) as rig:
        names = rig.add(sshd.server)
        with trio.fail_after(60):
            rig.submit(f"trap '' TERM; echo x >>{mark}; while :; do sleep 1; done", names)
            await until_exists(mark)
            rig.drain.set()
            rig.service.cancel_jobs()
            deadline = rig.service._jobs_scope.deadline

            await trio.sleep(0.6)

            assert rig.service._jobs.ids
            assert rig.service._jobs_scope.deadline == deadline


async def test_a_heartbeat_file_that_cannot_be_written_does_not_end_the_worker(
    sshd: Sshd, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("worker.service.HEARTBEAT_SECONDS", 0.1)
    async with running_worker(tmp_path) as rig:
        names = rig.add(sshd.server)
        file = tmp_path / "state" / "heartbeat"
        with trio.fail_after(60):
            await until_exists(file)
            file.unlink()
            file.symlink_to(tmp_path / "nowhere" / "file")
            await trio.sleep(0.3)

            report = await rig.run("true", names)

    assert report.job.status == "completed"


async def test_the_app_is_told_how_the_worker_is_and_what_it_has_done(
    sshd: Sshd, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("worker.service.REPORT_SECONDS", 0.5)
    told: list[tuple[str, dict[str, Any]]] = []
    unheard: list[wire.Body] = []
    call = QueueClient._call

    async def heard(
        self: QueueClient,
        method: str,
        path: str,
        body: wire.Body | None = None,
        **options: Any,  # noqa: ANN401  passed on
    ) -> httpx.Response:
        if isinstance(body, wire.MetricsBody) and body.metrics and not unheard:
            unheard.append(body)
            raise QueueUnavailableError("the queue is away")
        response = await call(self, method, path, body, **options)
        if path in ("orchestrator/health", "orchestrator/metrics") and body is not None:
            told.append((path, json.loads(wire.encode(body))))
        return response

    monkeypatch.setattr(QueueClient, "_call", heard)
    async with running_worker(tmp_path) as rig:
        names = rig.add(sshd.server)
        with trio.fail_after(60):
            await rig.run("exit 3", names)
            job_id = rig.submit("sleep 3", names)
            await trio.sleep(2)
            await rig.finished(job_id)
            await trio.sleep(1)

    health = [body for path, body in told if path == "orchestrator/health"]
    counts = Counter[str]()
    for path, body in told:
        if path == "orchestrator/metrics":
            assert body["period"] == "minute"
            counts.update(body["metrics"])
    assert {body["status"] for body in health} == {"healthy"}
    assert any(body["metrics"]["activeExecutions"] == 1 for body in health)
    assert counts == {
        "jobs_failed": 1,
        "executions_failed": 1,
        "jobs_completed": 1,
        "executions_success": 1,
    }
