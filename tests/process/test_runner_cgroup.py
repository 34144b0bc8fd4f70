"""The runner: a cgroup of its own for each run, where one can be made."""

import concurrent.futures
import contextlib
import os
import re
import signal
import subprocess
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest

from tests.process.runner_rig import (
    SHELLS,
    Options,
    Server,
    in_every_shell,
    kill_if_alive,
    line_message,
    message,
    new_id,
    payload,
    serving,
    use_up_the_files,
    wait_until,
)
from tests.process.surroundings import (
    ROOT,
    SMALL_DISK,
    SOMEBODY,
    Surroundings,
    cgroup_of_ours,
    container,
    mounts,
    rootmaker,
    within,
)
from worker.demo.processes import is_alive
from worker.remote.payload import LAST_LINE

LONG_AGO = 1_500_000_000
ESCAPEE = """
import os, signal, sys, time
name, path = sys.argv[1:]
signal.signal(signal.SIGTERM, signal.SIG_IGN)
with open(path + ".new", "w") as file:
    file.write(str(os.getpid()))
os.rename(path + ".new", path)
if name == "stopped":
    os.kill(os.getpid(), signal.SIGSTOP)
if name != "forker":
    time.sleep(25)
end = time.monotonic() + 4
for _ in range(400):
    if time.monotonic() > end or os.fork():
        break
    os.setsid()
    time.sleep(0.01)
"""
# What neither group nor session nor environment tells of. Each ends by itself after 25 s, the
# forker after 400 forks or 4 s.
ESCAPES = f"""
import os, sys, time

def escape(name, change=lambda: None):
    if os.fork() == 0:
        os.setsid()
        if os.fork():
            os._exit(0)
        change()
        path = os.path.join(os.environ["HOME"], "pid." + name)
        os.execve(sys.executable, [sys.executable, "-c", {ESCAPEE!r}, name, path], {{}})

def go_below():
    ours = [line for line in open("/proc/self/cgroup") if line.startswith("0::")][0][3:].strip()
    for top in "/sys/fs/cgroup", "/sys/fs/cgroup/unified":
        if os.path.exists(top + "/cgroup.controllers"):
            os.mkdir(top + ours + "/below")
            open(top + ours + "/below/cgroup.procs", "w").write("0")

escape("bare")
escape("stopped")
escape("below", go_below)
escape("forker")
escape("other", lambda: os.setresuid(12345, 12345, 12345))
print("ready", flush=True)
time.sleep(25)
""".encode()
NAMES = ("bare", "stopped", "below", "forker")


@pytest.fixture
def ours(tmp_path: Path) -> Iterator[Path]:
    with cgroup_of_ours() as cgroup:
        yield cgroup


@pytest.fixture
def dash(ours: Path, tmp_path: Path) -> Iterator[Server]:
    with serving(tmp_path, "dash", surroundings=within(ours), grace_ms=300) as one:
        yield one


def children(cgroup: Path) -> list[str]:
    return sorted(path.name for path in cgroup.iterdir() if path.is_dir())


def members(cgroup: Path) -> list[int]:
    """The processes below `cgroup`; in it are the runners, who remove what is there meanwhile."""
    found: list[int] = []
    for folder, _, _ in os.walk(cgroup):
        if folder != str(cgroup):
            with contextlib.suppress(OSError):
                found += map(int, Path(folder, "cgroup.procs").read_text().split())
    return found


def escaped(server: Server, names: tuple[str, ...] = NAMES) -> list[int]:
    files = [server.home / f"pid.{name}" for name in names]
    wait_until(lambda: all(file.exists() for file in files), "they have escaped")
    return [int(file.read_text()) for file in files]


@pytest.mark.parametrize("kernel", ["with cgroup.kill", "without it"])
def test_what_leaves_group_session_and_environment_is_ended(
    ours: Path, open_path: Path, kernel: str
) -> None:
    def check(server: Server) -> None:
        server.home.chmod(0o777)
        run_id = new_id()
        call = server.start(run_id, payload(ESCAPES, interpreter="python3"))
        pids = escaped(server, (*NAMES, "other"))
        assert all(map(is_alive, pids[:3]))

        assert server.ask("signal", run_id, "cancel")[0] == 0

        assert [pid for pid in pids if is_alive(pid)] == []
        call.finish()
        assert (call.out, call.err, call.end) == (b"ready\n", b"", (130, "cancel"))

    old = {} if kernel == "with cgroup.kill" else {"cgroup.kill": "cgroup.no_such_file"}
    in_every_shell(open_path, check, surroundings=within(ours), grace_ms=1000, edits=old)

    assert members(ours) == []
    wait_until(lambda: children(ours) == [], "the cgroups are removed")


