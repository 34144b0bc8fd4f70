"""The runner: what a script, or somebody else, does to the parts of its runner meanwhile."""

import os
import signal
import subprocess
import time
from pathlib import Path

import pytest

from tests.process.runner_processes import ready, ticker
from tests.process.runner_rig import (
    SHELLS,
    Server,
    in_every_shell,
    kill_if_alive,
    line_message,
    message,
    new_id,
    payload,
    serving,
    wait_until,
)
from worker.demo.processes import is_alive

SOMEBODY = 23_471
RUN_DIRECTORY = b"${CRONIUM_CALLS%/*}"
WITHOUT_CGROUPS = {"    nest='' ours=''\n": "    nest='' ours=''\n    return\n"}


def script_of(server: Server) -> int:
    """The process that has said which it is."""
    file = server.home / "pid"
    wait_until(lambda: file.exists() and file.read_text(), "the script runs")
    return int(file.read_text())


def is_ended(pid: int, within: float = 6.0) -> bool:
    """Long before it would end by itself; it is ended in any case."""
    deadline = time.monotonic() + within
    while is_alive(pid) and time.monotonic() < deadline:
        time.sleep(0.05)
    if is_alive(pid):
        kill_if_alive(pid)
        return False
    return True


def test_a_script_that_deletes_its_run_at_once_has_started(tmp_path: Path) -> None:
    def check(server: Server) -> None:
        call, run_id = server.call("spare"), new_id()

        call.run(run_id, b"echo >>$HOME/starts; rm -rf %s; sleep 0.7" % RUN_DIRECTORY)

        assert (call.heads[-2], call.end) == ("r new 0", (125, "lost"))
        assert call.run(new_id(), b"echo two") == b"two\n"
        again = server.call("spare")
        again.run(run_id, b"echo >>$HOME/starts")
        assert again.end == (125, "forgotten")
        assert (server.home / "starts").read_text() == "\n"

    begins = "attach_started() {\n"
    in_every_shell(tmp_path, check, edits={begins: f"{begins}    sleep 0.5\n"})


def test_what_deleted_its_run_is_not_started_again_before_its_end(tmp_path: Path) -> None:
    def check(server: Server) -> None:
        run_id = new_id()
        script = b"trap '' TERM; echo >>$HOME/starts; rm -rf %s; sleep 3; sleep 3" % RUN_DIRECTORY
        call = server.start(run_id, payload(script))
        time.sleep(0.2)
        call.kill()
        time.sleep(1.8)

        again = server.call("spare")
        again.run(run_id, b"echo >>$HOME/starts")

        assert again.end == (125, "forgotten")
        assert (server.home / "starts").read_text() == "\n"

    in_every_shell(tmp_path, check)


def test_what_deleted_all_that_is_ours_is_not_started_again(tmp_path: Path) -> None:
    def check(server: Server) -> None:
        call, run_id = server.call("run"), new_id()
        text = server.runner.read_bytes()
        call.run(run_id, b"echo >>$HOME/starts; rm -rf $HOME/.cache; sleep 0.2")
        call.finish()
        wait_until(lambda: not server.supervisors(), "its script has ended")
        server.root.mkdir(mode=0o700, parents=True, exist_ok=True)
        server.runner.write_bytes(text)

        again = server.call("run")
        again.run(run_id, b"echo >>$HOME/starts")

        assert again.end == (125, "forgotten")
        assert (server.home / "starts").read_text() == "\n"

    in_every_shell(tmp_path, check)


def test_what_cannot_be_searched_is_there_all_the_same(open_path: Path) -> None:
    def check(server: Server) -> None:
        run_id = new_id()
        script = b"chmod 000 %s; touch $HOME/mark; sleep 1.5; exit 3" % RUN_DIRECTORY
        call = server.start(run_id, payload(script))
        wait_until((server.home / "mark").exists, "it cannot be searched")

        assert server.ask("forget", run_id)[0] == 66
        call.follow()
        assert call.end == (3, "exit")

    in_every_shell(open_path, check, user=SOMEBODY)


