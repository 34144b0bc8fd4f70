"""The runner: runs that are ended, with all that they started."""

import os
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.process.runner_rig import (
    Server,
    carriers,
    in_every_shell,
    is_alive,
    message,
    new_id,
    payload,
    serving,
    wait_until,
)

# Every loop in here is bounded in number and time, whatever the runner does.
TREE = b"""
import os, signal, subprocess, sys, time

def child(name, change=lambda: None, environment=None):
    pid = os.fork()
    if pid == 0:
        change()
        code = "import time,signal,os;signal.signal(signal.SIGTERM, signal.SIG_IGN)\\n" \
               "open(os.path.join(%r, %r), 'w').write(str(os.getpid()))\\n" \
               "time.sleep(25)" % (HOME, name)
        argv = [sys.executable, "-c", code]
        os.execve(argv[0], argv, os.environ if environment is None else environment)

def double_fork():
    os.setsid()
    if os.fork():
        os._exit(0)

HOME = os.environ["HOME"]
child("plain")
child("session", os.setsid)
child("daemon", double_fork)
child("bare", environment={})
signal.signal(signal.SIGTERM, signal.SIG_IGN)
print("ready", flush=True)
time.sleep(25)
"""
NAMES = ("plain", "session", "daemon", "bare")

# At most 400 processes, 4 s: each forks its successor and leaves.
FORKER = b"""
import os, signal, time
signal.signal(signal.SIGTERM, signal.SIG_IGN)
end = time.monotonic() + 4
print("ready", flush=True)
for _ in range(400):
    if time.monotonic() > end or os.fork():
        break
    os.setsid()
    time.sleep(0.01)
"""


@pytest.fixture
def dash(tmp_path: Path) -> Iterator[Server]:
    with serving(tmp_path, "dash") as one:
        yield one


@pytest.fixture
def hasty(tmp_path: Path) -> Iterator[Server]:
    with serving(tmp_path, "dash", grace_ms=300) as one:
        yield one


def members(server: Server) -> list[int]:
    return [int((server.home / name).read_text()) for name in NAMES]


def all_are_there(server: Server) -> bool:
    return all((server.home / name).exists() and (server.home / name).read_text() for name in NAMES)


def test_a_cancel_ends_the_whole_tree_and_returns_when_none_is_left(tmp_path: Path) -> None:
    def check(server: Server) -> None:
        run_id = new_id()
        call = server.start(run_id, payload(TREE, interpreter="python3"))
        wait_until(lambda: all_are_there(server), "the tree stands")
        tree = members(server)
        assert all(map(is_alive, tree))

        status, _ = server.ask("signal", run_id, "cancel")

        assert status == 0
        assert [pid for pid in tree if is_alive(pid)] == []
        assert carriers(run_id) == []
        assert call.finish() == 0
        assert (call.out, call.end) == (b"ready\n", (130, "cancel"))
        # again, and of a run that has ended
        assert server.ask("signal", run_id, "timeout")[0] == 0
        assert server.ask("attach", run_id, "0", "0")[1].end == (130, "cancel")

    in_every_shell(tmp_path, check)


def test_a_forker_does_not_outrun_the_end(hasty: Server) -> None:
    run_id = new_id()
    call = hasty.start(run_id, payload(FORKER + b"time.sleep(5)", interpreter="python3"))
    call.read_until(lambda call: call.out != b"")

    assert hasty.ask("signal", run_id, "cancel")[0] == 0

    assert carriers(run_id) == []
    call.finish()
    assert call.end == (130, "cancel")


def test_the_time_limit_ends_a_script_with_its_output_kept(tmp_path: Path) -> None:
    def check(server: Server) -> None:
        call = server.run(
            new_id(),
            payload(b"trap 'echo bye; exit 3' TERM; echo on; sleep 25 & wait"),
            limit_seconds=1,
        )

        assert (call.out, call.end) == (b"on\nbye\n", (124, "timeout"))
        assert 1000 <= int(call.heads[-1].split()[3]) < 10_000

    in_every_shell(tmp_path, check)


