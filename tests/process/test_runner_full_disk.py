"""The runner: a disk that is full."""

import contextlib
import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.process.runner_rig import (
    SHELLS,
    Server,
    carriers,
    message,
    new_id,
    payload,
    serving,
    use_up_the_files,
    wait_until,
)
from tests.process.surroundings import SMALL_DISK, mounts


@pytest.fixture(params=SHELLS)
def server(request: pytest.FixtureRequest) -> Iterator[Server]:
    with (
        mounts(SMALL_DISK) as there,
        serving(Path("/mnt/place"), request.param, surroundings=there, grace_ms=300) as one,
    ):
        yield one


def fill(server: Server) -> Path:
    """Takes all room, to the last byte; what took it is to be unlinked."""
    path = server.home / "filler"
    with contextlib.suppress(OSError), path.open("wb", buffering=0) as file:
        while True:
            file.write(bytes(1000))
    with contextlib.suppress(OSError), path.open("ab", buffering=0) as file:
        while True:
            file.write(bytes(1))
    return path


def test_where_no_payload_can_be_stored_nothing_is_started(server: Server) -> None:
    run_id = new_id()
    filler = fill(server)
    call = server.call("run")
    call.send(message(run_id, payload(b"echo started")))

    assert call.finish() == 73
    assert "no space is left" in call.complaint
    assert len(call.complaint.splitlines()) == 1
    assert not server.directory(run_id).exists()
    # and once there is room
    filler.unlink()
    again = server.run(run_id, payload(b"echo started"))
    assert (again.out, again.end) == (b"started\n", (0, "exit"))


# The second fits itself, but not together with what is cut from it.
@pytest.mark.parametrize("size", [700_000, 350_000])
def test_a_payload_that_does_not_fit_is_not_started(server: Server, size: int) -> None:
    run_id = new_id()
    call = server.call("run")
    call.send(message(run_id, payload(b"touch $HOME/started", stdin=bytes(size))))

    assert call.finish() == 73
    assert call.complaint.startswith("cronium: no room for the payload")
    assert len(call.complaint.splitlines()) == 1
    assert not (server.home / "started").exists()
    assert not server.directory(run_id).exists()
    assert server.run(run_id, payload(b"echo fits")).out == b"fits\n"


def test_a_script_that_fills_the_disk_ends_with_what_there_was_room_for(server: Server) -> None:
    run_id = new_id()
    script = b"i=0; while printf %08d $i; do i=$((i + 1)); done 2>/dev/null; exit 5"

    call = server.run(run_id, payload(script))

    assert call.end == (5, "exit")
    spool = (server.directory(run_id) / "out").read_bytes()
    assert len(spool) > 100_000
    assert call.out == spool
    whole = b"".join(b"%08d" % i for i in range(len(spool) // 8 + 1))
    assert whole.startswith(spool)
    half = len(spool) // 2
    assert server.ask("attach", run_id, str(half), "0")[1].out == spool[half:]
    # and it recovers
    assert server.ask("forget", run_id)[0] == 0
    assert server.run(new_id(), payload(b"echo well")).out == b"well\n"


def test_a_script_goes_on_through_a_time_without_room(server: Server) -> None:
    run_id = new_id()
    script = b"""
echo before
until [ -e $HOME/full ]; do sleep 0.05; done
dd if=/dev/zero bs=8000 count=1 2>/dev/null || touch $HOME/refused
until [ -e $HOME/room ]; do sleep 0.05; done
echo after
"""
    call = server.start(run_id, payload(script))
    call.read_until(lambda call: call.out == b"before\n")
    filler = fill(server)
    (server.home / "full").touch()
    wait_until(lambda: (server.home / "refused").exists(), "the script has met the full disk")
    filler.unlink()
    (server.home / "room").touch()

    call.finish()

    spool = (server.directory(run_id) / "out").read_bytes()
    assert (call.out, call.end) == (spool, (0, "exit"))
    # What fitted into the last page is there.
    assert spool == b"before\n" + bytes(len(spool) - 13) + b"after\n"
    assert len(spool) < 8000
    assert server.ask("attach", run_id, "0", "0")[1].out == spool


def test_an_exit_is_recorded_with_neither_room_nor_files_left(server: Server) -> None:
    run_id = new_id()
    script = b"echo on; until [ -e $HOME/gate ]; do sleep 0.05; done; exit 7"
    call = server.start(run_id, payload(script))
    call.read_until(lambda call: call.out == b"on\n")
    filler = fill(server)
    use_up_the_files(server)

    filler.rename(server.home / "gate")

    call.finish()
    assert (call.out, call.end) == (b"on\n", (7, "exit"))
    assert server.ask("attach", run_id, "0", "0")[1].end == (7, "exit")


def test_a_run_can_be_cancelled_with_neither_room_nor_files_left(server: Server) -> None:
    run_id = new_id()
    call = server.start(run_id, payload(b"echo on; exec sleep 25"))
    call.read_until(lambda call: call.out == b"on\n")
    fill(server)
    use_up_the_files(server)

    status, ender = server.ask("signal", run_id, "cancel")

    assert (status, ender.complaint) == (0, "")
    call.finish()
    assert (call.out, call.end) == (b"on\n", (130, "cancel"))
    assert carriers(run_id) == []


def test_a_call_is_told_on_a_full_disk_and_answered_once_there_is_room(server: Server) -> None:
    run_id = new_id()
    script = b"cronium.getVariable K; echo end"
    call = server.start(run_id, payload(script))
    call.read_until(lambda call: len(call.calls) == 1)
    filler = fill(server)
    again = server.call("attach", run_id, "0", "0")
    again.read_until(lambda call: len(call.calls) == 1)
    call_id = again.calls[0][0]
    answer = b"ok\n" + b"v" * 100_000

    refused = server.call("answer", run_id, call_id, str(len(answer)))
    refused.send(answer)
    status = refused.finish()
    filler.unlink()
    taken = server.call("answer", run_id, call_id, str(len(answer)))
    taken.send(answer)
    assert taken.finish() == 0

    assert status == 73
    assert refused.complaint.startswith("cronium: no room for the answer")
    again.finish()
    assert again.out == b"v" * 100_000 + b"\nend\n"


def test_helpers_are_unpacked_whole_or_the_run_is_refused(server: Server) -> None:
    helper = server.helpers / "python" / "cronium.py"
    size = helper.stat().st_size
    helper.unlink()
    filler = fill(server)
    # Room for its first page.
    os.truncate(filler, filler.stat().st_size // 4096 * 4096 - 4096)
    call = server.call("run")
    call.send(message(new_id(), payload(b"touch $HOME/started")))

    assert call.finish() == 73
    assert not helper.exists()
    assert not list(server.helpers.glob(".new*"))
    filler.unlink()
    assert server.run(new_id(), payload(b"echo well")).out == b"well\n"
    assert helper.stat().st_size == size
