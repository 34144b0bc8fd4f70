"""The runner: runs that are ended, with all that they started."""

import os
import signal
import time
from collections.abc import Iterator
from contextlib import ExitStack, suppress
from pathlib import Path

import pytest

from tests.process.runner_rig import (
    Options,
    Server,
    carriers,
    in_every_shell,
    kill_if_alive,
    line_message,
    new_id,
    payload,
    serving,
    wait_until,
)
from tests.process.surroundings import (
    HIDDEN_CGROUPS,
    HIDDEN_PROCESSES,
    ROOT,
    SOMEBODY,
    Surroundings,
    mounts,
    rootmaker,
)
from worker.demo.processes import is_alive

# Every process in here is bounded in number and time, whatever the runner does.
TREE = b"""
import os, signal, sys, time

HOME = os.environ["HOME"]
signal.signal(signal.SIGTERM, signal.SIG_IGN)

def tell(name):
    with open(os.path.join(HOME, name + ".new"), "w") as file:
        file.write(str(os.getpid()))
    os.rename(os.path.join(HOME, name + ".new"), os.path.join(HOME, "pid." + name))

def child(name, change=lambda: None):
    if os.fork() == 0:
        change()
        tell(name)
        time.sleep(25)
        os._exit(0)

def be_daemon():
    os.setsid()
    if os.fork():
        os._exit(0)

def be_stopped():
    os.setsid()
    tell("stopped")
    os.kill(os.getpid(), signal.SIGSTOP)

def forget_environment():
    tell("bare")
    os.execve("/bin/sleep", ["sleep", "25"], {})

child("plain")
child("group", lambda: os.setpgid(0, 0))
child("session", os.setsid)
child("daemon", be_daemon)
child("stopped", be_stopped)
child("bare", forget_environment)
for depth in range(50):
    if os.fork():
        break
    tell("deep%d" % depth)
if depth == 0:
    print("ready", flush=True)
time.sleep(25)
"""
STANDING = (
    "plain",
    "group",
    "session",
    "daemon",
    "stopped",
    "bare",
    *(f"deep{n}" for n in range(50)),
)

# These two are known by their group and by their session only, and alone once TERM has been sent.
BARE = b"""
import os, signal, time

def child(name, change=lambda: None):
    if os.fork() == 0:
        change()
        signal.signal(signal.SIGTERM, signal.SIG_IGN)
        path = os.path.join(os.environ["HOME"], "pid." + name)
        with open(path + ".new", "w") as file:
            file.write(str(os.getpid()))
        os.rename(path + ".new", path)
        os.execve("/bin/sleep", ["sleep", "25"], {})

child("member")
child("group", lambda: os.setpgid(0, 0))
print("ready", flush=True)
time.sleep(25)
"""

# At most 2000 processes, 20 s: each forks its successor and leaves; the last one says so.
FORKER = b"""
import os, signal, time
signal.signal(signal.SIGTERM, signal.SIG_IGN)
first = os.getpid()
end = time.monotonic() + 20
print("ready", flush=True)
for count in range(2000):
    if os.fork():
        break
    os.setsid()
    time.sleep(0.01)
    if count == 1999 or time.monotonic() > end:
        print("outran", flush=True)
        break
if os.getpid() == first:
    time.sleep(21)
"""


@pytest.fixture
def dash(tmp_path: Path) -> Iterator[Server]:
    with serving(tmp_path, "dash") as one:
        yield one


def members(server: Server, names: tuple[str, ...] = STANDING) -> list[int]:
    """The processes of a tree, once they are all there."""
    files = [server.home / f"pid.{name}" for name in names]
    wait_until(lambda: all(file.exists() for file in files), "the tree stands")
    return [int(file.read_text()) for file in files]


@pytest.fixture(params=["as they are", "hidden"])
def cgroups(request: pytest.FixtureRequest) -> Iterator[Surroundings]:
    """Where a cgroup finds all of a tree, the other ways to find it are not seen at work."""
    if request.param == "hidden":
        with mounts(HIDDEN_CGROUPS) as surroundings:
            yield surroundings
    else:
        yield Surroundings()


def test_a_cancel_ends_the_whole_tree_and_returns_when_none_is_left(
    cgroups: Surroundings, tmp_path: Path
) -> None:
    def check(server: Server) -> None:
        run_id = new_id()
        call = server.start(run_id, payload(TREE, interpreter="python3"))
        tree = members(server)
        assert all(map(is_alive, tree))

        status, _ = server.ask("signal", run_id, "cancel")

        assert status == 0
        assert [pid for pid in tree if is_alive(pid)] == []
        assert carriers(run_id) == []
        assert call.finish() == 0
        assert (call.out, call.err, call.end) == (b"ready\n", b"", (130, "cancel"))
        # again, and of a run that has ended
        assert server.ask("signal", run_id, "timeout")[0] == 0
        assert server.ask("attach", run_id, "0", "0")[1].end == (130, "cancel")

    in_every_shell(tmp_path, check, surroundings=cgroups, grace_ms=1000)