@pytest.mark.parametrize(
    "which", ["rooms", "runs", "runs/*", "rooms/*", "runs/* rooms/* runs rooms"]
)
def test_a_run_is_found_wherever_its_script_has_closed_the_way(open_path: Path, which: str) -> None:
    def check(server: Server) -> None:
        run_id = new_id()
        close = f"cd $HOME/.cache/cronium; chmod 000 {which}; ".encode()
        wait = b"until [ -e $HOME/on ]; do sleep 0.1; done; "
        script = b"echo x >>$HOME/starts; " + wait + close + b"exit 3"
        call = server.start(run_id, payload(close + b"touch $HOME/mark; " + script))
        wait_until((server.home / "mark").exists, "it is closed")

        assert server.ask("forget", run_id)[0] == 66
        again = server.start(run_id, payload(script))
        (server.home / "on").touch()
        for each in (call, again):
            each.finish()
        assert (again.state, again.end) == ("attached", (3, "exit"))
        last = server.run(run_id, payload(script))
        assert (last.state, last.end) == ("ended", (3, "exit"))
        assert (server.home / "starts").read_text() == "x\n"
        assert server.ask("forget", run_id)[0] == 0

    in_every_shell(open_path, check, user=SOMEBODY)


def test_a_run_that_closed_the_way_and_lost_its_supervisor_is_lost_and_forgotten(
    open_path: Path,
) -> None:
    def check(server: Server) -> None:
        run_id = new_id()
        call = server.start(run_id, payload(b"echo $$ >$HOME/pid; exec sleep 25"))
        pid = script_of(server)
        room, supervisor = server.directory(run_id), server.supervisor(run_id)
        call.kill()
        kill_if_alive(supervisor)
        room.chmod(0)

        assert server.ask("forget", run_id)[0] == 0
        assert is_ended(pid)
        assert not server.claim(run_id).exists()
        assert not room.exists()

    in_every_shell(open_path, check, user=SOMEBODY, grace_ms=300)


def test_the_janitor_keeps_the_room_of_a_run_whose_claim_was_closed(open_path: Path) -> None:
    def check(server: Server) -> None:
        run_id, last = new_id(), new_id()
        script = b"echo $$ >$HOME/pid; until [ -e $HOME/on ]; do sleep 0.1; done; exit 3"
        call = server.start(run_id, payload(script))
        script_of(server)
        call.kill()
        room = server.directory(run_id)
        server.claim(run_id).chmod(0)
        os.utime(room, (1_500_000_000, 1_500_000_000))

        server.run(last, payload(b""))
        server.wait_for_the_janitor(last)
        assert room.exists()
        (server.home / "on").touch()

        assert server.run(run_id, payload(script)).end == (3, "exit")

    in_every_shell(open_path, check, user=SOMEBODY, edits={"settle_s=3600": "settle_s=0"})


def test_the_payload_goes_though_its_directory_could_not_be_searched(open_path: Path) -> None:
    def check(server: Server) -> None:
        run_id = new_id()
        call = server.call("spare")
        ready(server)
        call.run(run_id, b"chmod 000 %s; sleep 0.7; exit 3" % RUN_DIRECTORY)
        assert call.end == (3, "exit")
        call.finish()
        wait_until(lambda: not server.payloads(run_id), "the payload is gone")

    in_every_shell(open_path, check, user=SOMEBODY)


@pytest.mark.parametrize(
    "script",
    [
        b"ln -sf $HOME/mine $there/input",
        b"ln -f $HOME/mine $there/input",
        b"ln $there/input $HOME/saved; chmod 400 $there/*",
        b"mv $there $HOME/saved; ln -s $HOME/mine.d $there",
        b"mkdir -p $there/sub; mv $there/script $there/sub/.script",
        b"rm $there/input; mkfifo $there/input",
    ],
)
def test_the_payload_goes_and_what_its_script_has_linked_stays(
    open_path: Path, script: bytes
) -> None:
    def check(server: Server) -> None:
        mine, its_own = server.home / "mine", server.home / "mine.d" / "file"
        its_own.parent.mkdir(0o777)
        for file in (mine, its_own):
            file.write_text("precious\n")
            file.chmod(0o666)
        call, run_id = server.call("run"), new_id()
        call.run(run_id, b"there=${CRONIUM_INPUT_FILE%/*}; " + script)
        call.finish()

        assert call.end == (0, "exit")
        wait_until(lambda: not (server.directory(run_id) / "in").exists(), "it is gone")
        assert mine.read_text() == its_own.read_text() == "precious\n"
        saved = server.home / "saved"
        assert not saved.is_file() or saved.read_text() == "{}"

    in_every_shell(open_path, check, user=SOMEBODY)


