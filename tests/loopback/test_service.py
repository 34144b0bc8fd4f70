"""The service in whose nurseries all else runs: its drain and its heartbeat."""

from pathlib import Path

import pytest
import trio

from tests.worker_rig import running_worker, until_exists, until_idle
from worker.demo.sshd import Sshd
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
