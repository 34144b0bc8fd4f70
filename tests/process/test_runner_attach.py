"""The runner: runs that outlive the call that started them."""

import concurrent.futures
import contextlib
import os
import random
import shutil
import signal
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.process.runner_rig import (
    ARTIFACT,
    NAME,
    Call,
    Server,
    carriers,
    in_every_shell,
    kill_if_alive,
    message,
    new_id,
    payload,
    serving,
    wait_until,
)
from worker.demo.processes import is_alive

# Some seconds of output in small and large pieces, on both streams, that can be computed here too.
CHATTER = b"""
i=0
while [ $i -lt 40 ]; do
    echo "line $i"; echo "error $i" >&2; i=$((i + 1)); sleep 0.01
done
dd if=/dev/zero bs=100000 count=20 2>/dev/null
echo last
"""
CHATTER_OUT = b"".join(b"line %d\n" % i for i in range(40)) + bytes(2_000_000) + b"last\n"
CHATTER_ERR = b"".join(b"error %d\n" % i for i in range(40))
OTHER_BOOT = "0b5e1f00-0000-4000-8000-000000000000"


@pytest.fixture
def dash(tmp_path: Path) -> Iterator[Server]:
    with serving(tmp_path, "dash") as one:
        yield one


@pytest.fixture(scope="module", autouse=True)
def silent(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Server, str, Call]]:
    """A run that says nothing while the other tests take their time."""
    with serving(tmp_path_factory.mktemp("silent"), "dash") as one:
        run_id = new_id()
        yield one, run_id, one.start(run_id, payload(b"sleep 600"), limit_seconds=600)


def claim_for_another_boot(server: Server, run_id: str) -> None:
    owner = server.owner(run_id)
    pid, start, _, rest = owner.read_text().split(".", 3)
    owner.write_text(f"{pid}.{start}.{OTHER_BOOT}.{rest}")


def test_twenty_calls_with_one_id_start_one_script(server: Server) -> None:
    run_id = new_id()
    script = b'echo started >>"$HOME/starts"; sleep 0.2; [ -d "$CRONIUM_CALLS" ] && echo done'
    body = payload(script)
    calls = [server.call("run") for _ in range(20)]
    for call in calls:
        call.send(message(run_id, body))
        call.send_eof()

    with concurrent.futures.ThreadPoolExecutor(20) as readers:
        statuses = list(readers.map(lambda call: call.finish(), calls))

    assert (server.home / "starts").read_text() == "started\n"
    assert statuses == [0] * 20
    ends = [call.heads[-1] for call in calls]
    assert sum(call.state == "new" for call in calls) == 1
    # One attacher, the newest: it has all the output, and nobody else has an end.
    assert all(end == "t" or end.startswith("x 0 exit") for end in ends)
    assert any(call.out == b"done\n" and call.heads[-1].startswith("x") for call in calls)
    wait_until(lambda: not server.payloads(run_id), "no payload is left")


def test_reattaching_gives_every_byte_once_wherever_it_was_cut(tmp_path: Path) -> None:
    def check(server: Server) -> None:
        run_id = new_id()
        chance = random.Random(11)  # noqa: S311  # where to cut
        call = server.call("run")
        call.send(message(run_id, payload(CHATTER)))
        call.send_eof()
        out = err = b""

        for _ in range(8):
            enough = chance.randrange(2, 9)
            while len(call.heads) < enough and call.next_frame() is not None:
                pass
            call.kill()
            out, err = out + call.out, err + call.err
            call = server.call("attach", run_id, str(len(out)), str(len(err)))
        call.finish()

        assert out + call.out == CHATTER_OUT
        assert err + call.err == CHATTER_ERR
        assert call.end == (0, "exit")

    in_every_shell(tmp_path, check)


def test_run_sent_again_attaches(server: Server) -> None:
    run_id = new_id()
    body = payload(b'echo x >>"$HOME/starts"; printf 0123456789; printf abc >&2')
    assert server.run(run_id, body).state == "new"

    again = server.call("run")
    again.send(message(run_id, body, out=4, err=1))

    assert again.finish() == 0
    assert (again.state, again.out, again.err) == ("ended", b"456789", b"bc")
    assert (server.home / "starts").read_text() == "x\n"


def test_run_with_offsets_never_starts_what_is_gone(dash: Server) -> None:
    call = dash.call("run")
    call.send(message(new_id(), payload(b"touch $HOME/started"), out=5))

    assert call.finish() == 66
    assert not (dash.home / "started").exists()


