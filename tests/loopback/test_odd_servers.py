"""Runs that go wrong in between: what is reported of them, and that none goes on unfollowed."""

import os
import sqlite3
from collections.abc import Callable
from contextlib import closing
from pathlib import Path

import asyncssh
import pytest
import trio
import trio_asyncio
from structlog.testing import capture_logs

from tests.real_log import a_log
from tests.worker_rig import entry_of, outcomes, running_worker, until, until_exists, until_idle
from worker.clock import now_ms
from worker.demo.processes import is_alive
from worker.demo.sshd import LocalServer, Sshd
from worker.errors import HostKeyError
from worker.remote.address import Address
from worker.remote.connection import open_connection
from worker.remote.credentials import OpenedCredential
from worker.remote.host_keys import HostKeyCheck
from worker.remote.known_hosts import KnownHosts
from worker.remote.target import Credential, Target
from worker.settings import HostKeyPolicy

Fleet = Callable[[int], tuple[LocalServer, ...]]

MIB = 1024 * 1024


def artifact(sshd: Sshd) -> Path:
    (path,) = (sshd.server.home / ".cache" / "cronium").glob("runner-*")
    return path


def pids_with(sshd: Sshd, words: bytes) -> list[int]:
    """Processes on that server whose command line holds `words`, arguments joined by blanks."""
    home = str(sshd.server.home).encode()
    found = []
    for process in Path("/proc").glob("[0-9]*"):
        try:
            line = (process / "cmdline").read_bytes().replace(b"\0", b" ")
        except OSError:
            continue
        if words in line and home in line:
            found.append(int(process.name))
    return found


async def test_a_quiet_script_is_not_taken_for_a_silent_server_when_keepalives_are_frequent(
    sshd: Sshd, tmp_path: Path
) -> None:
    async with running_worker(tmp_path, {"CRONIUM_SSH_KEEPALIVE": "3s"}) as rig:
        names = rig.add(sshd.server)

        with capture_logs() as logs, trio.fail_after(60):
            await rig.run("sleep 5", names)

    assert [line for line in logs if line["event"] == "connection_lost"] == []


@pytest.mark.parametrize("ends", ["by itself", "cancelled"])
async def test_a_runner_deleted_while_its_script_runs_is_put_back_for_what_is_left_to_do(
    ends: str, sshd: Sshd, tmp_path: Path
) -> None:
    mark, go = tmp_path / "mark", tmp_path / "go"
    async with running_worker(tmp_path) as rig:
        names = rig.add(sshd.server)
        with trio.fail_after(60):
            job_id = rig.submit(
                f"echo begun; touch {mark}; until [ -e {go} ]; do sleep 0.05; done", names
            )
            await until_exists(mark)

            artifact(sshd).unlink()
            if ends == "cancelled":
                rig.queue.store.cancel(job_id, now_ms())
                rig.service._jobs.cancel(job_id)
            else:
                go.touch()
            report = await rig.finished(job_id)
            await until_idle(rig)

    assert report.executions[0].output == "begun\n"
    assert list((sshd.server.home / ".cache/cronium/runs").iterdir()) == []
    assert rig_states(tmp_path) == ["finished"]


def rig_states(folder: Path) -> list[str]:
    with closing(sqlite3.connect(folder / "state" / "state.db")) as connection:
        return [state for (state,) in connection.execute("SELECT state FROM jobs")]


