"""Connections that jobs share: how many are made, what they carry, and when they go."""

import os
import shutil
import signal
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any, NoReturn

import pytest
import trio
import trio_asyncio

from tests.worker_rig import WorkerRig, outcomes, running_worker, until, until_exists, until_idle
from worker.api.client import QueueClient
from worker.clock import now_ms
from worker.demo.processes import all_pids, read_of
from worker.demo.sshd import LocalServer, Sshd, open_sshd
from worker.errors import HostKeyError, NoChannelError, QueueRefusedError
from worker.ownership import ACKNOWLEDGE_SECONDS
from worker.remote.address import Address
from worker.remote.channel import Channel
from worker.remote.connection import Connection, open_connection
from worker.remote.credentials import open_credential
from worker.remote.host_keys import HostKeyCheck
from worker.remote.spares import Spares
from worker.remote.target import Credential, Target
from worker.remote.waiting import RunRequest
from worker.secret import Secret
from worker.settings import HostKeyPolicy

OpenSshd = Callable[..., Sshd]
Fleet = Callable[[int], tuple[LocalServer, ...]]

SUCCESS = ("success", 0)


@pytest.fixture
def an_sshd(openssh: None, tmp_path: Path) -> Iterator[OpenSshd]:
    """Call it with sshd's options; it tells of what it does in its log."""
    with ExitStack() as stack:
        yield lambda **options: stack.enter_context(
            open_sshd(tmp_path / "sshd", options={"LogLevel": "VERBOSE", **options})
        )


def connections(sshd: Sshd) -> int:
    """How many were let in since it started."""
    return sshd.log().count("Accepted publickey")


def commands(sshd: Sshd) -> int:
    """How many were started since it started."""
    return sshd.log().count("Starting session: command")


def waiting_runs(sshd: Sshd) -> list[int]:
    """The runners there that have not been told what to run: they start nothing but supervisors."""
    found = []
    for pid in sshd.processes():
        try:
            line = command_line(pid)
            children = Path(f"/proc/{pid}/task/{pid}/children").read_text().split()
            is_busy = any(b"+supervise" not in command_line(int(child)) for child in children)
        except OSError:
            continue
        if line[:1] == [b"sh"] and line[2:3] in ([b"run"], [b"spare"]) and not is_busy:
            found.append(pid)
    return found


def command_line(pid: int) -> list[bytes]:
    return Path(f"/proc/{pid}/cmdline").read_bytes().split(b"\0")


async def after_one_job(rig: WorkerRig, sshd: Sshd) -> list[str]:
    """A connection on which a spare waits; the names to run jobs on."""
    names = rig.add(sshd.server)
    with trio.fail_after(30):
        assert outcomes(await rig.run("true", names)) == {names[0]: SUCCESS}
        await until_idle(rig)
    await until(lambda: waiting_runs(sshd))
    return names


async def test_jobs_one_after_another_and_at_once_share_one_connection(
    an_sshd: OpenSshd, tmp_path: Path
) -> None:
    sshd = an_sshd()
    async with running_worker(tmp_path) as rig:
        names = rig.add(sshd.server)
        with trio.fail_after(60):
            for _ in range(3):
                await rig.run("true", names)
            together = [rig.submit("sleep 1", names) for _ in range(5)]
            reports = [await rig.finished(job_id) for job_id in together]
            await until_idle(rig)

    assert [outcomes(report) for report in reports] == [{names[0]: SUCCESS}] * 5
    assert connections(sshd) == 1


async def test_a_job_on_a_quiet_connection_finds_a_run_that_waits_for_it(
    an_sshd: OpenSshd, tmp_path: Path
) -> None:
    sshd = an_sshd()
    async with running_worker(tmp_path) as rig:
        names = await after_one_job(rig, sshd)
        before = commands(sshd)

        report = await rig.run("echo done", names)
        # It is forgotten over the same call, which then waits for the next.
        await until_idle(rig)
        assert commands(sshd) == before

    assert report.executions[0].output == "done\n"
    await until(lambda: not waiting_runs(sshd), seconds=3)


def payloads(sshd: Sshd) -> list[Path]:
    """Of runs that have not begun, or go on."""
    return list(sshd.server.home.glob(".cache/cronium/rooms/*/in/input"))


