"""The runner: one supervisor serves the runs of a call, with the next one's process made ready."""

import os
import signal
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.process.runner_rig import (
    SHELLS,
    Call,
    Server,
    carriers,
    in_every_shell,
    is_alive,
    line_message,
    new_id,
    payload,
    serving,
    wait_until,
)
from worker.remote.payload import LAST_LINE

# What a run finds, but for what is its own.
INVENTORY = rb"""
{ env | sort; pwd; } | sed "s/$CRONIUM_EXECUTION_ID/ID/g; s/\(in\|work\|calls\)\.[0-9A-Za-z-]*/DIR/"
umask
grep '^Sig[BIC]' /proc/self/status
cd /proc/self/fd && for fd in 0 1 2 3 4 5 6 7 8 9; do [ ! -e $fd ] || echo "fd $fd"; done
ulimit -a
cut -d' ' -f5,6 /proc/$$/stat | sed "s/$$/ME/g"
"""


@pytest.fixture(params=SHELLS)
def server(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Server]:
    with serving(tmp_path, request.param) as one:
        yield one


def run(call: Call, run_id: str, script: bytes, environment: bytes = b"") -> bytes:
    """What it prints."""
    call.send(line_message(run_id, payload(script, environment=environment)))
    return call.follow()


def ready(server: Server) -> tuple[int, int]:
    """The supervisor and the process it has ready."""

    def look() -> tuple[int, int] | None:
        found = sorted(server.supervisors())
        time.sleep(0.05)  # a program that it starts looks like it for a moment
        if sorted(server.supervisors()) != found:
            return None
        parents, children = family(found)
        waiting = [pid for pid in children if pid not in clocks(server)]
        return (parents[0], waiting[0]) if len(parents) == len(waiting) == 1 else None

    pair = wait_until(look, "a process is ready")
    assert pair is not None
    return pair


def family(found: list[int]) -> tuple[list[int], list[int]]:
    """The supervisors, and their children without what those just start."""
    above = {pid: parent(pid) for pid in found}
    tops = [pid for pid in found if above[pid] not in found]
    return tops, [pid for pid in found if above[pid] in tops]


def clocks(server: Server) -> list[int]:
    """What ticks; of all that waits, only what becomes a script has the end of its pipe."""
    _, children = family(server.supervisors())
    return [pid for pid in children if not Path(f"/proc/{pid}/fd/5").exists()]


def parent(pid: int) -> int:
    """0 for what is gone."""
    try:
        return int(Path(f"/proc/{pid}/stat").read_text().rpartition(") ")[2].split()[1])
    except OSError:
        return 0


def kill(pid: int) -> None:
    os.kill(pid, signal.SIGKILL)
    wait_until(lambda: not is_alive(pid), "it is gone")


def test_a_spare_has_made_the_process_that_becomes_the_script(server: Server) -> None:
    call = server.call("spare")
    made = []
    told = []
    for _ in range(3):
        made.append(ready(server))
        told.append(tuple(map(int, run(call, new_id(), b"echo $PPID $$").split())))

    assert told == made
    assert len({supervisor for supervisor, _ in told}) == 1
    assert len({script for _, script in told}) == 3


def test_a_call_that_was_not_waited_for_has_one_ready_from_its_third_run_on(server: Server) -> None:
    call = server.call("run")
    first = run(call, new_id(), b"echo $PPID $$").split()
    time.sleep(0.3)
    assert server.supervisors() == [int(first[0]), *clocks(server)]
    second = run(call, new_id(), b"echo $PPID $$").split()
    third = ready(server)

    assert second[0] == first[0]
    assert tuple(map(int, run(call, new_id(), b"echo $PPID $$").split())) == third


