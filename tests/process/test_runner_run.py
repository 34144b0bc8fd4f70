"""The runner: what one run is given, and what comes back."""

import os
import random
import re
import shutil
import signal
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.process.runner_rig import (
    ARTIFACT,
    NAME,
    NONCE,
    SHA256,
    SOURCE,
    Call,
    Server,
    line_message,
    message,
    new_id,
    payload,
    serving,
    wait_until,
)
from worker.remote.payload import LAST_LINE


@pytest.fixture
def dash(tmp_path: Path) -> Iterator[Server]:
    with serving(tmp_path, "dash") as one:
        yield one


def test_both_streams_arrive_byte_for_byte(server: Server) -> None:
    noise = random.Random(7).randbytes(3_000_000)  # noqa: S311  # bytes to compare, no secret
    (server.home / "noise").write_bytes(b"\0\xff\xfe\n" + noise)
    (server.home / "line").write_bytes(b"x" * 10_000_000)

    call = server.run(
        new_id(), payload(b'cat "$HOME/noise"; cat "$HOME/line" >&2; printf "no newline"')
    )

    assert call.out == b"\0\xff\xfe\n" + noise + b"no newline"
    assert call.err == b"x" * 10_000_000
    assert call.end == (0, "exit")


def test_the_greeting_comes_first_and_at_once(server: Server) -> None:
    call = server.call("run")

    assert [call.next_frame(), call.next_frame()] == ["", f"cronium h {NONCE} 1 {NAME[-12:]}"]


@pytest.mark.parametrize("code", [0, 1, 7, 125, 127, 200, 255])
def test_an_exit_code_is_the_scripts_own(dash: Server, code: int) -> None:
    assert dash.run(new_id(), payload(f"exit {code}".encode())).end[0] == code


@pytest.mark.parametrize("name", ["TERM", "KILL", "SEGV", "HUP", "PIPE"])
def test_death_by_a_signal_is_128_and_its_number(server: Server, name: str) -> None:
    call = server.run(new_id(), payload(f"ulimit -c 0; kill -{name} $$; exit 3".encode()))

    assert call.end == (128 + signal.Signals[f"SIG{name}"], "signal")


def test_a_script_can_be_interrupted_and_can_handle_it(server: Server) -> None:
    call = server.run(
        new_id(),
        # bash itself is deaf to QUIT
        payload(b"trap 'echo handled' INT; kill -INT $$; exec dash -c 'kill -QUIT $$'"),
    )

    assert call.out == b"handled\n"
    assert call.end == (128 + signal.SIGQUIT, "signal")


def test_every_interpreter_gets_its_script(server: Server) -> None:
    call = server.run(
        new_id(),
        payload(b"import sys; print(repr(sys.stdin.read())); sys.exit(9)", interpreter="python3"),
    )

    assert (call.out, call.end) == (b"''\n", (9, "exit"))


def test_a_missing_interpreter_is_named_and_127(server: Server) -> None:
    call = server.run(new_id(), payload(b"", interpreter="no-such-language"))

    assert call.end == (127, "exit")
    assert b"no-such-language" in call.err
    assert call.err.count(b"\n") == 1


def test_a_working_directory_that_cannot_be_entered_is_named_and_126(server: Server) -> None:
    call = server.run(new_id(), payload(b"echo ran", directory=b"/no/such place"))

    assert (call.out, call.end) == (b"", (126, "exit"))
    assert b"/no/such place" in call.err


def test_the_working_directory_may_have_any_name(server: Server) -> None:
    odd = server.home / "a 'b\" $(c)\n"
    odd.mkdir()

    call = server.run(
        new_id(), payload(b'printf %s "$CRONIUM_WORK_DIR"', directory=os.fsencode(odd))
    )

    assert call.out == os.fsencode(odd)


def test_values_arrive_as_they_are(server: Server) -> None:
    value = 'it\'s "two\nlines" $(touch pwned) `x` \\n é 日本 \t*'
    quoted = value.replace("'", "'\\''")
    # Names which the runner itself might use, and values that would hurt it.
    lines = f"export A='{quoted}'\nexport id='x'\nexport IFS='/'\nexport run='y'\nexport in='z'\n"

    call = server.run(
        new_id(),
        payload(b'printf "%s|%s|%s|%s" "$A" "$id" "$run" "$in"', environment=lines.encode()),
    )

    assert call.out.decode() == f"{value}|x|y|z"
    assert call.err == b""