def test_what_a_script_leaves_running_keeps_its_input(server: Server) -> None:
    call, run_id = server.call("spare"), new_id()
    call.run(run_id, b"sh -c 'sleep 0.5; cat >$HOME/got' <$CRONIUM_INPUT_FILE >&- 2>&- & exit 0")
    assert call.end == (0, "exit")

    wait_until(lambda: (server.home / "got").exists(), "it is read")
    wait_until(lambda: (server.home / "got").read_text() == "{}", "it has all")


def test_the_environment_is_gone_before_the_script_starts(tmp_path: Path) -> None:
    def check(server: Server) -> None:
        script = b"cd ${CRONIUM_INPUT_FILE%/*}; cat environment payload; echo $TOKEN"
        body = payload(script, environment=b"export TOKEN=s3cret\n")
        for sent in (message, line_message):
            call = server.call("run")
            call.send(sent(new_id(), body))
            call.finish()

            assert (call.out, call.end) == (b"s3cret\n", (0, "exit"))

    in_every_shell(tmp_path, check)


@pytest.mark.parametrize("how", [signal.SIGTERM, signal.SIGHUP])
def test_a_run_whose_ticker_is_ended_keeps_its_limit(server: Server, how: signal.Signals) -> None:
    script = b"sleep 0.3; echo $$ >$HOME/pid; exec sleep 25"
    server.call("spare").send(line_message(new_id(), payload(script), limit_seconds=2))
    pid = script_of(server)

    os.kill(ticker(server), how)

    assert is_ended(pid)


def limit(pid: int, processes: int) -> None:
    """How many it may have, and whatever it starts."""
    identity = (f"--reuid={SOMEBODY}", f"--regid={SOMEBODY}", "--clear-groups")
    change = ("prlimit", f"--pid={pid}", f"--nproc={processes}:")
    subprocess.run(["setpriv", *identity, *change], check=False, capture_output=True)


def test_a_run_that_nothing_can_be_started_for_goes_on_to_its_end(open_path: Path) -> None:
    def check(server: Server) -> None:
        run_id = new_id()
        call = server.call("spare")
        call.send(line_message(run_id, payload(b"echo $$ >$HOME/pid; sleep 4; exit 3")))
        script_of(server)
        supervisor = server.supervisor(run_id)
        both = (supervisor, ticker(server))

        for pid in both:
            limit(pid, 0)
        time.sleep(1.6)
        for pid in both:
            limit(pid, 4096)
        call.follow()

        assert call.end == (3, "exit")

    in_every_shell(open_path, check, user=SOMEBODY)


def test_a_run_whose_ticker_could_start_nothing_for_a_while_keeps_its_limit(
    open_path: Path,
) -> None:
    def check(server: Server) -> None:
        script = b"echo $$ >$HOME/pid; exec sleep 25"
        server.call("spare").send(line_message(new_id(), payload(script), limit_seconds=4))
        pid = script_of(server)
        ticks = ticker(server)

        limit(ticks, 0)
        time.sleep(1.6)
        limit(ticks, 4096)

        assert is_ended(pid, within=12)

    in_every_shell(open_path, check, user=SOMEBODY)


def test_a_script_that_prints_on_without_its_supervisor_is_lost(server: Server) -> None:
    script = b"kill -KILL $PPID; for _ in $(seq 200); do echo x; sleep 0.1; done"
    call = server.call("spare")
    call.send(line_message(new_id(), payload(script), limit_seconds=2))

    call.follow()

    assert call.end == (125, "lost")
    assert len(call.out) < 200


@pytest.mark.parametrize("shell", SHELLS)
def test_a_ticker_that_is_told_of_the_end_before_it_rests_goes_on(
    tmp_path: Path, shell: str
) -> None:
    rests = '    if is_at_end; then kill "$sleeper"; else'
    late = (
        '    [ "$1" = 0.1 ] || { until find_record || [ ! -h go ]; do :; done; n=0; '
        f"while [ $n -lt 30000 ]; do n=$((n + 1)); done; }}\n{rests}"
    )
    with serving(tmp_path, shell, edits={rests: late}) as server:
        call = server.call("spare")
        call.run(new_id(), b"true")
        before = ticker(server)

        call.run(new_id(), b"sleep 0.4")
        call.run(new_id(), b"true")

        assert ticker(server) == before