def test_an_offset_beyond_the_spool_is_refused(server: Server) -> None:
    run_id = new_id()
    server.run(run_id, payload(b"printf 12345"))

    assert server.ask("attach", run_id, "5", "0")[0] == 0
    for offsets in (("6", "0"), ("0", "1")):
        status, call = server.ask("attach", run_id, *offsets)
        assert (status, len(call.heads)) == (66, 2)


def test_an_unknown_run_is_not_attached_to_nor_signalled(dash: Server) -> None:
    assert dash.ask("attach", new_id(), "0", "0")[0] == 66
    assert dash.ask("signal", new_id(), "cancel")[0] == 66


def test_the_newest_attacher_wins_at_once(server: Server) -> None:
    run_id = new_id()
    first = server.start(run_id, payload(b"echo a; sleep 30"))
    first.read_until(lambda call: call.out == b"a\n")

    second = server.call("attach", run_id, "0", "0")
    second.read_until(lambda call: call.out == b"a\n")

    assert first.finish() == 0
    assert first.heads[-1] == "t"
    server.ask("signal", run_id, "cancel")
    assert second.finish() == 0
    assert second.end == (130, "cancel")


@pytest.mark.parametrize("target", ["process", "group"])
def test_a_run_survives_the_death_of_its_starter(server: Server, target: str) -> None:
    run_id = new_id()
    call = server.call("run", new_session=True)
    script = b"echo one; until [ -e $HOME/go ]; do sleep 0.02; done; echo two"
    call.send(message(run_id, payload(script)))
    call.send_eof()
    call.read_until(lambda call: call.out != b"")

    if target == "group":
        os.killpg(call.process.pid, signal.SIGKILL)
    call.kill()

    again = server.call("attach", run_id, "4", "0")
    again.read_until_started()
    (server.home / "go").touch()

    assert again.finish() == 0
    assert (again.state, again.out, again.end) == ("attached", b"two\n", (0, "exit"))


def test_nothing_of_a_starter_holds_its_channel_open(server: Server) -> None:
    run_id = new_id()
    call = server.start(run_id, payload(b"sleep 30"))

    call.process.kill()

    # The end of the pipe comes though script and supervisor live.
    while call.next_frame() is not None:
        pass
    assert is_alive(server.supervisor(run_id))
    call.kill()


def test_a_run_whose_supervisor_is_killed_is_lost_and_nothing_of_it_goes_on(tmp_path: Path) -> None:
    def check(server: Server) -> None:
        run_id = new_id()
        call = server.start(run_id, payload(b"echo first; exec sleep 30"))
        call.read_until(lambda call: call.out == b"first\n")
        wait_until(lambda: carriers(run_id), "the script shows its cookie")

        kill_if_alive(server.supervisor(run_id))

        assert call.finish() == 0
        assert call.end == (125, "lost")
        assert carriers(run_id) == []
        status, again = server.ask("attach", run_id, "0", "0")
        assert (status, again.out, again.end) == (0, b"first\n", (125, "lost"))

    in_every_shell(tmp_path, check)


def test_a_run_goes_on_whose_starter_dies_before_it_hears_of_it(tmp_path: Path) -> None:
    def check(server: Server) -> None:
        run_id = new_id()
        call = server.call("run")
        call.send(message(run_id, payload(b"sleep 2; echo well")))
        call.send_eof()
        wait_until(server.claim(run_id).exists, "it is claimed")
        call.kill()

        status, again = server.ask("attach", run_id, "0", "0")

        assert (status, again.out, again.end) == (0, b"well\n", (0, "exit"))

    started = '    echo "$run $id $interpreter" >&7\n'
    in_every_shell(tmp_path, check, edits={started: f"{started}    sleep 1\n"})


@pytest.mark.parametrize("stale", ["boot", "start"])
def test_a_claim_of_another_boot_or_of_a_recycled_pid_is_lost(server: Server, stale: str) -> None:
    run_id = new_id()
    call = server.start(run_id, payload(b"echo first; exec sleep 30"))
    call.read_until(lambda call: call.out == b"first\n")
    call.kill()
    owner = server.owner(run_id)
    pid, start, boot, rest = owner.read_text().split(".", 3)
    if stale == "boot":
        boot = OTHER_BOOT
    else:
        kill_if_alive(int(pid))
        pid = str(os.getpid())
    owner.write_text(f"{pid}.{start}.{boot}.{rest}")

    assert f"{run_id} lost" in "\n".join(server.ask("list")[1].heads)
    status, again = server.ask("attach", run_id, "0", "0")

    assert (status, again.end, again.out) == (0, (125, "lost"), b"first\n")
    if stale == "boot":
        # By the record its pids are of a time gone by, so nobody is signalled.
        assert is_alive(int(pid))
        kill_if_alive(int(pid))
        for carrier in carriers(run_id):
            kill_if_alive(carrier)
    wait_until(lambda: not carriers(run_id), "nothing is left")