@pytest.fixture(
    params=["root", "root without cgroups", "somebody", "somebody who sees only theirs"]
)
def account(request: pytest.FixtureRequest, open_path: Path) -> Iterator[Server]:
    """Who may see and signal what decides which ways to find a process are left."""
    if os.getuid() != 0:
        pytest.skip("only root can become somebody else")
    options = Options(grace_ms=300)
    if request.param.startswith("somebody"):
        options["user"] = SOMEBODY
    setup = {
        "root without cgroups": HIDDEN_CGROUPS,
        "somebody who sees only theirs": HIDDEN_PROCESSES,
    }
    with ExitStack() as stack:
        if request.param in setup:
            options["surroundings"] = stack.enter_context(mounts(setup[request.param]))
        yield stack.enter_context(serving(open_path / "server", "dash", **options))


@pytest.mark.parametrize("ending", ["cancel", "timeout"])
@pytest.mark.parametrize(
    ("script", "names"),
    [(TREE, STANDING), (BARE, ("member", "group")), (FORKER, ())],
    ids=["tree", "bare", "forker"],
)
def test_no_process_of_a_run_is_left(
    account: Server, script: bytes, names: tuple[str, ...], ending: str
) -> None:
    run_id = new_id()
    limit = 3 if ending == "timeout" else 60
    call = account.start(run_id, payload(script, interpreter="python3"), limit_seconds=limit)
    call.read_until(lambda call: call.out != b"")
    tree = members(account, names)
    assert all(map(is_alive, tree))

    if ending == "cancel":
        assert account.ask("signal", run_id, "cancel")[0] == 0

    call.finish()
    assert call.end == ({"cancel": 130, "timeout": 124}[ending], ending)
    assert (call.out, call.err) == (b"ready\n", b"")
    assert [pid for pid in tree if is_alive(pid)] == []
    assert carriers(run_id) == []


def test_what_cannot_be_ended_is_told_and_does_not_hold_up_the_end(open_path: Path) -> None:
    become = " ".join((str(rootmaker(open_path)), *ROOT))
    script = f"{become} sleep 25 & printf $!; printf half >&2; wait".encode()
    hasty = {"max_looks=200": "max_looks=4"}
    with serving(open_path / "server", "dash", user=SOMEBODY, grace_ms=300, edits=hasty) as server:
        run_id = new_id()
        call = server.start(run_id, payload(script))
        call.read_until(lambda call: call.out != b"" and call.err != b"")
        pid = int(call.out)
        wait_until(lambda: owner_of(pid) == 0, "it is root's")

        assert server.ask("signal", run_id, "cancel")[0] == 0

        call.finish()
        kill_if_alive(pid)
    assert call.end == (130, "cancel")
    told = b"half\ncronium: 1 processes could not be ended, the first is %d\n" % pid
    assert call.err == told


def test_a_run_after_one_that_nobody_could_end_has_a_ticker_of_its_own(open_path: Path) -> None:
    become = " ".join((str(rootmaker(open_path)), *ROOT))
    hasty = {"max_looks=200": "max_looks=4"}
    with serving(open_path / "server", "dash", user=SOMEBODY, grace_ms=300, edits=hasty) as server:
        call = server.call("spare")
        first = new_id()
        call.send(line_message(first, payload(f"echo $$; exec {become} sleep 25".encode())))
        call.read_until(lambda call: call.out != b"")
        pid = int(call.out)
        wait_until(lambda: owner_of(pid) == 0, "it is root's")
        assert server.ask("signal", first, "cancel")[0] == 0
        call.follow()
        assert call.end == (130, "cancel")

        second = new_id()
        gate = b"until [ -e $HOME/gate ]; do sleep 0.05; done"
        call.send(line_message(second, payload(b"echo on; " + gate)))
        call.read_until(lambda call: call.out.endswith(b"on\n"))
        (server.home / "gate").touch()
        call.follow()

        call.finish()
        for run_id in (first, second):
            wait_until(lambda run_id=run_id: not server.payloads(run_id), "its payload is gone")  # type: ignore[misc]
        kill_if_alive(pid)