def claims(sshd: Sshd) -> list[Path]:
    """Those of runs that were reported are forgotten."""
    return list(sshd.server.home.glob(".cache/cronium/runs/*"))


async def test_a_job_that_no_worker_had_starts_while_the_api_is_told_that_it_runs(
    an_sshd: OpenSshd, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    sshd = an_sshd()
    marker = tmp_path / "marker"
    start = QueueClient.report_running

    async def late(self: QueueClient, *args: Any, **options: Any) -> Any:  # noqa: ANN401 passed on
        await until(marker.exists)
        return await start(self, *args, **options)

    async with running_worker(tmp_path) as rig:
        names = await after_one_job(rig, sshd)
        monkeypatch.setattr(QueueClient, "report_running", late)
        began = trio.current_time()
        report = await rig.run(f"touch {marker}; echo done", names)

    assert report.executions[0].output == "done\n"
    assert report.job.status == "completed"
    assert trio.current_time() - began < ACKNOWLEDGE_SECONDS / 2


async def test_a_job_that_was_cancelled_as_it_started_leaves_nothing(
    an_sshd: OpenSshd, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    sshd = an_sshd()
    marker = tmp_path / "marker"
    start = QueueClient.report_running

    async with running_worker(tmp_path) as rig:
        names = await after_one_job(rig, sshd)

        async def late(
            self: QueueClient,
            job_id: str,
            **options: Any,  # noqa: ANN401 passed on
        ) -> Any:  # noqa: ANN401 passed on
            await until(marker.exists)
            rig.queue.store.cancel(job_id, now_ms())
            return await start(self, job_id, **options)

        monkeypatch.setattr(QueueClient, "report_running", late)
        report = await rig.run(f"touch {marker}; exec sleep 100.123", names)
        await until(lambda: not claims(sshd))

    assert report.job.status == "cancelled"
    assert outcomes(report) == {names[0]: ("cancelled", 130)}
    assert not [pid for pid in all_pids() if b"100.123" in read_of(pid, "cmdline")]


async def test_a_server_makes_ready_while_the_api_is_told_that_the_job_runs(
    an_sshd: OpenSshd, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    sshd = an_sshd()
    start = QueueClient.report_running
    seen: list[tuple[int, int]] = []
    monkeypatch.setattr("worker.beginnings.FRESH_CLAIM_MS", 0)

    async def late(self: QueueClient, *args: Any, **options: Any) -> Any:  # noqa: ANN401 passed on
        await until(lambda: payloads(sshd))
        await trio.sleep(0.3)
        seen.append((len(payloads(sshd)), len(claims(sshd))))
        return await start(self, *args, **options)

    async with running_worker(tmp_path) as rig:
        names = await after_one_job(rig, sshd)
        before = commands(sshd)
        monkeypatch.setattr(QueueClient, "report_running", late)

        report = await rig.run("echo done", names)
        await until_idle(rig)
        assert commands(sshd) == before

    assert report.executions[0].output == "done\n"
    assert seen == [(1, 0)]


async def test_what_was_made_ready_for_a_job_that_is_not_ours_goes_away_unstarted(
    an_sshd: OpenSshd, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    sshd = an_sshd()
    marker = tmp_path / "marker"
    refused = trio.Event()
    monkeypatch.setattr("worker.beginnings.FRESH_CLAIM_MS", 0)

    async def refuse(*_: Any, **__: Any) -> NoReturn:  # noqa: ANN401 as it comes
        await until(lambda: payloads(sshd))
        refused.set()
        raise QueueRefusedError(403, "the job is another's")

    async with running_worker(tmp_path) as rig:
        names = await after_one_job(rig, sshd)
        monkeypatch.setattr(QueueClient, "report_running", refuse)
        rig.submit(f"touch {marker}", names)
        with trio.fail_after(30):
            await refused.wait()
            await until(lambda: not payloads(sshd))

    assert not marker.exists()
    assert claims(sshd) == []


async def test_nothing_is_made_ready_on_a_server_that_is_not_trusted_any_more(
    an_sshd: OpenSshd, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    sshd = an_sshd()
    asked = trio.Event()
    staged: list[RunRequest] = []

    def distrust(*_: Any) -> NoReturn:  # noqa: ANN401 as it comes
        asked.set()
        raise HostKeyError("it is another's now")

    def stage(_: Spares, request: RunRequest) -> None:
        staged.append(request)

    async with running_worker(tmp_path) as rig:
        names = await after_one_job(rig, sshd)
        monkeypatch.setattr("worker.remote.pooled.JUDGED_SECONDS", -1.0)
        monkeypatch.setattr(HostKeyCheck, "judge", distrust)
        monkeypatch.setattr(Spares, "stage", stage)
        report = await rig.run("true", names)

    assert asked.is_set()
    assert outcomes(report) == {names[0]: ("unreachable", 255)}
    assert staged == []


async def test_a_call_serves_one_job_after_the_other(an_sshd: OpenSshd, tmp_path: Path) -> None:
    sshd = an_sshd()
    async with running_worker(tmp_path) as rig:
        names = await after_one_job(rig, sshd)
        (waiting,) = waiting_runs(sshd)
        with trio.fail_after(30):
            reports = []
            # What is not short and plain has a call of its own.
            for script in (*(f"echo {number}; exit {number}" for number in range(5)), "echo é"):
                reports.append(await rig.run(script, names))
                # Before the call is free again, the next job would have one more.
                await until_idle(rig)

        assert [report.executions[0].output for report in reports] == [
            *(f"{number}\n" for number in range(5)),
            "é\n",
        ]
        await until(lambda: len(waiting_runs(sshd)) == 1 and waiting not in waiting_runs(sshd))
        assert not list(sshd.server.home.glob(".cache/cronium/runs/*"))


async def test_a_spare_that_was_killed_costs_the_next_job_nothing(
    an_sshd: OpenSshd, tmp_path: Path
) -> None:
    sshd = an_sshd()
    async with running_worker(tmp_path) as rig:
        names = await after_one_job(rig, sshd)
        for pid in waiting_runs(sshd):
            os.kill(pid, signal.SIGKILL)

        report = await rig.run("echo done", names)

    assert outcomes(report) == {names[0]: SUCCESS}
    assert report.executions[0].output == "done\n"
    assert connections(sshd) == 1


async def test_a_runner_that_is_deleted_beneath_a_call_that_waits_is_deployed_anew(
    an_sshd: OpenSshd, tmp_path: Path
) -> None:
    sshd = an_sshd()
    async with running_worker(tmp_path) as rig:
        names = await after_one_job(rig, sshd)
        shutil.rmtree(sshd.server.home / ".cache" / "cronium")

        with trio.fail_after(30):
            report = await rig.run("echo done", names)

    assert outcomes(report) == {names[0]: SUCCESS}
    assert report.executions[0].output == "done\n"
    assert connections(sshd) == 1


async def test_a_spare_gives_way_where_it_takes_the_only_session(
    an_sshd: OpenSshd, tmp_path: Path
) -> None:
    sshd = an_sshd(MaxSessions="1")
    async with running_worker(tmp_path) as rig:
        names = await after_one_job(rig, sshd)
        reports = []
        for _ in range(3):
            with trio.fail_after(10):
                reports.append(await rig.run("sleep 0.1", names))
                await until_idle(rig)

    assert [outcomes(report) for report in reports] == [{names[0]: SUCCESS}] * 3
    assert connections(sshd) == 1


@pytest.mark.parametrize("how", ["killed", "killed and restarted"])
async def test_a_connection_that_died_between_jobs_costs_one_new_one(
    how: str, an_sshd: OpenSshd, tmp_path: Path
) -> None:
    sshd = an_sshd()
    async with running_worker(tmp_path) as rig:
        names = await after_one_job(rig, sshd)
        sshd.kill_sessions()
        if how == "killed and restarted":
            sshd.restart()
        before = connections(sshd)

        with trio.fail_after(30):
            report = await rig.run("echo done", names)

    assert outcomes(report) == {names[0]: SUCCESS}
    assert report.executions[0].output == "done\n"
    assert connections(sshd) == before + 1


async def test_a_connection_that_nobody_used_for_a_while_is_closed(
    an_sshd: OpenSshd, tmp_path: Path
) -> None:
    sshd = an_sshd()
    async with running_worker(tmp_path, {"CRONIUM_SSH_IDLE_TIMEOUT": "1s"}) as rig:
        names = await after_one_job(rig, sshd)
        await until(lambda: not sshd.processes(), seconds=5)

        report = await rig.run("true", names)

    assert outcomes(report) == {names[0]: SUCCESS}
    assert connections(sshd) == 2


async def test_an_idle_connection_gives_way_to_one_that_is_needed(
    fleet: Fleet, tmp_path: Path
) -> None:
    one, other = fleet(2)
    async with running_worker(tmp_path, {"CRONIUM_SSH_MAX_CONNECTIONS": "1"}) as rig:
        rig.add(one, other)
        with trio.fail_after(20):
            reports = [await rig.run("true", [each.name]) for each in (one, other, one)]

    assert [outcome for each in reports for outcome in outcomes(each).values()] == [SUCCESS] * 3


@pytest.mark.parametrize("most", ["1", "2", "4"])
async def test_more_runs_than_a_server_has_sessions_for_a_connection_all_succeed(
    most: str, an_sshd: OpenSshd, tmp_path: Path
) -> None:
    sshd = an_sshd(MaxSessions=most)
    async with running_worker(tmp_path) as rig:
        names = rig.add(sshd.server)
        with trio.fail_after(60):
            jobs = [rig.submit("sleep 1; echo done", names) for _ in range(5)]
            reports = [await rig.finished(job_id) for job_id in jobs]
            await until_idle(rig)

    assert [report.executions[0].output for report in reports] == ["done\n"] * 5
    assert connections(sshd) <= 5 + 2  # one for each at the worst, and for what they call


@pytest.mark.parametrize("most", ["1", "2", "10"])
async def test_a_run_is_cancelled_at_once_where_runs_hold_all_the_channels(
    most: str, an_sshd: OpenSshd, tmp_path: Path
) -> None:
    sshd = an_sshd(MaxSessions=most)
    environ = {"CRONIUM_SSH_MAX_CONNECTIONS": "1"}
    mark = tmp_path / "mark"
    async with running_worker(tmp_path, environ) as rig:
        names = rig.add(sshd.server)
        with trio.fail_after(30):
            job_id = rig.submit(f"touch {mark}; sleep 25", names)
            await until_exists(mark)
            rig.queue.store.cancel(job_id, now_ms())
            rig.service._jobs.cancel(job_id)
            with trio.fail_after(8):
                report = await rig.finished(job_id)

    assert outcomes(report) == {names[0]: ("cancelled", 130)}


class CancelAtStep(trio.abc.Instrument):
    """Cancels `scope` as soon as tasks have made so many steps."""

    def __init__(self, scope: trio.CancelScope, steps: int) -> None:
        self._scope = scope
        self._left = steps

    def after_task_step(self, task: trio.lowlevel.Task) -> None:  # noqa: ARG002  trio's signature
        self._left -= 1
        if self._left == 0:
            self._scope.cancel()


async def started(connection: Connection, command: str, *, cancel_at: int) -> Channel | None:
    """None if it was cancelled before it had a channel."""
    channel = None
    with trio.CancelScope() as scope:
        instrument = CancelAtStep(scope, cancel_at)
        trio.lowlevel.add_instrument(instrument)
        try:
            channel = await the_only_one(connection, command)
        finally:
            trio.lowlevel.remove_instrument(instrument)
    return channel


async def the_only_one(connection: Connection, command: str) -> Channel:
    """Once the server has noticed that the one before it has ended."""
    while True:
        try:
            return await connection.exec(command)
        except NoChannelError:
            await trio.sleep(0.02)


async def test_a_command_given_up_while_it_starts_leaves_its_channel_to_others(
    an_sshd: OpenSshd,
) -> None:
    sshd = an_sshd(MaxSessions="1")
    server = sshd.server
    target = Target(server.host, server.port, server.user, Credential())
    credential = open_credential(Credential(private_key=Secret(server.private_key)), None)
    check = HostKeyCheck(HostKeyPolicy.OFF, Address(server.host, server.port))
    given_up = 0
    async with (
        trio_asyncio.open_loop(),
        open_connection(target, credential, check, keepalive_seconds=30) as connection,
    ):
        with trio.fail_after(60):
            # At each moment of a start there is, up to the one at which it is over.
            while (channel := await started(connection, "cat", cancel_at=given_up + 1)) is None:
                given_up += 1
                await until(lambda: not connection.channels, seconds=30)
            with pytest.raises(NoChannelError):
                await connection.exec("echo one too many")
            await channel.send_all(b"there\n")
            said = await channel.receive()

    assert given_up > 5
    assert said == b"there\n"