def test_the_environment_is_the_logins_and_ours_and_nothing_else(server: Server) -> None:
    run_id = new_id()
    script = b"import os; print(*sorted(os.environ), os.environ['CRONIUM_EXECUTION_ID'])"

    call = server.run(
        run_id, payload(script, interpreter="python3", environment=b"export CRONIUM_JOB_ID='j'\n")
    )

    *names, cookie = call.out.decode().split()
    # What shells set by themselves: each start of one is visible in every program below it.
    assert set(names) - {"_", "SHLVL", "LC_CTYPE", "PWD"} == {
        "HOME",
        "PATH",
        "CRONIUM_JOB_ID",
        "CRONIUM_EXECUTION_ID",
        "CRONIUM_WORK_DIR",
        "CRONIUM_INPUT_FILE",
        "CRONIUM_CALLS",
        "BASH_ENV",
        "PYTHONPATH",
        "NODE_PATH",
    }
    assert cookie == run_id


def test_files_that_the_script_makes_have_the_logins_umask(server: Server) -> None:
    before = os.umask(0o027)
    try:
        call = server.run(new_id(), payload(b"umask"))
    finally:
        os.umask(before)

    assert call.out.strip() == b"0027"


def test_the_input_is_a_file_of_its_own(server: Server) -> None:
    call = server.run(new_id(), payload(b'cat "$CRONIUM_INPUT_FILE"', stdin=b'{"a": "\xc3\xa9"}\n'))

    assert call.out == b'{"a": "\xc3\xa9"}\n'


@pytest.mark.parametrize("stdin", [b"null", b"true", b"1.10", b'"\\n"', b"[1]\n", b"\n\n\n\n", b""])
def test_a_short_input_is_the_script_s_byte_for_byte(dash: Server, stdin: bytes) -> None:
    call = dash.run(new_id(), payload(b'cat "$CRONIUM_INPUT_FILE"', stdin=stdin))

    assert call.out == stdin


def test_secrets_are_private_never_an_argument_and_gone_at_the_end(server: Server) -> None:
    run_id = new_id()
    gate = server.home / "gate"
    os.mkfifo(gate)
    call = server.start(
        run_id,
        payload(
            b'cat "$HOME/gate"; # s3cret-script',
            environment=b"export PW='s3cret-value'\n",
            stdin=b"s3cret-input",
        ),
    )

    lines = [read_if_there(path) for path in Path("/proc").glob("[0-9]*/cmdline")]
    modes = {
        (path.is_dir(), path.stat().st_mode & 0o777)
        for path in server.root.rglob("*")
        if path.name != NAME and not path.is_symlink()
    }
    gate.write_bytes(b"")
    call.finish()

    assert not any(b"s3cret" in line for line in lines)
    assert modes == {(True, 0o700), (False, 0o600)}
    wait_until(lambda: not server.payloads(run_id), "payload and environment are gone")
    left = [p.read_bytes() for p in server.root.rglob("*") if p.is_file() and p.name != NAME]
    assert not any(b"s3cret" in data for data in left)


