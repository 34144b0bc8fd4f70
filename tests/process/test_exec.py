"""`cronium-worker exec` as an operator calls it, against real sshds."""

import json
import os
import pty
import re
import signal
import subprocess
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import pytest

from tests.forked import run_forked
from tests.loopback.openssh import make_key
from tests.process.worker_process import COMMAND, wait_for
from worker.demo.sshd import LocalServer, Sshd

Fleet = Callable[[int], tuple[LocalServer, ...]]
Done = subprocess.CompletedProcess[str]
LIMIT_SECONDS = 60


@dataclass(frozen=True, slots=True)
class Caller:
    """Calls `exec` with a home, a key and a directory of its own."""

    folder: Path

    def arguments(self, script: str, *arguments: str, suffix: str = ".sh") -> list[str]:
        file = self.folder / f"script{suffix}"
        file.write_text(script)
        directory = self.folder / "exec"
        own = ["--directory", str(directory), "--key", str(self.folder / "key")]
        return ["exec", *own, *arguments, str(file)]

    def environ(self) -> dict[str, str]:
        environ = {name: value for name, value in os.environ.items() if "CRONIUM" not in name}
        return {**environ, "HOME": str(self.folder)}

    def __call__(self, script: str, *arguments: str, suffix: str = ".sh", **environ: str) -> Done:
        """`environ` without the `CRONIUM_` of the names."""
        named = {f"CRONIUM_{name}": value for name, value in environ.items()}
        return run_forked(
            self.arguments(script, *arguments, suffix=suffix),
            {**self.environ(), **named},
            LIMIT_SECONDS,
        )

    @contextmanager
    def started(self, script: str, *arguments: str) -> Iterator[subprocess.Popen[str]]:
        process = subprocess.Popen(
            [*COMMAND, *self.arguments(script, *arguments)],
            env=self.environ(),
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        try:
            yield process
        finally:
            process.kill()
            process.communicate(timeout=LIMIT_SECONDS)

    def key(self, server: LocalServer) -> str:
        """The server as an option has it; its key becomes the one that is used."""
        key = self.folder / "key"
        key.write_text(server.private_key)
        key.chmod(0o600)
        return f"{server.name}={server.user}@{server.host}:{server.port}"


@pytest.fixture
def call(tmp_path: Path) -> Caller:
    return Caller(tmp_path)


def options(call: Caller, servers: tuple[LocalServer, ...]) -> list[str]:
    return [option for server in servers for option in ("-s", call.key(server))]


def test_lines_come_with_their_servers_and_the_exit_code_is_the_sum(
    call: Caller, fleet: Fleet
) -> None:
    servers = fleet(3)
    first, second, third = (server.name for server in servers)
    script = (
        'echo "out of $CRONIUM_SERVER_NAME, $WORD"; echo err >&2; '
        f"case $CRONIUM_SERVER_NAME in {first}) exit 3;; {second}) exit 4;; esac"
    )

    done = call(script, "-e", "WORD=hello world", *options(call, servers))

    assert done.returncode == 7
    assert sorted(done.stdout.splitlines()) == sorted(
        f"[{name}] out of {name}, hello world" for name in (first, second, third)
    )
    assert f"[{first}] err" in done.stderr
    assert (
        f"PARTIAL SUCCESS: 1 of 3 servers succeeded (failed: {first} exit 3, {second} exit 4)"
        in done.stderr
    )


def test_the_exit_code_is_255_at_most(call: Caller, fleet: Fleet) -> None:
    assert call("exit 200", *options(call, fleet(2))).returncode == 255


@pytest.mark.parametrize(
    ("suffix", "script", "said"),
    [
        (".bash", 'echo "${BASH_VERSION:+bash}"', "bash"),
        (".py", "print('python')", "python"),
        (".mjs", "console.log('node')", "node"),
        (".cjs", "console.log('node')", "node"),
    ],
)
def test_a_script_is_run_by_what_its_suffix_says(
    suffix: str, script: str, said: str, call: Caller, sshd: Sshd
) -> None:
    done = call(script, "-s", call.key(sshd.server), suffix=suffix)

    assert done.stdout == f"[{sshd.server.name}] {said}\n"


def test_what_scripts_did_is_told_where_the_call_cannot_be_kept(call: Caller, sshd: Sshd) -> None:
    kept = call.folder / "exec" / "last-exec.json"

    done = call(f"rm {kept} && mkdir {kept} && echo done", "-s", call.key(sshd.server))

    assert (done.returncode, done.stdout) == (0, f"[{sshd.server.name}] done\n")
    assert f"cannot be kept for --retry-failed: {kept}: Is a directory" in done.stderr


def test_only_what_failed_is_run_again(call: Caller, fleet: Fleet, spare_port: int) -> None:
    servers = fleet(2)
    first, second = (server.name for server in servers)
    gone = f"gone=deploy@127.0.0.1:{spare_port}"

    before = call(
        f"[ $CRONIUM_SERVER_NAME = {first} ]", *options(call, servers), "-s", gone, "--json"
    )
    again = call("echo again; [ $CRONIUM_SERVER_NAME != gone ]", "--retry-failed", "--json")
    servers_file = call.folder / "web.txt"
    servers_file.write_text(f"# ours\n{call.key(servers[0])}\n")
    call("true", "--servers-file", str(servers_file))
    nothing = call("echo nothing", "--retry-failed")

    told = json.loads(before.stdout)
    assert {each["server"]: each["outcome"] for each in told["executions"]} == {
        first: "success", second: "failed", "gone": "unreachable",
    }  # fmt: skip
    told = json.loads(again.stdout)
    assert {each["server"]: each["stdout"] for each in told["executions"]} == {
        second: "again\n", "gone": "",
    }  # fmt: skip
    assert again.returncode == 255
    assert (nothing.returncode, nothing.stdout) == (0, "")
    assert "succeeded on all servers" in nothing.stderr


def test_output_can_be_folded(call: Caller, fleet: Fleet) -> None:
    servers = fleet(3)
    odd = servers[2].name

    done = call(
        f'printf "1\\n2\\n3\\n4\\n5\\n"; [ $CRONIUM_SERVER_NAME != {odd} ] || printf "\\033[2J"',
        "--fold",
        *options(call, servers),
    )

    assert done.returncode == 0
    lines = done.stdout.splitlines()
    assert lines[1:6] == ["1", "2", "3", "4", "5"]
    assert lines[0].endswith("(2):")
    assert lines[6].startswith(f"{odd} (1), unlike ")
    assert lines[-1] == "+\\x1b[2J"


def test_the_runner_is_deployed_once_and_nothing_is_left_but_it(call: Caller, sshd: Sshd) -> None:
    option = ["-s", call.key(sshd.server), "--json"]

    runners = [json.loads(call("true", *option).stdout)["executions"][0]["runner"] for _ in "ab"]

    assert runners == ["deployed", "cached"]
    assert [path for root in call.folder.rglob("runs") for path in root.iterdir()] == []


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
def test_a_signal_ends_the_runs_and_leaves_no_process(
    number: signal.Signals, call: Caller, sshd: Sshd, tmp_path: Path
) -> None:
    pid_file = tmp_path / "pid"
    script = f"sleep 60 & echo $! >{pid_file}.new; mv {pid_file}.new {pid_file}; echo here; wait"
    with call.started(script, "-s", call.key(sshd.server)) as process:
        wait_for(pid_file.exists, "the script's start")

        process.send_signal(number)
        out, err = process.communicate(timeout=LIMIT_SECONDS)

    assert process.returncode == 130
    assert out.endswith("here\n")
    assert "cancelled" in err
    wait_for(lambda: not Path(f"/proc/{pid_file.read_text().strip()}").exists(), "its end")


def test_what_the_second_signal_leaves_to_itself_is_named(
    call: Caller, sshd: Sshd, spare_port: int, tmp_path: Path
) -> None:
    begun, stubborn = tmp_path / "begun", tmp_path / "stubborn"
    # Until it is killed, 5 s later.
    script = f"trap 'touch {stubborn}' TERM; touch {begun}; while :; do sleep 0.1; done"
    gone = f"gone=deploy@127.0.0.1:{spare_port}"
    with call.started(script, "-s", call.key(sshd.server), "-s", gone) as process:
        wait_for(begun.exists, "the script's start")
        process.send_signal(signal.SIGINT)
        wait_for(stubborn.exists, "TERM")

        process.send_signal(signal.SIGINT)
        _, err = process.communicate(timeout=LIMIT_SECONDS)

    name = sshd.server.name
    assert process.returncode == 130
    told, advice = err.splitlines()[-2:]
    assert re.fullmatch(rf"cronium-worker: {name}: the run exec_\S+_{name}_0 may go on", told)
    assert advice == "cronium-worker: see: cronium-worker runs list, runs signal"
    assert "gone:" not in err


def test_a_reader_that_goes_ends_the_runs(call: Caller, sshd: Sshd, tmp_path: Path) -> None:
    ended = tmp_path / "ended"
    script = (
        f"trap 'touch {ended}; exit 1' TERM; n=0; "
        "while [ $n -lt 600 ]; do echo line; sleep 0.1; n=$((n + 1)); done"
    )
    with call.started(script, "-s", call.key(sshd.server)) as process:
        assert process.stdout is not None
        process.stdout.readline()
        process.stdout.close()
        process.stdout = None

        _, err = process.communicate(timeout=LIMIT_SECONDS)

    assert ended.exists()
    assert process.returncode == 130
    assert "BrokenPipe" not in err


def test_a_disk_that_is_full_ends_the_runs(call: Caller, sshd: Sshd, tmp_path: Path) -> None:
    ended = tmp_path / "ended"
    script = f"trap 'touch {ended}; exit 1' TERM; sleep 0.2; echo line; sleep 60 & wait"
    arguments = call.arguments(script, "-s", call.key(sshd.server))
    with Path("/dev/full").open("w") as full:
        done = subprocess.run(
            [*COMMAND, *arguments],
            env=call.environ(),
            stdout=full,
            stderr=subprocess.PIPE,
            text=True,
            timeout=LIMIT_SECONDS,
            check=False,
        )

    assert ended.exists()
    assert done.returncode == 130
    assert "the output: No space left on device; the runs are ended\n" in done.stderr
    assert "Traceback" not in done.stderr


def test_a_terminal_shows_how_far_it_is_and_is_not_moved_about(call: Caller, sshd: Sshd) -> None:
    arguments = call.arguments("printf 'a\\033[2Jb\\n'; sleep 0.3", "-s", call.key(sshd.server))
    command = [*COMMAND, *arguments]
    ours, theirs = pty.openpty()
    with subprocess.Popen(command, env=call.environ(), stdout=theirs, stderr=theirs) as process:
        os.close(theirs)
        shown = _read_all(ours)
        process.wait(LIMIT_SECONDS)
    os.close(ours)

    assert "1 servers: 0 done, 1 running, 0 failed, 0 unreachable" in shown
    assert "1 servers: 1 done, 0 running" in shown
    assert f"[{sshd.server.name}] a\\x1b[2Jb" in shown
    assert "\x1b[2J" not in shown


def _read_all(terminal: int) -> str:
    read = b""
    try:
        while data := os.read(terminal, 65536):
            read += data
    except OSError:  # the other side is closed
        pass
    return read.decode()


def test_secrets_are_masked_and_helpers_without_a_queue_are_refused(
    call: Caller, sshd: Sshd
) -> None:
    script = (
        'echo "key $API_TOKEN"; echo "::add-mask::found-out"; echo "found-out"; '
        "cronium.getVariable X || echo refused"
    )

    done = call(script, "-e", "API_TOKEN=very-secret-1", "-s", call.key(sshd.server))

    lines = [line.partition("] ")[2] for line in done.stdout.splitlines()]
    assert lines[0] == "key ***"
    assert lines[-2:] == ["***", "refused"]
    assert "there is no runtime API" in done.stderr


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        ([], "expected --server or --servers-file"),
        (["-s", "a=b=c@@@:x"], "expected [NAME=][USER@]HOST[:PORT]"),
        (["-s", "a=h1", "-s", "a=h2"], "expected a name for each"),
        (["--retry-failed", "-s", "h1"], "--retry-failed takes the servers of the last call"),
        (["--retry-failed"], "there was no call before"),
        (["-s", "h1", "--fold", "--json"], "expected one of them"),
        (["-s", "h1", "-e", "A B=1"], "'--env': 'A B' is not a variable name; expected letters"),
        (["-s", "h1", "--workdir", "a\nb"], "'--workdir': 'a\\nb' holds a NUL or a line break"),
        (["-s", "h1", "--workdir", "\udcff"], "'--workdir': '\\udcff' is not UTF-8"),
    ],
)
def test_wrong_usage_says_what_was_expected(arguments: list[str], said: str, call: Caller) -> None:
    make_key(call.folder / "key")

    done = call("true", *arguments)

    assert done.returncode == 2, done.stderr
    assert said in " ".join(done.stderr.split())
