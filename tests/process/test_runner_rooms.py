"""The runner: the rooms that are made ahead of runs, and the programs that are spared by that."""

import shutil
from collections import Counter
from pathlib import Path

from tests.process.runner_processes import ready
from tests.process.runner_rig import (
    Server,
    in_every_shell,
    new_id,
    payload,
    serving,
    wait_until,
)
from worker.remote.payload import LAST_LINE


def claimed(server: Server) -> set[Path]:
    claims = server.root.glob("runs/*")
    return {server.root / "rooms" / claim.read_text().strip() for claim in claims}


def test_rooms_are_made_ahead_from_the_second_run_on_and_go_with_the_call(tmp_path: Path) -> None:
    def check(server: Server) -> None:
        call = server.call("run")
        counts = []
        for _ in range(10):
            call.run(new_id(), b"true")
            counts.append(len(set(server.rooms()) - claimed(server)))
        # The last that was there has been taken, so there are more soon.
        assert counts[:-2] == [0, 7, 6, 5, 4, 3, 2, 1]
        wait_until(lambda: len(set(server.rooms()) - claimed(server)) == 7, "there are more")
        call.finish()

        assert set(server.rooms()) == claimed(server)

    in_every_shell(tmp_path, check)


def test_rooms_that_were_made_ahead_go_where_the_connection_is_gone(server: Server) -> None:
    call = server.call("run")
    call.run(new_id(), b"true")
    call.run(new_id(), b"true")
    last = new_id()
    call.send(server.message(last, payload(b"while sleep 0.1; do echo; done"), limit_seconds=20))
    call.read_until(lambda call: call.out != b"")
    assert set(server.rooms()) > claimed(server)

    assert call.process.stdout is not None
    call.process.stdout.close()

    wait_until(lambda: set(server.rooms()) == claimed(server), "they are gone")
    server.ask("signal", last, "cancel")


def test_rooms_that_were_deleted_are_made_anew(server: Server) -> None:
    call = server.call("run")
    assert [call.run(new_id(), b"echo %d" % each) for each in range(2)] == [b"0\n", b"1\n"]
    for room in set(server.rooms()) - claimed(server):
        shutil.rmtree(room)

    assert call.run(new_id(), b"echo 2") == b"2\n"


def test_the_place_of_the_claims_is_made_anew_too(server: Server) -> None:
    call = server.call("run")
    for _ in range(2):
        call.run(new_id(), b"true")
    shutil.rmtree(server.root / "runs")

    assert call.run(new_id(), b"echo 2") == b"2\n"


def test_rooms_are_made_ahead_only_where_a_run_had_one(tmp_path: Path) -> None:
    def check(server: Server) -> None:
        call, forgotten = server.call("run"), new_id()
        for _ in range(8):
            call.run(new_id(), b"true")
        # It takes the last that is ready, and is then looked for everywhere.
        server.stage(call, forgotten, b"touch $HOME/starts")
        assert server.ask("forget", forgotten)[0] == 0
        call.send(LAST_LINE)
        call.read_until(lambda call: call.heads[-1] == "x 125 forgotten 0 0")
        call.run(new_id(), b"true")
        call.finish()

        assert not (server.home / "starts").exists()
        assert not (server.home / "elsewhere").exists()
        assert set(server.rooms()) == claimed(server)

    others = 'roots="/var/tmp/cronium-$uid /tmp/cronium-$uid"'
    in_every_shell(tmp_path, check, edits={others: 'roots="$HOME/elsewhere"'})


def watch_programs(server: Server) -> Path:
    """Where the names of those come that the runner starts from here on."""
    told = server.home / "programs"
    for name in ("bash", "cat", "dd", "env", "ln", "ls", "mkdir", "rm", "rmdir", "setsid", "sleep"):
        program = shutil.which(name)
        assert program is not None
        (server.bin / name).write_text(f'#!/bin/sh\necho {name} >>{told}\nexec {program} "$@"\n')
        (server.bin / name).chmod(0o700)
    return told


def test_a_later_run_takes_four_programs_of_which_one_waits(tmp_path: Path) -> None:
    with serving(tmp_path, "dash") as server:
        told = watch_programs(server)
        call = server.call("run")
        for _ in range(2):
            call.run(new_id(), b"true")
        ready(server)
        told.unlink()
        for number in range(1, 5):
            call.run(new_id(), b"true")
            ready(server)
            names = Counter(told.read_text().split())
            # The ticker may sleep on from one run to the next.
            assert names.pop("sleep", 0) <= number
            assert names == {"env": number, "setsid": number, "bash": number}


def test_where_the_script_prints_it_is_one_more(tmp_path: Path) -> None:
    script = b"printf out; printf err >&2; sleep 0.05"
    told_of = "    echo 'r new 0'\n"
    edits = {
        told_of: f"    until [ -s err ]; do :; done\n{told_of}",
        "            rest 0.1\n": "            rest 5\n",  # no word before the end
    }
    with serving(tmp_path, "dash", edits=edits) as server:
        told = watch_programs(server)
        call = server.call("run")
        for _ in range(2):
            call.run(new_id(), script)
        ready(server)
        told.unlink()
        assert call.run(new_id(), script) == b"out"
        ready(server)
        names = Counter(told.read_text().split())
        names.pop("sleep")
        assert names == {"env": 1, "setsid": 1, "bash": 1, "ls": 1}