def test_a_later_run_finds_what_the_first_finds(server: Server) -> None:
    first = server.call("run")
    expected = run(first, new_id(), INVENTORY, environment=b"export A='1'\n")
    later = server.call("spare")
    spoiler = b"umask 0; trap '' USR1; ulimit -n 100; cd /; exec 5>/dev/null; echo spoilt"
    for _ in range(2):
        assert run(later, new_id(), spoiler, environment=b"export A='0'\nexport B='1'\n")
        later.send(line_message(new_id(), payload(b"exit 3", directory=b"/no/such/place")))
        later.follow()

    assert run(later, new_id(), INVENTORY, environment=b"export A='1'\n") == expected
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
    run(call, new_id(), busy)
    first = int(call.heads[-1].split()[-1])
    run(call, new_id(), b"true")
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

    told = run(call, new_id(), b"echo $PPID")

    assert int(told) != supervisor
    assert run(call, new_id(), b"echo $PPID") == told


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
        assert run(call, new_id(), b"echo " + text) == text


def test_one_that_is_gone_amid_a_run_is_not_the_call_s_end(server: Server) -> None:
    call = server.call("spare")
    lost = new_id()
    call.send(line_message(lost, payload(b"echo $PPID; exec sleep 25")))
    call.read_until(lambda call: call.out.endswith(b"\n"))
    kill(int(call.out))
    call.follow()
    assert call.end == (125, "lost")

    assert run(call, new_id(), b"echo two") == b"two\n"


def test_what_was_ready_and_is_gone_is_made_again(server: Server) -> None:
    call = server.call("spare")
    supervisor, script = ready(server)
    kill(script)

    told = tuple(map(int, run(call, new_id(), b"echo $PPID $$").split()))

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

    assert run(call, new_id(), b"echo $PPID") == b"%d\n" % supervisor
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
        assert run(call, new_id(), b"echo one") == b"one\n"
        assert run(call, new_id(), b"echo two") == b"two\n"
        assert call.finish() == 0
    assert list(server.root.glob(".*")) == []


def test_calls_have_each_their_own(server: Server) -> None:
    one, two = server.call("spare"), server.call("spare")
    first, second = run(one, new_id(), b"echo $PPID"), run(two, new_id(), b"echo $PPID")

    assert first != second
    assert run(one, new_id(), b"echo $PPID") == first
    assert run(two, new_id(), b"echo $PPID") == second


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
        assert not starts.exists() or starts.read_text() == "one\n"


# Its clock


def test_one_clock_serves_all_runs(server: Server) -> None:
    call = server.call("spare")
    run(call, new_id(), b"echo one")
    (clock,) = wait_until(lambda: clocks(server), "it ticks")
    for _ in range(3):
        run(call, new_id(), b"sleep 0.2")
    assert clocks(server) == [clock]

    call.send(
        line_message(new_id(), payload(b"trap 'exit 3' TERM; sleep 25 & wait"), limit_seconds=1)
    )
    call.follow()

    assert call.end == (124, "timeout")
    assert 1000 <= int(call.heads[-1].split()[3]) < 10_000


@pytest.mark.parametrize("when", ["between two runs", "amid the run before"])
def test_a_clock_that_is_gone_has_a_successor(server: Server, when: str) -> None:
    call = server.call("spare")
    run_id = new_id()
    if when == "between two runs":
        run(call, run_id, b"echo one")
    else:
        call.send(line_message(run_id, payload(b"echo on; sleep 0.5")))
        call.read_until(lambda call: call.out == b"on\n")
    (clock,) = wait_until(lambda: clocks(server), "it ticks")
    kill(clock)
    if when != "between two runs":
        call.follow()
        wait_until(lambda: no_payload(server, run_id), "the supervisor removes what it would")

    call.send(line_message(new_id(), payload(b"exec sleep 25"), limit_seconds=1))
    call.follow()

    assert call.end == (124, "timeout")


def no_payload(server: Server, run_id: str) -> bool:
    return not list(server.directory(run_id).glob("in.*"))


def test_what_came_with_a_run_is_gone_soon_whether_or_not_it_is_forgotten(server: Server) -> None:
    call = server.call("spare")
    ids = [new_id() for _ in range(4)]
    for run_id in ids:
        run(call, run_id, b"echo s3cret")

    wait_until(lambda: all(no_payload(server, each) for each in ids), "payloads are gone")
    assert all(server.has_ended(each) for each in ids)
    assert call.finish() == 0