def test_a_run_whose_directory_cannot_be_read_has_an_end(open_path: Path) -> None:
    def check(server: Server) -> None:
        for mode in (b"300", b"100", b"000", b"200", b"400", b"600"):
            run_id = new_id()
            script = b"chmod " + mode + b" $CRONIUM_CALLS/..; echo hi; exit 3"
            call = server.run(run_id, payload(script))

            assert (call.out, call.end) == (b"hi\n", (3, "exit"))
            assert server.ask("forget", run_id)[0] == 0
            assert not server.directory(run_id).exists()

    in_every_shell(open_path, check, user=SOMEBODY)


def test_a_script_that_becomes_another_users_is_waited_for(open_path: Path) -> None:
    become = " ".join((str(rootmaker(open_path)), *ROOT))

    def check(server: Server) -> None:
        run_id = new_id()
        call = server.start(run_id, payload(f"exec {become} sh -c 'sleep 2; exit 7'".encode()))
        supervisor = server.supervisor(run_id)
        for _ in range(25):
            os.kill(supervisor, signal.SIGURG)
            time.sleep(0.05)
        call.finish()

        assert call.end == (7, "exit")

    in_every_shell(open_path, check, user=SOMEBODY)


def owner_of(pid: int) -> int:
    return Path(f"/proc/{pid}/status").stat().st_uid


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


def test_the_supervisor_is_not_woken_without_need(tmp_path: Path) -> None:
    def check(server: Server) -> None:
        assert server.run(new_id(), payload(b"echo on; sleep 1; exit 7")).end == (7, "exit")
        assert not (server.home / "woken").exists()

        assert server.run(new_id(), payload(b"exec sleep 25"), limit_seconds=1).end[1] == "timeout"
        assert (server.home / "woken").exists()

    noticed = {"was_interrupted() {": 'was_interrupted() {\n[ -z "$woken" ] || : >"$HOME/woken"'}
    in_every_shell(tmp_path, check, edits={"rest 1\n": "rest 0.05\n", **noticed})


def test_the_time_limit_holds_with_nobody_attached(dash: Server) -> None:
    run_id = new_id()
    dash.start(run_id, payload(b"echo on; exec sleep 25"), limit_seconds=1).kill()

    wait_until(lambda: dash.has_ended(run_id), "the run has ended")

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


@pytest.mark.quiet
def test_the_end_of_a_script_is_told_at_once(dash: Server) -> None:
    run_id = new_id()
    call = dash.start(run_id, payload(b"sleep 3; touch $HOME/end"))
    # By now the tick is a second long.
    wait_until(lambda: (dash.home / "end").exists(), "the script ends")

    began = time.monotonic()
    call.finish()

    assert time.monotonic() - began < 0.4


def maybe_lost(server: Server) -> tuple[int, str] | None:
    """Some shells may lose a status over a signal; then they must say so."""
    return (125, "lost") if server.shell in ("bash", "mksh") else None


def test_signals_that_wake_the_supervisor_do_not_pass_for_the_scripts_end(tmp_path: Path) -> None:
    def check(server: Server) -> None:
        for _ in range(5):
            run_id = new_id()
            call = server.start(run_id, payload(b"sleep 0.2; exit 7"))
            supervisor = server.supervisor(run_id)
            with suppress(ProcessLookupError):
                for _ in range(100):
                    os.kill(supervisor, signal.SIGURG)
                    time.sleep(0.005)
            call.finish()
            assert call.end in ((7, "exit"), maybe_lost(server))

    in_every_shell(tmp_path, check)


def test_an_exit_code_is_told_as_it_is_whatever_signals_come(tmp_path: Path) -> None:
    def check(server: Server) -> None:
        for code in 2 * (1, 15, 16, 23, 127, 128, 200):
            run_id = new_id()
            call = server.start(run_id, payload(b"sleep 0.05; exit %d" % code))
            supervisor, script = server.supervisor(run_id), server.script(run_id)
            deadline = time.monotonic() + 5
            # To the very end: the last of them is the one that matters.
            while is_alive(script) and time.monotonic() < deadline:
                os.kill(supervisor, signal.SIGURG)
                time.sleep(0.0002)
            call.finish()
            assert call.end in ((code, "exit"), maybe_lost(server))

    in_every_shell(tmp_path, check, edits={"rest 1\n": "rest 0.1\n"})


def test_an_exit_code_like_a_signal_to_its_supervisor_is_told(tmp_path: Path) -> None:
    def check(server: Server) -> None:
        for code in (129, 143, 144, 149, 151):
            call = server.start(new_id(), payload(b"exit %d" % code))
            call.finish()
            assert call.end == (code, "signal")

    in_every_shell(tmp_path, check)
