"""The runner: times of day that jump."""

import os
import time
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest

from tests.process.runner_rig import (
    SHELLS,
    Call,
    Server,
    in_every_shell,
    message,
    new_id,
    payload,
    serving,
    wait_until,
)
from tests.process.surroundings import NO_UPTIME, Surroundings, mounts

LONG_AGO = 1_500_000_000
# A day forth, a day back, and so on, from one call to the next, whoever calls.
JUMPING_DATE = """#!/bin/sh
day=86400
mkdir "$0.forth" 2>/dev/null || { rmdir "$0.forth" 2>/dev/null; day=-86400; }
echo $(($(/bin/date +%s) + day))
"""
# Right at the start, a day ahead from the third second on, a day behind from the sixth.
STEPPED_DATE = """#!/bin/sh
now=$(/bin/date +%s)
[ -e "$0.began" ] || echo "$now" >"$0.began"
read -r began <"$0.began"
day=0
[ $((now - began)) -lt 3 ] || day=86400
[ $((now - began)) -lt 6 ] || day=-86400
echo $((now + day))
"""


@pytest.fixture(params=["by uptime", "by date"])
def clock(request: pytest.FixtureRequest) -> Iterator[Surroundings]:
    """Without an uptime a runner has no clock but the time of day."""
    with ExitStack() as stack:
        yield (
            stack.enter_context(mounts(NO_UPTIME)) if request.param == "by date" else Surroundings()
        )


def replace_date(server: Server, text: str) -> None:
    date = server.bin / "date"
    date.write_text(text)
    date.chmod(0o755)


def wall_ms(call: Call) -> int:
    return int(call.heads[-1].split()[3])


@pytest.mark.parametrize("date", [JUMPING_DATE, STEPPED_DATE], ids=["jumping", "stepped"])
def test_a_time_limit_is_neither_early_nor_late(
    clock: Surroundings, tmp_path: Path, date: str
) -> None:
    def check(server: Server) -> None:
        replace_date(server, date)
        began = time.monotonic()

        call = server.run(new_id(), payload(b"echo on; exec sleep 25"), limit_seconds=5)

        # A look a second, and a time of day has no fractions; a look more is a second more, where
        # each of them meets a jump.
        assert 3 < time.monotonic() - began < 20
        assert (call.out, call.end) == (b"on\n", (124, "timeout"))

    in_every_shell(tmp_path, check, surroundings=clock)


def test_a_script_within_its_limit_is_left_alone(clock: Surroundings, tmp_path: Path) -> None:
    def check(server: Server) -> None:
        replace_date(server, JUMPING_DATE)

        call = server.run(new_id(), payload(b"sleep 2; echo well"), limit_seconds=20)

        assert (call.out, call.end) == (b"well\n", (0, "exit"))
        assert wall_ms(call) < 20_000

    in_every_shell(tmp_path, check, surroundings=clock)


def test_the_grace_is_neither_cut_short_nor_drawn_out(clock: Surroundings, tmp_path: Path) -> None:
    def check(server: Server) -> None:
        replace_date(server, JUMPING_DATE)
        run_id = new_id()
        script = b"trap 'sleep 1; echo finished' TERM; trap : CHLD; echo on; sleep 20 & wait; wait"
        call = server.start(run_id, payload(script))
        call.read_until(lambda call: call.out == b"on\n")
        began = time.monotonic()

        assert server.ask("signal", run_id, "cancel")[0] == 0

        assert time.monotonic() - began < 25
        call.finish()
        assert (call.out, call.end) == (b"on\nfinished\n", (130, "cancel"))

    in_every_shell(tmp_path, check, surroundings=clock, grace_ms=2500)


