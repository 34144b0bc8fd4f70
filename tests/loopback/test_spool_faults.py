"""What a script printed cannot be read for a moment, as where there are no more files to be had."""

import errno
import threading
from collections.abc import Callable
from pathlib import Path

import pytest
import trio

from tests.worker_rig import outcomes, running_worker
from worker.demo.sshd import LocalServer
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


def test_what_somebody_has_deleted_is_empty(tmp_path: Path) -> None:
    spool = Spool(tmp_path / "exec_1.stdout", 100)
    spool.write(b"out\n")
    spool.close()
    (tmp_path / "exec_1.stdout").unlink()

    assert spool.read(0, 4) == b""