def remove(directory: Path) -> None:
    """Although somebody writes there still."""
    while directory.exists():
        shutil.rmtree(directory, ignore_errors=True)


def test_a_spool_that_is_deleted_is_lost_and_ends_the_script(tmp_path: Path) -> None:
    def check(server: Server) -> None:
        run_id = new_id()
        call = server.start(run_id, payload(b"echo first; exec sleep 30"))
        call.read_until(lambda call: call.out == b"first\n")

        remove(server.directory(run_id))

        assert call.finish() == 0
        assert call.end == (125, "lost")
        wait_until(lambda: not carriers(run_id), "the script is gone")

    in_every_shell(tmp_path, check)


def test_a_file_of_the_spool_that_is_deleted_takes_nothing_from_the_other(server: Server) -> None:
    run_id = new_id()
    script = b"echo one; echo two >&2; until [ -e $HOME/go ]; do sleep 0.02; done; echo three"
    call = server.start(run_id, payload(script))
    call.read_until(lambda call: (call.out, call.err) == (b"one\n", b"two\n"))
    (server.directory(run_id) / "err").unlink()
    (server.home / "go").touch()

    assert call.finish() == 0
    assert (call.out, call.err, call.end) == (b"one\nthree\n", b"two\n", (0, "exit"))


def test_a_run_of_another_host_is_neither_judged_nor_ended(dash: Server) -> None:
    run_id = new_id()
    dash.start(run_id, payload(b"exec sleep 30")).kill()
    (dash.directory(run_id) / "host").write_text("elsewhere\n")

    status, call = dash.ask("signal", run_id, "cancel")

    assert status == 66
    assert "elsewhere" in call.complaint
    assert is_alive(dash.supervisor(run_id))
    (dash.directory(run_id) / "host").unlink()


def test_a_forgotten_run_is_not_started_again(server: Server) -> None:
    run_id = new_id()
    body = payload(b'echo x >>"$HOME/starts"')
    server.run(run_id, body)

    assert server.ask("forget", run_id)[0] == 0
    assert server.ask("forget", run_id)[0] == 0
    assert not server.directory(run_id).exists()
    again = server.run(run_id, body)

    assert again.heads[2:] == ["x 125 forgotten 0 0"]
    assert (server.home / "starts").read_text() == "x\n"


def test_a_running_run_is_not_forgotten_and_the_others_are(server: Server) -> None:
    ended, running = new_id(), new_id()
    server.run(ended, payload(b""))
    server.start(running, payload(b"sleep 30"))

    status, call = server.ask("forget", running, ended)

    assert status == 66
    assert running in call.complaint
    assert server.directory(running).exists()
    assert not server.directory(ended).exists()


def test_list_tells_state_and_sizes(server: Server) -> None:
    ended, running = new_id(), new_id()
    server.run(ended, payload(b"printf 123; printf 12345 >&2"))
    server.start(running, payload(b"sleep 30"))

    rows = {head.split()[0]: head.split()[1:] for head in server.ask("list")[1].heads[2:]}

    state, age, *sizes = rows[ended]
    assert (state, sizes) == ("ended", ["3", "5"])
    assert 0 <= int(age) < 60
    assert rows[running][0] == "running"


def test_list_tells_the_age_of_a_run_of_another_boot(server: Server) -> None:
    run_id = new_id()
    server.run(run_id, payload(b""))
    server.wait_for_the_janitor(run_id)
    claim_for_another_boot(server, run_id)
    day_ago = time.time() - 86_400
    os.utime(server.directory(run_id) / "began", (day_ago, day_ago))

    _, state, age, *_ = server.ask("list")[1].heads[2].split()

    assert state == "ended"
    assert 86_400 <= int(age) < 86_460


def test_a_run_is_served_by_the_artifact_that_started_it(dash: Server) -> None:
    run_id = new_id()
    dash.run(run_id, payload(b"echo old"))
    newer = dash.root / "runner-0123456789ab"
    newer.write_bytes(ARTIFACT.content)
    dash.runner.write_text('echo "handed over: $*"\n')

    call = dash.call("attach", run_id, "0", "0", runner=newer)
    call.finish()

    assert call.heads[1:] == [
        "cronium h N0nce 1 0123456789ab",
        f"handed over: +attach N0nce {run_id} 0 0",
    ]