@pytest.mark.parametrize("verb", ["run", "spare"])
def test_each_run_of_a_call_has_one_of_its_own(ours: Path, open_path: Path, verb: str) -> None:
    def check(server: Server) -> None:
        run_id = new_id()
        body = payload(b"grep ^0:: /proc/self/cgroup")
        call = server.call(verb)
        for _ in range(12):
            call.send(line_message(f"{run_id}{len(call.heads)}", body))
            call.follow()
        call.send_eof()

        assert call.finish() == 0
        places = call.out.splitlines()
        assert len(set(places)) == 12
        assert all(re.search(rb"/cronium-[0-9]+-N0nce-[0-9-]+\Z", place) for place in places)

    in_every_shell(open_path, check, surroundings=within(ours))

    assert members(ours) == []
    wait_until(lambda: children(ours) == [], "the cgroups are removed")


def test_a_timeout_ends_it_as_well(dash: Server, ours: Path) -> None:
    call = dash.start(new_id(), payload(ESCAPES, interpreter="python3"), limit_seconds=2)
    pids = escaped(dash)

    call.finish()

    assert call.end == (124, "timeout")
    assert [pid for pid in pids if is_alive(pid)] == []
    assert members(ours) == []


def test_so_does_whoever_finds_that_the_supervisor_is_gone(dash: Server, ours: Path) -> None:
    run_id = new_id()
    starter = dash.start(run_id, payload(ESCAPES, interpreter="python3"))
    pids = escaped(dash)
    # Who started it knows its cgroup without the record.
    starter.kill()
    kill_if_alive(dash.supervisor(run_id))

    _, call = dash.ask("attach", run_id, "0", "0")

    assert call.end == (125, "lost")
    assert [pid for pid in pids if is_alive(pid)] == []
    wait_until(lambda: children(ours) == [], "the cgroup is removed")


def test_everybody_in_it_gets_term_first(dash: Server) -> None:
    run_id = new_id()
    script = b"""
cat >$HOME/escaped <<'.'
trap 'echo term >$HOME/term; exit' TERM
echo >$HOME/there
i=0; while [ $i -lt 100 ]; do sleep 0.1; i=$((i + 1)); done
.
env -i HOME=$HOME setsid sh $HOME/escaped >/dev/null 2>&1 &
sleep 25
"""
    dash.start(run_id, payload(script))
    wait_until(lambda: (dash.home / "there").exists(), "it has escaped")

    assert dash.ask("signal", run_id, "cancel")[0] == 0

    assert (dash.home / "term").exists()


@pytest.mark.parametrize("shell", SHELLS)
def test_a_run_that_is_over_leaves_no_cgroup(ours: Path, tmp_path: Path, shell: str) -> None:
    with serving(tmp_path, shell, surroundings=within(ours)) as server:
        run_id = new_id()

        call = server.run(run_id, payload(b"grep ^0:: /proc/self/cgroup; mkdir -p x"))

        assert re.search("/cronium-[0-9]+-N0nce-", call.out.decode())
        assert call.end == (0, "exit")
        wait_until(lambda: children(ours) == [], "the cgroup is removed")


def test_starts_that_come_to_nothing_leave_no_cgroup(dash: Server, ours: Path) -> None:
    run_id = new_id()
    sent = message(run_id, payload(b"sleep 1"))
    half = dash.call("run")
    half.send(sent[:-1])
    assert half.finish() == 66
    calls = [dash.call("run") for _ in range(20)]
    for call in calls:
        call.send(sent)
    with concurrent.futures.ThreadPoolExecutor(20) as readers:
        list(readers.map(lambda call: call.finish(), calls))

    wait_until(lambda: children(ours) == [], "the cgroups are removed")


