"""The runner: one supervisor serves the runs of a call, with the next one's process made ready."""

import os
import signal
import time
from pathlib import Path

import pytest

from tests.process.runner_processes import kill, ready, tickers
from tests.process.runner_rig import (
    SHELLS,
    Server,
    line_message,
    new_id,
    payload,
    serving,
    wait_until,
)
from worker.demo.processes import is_alive
from worker.remote.payload import LAST_LINE

# What a run finds, but for what is its own.
INVENTORY = rb"""
{ env | sort; pwd; } | sed "s/$CRONIUM_EXECUTION_ID/ID/g; s,rooms/[0-9A-Za-z-]*,ROOM,"
umask
grep '^Sig[BIC]' /proc/self/status
cd /proc/self/fd && for fd in 0 1 2 3 4 5 6 7 8 9; do [ ! -e $fd ] || echo "fd $fd"; done
ulimit -a
cut -d' ' -f5,6 /proc/$$/stat | sed "s/$$/ME/g"
"""


def test_a_spare_has_made_the_process_that_becomes_the_script(server: Server) -> None:
    call = server.call("spare")
    made = []
    told = []
    for _ in range(3):
        made.append(ready(server))
        told.append(tuple(map(int, call.run(new_id(), b"echo $PPID $$").split())))

    assert told == made
    assert len({supervisor for supervisor, _ in told}) == 1
    assert len({script for _, script in told}) == 3


def test_a_call_that_was_not_waited_for_has_one_ready_from_its_third_run_on(server: Server) -> None:
    call = server.call("run")
    first = call.run(new_id(), b"echo $PPID $$").split()
    time.sleep(0.3)
    assert server.supervisors() == [int(first[0]), *tickers(server)]
    second = call.run(new_id(), b"echo $PPID $$").split()
    third = ready(server)

    assert second[0] == first[0]
    assert tuple(map(int, call.run(new_id(), b"echo $PPID $$").split())) == third


def test_a_later_run_finds_what_the_first_finds(server: Server) -> None:
    first = server.call("run")
    expected = first.run(new_id(), INVENTORY, environment=b"export A='1'\n")
    later = server.call("spare")
    spoiler = b"umask 0; trap '' USR1; ulimit -n 100; cd /; exec 5>/dev/null; echo spoilt"
    for _ in range(2):
        assert later.run(new_id(), spoiler, environment=b"export A='0'\nexport B='1'\n")
        later.send(line_message(new_id(), payload(b"exit 3", directory=b"/no/such/place")))
        later.follow()

    assert later.run(new_id(), INVENTORY, environment=b"export A='1'\n") == expected
    assert b"A=1\n" in expected
    assert b"B=1" not in expected


@pytest.mark.parametrize("shell", SHELLS)
def test_its_processor_time_is_its_own(tmp_path: Path, shell: str) -> None:
    with serving(tmp_path, shell, edits={"    watch\n": "    sleep 0.5\n    watch\n"}) as server:
        # The script has ended before its supervisor looks.
        check_processor_time(server)


def check_processor_time(server: Server) -> None:
    call = server.call("spare")
    busy = b"i=0; while [ $i -lt 60000 ]; do i=$((i + 1)); done"
    call.run(new_id(), busy)
    first = int(call.heads[-1].split()[-1])
    call.run(new_id(), b"true")
    second = int(call.heads[-1].split()[-1])

    # mksh counts in tens of milliseconds.
    assert first >= 20
    assert second < first / 2


@pytest.mark.parametrize("end", ["of the call", "of its shell"])
def test_with_the_call_all_of_it_ends(server: Server, end: str) -> None:
    call = server.call("spare")
    pair = ready(server)
    if end == "of the call":
        assert call.finish() == 0
    else:
        call.kill()

    wait_until(lambda: not any(map(is_alive, pair)), "they have ended")
    assert list(server.root.glob(".*")) == []


def test_a_run_goes_on_when_its_call_is_gone_and_then_all_ends(server: Server) -> None:
    call = server.call("spare")
    pair = ready(server)
    run_id = new_id()
    call.send(
        line_message(run_id, payload(b"until [ -e $HOME/go ]; do sleep 0.02; done; echo one"))
    )
    call.read_until_started()
    call.kill()
    time.sleep(0.2)
    assert all(map(is_alive, pair))
    (server.home / "go").touch()
    wait_until(lambda: not any(map(is_alive, pair)), "they have ended")

    _, again = server.ask("attach", run_id, "0", "0")

    assert (again.out, again.end) == (b"one\n", (0, "exit"))