def is_removed(cgroup: Path) -> bool:
    with contextlib.suppress(OSError):
        cgroup.rmdir()
    return not cgroup.exists()


def test_an_end_that_a_former_runner_recorded_is_one(tmp_path: Path) -> None:
    def check(server: Server) -> None:
        run_id = new_id()
        call = server.run(run_id, payload(b"sleep 25 >/dev/null 2>&1 & echo $!; exit 3"))
        (record,) = server.directory(run_id).glob("exit.*")
        record.unlink()
        kept = server.directory(run_id) / "cgroup"
        cgroup = kept.read_text().strip() if kept.exists() else ""
        (server.directory(run_id) / "exit").symlink_to("3.exit.10.5")

        listed = server.ask("list")[1].heads
        assert [line.split()[1] for line in listed if line.startswith(run_id)] == ["ended"]
        assert server.ask("attach", run_id, "0", "0")[1].end == (3, "exit")
        assert server.ask("forget", run_id)[0] == 0
        # For lost it would have been taken with all that it left.
        assert is_alive(int(call.out))
        os.kill(int(call.out), signal.SIGKILL)
        if cgroup:
            # What a run left running keeps it longer than the run.
            wait_until(lambda: is_removed(Path(cgroup)), "its cgroup is empty")

    in_every_shell(tmp_path, check)


def test_the_janitor_removes_what_is_old_and_keeps_what_is_not(tmp_path: Path) -> None:
    def check(server: Server) -> None:
        week_old, rebooted, fresh, going, foreign, last, other = (new_id() for _ in range(7))
        for run_id in (week_old, rebooted, fresh, foreign):
            server.run(run_id, payload(b""))
            server.wait_for_the_janitor(run_id)
        server.start(going, payload(b"sleep 30"))
        long_ago = 1_500_000_000
        tombs = server.root / "forgotten"
        tombs.mkdir(exist_ok=True)
        for run_id in (week_old, rebooted, foreign, going):
            owner = server.owner(run_id)
            if run_id == rebooted:
                claim_for_another_boot(server, run_id)
            else:
                # Before any uptime, for the machine may have been up for minutes.
                (server.directory(run_id) / "began").write_text("-700000 0\n")
            os.utime(owner, (long_ago, long_ago))
            for end in server.directory(run_id).glob("exit.*"):
                os.utime(end, (long_ago, long_ago))
        (server.directory(foreign) / "host").write_text("elsewhere\n")
        abandoned = server.root / "rooms" / "999999999-n-1"
        (abandoned / "in").mkdir(parents=True)
        os.utime(abandoned, (long_ago, long_ago))
        for name in ("runner-000000000001", "forgotten/old", "forgotten/rebooted"):
            (server.root / name).write_text(f"{OTHER_BOOT} 5\n" * name.endswith("rebooted"))
            os.utime(server.root / name, (long_ago, long_ago))
        (server.root / "runner-000000000002").write_text("")
        for name in ("helpers-000000000001", "helpers-000000000002"):
            (server.root / name / "python").mkdir(parents=True)
        os.utime(server.runner, (long_ago, long_ago))
        for stamp in server.root.glob("swept.*"):
            stamp.unlink()

        server.run(last, payload(b""))

        server.wait_for_the_janitor(last)
        assert not (server.root / "runner-000000000001").exists()
        helpers = {path.name for path in server.root.glob("helpers-*")}
        assert helpers == {server.helpers.name, "helpers-000000000002"}
        for run_id in (week_old, rebooted):
            assert not server.directory(run_id).exists()
            assert (tombs / run_id).exists()
        assert not abandoned.exists()
        assert {path.name for path in tombs.iterdir()} == {week_old, rebooted}
        assert all(server.directory(run_id).exists() for run_id in (fresh, going, foreign))
        assert {path.name for path in server.root.glob("runner-*")} == {NAME, "runner-000000000002"}

        # and not twice a day
        (server.root / "runner-000000000001").write_text("")
        os.utime(server.root / "runner-000000000001", (long_ago, long_ago))
        server.run(other, payload(b""))
        server.wait_for_the_janitor(other)
        assert (server.root / "runner-000000000001").exists()

    in_every_shell(tmp_path, check, edits={"settle_s=3600": "settle_s=0"})


def test_silence_is_broken_by_a_sign_of_life(silent: tuple[Server, str, Call]) -> None:
    server, run_id, call = silent

    call.read_until(lambda call: call.heads[-1] == "k")

    server.ask("signal", run_id, "cancel")
    assert call.finish() == 0
    assert call.end == (130, "cancel")