def test_what_comes_next_waits_for_no_ticker_that_began_to_rest_meanwhile(tmp_path: Path) -> None:
    def check(server: Server) -> None:
        call = server.call("spare")
        call.run(new_id(), b"true")

        began = time.monotonic()
        call.send(line_message(new_id(), payload(b"echo on; sleep 2")))
        call.read_until(lambda call: call.out == b"on\n")

        assert time.monotonic() - began < 0.7

    records = '    record_exit "$code.'
    in_every_shell(tmp_path, check, edits={records: f"    sleep 0.3\n{records}"})


def test_a_supervisor_that_its_script_stopped_goes_on(server: Server) -> None:
    run_id, call = new_id(), server.call("spare")
    call.send(line_message(run_id, payload(b"sleep 0.3; kill -STOP $PPID; exit 3")))
    call.read_until_started()
    try:
        call.follow()
    finally:
        os.kill(server.supervisor(run_id), signal.SIGCONT)

    assert call.end == (3, "exit")


def test_a_ticker_that_a_script_stopped_holds_the_next_limit(server: Server) -> None:
    call, first = server.call("spare"), new_id()
    others = b"for pid in $(pgrep -P $PPID); do [ $pid = $$ ] || kill -STOP $pid; done"
    call.run(first, b"sleep 0.3; " + others)
    script = b"echo $$ >$HOME/pid; exec sleep 25"
    call.send(line_message(new_id(), payload(script), limit_seconds=1))

    assert is_ended(script_of(server))
    call.follow()


def test_what_was_ready_and_is_stopped_does_not_hold_up_the_end_of_its_call(
    server: Server,
) -> None:
    call = server.call("spare")
    supervisor, script = ready(server)
    os.kill(script, signal.SIGSTOP)

    call.finish()

    assert is_ended(supervisor)
    assert is_ended(script)


def test_what_has_not_become_the_script_yet_is_ended(tmp_path: Path) -> None:
    def check(server: Server) -> None:
        call = server.call("spare")
        _, script = ready(server)
        os.kill(script, signal.SIGSTOP)

        call.send(line_message(new_id(), payload(b"touch $HOME/started"), limit_seconds=1))
        call.follow()

        assert is_ended(script, within=0)
        assert not (server.home / "started").exists()

    in_every_shell(tmp_path, check, grace_ms=300, edits=WITHOUT_CGROUPS)


@pytest.mark.parametrize(("place", "file"), [(b".", b"attacher"), (b"in", b"cpu")])
def test_a_pipe_in_the_place_of_a_file_holds_up_nothing(
    server: Server, place: bytes, file: bytes
) -> None:
    call, run_id = server.call("spare"), new_id()

    # By then nobody makes it anew.
    there = b"sleep 0.3; cd %s && cd %s" % (RUN_DIRECTORY, place)
    call.run(run_id, there + b" && rm -f %s && mkfifo %s" % (file, file))

    assert call.end == (0, "exit")
    assert call.run(new_id(), b"echo two") == b"two\n"
    assert server.ask("attach", run_id, "0", "0")[1].end == (0, "exit")


@pytest.mark.parametrize("name", ["x) S 1 1 1 1 (y", "x)", "a (b) c"])
def test_a_script_is_known_whatever_it_calls_itself(tmp_path: Path, name: str) -> None:
    def check(server: Server) -> None:
        itself = f'"$HOME/{name}"'
        script = f'cp "$(command -v sleep)" {itself}; echo $$; exec env -i {itself} 25'
        run_id = new_id()
        call = server.start(run_id, payload(script.encode()))
        call.read_until(lambda call: call.out.endswith(b"\n"))
        pid = int(call.out)
        wait_until(
            lambda: name.encode() in Path(f"/proc/{pid}/comm").read_bytes(), "it is called so"
        )

        os.kill(server.supervisor(run_id), signal.SIGKILL)
        call.finish()
        assert server.ask("attach", run_id, "0", "0")[1].end == (125, "lost")

        # By nothing but its number and since when it runs it can be known.
        assert is_ended(pid, within=0)

    in_every_shell(tmp_path, check, grace_ms=300, edits=WITHOUT_CGROUPS)


def test_a_limit_of_a_month_is_not_over_at_once(tmp_path: Path) -> None:
    def check(server: Server) -> None:
        call = server.call("spare")
        call.send(line_message(new_id(), payload(b"exit 3"), limit_seconds=30 * 86_400))
        call.follow()
        assert call.end == (3, "exit")

    in_every_shell(tmp_path, check)