async def test_a_run_is_not_lost_while_its_output_still_comes(
    sshd: Sshd, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("worker.dispatch.following.LATEST_WORD_SECONDS", 0)
    async with running_worker(tmp_path) as rig:
        names = rig.add(sshd.server)

        with trio.fail_after(120), a_log():
            report = await rig.run("yes | head -c 3000000", names, timeout_seconds=1)

    assert outcomes(report) == {names[0]: ("success", 0)}


@pytest.mark.quiet
async def test_the_loop_is_never_held_up_by_what_a_script_prints(
    sshd: Sshd, tmp_path: Path
) -> None:
    longest = 0.0

    async def watch() -> None:
        nonlocal longest
        while True:
            before = trio.current_time()
            await trio.sleep(0.01)
            longest = max(longest, trio.current_time() - before)

    async with running_worker(tmp_path) as rig, trio.open_nursery() as nursery:
        names = rig.add(sshd.server)
        nursery.start_soon(watch)
        # With structlog's default log, whose slowness lets fewer lines do.
        with trio.fail_after(120):
            await rig.run("yes | head -c 80000", names)
        nursery.cancel_scope.cancel()

    assert longest < 0.5


async def test_a_run_that_starts_after_the_setup_limit_does_not_go_on_unfollowed(
    sshd: Sshd, tmp_path: Path
) -> None:
    mark = tmp_path / "mark"
    async with running_worker(tmp_path) as rig:
        names = rig.add(sshd.server)
        with trio.fail_after(60):
            await rig.run("true", names)
    runner = artifact(sshd)
    runner.write_text(
        runner.read_text()
        .replace("launch() {\n", "launch() {\n    sleep 4\n")
        .replace("bury_unknown() {\n", "bury_unknown() {\n    sleep 4\n")
    )
    environ = {"CRONIUM_SETUP_TIMEOUT": "2s", "CRONIUM_CLEANUP_TIMEOUT": "1s"}
    async with running_worker(tmp_path, environ) as rig:
        with trio.fail_after(60):
            report = await rig.run(f"touch {mark}; sleep 600", names)
            await trio.sleep(4)

    assert outcomes(report) == {names[0]: ("unreachable", 255)}
    if mark.exists():
        await until(lambda: not sshd.processes())


async def test_an_attacher_that_is_killed_on_the_server_costs_neither_run_nor_output(
    sshd: Sshd, tmp_path: Path
) -> None:
    mark, go = tmp_path / "mark", tmp_path / "go"
    async with running_worker(tmp_path) as rig:
        names = rig.add(sshd.server)
        with trio.fail_after(60):
            job_id = rig.submit(
                f"echo before; touch {mark}; until [ -e {go} ]; do sleep 0.05; done; echo after",
                names,
            )
            await until_exists(mark)
            await trio.sleep(0.3)

            for pid in pids_with(sshd, b" run "):
                os.kill(pid, 9)
            await trio.sleep(0.5)
            go.touch()
            report = await rig.finished(job_id)

    assert outcomes(report) == {names[0]: ("success", 0)}
    assert report.executions[0].output == "before\nafter\n"


async def test_a_run_that_the_server_has_forgotten_is_lost(sshd: Sshd, tmp_path: Path) -> None:
    async with running_worker(tmp_path, {"CRONIUM_JOBS_MAX_CONCURRENT": "1"}) as rig:
        names = rig.add(sshd.server)
        with trio.fail_after(60):
            first = await rig.run("true", names)
            forgotten = sshd.server.home / ".cache" / "cronium" / "forgotten"
            mark = tmp_path / "mark"
            rig.submit(f"touch {mark}; sleep 1", names)
            await until_exists(mark)
            job_id = rig.submit("true", names)  # waits for the slot
            tombstone = first.executions[0].id.replace(first.job.id, job_id)
            (forgotten / tombstone).touch()
            report = await rig.finished(job_id)

    assert outcomes(report) == {names[0]: ("lost", 125)}


async def test_an_exit_code_no_process_can_have_is_not_passed_on(
    sshd: Sshd, tmp_path: Path
) -> None:
    async with running_worker(tmp_path) as rig:
        names = rig.add(sshd.server)
        with trio.fail_after(60):
            await rig.run("true", names)
            artifact(sshd).write_text(
                r"printf '\ncronium h %s 1 000000000000\nr new 0\nx 99999999999 exit 1 1\n' $2"
            )
            with trio.move_on_after(5):
                report = await rig.run("true", names, timeout_seconds=1)
                assert report.exit_code is not None
                assert report.exit_code < 2**31


async def test_a_connection_that_waits_for_other_servers_is_given_up_to_who_needs_one(
    fleet: Fleet, tmp_path: Path
) -> None:
    fast, slow, other = fleet(3)
    mark, go = tmp_path / "mark", tmp_path / "go"
    environ = {"CRONIUM_SSH_MAX_CONNECTIONS": "2", "CRONIUM_SETUP_TIMEOUT": "4s"}
    async with running_worker(tmp_path, environ) as rig:
        rig.add(fast, slow, other)
        with trio.fail_after(60):
            script = (
                f'[ "$CRONIUM_SERVER_NAME" = {fast.name} ] && exit; touch {mark}; '
                f"until [ -e {go} ]; do sleep 0.05; done"
            )
            first = rig.submit(script, [fast.name, slow.name])
            await until_exists(mark)
            await trio.sleep(1)

            report = await rig.run("true", [other.name])
            go.touch()
            await rig.finished(first)

    assert outcomes(report) == {other.name: ("success", 0)}, entry_of(report, other.name)["error"]


async def test_a_server_whose_other_key_is_known_is_asked_for_that_one(tmp_path: Path) -> None:
    shown, known, client = (
        asyncssh.generate_private_key(kind)
        for kind in ("ssh-ed25519", "ecdsa-sha2-nistp256", "ssh-ed25519")
    )
    accounts = tmp_path / "authorized_keys"
    accounts.write_bytes(client.export_public_key())
    async with trio_asyncio.open_loop():
        server = await trio_asyncio.aio_as_trio(asyncssh.listen)(
            "127.0.0.1",
            0,
            server_host_keys=[shown, known],
            authorized_client_keys=str(accounts),
        )
        port = server.get_port()
        line = f"[127.0.0.1]:{port} {known.export_public_key().decode()}"
        address = Address("127.0.0.1", port)
        check = HostKeyCheck(HostKeyPolicy.STRICT, address, KnownHosts(line).listed(address))
        try:
            with trio.fail_after(10):
                async with open_connection(
                    Target("127.0.0.1", port, "deploy", Credential()),
                    OpenedCredential(client, None),
                    check,
                    keepalive_seconds=30,
                ) as connection:
                    assert connection.host_key.public_line.startswith("ecdsa-sha2-nistp256")
        except HostKeyError as error:
            pytest.fail(str(error))
        finally:
            server.close()


async def test_a_run_whose_runner_does_not_hold_its_limit_is_ended(
    sshd: Sshd, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("worker.dispatch.following.LATEST_WORD_SECONDS", 2)
    mark = tmp_path / "mark"
    others = "for pid in $(pgrep -P $PPID); do [ $pid = $$ ] || kill -KILL $pid; done"
    async with running_worker(tmp_path) as rig:
        names = rig.add(sshd.server)
        with trio.fail_after(60):
            script = f"sleep 0.3; {others}; echo $$ >{mark}; exec sleep 50"
            report = await rig.run(script, names, timeout_seconds=1)
            await until_idle(rig)

    assert outcomes(report) == {names[0]: ("lost", 125)}
    assert not is_alive(int(mark.read_text()))