def test_a_supervisor_that_is_killed_leaves_its_cgroups_to_the_next(
    ours: Path, open_path: Path
) -> None:
    def check(server: Server) -> None:
        call = server.call("spare")
        for text in (b"", b"one\n", b"two\n", b"three\n"):
            if text:
                call.send(line_message(new_id(), payload(b"echo " + text)))
                call.follow()
            wait_until(lambda: server.supervisors()[1:], "the next one's process is there")
            for pid in server.supervisors():
                kill_if_alive(pid)
        call.send(line_message(new_id(), payload(b"echo four")))

        assert call.finish() == 0
        assert call.out == b"one\ntwo\nthree\nfour\n"

    in_every_shell(open_path, check, surroundings=within(ours))

    wait_until(lambda: children(ours) == [], "the cgroups are removed")


@pytest.mark.parametrize("room", ["none", "for the claim"])
def test_on_a_full_disk_a_run_leaves_no_cgroup(ours: Path, room: str) -> None:
    with (
        mounts(SMALL_DISK) as disk,
        serving(
            Path("/mnt/place"),
            "dash",
            surroundings=Surroundings((*within(ours).enter, *disk.enter), disk.outside),
        ) as server,
    ):
        run_id = new_id()
        call = server.call("run")
        sent = line_message(run_id, payload(b"echo well"))
        if room == "for the claim":
            server.stage(call, run_id, b"echo well")
            sent = LAST_LINE
        files = use_up_the_files(server)
        if room == "for the claim":
            for number in range(5):  # and not for all the files after it
                (files / str(number)).unlink()
        call.send(sent)

        assert call.finish() == (0 if room == "for the claim" else 73)
        assert call.out == (b"well\n" if room == "for the claim" else b"")
        wait_until(lambda: children(ours) == [], "the cgroup is removed")


@pytest.mark.parametrize("remover", ["forget", "janitor"])
def test_what_a_script_leaves_on_purpose_keeps_its_cgroup_until_it_ends(
    ours: Path, tmp_path: Path, remover: str
) -> None:
    soon = {"settle_s=3600": "settle_s=0"}
    with serving(tmp_path, "dash", surroundings=within(ours), edits=soon) as server:
        run_id = new_id()
        call = server.run(run_id, payload(b"env -i setsid sleep 25 >/dev/null 2>&1 & echo $!"))
        left = int(call.out)
        server.wait_for_the_janitor(run_id)
        assert call.end == (0, "exit")
        assert is_alive(left)
        (kept,) = children(ours)

        if remover == "janitor":
            assert server.ask("forget", run_id)[0] == 0
        assert (is_alive(left), children(ours)) == (True, [kept])
        os.kill(left, signal.SIGKILL)
        wait_until(lambda: members(ours) == [], "it has ended")
        if remover == "forget":
            assert server.ask("forget", run_id)[0] == 0
        else:
            os.utime(ours / kept, (LONG_AGO, LONG_AGO))
            for stamp in server.root.glob("swept.*"):
                stamp.unlink()
            server.run(new_id(), payload(b""))

        wait_until(lambda: children(ours) == [], "the cgroup is removed")


def test_the_janitor_leaves_young_cgroups_and_those_in_use(ours: Path, tmp_path: Path) -> None:
    for name in ("cronium-young", "cronium-old", "cronium-used", "other"):
        (ours / name).mkdir()
        if name != "cronium-young":
            os.utime(ours / name, (LONG_AGO, LONG_AGO))
    with (
        subprocess.Popen([*within(ours / "cronium-used").enter, "sleep", "25"]) as used,
        serving(
            tmp_path, "dash", surroundings=within(ours), edits={"settle_s=3600": "settle_s=0"}
        ) as server,
    ):
        wait_until(lambda: members(ours), "it is in use")
        server.run(new_id(), payload(b""))

        left = ["cronium-used", "cronium-young", "other"]
        wait_until(lambda: children(ours) == left, "the janitor swept")
        used.kill()


