"""What a script printed cannot be read for a moment, as where there are no more files to be had."""

import errno
import os
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import trio

from tests.queue_rig import running_queue
from tests.worker_rig import outcomes, running_worker, until_exists, worker_on
from worker.demo.sshd import LocalServer
from worker.jobs import Jobs
from worker.state.run_files import MARK
from worker.state.spool import Spool


@pytest.mark.parametrize("reader", ["a row", "live output"])
async def test_a_job_goes_on_where_its_output_cannot_be_read_for_a_moment(
    reader: str,
    fleet: Callable[[int], tuple[LocalServer, ...]],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    faults: list[OSError] = []
    really_read = Spool.read

    def read(spool: Spool, start: int, end: int) -> bytes:
        is_for_row = threading.current_thread() is not threading.main_thread()
        if start < end and not faults and is_for_row == (reader == "a row"):
            faults.append(OSError(errno.EMFILE, "Too many open files"))
            raise faults[0]
        return really_read(spool, start, end)

    async with running_worker(tmp_path, {"CRONIUM_LIVE_OUTPUT": "1s"}) as rig:
        names = rig.add(*fleet(2))
        monkeypatch.setattr(Spool, "read", read)
        with trio.fail_after(60):
            # One ends while the other goes on.
            script = f"echo out; [ $CRONIUM_SERVER_NAME = {names[0]} ] || sleep 2.5; echo end"
            report = await rig.run(script, names)

    assert len(faults) == 1
    assert outcomes(report) == dict.fromkeys(names, ("success", 0))
    assert {row.output for row in report.executions} == {"out\nend\n"}


async def test_a_job_begins_once_its_spools_can_be_looked_for(
    fleet: Callable[[int], tuple[LocalServer, ...]],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    faults: list[OSError] = []
    really_open = Path.open

    def opened(path: Path, *arguments: Any, **named: Any) -> Any:  # noqa: ANN401  as Path.open
        if ".stdout@" in path.name and not faults:
            faults.append(OSError(errno.EMFILE, "Too many open files"))
            raise faults[0]
        return really_open(path, *arguments, **named)

    async with running_worker(tmp_path) as rig:
        names = rig.add(*fleet(1))
        monkeypatch.setattr(Path, "open", opened)
        with trio.fail_after(30):
            report = await rig.run("echo out", names)

    assert len(faults) == 1
    assert [row.output for row in report.executions] == ["out\n"]


async def test_a_run_that_only_its_errors_tell_of_is_known_to_have_begun(
    fleet: Callable[[int], tuple[LocalServer, ...]],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """There was no room for the mark of its start, and then its worker is killed."""
    faults: list[OSError] = []
    really_open = os.open

    def opened(path: Any, *arguments: Any, **named: Any) -> int:  # noqa: ANN401  as os.open
        if MARK in Path(path).name and not faults:
            faults.append(OSError(errno.ENOSPC, "No space left on device"))
            raise faults[0]
        return really_open(path, *arguments, **named)

    async def leave(_jobs: Jobs, _flight: object) -> None:
        await trio.lowlevel.checkpoint()

    monkeypatch.setattr(os, "open", opened)
    script = f"echo one >&2; touch {tmp_path}/begun; sleep 3; echo two >&2"
    async with running_queue(tmp_path) as queue:
        with trio.fail_after(40):
            with monkeypatch.context() as patch, trio.CancelScope() as killed:
                patch.setattr(Jobs, "_part_from", leave)
                async with worker_on(queue, tmp_path / "state") as rig:
                    job = rig.submit(script, rig.add(*fleet(1)))
                    await until_exists(tmp_path / "begun")
                    await trio.sleep(0.5)
                    killed.cancel()
                    await trio.lowlevel.checkpoint()
            async with worker_on(queue, tmp_path / "state") as rig:
                report = await rig.finished(job)

    assert len(faults) == 1
    assert [line.split()[-1] for line in report.stderr.splitlines()] == ["one", "two"]


def test_what_somebody_has_deleted_is_empty(tmp_path: Path) -> None:
    spool = Spool(tmp_path / "exec_1.stdout", 100)
    spool.write(b"out\n")
    spool.close()
    (tmp_path / "exec_1.stdout").unlink()

    assert spool.read(0, 4) == b""