def test_an_attacher_is_told_how_long_a_run_has_lasted(clock: Surroundings, tmp_path: Path) -> None:
    with serving(tmp_path, "dash", surroundings=clock) as server:
        replace_date(server, STEPPED_DATE)
        run_id = new_id()
        server.start(run_id, payload(b"exec sleep 25"))
        began = time.monotonic()
        date = server.bin / "date.began"
        wait_until(lambda: time.monotonic() - began > 4.5, "the time of day has jumped")

        call = server.call("attach", run_id, "0", "0")
        call.read_until_started()

        lasted = time.monotonic() - began
        # A program less, where nobody has to ask for the time of day.
        assert date.exists() == (clock != Surroundings())
        told = int(call.heads[-1].split()[2]) / 1000
        assert lasted - 3 < told < lasted + 10


def test_list_tells_how_long_ago_a_run_began(clock: Surroundings, tmp_path: Path) -> None:
    def check(server: Server) -> None:
        run_id = new_id()
        server.run(run_id, payload(b""))
        server.wait_for_the_janitor(run_id)
        began = server.directory(run_id) / "began"
        seconds, rest = began.read_text().split()
        began.write_text(f"{int(seconds) - 20} {rest}\n")

        assert 20 <= int(server.ask("list")[1].heads[2].split()[2]) < 50

    in_every_shell(tmp_path, check, surroundings=clock)


def test_the_janitor_sweeps_by_either_clock(clock: Surroundings, tmp_path: Path) -> None:
    def check(server: Server) -> None:
        (old := server.root / "runner-000000000001").write_text("")
        os.utime(old, (LONG_AGO, LONG_AGO))
        run_id = new_id()

        server.run(run_id, payload(b""))

        server.wait_for_the_janitor(run_id)
        assert not old.exists()
        assert len(list(server.root.glob("swept.*"))) == 1

    edits = {"settle_s=3600": "settle_s=0"}
    in_every_shell(tmp_path, check, surroundings=clock, edits=edits)


@pytest.mark.parametrize("shell", SHELLS)
def test_the_janitor_deletes_nothing_that_only_looks_old(tmp_path: Path, shell: str) -> None:
    """What it sees after the time of day has gone forth by years."""
    with serving(tmp_path, shell, edits={"settle_s=3600": "settle_s=0"}) as server:
        replace_date(server, JUMPING_DATE)
        young, gone, starting, last = (new_id() for _ in range(4))
        for run_id in (young, gone):
            server.run(run_id, payload(b"echo kept"))
            server.wait_for_the_janitor(run_id)
        assert server.ask("forget", gone)[0] == 0
        sent = message(starting, payload(b"echo started"))
        starter = server.call("run")
        before = set(server.rooms())
        starter.send(sent[:-1])
        wait_until(lambda: set(server.rooms()) - before, "a payload is on its way")
        (room,) = set(server.rooms()) - before
        (other_artifact := server.root / "runner-000000000001").write_text("")
        kept = [server.claim(young), *server.directory(young).iterdir()]
        tomb = server.root / "forgotten" / gone
        for path in (*kept, tomb, room, *room.iterdir(), other_artifact):
            os.utime(path, (LONG_AGO, LONG_AGO), follow_symlinks=False)
        for stamp in server.root.glob("swept.*"):
            stamp.unlink()

        server.run(last, payload(b""))

        server.wait_for_the_janitor(last)
        assert not other_artifact.exists()
        assert server.ask("attach", young, "0", "0")[1].out == b"kept\n"
        assert server.run(gone, payload(b"")).heads[2:] == ["x 125 forgotten 0 0"]
        starter.send(sent[-1:])
        starter.finish()
        assert (starter.out, starter.end) == (b"started\n", (0, "exit"))


def test_the_janitor_does_not_trust_the_time_of_day_right_after_a_boot(tmp_path: Path) -> None:
    with serving(tmp_path, "dash", edits={"settle_s=3600": "settle_s=999999999"}) as server:
        run_id = new_id()

        server.run(run_id, payload(b""))

        server.wait_for_the_janitor(run_id)
        assert not list(server.root.glob("swept.*"))