def test_the_time_limit_holds_with_nobody_attached(dash: Server) -> None:
    run_id = new_id()
    dash.start(run_id, payload(b"echo on; exec sleep 25"), limit_seconds=1).kill()

    wait_until(lambda: (dash.directory(run_id) / "exit").is_symlink(), "the run has ended")

    assert dash.ask("attach", run_id, "0", "0")[1].end == (124, "timeout")


def test_term_reaches_a_script_once(tmp_path: Path) -> None:
    def check(server: Server) -> None:
        run_id = new_id()
        call = server.start(
            run_id,
            payload(
                b"import signal, time\n"
                b"signal.signal(signal.SIGTERM, lambda *_: print('term', flush=True))\n"
                b"print('ready', flush=True)\n"
                b"signal.pause(); time.sleep(0.3)\n",
                interpreter="python3",
            ),
        )
        call.read_until(lambda call: call.out == b"ready\n")

        assert server.ask("signal", run_id, "timeout")[0] == 0

        call.finish()
        assert (call.out, call.end) == (b"ready\nterm\n", (124, "timeout"))

    in_every_shell(tmp_path, check)


def test_a_run_over_its_output_limit_is_ended(tmp_path: Path) -> None:
    def check(server: Server) -> None:
        call = server.run(
            new_id(), payload(b"head -c 3000000 /dev/zero; exec sleep 25", output_limit=2_000_000)
        )

        assert call.end == (137, "output_limit")
        assert len(call.out) == 3_000_000

    in_every_shell(tmp_path, check)


def test_what_a_script_leaves_running_on_purpose_goes_on(dash: Server) -> None:
    run_id = new_id()
    call = dash.run(
        run_id, payload(b"sleep 25 >/dev/null 2>&1 & echo $! >$HOME/left; echo started")
    )

    left = int((dash.home / "left").read_text())
    assert (call.out, call.end) == (b"started\n", (0, "exit"))
    assert is_alive(left)
    os.kill(left, 9)


def test_a_run_whose_id_only_begins_alike_is_left_alone(dash: Server) -> None:
    run_id = new_id()
    longer = f"{run_id}0"
    dash.start(longer, payload(b"exec sleep 25"))
    wait_until(lambda: carriers(longer), "the script shows its cookie")
    dash.start(run_id, payload(b"exec sleep 25"))

    assert dash.ask("signal", run_id, "cancel")[0] == 0

    assert len(carriers(longer)) == 1


@pytest.mark.skipif(os.getuid() != 0, reason="only root can become somebody else")
def test_a_plain_user_gets_the_same(tmp_path: Path) -> None:
    place = Path(f"/var/tmp/cronium-test-{new_id()}")  # noqa: S108  # tmp_path is closed to others
    place.mkdir(mode=0o755)
    try:
        with serving(place, "dash", grace_ms=300) as server:
            subprocess.run(["chown", "-R", "12345:12345", str(place)], check=True)
            run_id = new_id()
            call = server.call("run", user=12345)
            call.send(message(run_id, payload(TREE, interpreter="python3")))
            call.send_eof()
            wait_until(lambda: all_are_there(server), "the tree stands")
            tree = members(server)

            ender = server.call("signal", run_id, "cancel", user=12345)

            assert ender.finish() == 0
            assert [pid for pid in tree if is_alive(pid)] == []
            call.finish()
            assert call.end == (130, "cancel")
    finally:
        subprocess.run(["rm", "-rf", str(place)], check=True)


def test_the_end_of_a_script_is_told_at_once(dash: Server) -> None:
    run_id = new_id()
    call = dash.start(run_id, payload(b"sleep 3; touch $HOME/end"))
    # By now the tick is a second long.
    wait_until(lambda: (dash.home / "end").exists(), "the script ends")

    began = time.monotonic()
    call.finish()

    assert time.monotonic() - began < 0.4
