"""A connection that drops while a script runs, and what is in the way of the next one."""

import shutil
import sqlite3
from collections.abc import Callable
from pathlib import Path
from typing import NoReturn

import pytest
import trio

from tests.live_files import files_of_runs
from tests.worker_rig import (
    POLL_SECONDS,
    drop_connections,
    outcomes,
    running_worker,
    until_exists,
)
from worker.demo.sshd import LocalServer, Sshd
from worker.dispatch import following
from worker.ownership import Ownership
from worker.remote import deployments, refusals, waiting
from worker.state.runner_cache import RunnerCache

Fleet = Callable[[int], tuple[LocalServer, ...]]


def full(*_arguments: object, **_named: object) -> NoReturn:
    error = sqlite3.OperationalError("database or disk is full")
    error.sqlite_errorcode = sqlite3.SQLITE_FULL
    raise error


async def test_a_login_that_is_refused_for_a_moment_loses_no_run(
    sshd: Sshd, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(following, "REFUSED_SECONDS", (0.5, 0.5, 0.5))
    monkeypatch.setattr(refusals, "REMEMBERED_SECONDS", 0.4)
    (keys,) = tmp_path.rglob("client_key.pub")
    async with running_worker(tmp_path) as rig:
        names = rig.add(sshd.server)
        with trio.fail_after(40):
            job = rig.submit("echo one; sleep 2.5; echo two", names)
            # The start was heard of: a run that may only have begun is ended, not waited for.
            while not files_of_runs(tmp_path / "state"):
                await trio.sleep(POLL_SECONDS)
            keys.rename(keys.with_suffix(".away"))  # as in a home that is not mounted
            drop_connections(rig)
            await trio.sleep(0.8)
            keys.with_suffix(".away").rename(keys)
            report = await rig.finished(job)

    assert outcomes(report) == {names[0]: ("success", 0)}
    assert [row.output for row in report.executions] == ["one\ntwo\n"]


async def test_a_full_disk_holds_up_no_run_that_is_to_be_heard_of(
    fleet: Fleet, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(deployments, "ROOM_SECONDS", 0.2)
    async with running_worker(tmp_path) as rig:
        names = rig.add(*fleet(1))
        with trio.fail_after(40):
            job = rig.submit(f"echo one; touch {tmp_path}/begun; sleep 1; echo two", names)
            await until_exists(tmp_path / "begun")
            monkeypatch.setattr(RunnerCache, "use", full)
            drop_connections(rig)
            report = await rig.finished(job)

    assert outcomes(report) == {names[0]: ("success", 0)}
    assert [row.output for row in report.executions] == ["one\ntwo\n"]


async def test_a_full_disk_ends_no_script_whose_runner_was_looked_through(
    fleet: Fleet, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(deployments, "ROOM_SECONDS", 0.2)
    monkeypatch.setattr(RunnerCache, "verified", full)
    told = {"CRONIUM_RUNNER_VERIFY_AFTER": "0s", "CRONIUM_SETUP_TIMEOUT": "5s"}
    async with running_worker(tmp_path, {**told, "CRONIUM_SSH_IDLE_TIMEOUT": "0"}) as rig:
        names = rig.add(*fleet(1))
        with trio.fail_after(40):
            first = await rig.run("true", names)
            second = await rig.run("sleep 6; echo end", names)

    assert outcomes(first) == outcomes(second) == {names[0]: ("success", 0)}


async def test_what_another_worker_has_told_of_a_run_is_not_told_anew(
    fleet: Fleet, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked = trio.Event()

    async def still_ours(_ownership: Ownership, _flight: object) -> bool:
        await trio.lowlevel.checkpoint()
        asked.set()
        return False

    monkeypatch.setattr(Ownership, "still_ours", still_ours)
    async with running_worker(tmp_path) as rig:
        names = rig.add(*fleet(1))
        with trio.fail_after(40):
            job = rig.submit(f"touch {tmp_path}/begun; sleep 3", names)
            await until_exists(tmp_path / "begun")
            (claim,) = tmp_path.rglob("runs/exec_*")
            root = claim.parents[1]
            shutil.rmtree(root / "rooms" / claim.read_text().strip())
            claim.unlink()
            (root / "forgotten").mkdir(exist_ok=True)
            (root / "forgotten" / claim.name).touch()
            drop_connections(rig)
            await asked.wait()
            await trio.sleep(0.5)
            report = rig.queue.store.report(job)
            rig.service._jobs.cancel(job)

    assert (report.job.status, report.executions[0].exit_code) == ("running", None)


async def test_a_cancel_waits_for_no_server_that_was_sent_nothing(
    fleet: Fleet, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def hang(*_arguments: object, **_named: object) -> NoReturn:
        await trio.sleep_forever()

    async with running_worker(tmp_path, {"CRONIUM_SSH_IDLE_TIMEOUT": "0"}) as rig:
        names = rig.add(*fleet(1))
        with trio.fail_after(40):
            await rig.run("true", names)
            monkeypatch.setattr(waiting, "prepare", hang)
            monkeypatch.setattr(waiting, "prepare_spare", hang)
            job = rig.submit("true", names)
            await rig.until(job, "running")
            await trio.sleep(0.5)
            began = trio.current_time()
            rig.service._jobs.cancel(job)
            report = await rig.finished(job)

    assert outcomes(report)[names[0]][0] == "cancelled"
    assert trio.current_time() - began < 5