def test_a_record_that_names_another_cgroup_is_not_believed(dash: Server, ours: Path) -> None:
    (ours / "bystanders").mkdir()
    command = [*within(ours / "bystanders").enter, "sleep", "25"]
    with subprocess.Popen(command) as bystander:
        run_id = new_id()
        script = f"echo {ours}/bystanders >../cgroup; echo there; exec sleep 25"
        starter = dash.start(run_id, payload(script.encode()))
        starter.read_until(lambda call: call.out != b"")
        starter.kill()
        kill_if_alive(dash.supervisor(run_id))

        _, call = dash.ask("attach", run_id, "0", "0")

        assert call.end == (125, "lost")
        assert bystander.poll() is None
        bystander.kill()


def test_somebody_with_a_subtree_of_theirs_has_the_same(open_path: Path) -> None:
    """As where a service manager delegates one: what cannot be signalled is ended by the cgroup."""
    with ExitStack() as stack:
        cgroup = stack.enter_context(cgroup_of_ours(owner=SOMEBODY))
        become = " ".join((str(rootmaker(open_path)), *ROOT))
        options = Options(surroundings=within(cgroup), user=SOMEBODY, grace_ms=300)
        server = stack.enter_context(serving(open_path / "server", "dash", **options))
        run_id = new_id()
        script = f"env -i setsid {become} sleep 25 & echo $!; sleep 25"
        call = server.start(run_id, payload(script.encode()))
        call.read_until(lambda call: call.out != b"")
        pid = int(call.out)
        wait_until(lambda: Path(f"/proc/{pid}/status").stat().st_uid == 0, "it is root's")

        assert server.ask("signal", run_id, "cancel")[0] == 0

        assert not is_alive(pid)
        call.finish()
        assert (call.err, call.end) == (b"", (130, "cancel"))
        wait_until(lambda: children(cgroup) == [], "the cgroup is removed")


def test_where_cgroups_are_read_only_none_is_made(ours: Path, tmp_path: Path) -> None:
    top = ours.parents[len(ours.relative_to("/sys/fs/cgroup").parts) - 1]
    if not (top / "cgroup.controllers").exists():
        top /= "unified"
    read_only = f"mount --bind {top} {top}\nmount -o remount,bind,ro {top}"
    with (
        mounts(read_only) as there,
        serving(
            tmp_path,
            "dash",
            surroundings=Surroundings((*within(ours).enter, *there.enter), there.outside),
        ) as server,
    ):
        run_id = new_id()
        call = server.run(run_id, payload(b"echo well"))

        assert (call.out, call.err, call.end) == (b"well\n", b"", (0, "exit"))
        assert not (server.directory(run_id) / "cgroup").exists()
    assert children(ours) == []


def test_where_no_more_cgroups_may_be_made_a_run_goes_without(dash: Server, ours: Path) -> None:
    (ours / "cgroup.max.descendants").write_text("0")
    run_id = new_id()

    call = dash.run(run_id, payload(b"echo well"))

    assert (call.out, call.err, call.end) == (b"well\n", b"", (0, "exit"))
    assert not (dash.directory(run_id) / "cgroup").exists()


def test_a_container_has_them_below_its_own(ours: Path, tmp_path: Path) -> None:
    own_view = "mount -t tmpfs none /sys/fs/cgroup\nmount -t cgroup2 none /sys/fs/cgroup"
    with (
        container(ours, own_view) as there,
        serving(tmp_path, "dash", surroundings=there, grace_ms=300) as server,
    ):
        run_id = new_id()
        script = b"env -i setsid sleep 25 & echo; grep ^0:: /proc/self/cgroup; sleep 25"
        call = server.start(run_id, payload(script))
        call.read_until(lambda call: call.out.endswith(b"\n") and len(call.out) > 1)
        assert call.out.decode().startswith("\n0::/cronium-")
        assert len(members(ours)) > 1

        assert server.ask("signal", run_id, "cancel")[0] == 0

        assert members(ours) == []
        wait_until(lambda: children(ours) == [], "the cgroup is removed")
        call.finish()


def test_a_container_that_sees_its_hosts_cgroups_makes_none_there(
    ours: Path, tmp_path: Path
) -> None:
    with (
        container(ours, "") as there,
        serving(tmp_path, "dash", surroundings=there) as server,
    ):
        run_id = new_id()
        call = server.run(run_id, payload(b"echo well"))

        assert (call.out, call.end) == (b"well\n", (0, "exit"))
        assert not (server.directory(run_id) / "cgroup").exists()