def read_if_there(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except OSError:  # the process has ended meanwhile
        return b""


def test_a_spare_that_is_not_needed_leaves_quietly(server: Server) -> None:
    status, call = server.ask("run")

    assert (status, call.complaint, len(call.heads)) == (0, "", 2)


@pytest.mark.parametrize("cut", [10, 150, -1])
def test_half_a_payload_starts_nothing(server: Server, cut: int) -> None:
    run_id = new_id()
    call = server.call("run")
    call.send(message(run_id, payload(b"touch $HOME/started", environment=b"export A='b'\n"))[:cut])

    assert call.finish() == 66
    assert len(call.complaint.splitlines()) == 1
    assert not (server.home / "started").exists()
    assert not server.directory(run_id).exists()
    # and the next try is not harmed by it
    assert server.run(run_id, payload(b"echo well")).out == b"well\n"


# In the first entry, in a section, before the last line, within it.
@pytest.mark.parametrize("cut", [60, -30, -12, -1])
def test_half_a_payload_of_lines_starts_nothing(server: Server, cut: int) -> None:
    run_id = new_id()
    call = server.call("run")
    body = payload(b"touch $HOME/started", environment=b"export A='b'\n")
    call.send(line_message(run_id, body)[:cut])

    assert call.finish() == 66
    assert len(call.complaint.splitlines()) == 1
    assert not (server.home / "started").exists()
    assert not server.directory(run_id).exists()


@pytest.mark.parametrize(
    "text", [b"", b"\n", b"\n\n", b"a", b"a\n", b" a\t\n\n  \\n b \\\n\n", b"-n\n%s\n-e \\c"]
)
def test_lines_arrive_byte_for_byte(server: Server, text: bytes) -> None:
    call = server.run(new_id(), payload(b'cat "$CRONIUM_INPUT_FILE"', stdin=text))

    assert call.out == text


def test_one_call_serves_one_run_after_the_other_and_forgets_between_them(server: Server) -> None:
    first, second, third = (new_id() for _ in range(3))
    call = server.call("run")
    for number, run_id in enumerate((first, second)):
        body = payload(
            b'echo "$A" to $A >&2; echo out; exit $A', environment=b"export A=%d\n" % number
        )
        call.send(line_message(run_id, body))
        call.follow()
        assert call.end == (number, "exit")
    # The next need not wait for what is forgotten before it.
    call.send(f"forget {first} {second}\n".encode())
    call.send(line_message(second, payload(b"touch $HOME/twice")))
    call.follow()
    call.send(line_message(third, payload(b"exit 3")))

    assert call.finish() == 0
    assert call.end == (3, "exit")
    assert call.out == b"out\n" * 2
    assert call.err == b"0 to 0\n1 to 1\n"
    assert [head for head in call.heads if head[:1] in ("f", "x") and "exit" not in head] == [
        "f 0",
        "x 125 forgotten 0 0",
    ]
    assert not (server.home / "twice").exists()
    assert [path.name for path in (server.root / "runs").iterdir()] == [third]


def test_a_run_that_goes_on_is_not_forgotten_and_the_call_goes_on_too(server: Server) -> None:
    running, other = new_id(), new_id()
    follower = server.start(running, payload(b"until [ -e $HOME/go ]; do sleep 0.02; done"))
    call = server.call("run")
    call.send(f"forget {running} ../x\nforget {running}\n".encode())
    call.send(line_message(other, payload(b"echo well")))
    call.follow()

    assert [head for head in call.heads if head[:1] == "f"] == ["f 64", "f 66"]
    assert call.out == b"well\n"
    (server.home / "go").touch()
    assert follower.finish() == 0


def staged(server: Server, run_id: str, script: bytes) -> Call:
    call = server.call("run")
    server.stage(call, run_id, script)
    return call


def test_a_run_that_is_made_ready_starts_with_the_last_line(server: Server) -> None:
    first, second = new_id(), new_id()
    call = staged(server, first, b"cat; echo one")
    time.sleep(0.3)
    assert not server.claim(first).exists()
    call.send(LAST_LINE)
    call.follow()
    call.send(line_message(second, payload(b"echo two")))
    call.follow()
    call.send_eof()

    assert call.finish() == 0
    # The script does not read what comes for others.
    assert (call.out, call.err) == (b"one\ntwo\n", b"")


@pytest.mark.parametrize("end", ["of the call", "of its shell"])
def test_a_run_that_was_made_ready_in_vain_leaves_nothing(server: Server, end: str) -> None:
    run_id = new_id()
    call = staged(server, run_id, b"echo one")
    if end == "of its shell":
        call.process.kill()
    call.send_eof()

    if end == "of the call":
        assert call.finish() == 66
        assert call.complaint.endswith("half a payload: nothing was started\n")
        assert not server.directory(run_id).exists()
    wait_until(lambda: not server.payloads(run_id), "its payload is removed")
    late = server.call("run")
    late.send(line_message(run_id, payload(b"echo two")))
    late.send_eof()
    assert late.finish() == 0
    assert late.out == b"two\n"


def test_a_run_that_was_made_ready_and_is_beaten_attaches(server: Server) -> None:
    run_id = new_id()
    call = staged(server, run_id, b"echo one")
    assert server.start(run_id, payload(b"echo two")).finish() == 0
    call.send(LAST_LINE)
    call.send_eof()

    assert call.finish() == 0
    assert call.out == b"two\n"
    assert [head for head in call.heads if head[:1] == "r"] != ["r new 0"]


@pytest.mark.parametrize("form", ["lines", "bytes"])
def test_a_run_that_was_made_ready_in_vain_takes_nobodys_place(server: Server, form: str) -> None:
    run_id = new_id()
    body = payload(b"until [ -e $HOME/go ]; do sleep 0.02; done; echo one")
    follower = server.start(run_id, body)
    call = server.call("run")
    if form == "lines":
        call.send(line_message(run_id, body).removesuffix(LAST_LINE))
    else:
        call.send(message(run_id, body).partition(b"\n")[0] + b"\n")
    call.send_eof()

    assert call.finish() == 66
    (server.home / "go").touch()
    assert follower.finish() == 0
    assert follower.out == b"one\n"


def test_a_wrong_last_line_starts_nothing(server: Server) -> None:
    run_id = new_id()
    call = staged(server, run_id, b"echo one")
    call.send(b"cronium-enD\n")

    assert call.finish() == 66
    assert not server.directory(run_id).exists()


@pytest.mark.parametrize("gone", [True, False])
def test_a_run_that_gets_no_supervisor_leaves_nothing(server: Server, gone: bool) -> None:
    setsid = shutil.which("setsid")
    removal = 'rm -f "$2"' if gone else "exit 1"
    (server.bin / "setsid").write_text(f'#!/bin/sh\n{removal}\nexec {setsid} "$@"\n')
    (server.bin / "setsid").chmod(0o755)
    run_id = new_id()
    call = server.call("run")
    call.send(line_message(run_id, payload(b"echo one")))
    call.send_eof()

    # 65 has the runner deployed anew.
    assert call.finish() == (65 if gone else 73)
    assert not server.directory(run_id).exists()


def test_a_payload_of_bytes_may_follow_one_of_lines_and_is_the_last(server: Server) -> None:
    call = server.call("run")
    call.send(line_message(new_id(), payload(b"echo one")))
    call.follow()
    call.send(message(new_id(), payload(b"printf 'two\\0'", stdin=b"\0\xff")))

    assert call.finish() == 0
    assert call.out == b"one\ntwo\0"


def test_a_call_keeps_nothing_of_a_run_that_is_over(server: Server) -> None:
    call = server.call("run")

    def held() -> tuple[set[str], Path]:
        """Its open files and its directory, once it waits."""
        answers = call.heads.count("f 0")
        call.send(f"forget {new_id()}\n".encode())
        call.read_until(lambda call: call.heads.count("f 0") > answers)
        process = Path(f"/proc/{call.process.pid}")
        return {path.name for path in (process / "fd").iterdir()}, (process / "cwd").readlink()

    def run() -> None:
        call.send(line_message(new_id(), payload(b"echo one")))
        call.follow()

    run()
    # With the pipes to its supervisor.
    before, _ = held()
    for _ in range(3):
        run()

    assert held() == (before, Path("/"))
    assert call.finish() == 0


def test_a_wrong_digest_starts_nothing(server: Server) -> None:
    run_id = new_id()
    sent = message(run_id, payload(b"touch $HOME/started; exit 1"))
    call = server.call("run")
    call.send(sent.replace(b"exit 1", b"exit 2"))

    assert call.finish() == 66
    assert not (server.home / "started").exists()
    assert not server.directory(run_id).exists()


def test_a_runner_that_differs_says_so_and_does_not_greet(server: Server) -> None:
    server.runner.write_bytes(ARTIFACT.content)
    good = server.call("run", SHA256)
    assert good.finish() == 0
    server.runner.write_bytes(server.runner.read_bytes() + b"\n")

    changed = server.call("run", SHA256)

    assert changed.finish() == 65
    assert changed.heads == []


def test_a_runner_that_was_cut_off_does_nothing(server: Server) -> None:
    whole = server.runner.read_bytes()
    for size in (100, whole.index(b"\nsupervise() {"), whole.index(b'\nmain "$@"\nexit\n')):
        server.runner.write_bytes(whole[:size])
        call = server.call("run")
        call.send(message(new_id(), payload(b"touch $HOME/started")))
        call.finish()
        assert not any(head.startswith(("cronium", "r ")) for head in call.heads)
    assert not (server.home / "started").exists()


def looks_by_program(server: Server) -> Path:
    """A file that tells what `ls` was asked for, once it was."""
    looks = server.home / "looks"
    (server.bin / "ls").write_text(f'#!/bin/sh\necho "$*" >>{looks}\nexec /bin/ls "$@"\n')
    (server.bin / "ls").chmod(0o755)
    return looks


def test_the_end_of_a_silent_run_takes_no_program_to_read(server: Server) -> None:
    looks = looks_by_program(server)

    call = server.run(new_id(), payload(b"cd ..; mkdir exit.d; touch exit.3.half exit.0.; exit 3"))

    # Nor does what only looks like a record pass for one.
    assert (call.heads[2:-1], call.end) == (["r new 0"], (3, "exit"))
    assert not looks.exists(), looks.read_text()


def test_nor_does_it_where_signals_come_all_the_time(server: Server) -> None:
    looks = looks_by_program(server)
    call = server.start(new_id(), payload(b"sleep 1; exit 3"))

    # While it looks for the end before each wait.
    deadline = time.monotonic() + 0.9
    while time.monotonic() < deadline:
        os.kill(call.process.pid, signal.SIGURG)
    call.finish()

    assert call.end == (3, "exit")
    assert not looks.exists(), looks.read_text()


PRINTED = (
    b"hi\n",
    b"no newline",
    b"\n\n \n",
    b"  -n \\n %s\t\r\n*\n",
    b"\0",
    b"a\0b\n",
    b"a\n\0",
    bytes(range(256)),
    "\u00e9 \u20ac \U0001f600\n".encode(),
    b"\xe9 \xff\n",
    b"\x81\x82\x88 x\n",
    b"x" * 1023 + b"\n",
    b"x" * 1023 + b"\n" + b"y",
)


@pytest.mark.parametrize("locale", ["C", "C.UTF-8"])
def test_what_little_a_script_prints_arrives_byte_for_byte(server: Server, locale: str) -> None:
    environment = {**server.environment(), "LC_ALL": locale}
    call = server.call("run", environment=environment)
    (server.home / "texts").mkdir()

    for number, text in enumerate(PRINTED):
        (server.home / "texts" / f"{number}").write_bytes(text)
        printed, complained = len(call.out), len(call.err)
        script = f'cat "$HOME/texts/{number}"; echo; cat "$HOME/texts/{number}" >&2'
        call.run(new_id(), script.encode())

        assert (call.out[printed:], call.err[complained:]) == (text + b"\n", text)


def test_what_little_a_script_has_printed_takes_no_program_to_copy(server: Server) -> None:
    run_id = new_id()
    server.run(run_id, payload(b"echo one; echo two >&2"))
    (server.bin / "dd").write_text('#!/bin/sh\necho >>"$HOME/copied"\nexec /bin/dd "$@"\n')
    (server.bin / "dd").chmod(0o755)

    # By another call, as the run's own may have looked before its end.
    _, call = server.ask("attach", run_id, "0", "0")

    assert (call.out, call.err, call.end) == (b"one\n", b"two\n", (0, "exit"))
    assert not (server.home / "copied").exists()


# The line behind which a supervisor reads nothing.
LEFT_UNREAD = b'[ "${1-}" != +supervise ] || supervise "$@"\n'


def test_the_supervisor_calls_nothing_that_it_has_not_read() -> None:
    read, unread = SOURCE.read_bytes().split(LEFT_UNREAD)
    names = set(re.findall(rb"^(\w+)\(\) \{$", unread, re.MULTILINE))
    code = re.sub(rb"^ *#.*$", b"", read, flags=re.MULTILINE)

    assert names
    # "+sweep" is no call of ours.
    called = {name for name in names if re.search(rb"(?<![-$+\w])%b(?![-=\w])" % name, code)}
    assert called == set()


@pytest.mark.parametrize("ending", ["exit", "cancel", "timeout", "output_limit"])
def test_a_supervisor_needs_no_more_of_the_runner_than_it_reads(
    server: Server, ending: str
) -> None:
    whole = server.runner.read_bytes()
    run_id = new_id()
    call = server.call("run")
    call.read_until(lambda call: call.heads != [])
    # Another file of that name: the call has its own open.
    server.runner.unlink()
    server.runner.write_bytes(whole[: whole.index(LEFT_UNREAD) + len(LEFT_UNREAD)])
    script = b"echo on; exit 3" if ending == "exit" else b"echo on; sleep 25"
    limit = 1 if ending == "output_limit" else 1 << 20
    body = payload(script, output_limit=limit)
    call.send(server.message(run_id, body, limit_seconds=1 if ending == "timeout" else 60))
    call.send_eof()
    call.read_until(lambda call: call.out != b"")

    if ending == "cancel":
        server.runner.unlink()
        server.runner.write_bytes(whole)
        assert server.ask("signal", run_id, "cancel")[0] == 0

    call.finish()
    codes = {"exit": 3, "cancel": 130, "timeout": 124, "output_limit": 137}
    assert (call.out, call.end) == (b"on\n", (codes[ending], ending))


@pytest.mark.parametrize(
    "arguments",
    [
        ("attach", "../x", "0", "0"),
        ("attach", "x", "010", "0"),
        ("attach", "x", "0"),
        ("signal", "x", "kill"),
        ("forget", ".."),
        ("dance",),
    ],
)
def test_a_bad_call_is_refused(dash: Server, arguments: tuple[str, ...]) -> None:
    assert dash.ask(*arguments)[0] == 64


def test_a_root_that_is_a_link_is_refused(server: Server) -> None:
    elsewhere = server.home / "elsewhere"
    server.root.rename(elsewhere)
    server.root.symlink_to(elsewhere)
    call = server.call("run")
    call.send(message(new_id(), payload(b"touch $HOME/started")))

    assert call.finish() == 69
    assert "is a link" in call.complaint
    assert not (server.home / "started").exists()


@pytest.mark.skipif(os.getuid() != 0, reason="only root can give a directory away")
def test_a_root_of_somebody_else_is_refused(dash: Server) -> None:
    os.chown(dash.root, 12345, 12345)
    call = dash.call("run")
    call.send(message(new_id(), payload(b"touch $HOME/started")))

    assert call.finish() == 69


@pytest.mark.parametrize("home", [None, "/proc/nonexistent", "relative", "/tmp/with blank"])  # noqa: S108
def test_without_a_usable_home_a_run_goes_to_the_next_root(
    server: Server, home: str | None
) -> None:
    run_id = new_id()
    environment = {"PATH": server.path} | ({} if home is None else {"HOME": home})
    call = server.call("run", environment=environment)
    call.send(message(run_id, payload(b"echo there")))

    assert call.finish() == 0
    assert call.out == b"there\n"
    # It is found there by a call that has a home again, and goes with forget.
    assert server.ask("attach", run_id, "6", "0")[1].end == (0, "exit")
    assert server.ask("forget", run_id)[0] == 0
    Path(f"/var/tmp/cronium-{os.getuid()}/forgotten/{run_id}").unlink()  # noqa: S108


def test_it_runs_on_busybox_alone(tmp_path: Path) -> None:
    with serving(tmp_path, "busybox", busybox_userland=True) as server:
        run_id = new_id()
        call = server.run(run_id, payload(b"printf 'a\\0b'; echo e >&2; exit 4"))
        assert (call.out, call.err, call.end) == (b"a\0b", b"e\n", (4, "exit"))
        assert server.ask("attach", run_id, "2", "1")[1].out == b"b"
        slow = server.run(new_id(), payload(b"echo on; sleep 60"), limit_seconds=1)
        assert (slow.out, slow.end) == (b"on\n", (124, "timeout"))
        assert server.ask("forget", run_id)[0] == 0
