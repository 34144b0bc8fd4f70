"""The runner: one ticker holds the limits of all runs of a call, and tidies up behind them."""

import time
from pathlib import Path

import pytest

from tests.process.runner_processes import kill, ticker, tickers
from tests.process.runner_rig import (
    Server,
    carriers,
    in_every_shell,
    line_message,
    new_id,
    payload,
    serving,
    wait_until,
)
from worker.demo.processes import is_alive


def test_one_ticker_serves_all_runs(server: Server) -> None:
    call = server.call("spare")
    call.run(new_id(), b"echo one")
    ticks = ticker(server)
    for _ in range(3):
        call.run(new_id(), b"sleep 0.2")
    assert ticker(server) == ticks

    call.send(
        line_message(new_id(), payload(b"trap 'exit 3' TERM; sleep 25 & wait"), limit_seconds=1)
    )
    call.follow()

    assert call.end == (124, "timeout")
    assert 1000 <= int(call.heads[-1].split()[3]) < 10_000


@pytest.mark.parametrize("when", ["between two runs", "amid the run before"])
def test_a_ticker_that_is_gone_has_a_successor(server: Server, when: str) -> None:
    call = server.call("spare")
    run_id = new_id()
    if when == "between two runs":
        call.run(run_id, b"echo one")
    else:
        call.send(line_message(run_id, payload(b"echo on; sleep 0.5")))
        call.read_until(lambda call: call.out == b"on\n")
    ticks = ticker(server)
    kill(ticks)
    if when != "between two runs":
        call.follow()

    call.send(line_message(new_id(), payload(b"exec sleep 25"), limit_seconds=1))
    call.follow()

    assert call.end == (124, "timeout")


def no_payload(server: Server, run_id: str) -> bool:
    return not server.payloads(run_id)


def test_what_came_with_a_run_is_gone_soon_whether_or_not_it_is_forgotten(server: Server) -> None:
    call = server.call("spare")
    ids = [new_id() for _ in range(9)]
    for run_id in ids:
        call.run(run_id, b"echo s3cret")

    wait_until(lambda: all(no_payload(server, each) for each in ids[:8]), "eight are gone at once")
    assert all(server.has_ended(each) for each in ids)
    assert call.finish() == 0
    wait_until(lambda: no_payload(server, ids[-1]), "the last goes with its call")


def test_runs_that_are_forgotten_as_they_end_leave_the_ticker_to_the_next(server: Server) -> None:
    call = server.call("spare")
    for _ in range(5):
        run_id = new_id()
        call.run(run_id, b"echo one")
        call.send(b"forget %s\n" % run_id.encode())
        call.read_until(lambda call: call.heads[-1] == "f 0")

    call.send(line_message(new_id(), payload(b"exec sleep 25"), limit_seconds=1))
    call.follow()

    assert call.end == (124, "timeout")


@pytest.mark.parametrize(
    "deceit", [b"touch exit.0.exit.1.1", b"rm -rf $PWD", b"rm go", b"rm -rf $PWD; mkdir $PWD"]
)
def test_a_script_cannot_stop_its_ticker(server: Server, deceit: bytes) -> None:
    run_id = new_id()
    script = b"cd ..; exec 2>&-; " + deceit + b"; echo $$ >$HOME/pid; exec sleep 45"
    server.call("spare").send(line_message(run_id, payload(script), limit_seconds=1))
    pid = server.home / "pid"
    wait_until(lambda: pid.exists() and pid.read_text(), "the script runs")
    sleeper = int(pid.read_text())

    # In less time than it would take by itself.
    wait_until(lambda: not is_alive(sleeper), "it is ended")
    assert carriers(run_id) == []


def test_a_script_is_not_quicker_than_its_ticker(tmp_path: Path) -> None:
    comes = 'cd "$run" 2>/dev/null || cd /'
    late = {comes: f"sleep 0.5; {comes}"}
    with serving(tmp_path, "dash", edits=late) as server:
        run_id = new_id()
        script = b"sleep 0.2; rm -rf ${PWD%/*}; echo $$ >$HOME/pid; exec sleep 45"
        server.call("spare").send(line_message(run_id, payload(script), limit_seconds=1))
        pid = server.home / "pid"
        wait_until(lambda: pid.exists() and pid.read_text(), "the script runs")

        wait_until(lambda: not is_alive(int(pid.read_text())), "it is ended")


def test_without_a_ticker_nothing_is_started(tmp_path: Path) -> None:
    with serving(tmp_path, "dash", edits={"open_pipe 8 9": "false"}) as server:
        call = server.call("spare")
        call.send(line_message(new_id(), payload(b"touch $HOME/started")))

        assert call.finish() == 73
        assert not (server.home / "started").exists()


def test_the_ticker_of_one_that_is_gone_goes_too(server: Server) -> None:
    call = server.call("spare")
    call.send(line_message(new_id(), payload(b"echo $PPID; sleep 1.5"), limit_seconds=0))
    call.read_until(lambda call: call.out.endswith(b"\n"))
    assert wait_until(lambda: tickers(server), "it ticks")
    kill(int(call.out))
    call.kill()

    wait_until(lambda: server.supervisors() == [], "nothing ticks")


def test_without_its_ticker_a_run_is_heard_of(tmp_path: Path) -> None:
    def check(server: Server) -> None:
        call = server.call("spare")
        gate = b"until [ -e $HOME/gate ]; do sleep 0.05; done; echo off"
        call.send(line_message(new_id(), payload(b"sleep 0.3; echo on; " + gate)))
        call.read_until(lambda call: call.out == b"on\n")
        (server.home / "gate").touch()
        assert call.follow().endswith(b"off\n")

    # As where there can be no more processes.
    in_every_shell(tmp_path, check, edits={"            rest 0.1\n": "            exit 1\n"})


@pytest.mark.quiet
def test_what_comes_next_does_not_wait_for_the_ticker_to_go_on(server: Server) -> None:
    call = server.call("spare")
    call.run(new_id(), b"sleep 0.2")
    began = time.monotonic()
    gate = b"until [ -e $HOME/gate ]; do sleep 0.05; done"
    call.send(line_message(new_id(), payload(b"echo on; " + gate)))
    call.read_until(lambda call: call.out.endswith(b"on\n"))

    assert time.monotonic() - began < 0.7
    (server.home / "gate").touch()
    call.follow()