def test_one_that_is_gone_before_a_run_has_a_successor(server: Server) -> None:
    call = server.call("spare")
    supervisor, script = ready(server)
    kill(supervisor)
    wait_until(lambda: not is_alive(script), "what it had ready is gone too")

    told = call.run(new_id(), b"echo $PPID")

    assert int(told) != supervisor
    assert call.run(new_id(), b"echo $PPID") == told


@pytest.mark.parametrize("gone", ["the supervisor", "what it had ready"])
def test_what_is_gone_when_all_but_the_last_line_has_come_is_made_again(
    server: Server, gone: str
) -> None:
    call = server.call("spare")
    supervisor, script = ready(server)
    server.stage(call, new_id(), b"echo one")
    kill(supervisor if gone == "the supervisor" else script)
    call.send(LAST_LINE)

    assert call.follow() == b"one\n"
    assert call.end == (0, "exit")


def test_a_run_that_another_call_was_first_to_start_costs_the_next_ones_nothing(
    server: Server,
) -> None:
    call = server.call("spare")
    run_id = new_id()
    server.stage(call, run_id, b"echo one")
    assert server.run(run_id, payload(b"echo another")).out == b"another\n"
    call.send(LAST_LINE)
    assert call.follow() == b"another\n"

    for text in (b"two\n", b"three\n", b"four\n"):
        assert call.run(new_id(), b"echo " + text) == text


def test_one_that_is_gone_amid_a_run_is_not_the_call_s_end(server: Server) -> None:
    call = server.call("spare")
    lost = new_id()
    call.send(line_message(lost, payload(b"echo $PPID; exec sleep 25")))
    call.read_until(lambda call: call.out.endswith(b"\n"))
    kill(int(call.out))
    call.follow()
    assert call.end == (125, "lost")

    assert call.run(new_id(), b"echo two") == b"two\n"


def test_what_was_ready_and_is_gone_is_made_again(server: Server) -> None:
    call = server.call("spare")
    supervisor, script = ready(server)
    kill(script)

    told = tuple(map(int, call.run(new_id(), b"echo $PPID $$").split()))

    assert told[0] == supervisor
    assert told[1] != script
    assert call.end == (0, "exit")


def test_what_was_told_and_died_before_it_heard_is_not_started_again(server: Server) -> None:
    call = server.call("spare")
    supervisor, script = ready(server)
    os.kill(script, signal.SIGSTOP)
    run_id = new_id()
    call.send(line_message(run_id, payload(b"echo one >>$HOME/starts")))
    call.read_until_started()
    kill(script)
    call.follow()
    assert call.end == (137, "signal")

    assert call.run(new_id(), b"echo $PPID") == b"%d\n" % supervisor
    assert not (server.home / "starts").exists()


@pytest.mark.parametrize("fault", ["none there", "one that cannot be opened anew"])
@pytest.mark.parametrize("shell", SHELLS)
def test_without_pipes_of_the_shell_they_are_made_in_a_root(
    tmp_path: Path, shell: str, fault: str
) -> None:
    there, there_not = "[ -p /proc/self/fd/4 ]", "[ -p /proc/self/fd/no ]"
    anew, anew_not = "$2</proc/self/fd/4", "$2</proc/self/fd/no"
    edits = {there: there_not} if fault == "none there" else {there: "true", anew: anew_not}
    with serving(tmp_path, shell, edits=edits) as server:
        call = server.call("spare")
        assert call.run(new_id(), b"echo one") == b"one\n"
        assert call.run(new_id(), b"echo two") == b"two\n"
        assert call.finish() == 0
    assert list(server.root.glob(".*")) == []


def test_calls_have_each_their_own(server: Server) -> None:
    one, two = server.call("spare"), server.call("spare")
    first, second = one.run(new_id(), b"echo $PPID"), two.run(new_id(), b"echo $PPID")

    assert first != second
    assert one.run(new_id(), b"echo $PPID") == first
    assert two.run(new_id(), b"echo $PPID") == second


@pytest.mark.parametrize("shell", SHELLS)
def test_one_that_claimed_a_run_and_is_gone_before_it_says_so_has_lost_it(
    tmp_path: Path, shell: str
) -> None:
    told = '    echo "new $$ $supervisor_started" >&3\n'
    with serving(tmp_path, shell, edits={told: f"    kill -s KILL $$\n{told}"}) as server:
        call = server.call("spare")
        call.send(line_message(new_id(), payload(b"echo one >>$HOME/starts; exec sleep 25")))
        call.follow()

        assert call.end == (125, "lost")
        starts = server.home / "starts"
        # It may be ended between opening the file and writing to it.
        assert not starts.exists() or starts.read_text() in ("", "one\n")