def test_runs_that_are_forgotten_as_they_end_leave_the_clock_to_the_next(server: Server) -> None:
    call = server.call("spare")
    for _ in range(5):
        run_id = new_id()
        run(call, run_id, b"echo one")
        call.send(b"forget %s\n" % run_id.encode())
        call.read_until(lambda call: call.heads[-1] == "f 0")

    last = new_id()
    run(call, last, b"echo one")

    wait_until(lambda: no_payload(server, last), "its clock has come to it")


@pytest.mark.parametrize(
    "deceit", [b"touch exit.0.exit.1.1", b"rm -rf $PWD", b"rm go", b"rm -rf $PWD; mkdir $PWD"]
)
def test_a_script_cannot_stop_its_clock(server: Server, deceit: bytes) -> None:
    run_id = new_id()
    script = b"cd ..; exec 2>&-; " + deceit + b"; echo $$ >$HOME/pid; exec sleep 45"
    server.call("spare").send(line_message(run_id, payload(script), limit_seconds=1))
    pid = server.home / "pid"
    wait_until(lambda: pid.exists() and pid.read_text(), "the script runs")
    sleeper = int(pid.read_text())

    # In less time than it would take by itself.
    wait_until(lambda: not is_alive(sleeper), "it is ended")
    assert carriers(run_id) == []


def test_without_a_clock_nothing_is_started(tmp_path: Path) -> None:
    with serving(tmp_path, "dash", edits={"open_pipe 8 9": "false"}) as server:
        call = server.call("spare")
        call.send(line_message(new_id(), payload(b"touch $HOME/started")))

        assert call.finish() == 73
        assert not (server.home / "started").exists()


def test_the_clock_of_one_that_is_gone_goes_too(server: Server) -> None:
    call = server.call("spare")
    call.send(line_message(new_id(), payload(b"echo $PPID; sleep 1.5"), limit_seconds=0))
    call.read_until(lambda call: call.out.endswith(b"\n"))
    assert wait_until(lambda: clocks(server), "it ticks")
    kill(int(call.out))
    call.kill()

    wait_until(lambda: server.supervisors() == [], "nothing ticks")


def test_without_its_clock_a_run_is_heard_of(tmp_path: Path) -> None:
    def check(server: Server) -> None:
        call = server.call("spare")
        gate = b"until [ -e $HOME/gate ]; do sleep 0.05; done; echo off"
        call.send(line_message(new_id(), payload(b"sleep 0.3; echo on; " + gate)))
        call.read_until(lambda call: call.out == b"on\n")
        (server.home / "gate").touch()
        assert call.follow().endswith(b"off\n")

    # As where there can be no more processes.
    in_every_shell(tmp_path, check, edits={"            rest 0.1\n": "            exit 1\n"})


def test_what_a_clock_owed_when_it_ended_is_removed(server: Server) -> None:
    call = server.call("spare")
    first, second, third = new_id(), new_id(), new_id()
    run(call, first, b"true")
    (clock,) = wait_until(lambda: clocks(server), "it ticks")
    wait_until(lambda: no_payload(server, first), "it has nothing to do")
    os.kill(clock, signal.SIGSTOP)
    for run_id in (second, third):
        run(call, run_id, b"true")
    assert not no_payload(server, second)
    kill(clock)

    assert call.finish() == 0

    wait_until(lambda: no_payload(server, second) and no_payload(server, third), "all are gone")


@pytest.mark.alone
def test_what_comes_next_does_not_wait_for_the_clock_to_go_on(server: Server) -> None:
    call = server.call("spare")
    run(call, new_id(), b"sleep 0.2")
    began = time.monotonic()
    call.send(line_message(new_id(), payload(b"echo on; sleep 2")))
    call.read_until(lambda call: call.out.endswith(b"on\n"))

    assert time.monotonic() - began < 0.7
    call.follow()
