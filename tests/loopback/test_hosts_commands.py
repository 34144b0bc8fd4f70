"""The commands of `cronium-worker hosts`."""

import json
import os
import pty
import re
import socket
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import asyncssh
import pytest
from click.testing import CliRunner, Result

from tests.loopback.openssh import make_key, public
from tests.process.worker_process import wait_for
from worker.cli.hosts import hosts
from worker.clock import now_ms
from worker.demo.sshd import Sshd, open_sshd
from worker.state.directory import open_state
from worker.state.host_keys import HostKeys, Pin

NOW = 1795459726843
WRITTEN = "2026-11-23T18:48:46.843Z"


class Commands:
    """Runs commands beside a worker that holds the state's lock."""

    def __init__(self, state: Path, keys: HostKeys) -> None:
        self.state = state
        self.keys = keys

    def __call__(self, *arguments: str, code: int = 0) -> Result:
        environ = {"CRONIUM_STATE_DIR": str(self.state)}
        result = CliRunner().invoke(hosts, arguments, env=environ)
        assert result.exit_code == code, result.output
        return result


@pytest.fixture
def commands(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Commands]:
    for name in os.environ:
        if name.startswith("CRONIUM_"):
            monkeypatch.delenv(name)
    with open_state(tmp_path / "state") as database:
        yield Commands(tmp_path / "state", HostKeys(database))


@pytest.fixture
def line(tmp_path: Path) -> str:
    return make_key(tmp_path / "key")


def fingerprint(line: str) -> str:
    return asyncssh.import_public_key(line).get_fingerprint()


def where(sshd: Sshd) -> str:
    return f"{sshd.server.host}:{sshd.server.port}"


def shown_by(sshd: Sshd) -> str:
    return " ".join(sshd.server.host_key.split()[:2])


# list


def test_pins_are_listed_for_people_and_for_programs(commands: Commands, line: str) -> None:
    commands.keys.pin(Pin("web-1", 2222, line, NOW, "job_7", "10.0.0.5"))
    commands.keys.pin(Pin("fd00::5", 2222, line, NOW))

    table = commands("list").stdout
    rows = json.loads(commands("list", "--json").stdout)

    for word in ("web-1:2222", "[fd00::5]:2222", fingerprint(line), WRITTEN, "job_7", "10.0.0.5"):
        assert word in table
    assert rows[1] == {
        "host": "web-1",
        "port": 2222,
        "algorithm": "ssh-ed25519",
        "fingerprint": fingerprint(line),
        "public_key": line,
        "pinned_at": WRITTEN,
        "job_id": "job_7",
        "address": "10.0.0.5",
    }
    assert (rows[0]["host"], rows[0]["job_id"], rows[0]["address"]) == ("fd00::5", None, None)


def test_no_pins_are_an_empty_array(commands: Commands) -> None:
    assert json.loads(commands("list", "--json").stdout) == []


# forget


def test_what_is_forgotten_is_said_and_what_is_not_there_fails(
    commands: Commands, line: str
) -> None:
    for host, port in (("web-1", 22), ("web-1", 2222), ("::1", 2222)):
        commands.keys.pin(Pin(host, port, line, NOW))

    result = commands("forget", "web-1", "db-1", "[::1]:2222", code=1)

    assert result.stdout == "web-1\n[::1]:2222\n"
    assert result.stderr == "cronium-worker: db-1: no key is pinned\n"
    assert [(pin.host, pin.port) for pin in commands.keys.all()] == [("web-1", 2222)]


# trust, with a key


def test_a_key_is_pinned_without_a_connection(commands: Commands, line: str) -> None:
    result = commands("trust", "web-1:2222", f"{line} root@web-1")

    (pin,) = commands.keys.all()
    assert pin == Pin("web-1", 2222, line, pin.pinned_at, None, None)
    assert result.stdout == f"web-1:2222 ssh-ed25519 {fingerprint(line)}\n"
    assert result.stderr == ""


def test_what_is_replaced_is_said(commands: Commands, line: str, tmp_path: Path) -> None:
    other = make_key(tmp_path / "other")
    commands.keys.pin(Pin("web-1", 22, other, NOW, "job_7", "10.0.0.5"))

    result = commands("trust", "web-1", line)

    assert result.stderr == (
        f"web-1: in the place of {fingerprint(other)}, pinned {WRITTEN} by job_7\n"
    )
    assert [pin.public_key for pin in commands.keys.all()] == [line]


def test_what_is_pinned_already_stays_as_it_is(commands: Commands, line: str) -> None:
    before = commands.keys.pin(Pin("web-1", 22, line, NOW, "job_7", "10.0.0.5"))

    result = commands("trust", "web-1", line)

    assert "as before" in result.stderr
    assert commands.keys.all() == (before,)


@pytest.mark.parametrize(
    "arguments",
    [
        ("trust", "web-1", "hunter2"),
        ("trust", "web-1:0", "SHA256:" + "A" * 43),
        ("trust", "web-1"),  # nobody to ask
        ("trust",),
        ("forget",),
        ("forget", "a b"),
        ("list", "web-1"),
    ],
)
def test_wrong_usage_is_2_and_changes_nothing(
    arguments: tuple[str, ...], commands: Commands
) -> None:
    result = commands(*arguments, code=2)

    assert (result.stdout, commands.keys.all()) == ("", ())


# trust, with what a server shows


def test_the_shown_key_is_pinned_without_a_question_if_that_is_said(
    commands: Commands, sshd: Sshd
) -> None:
    before = now_ms()

    result = commands("trust", where(sshd), "--yes")

    (pin,) = commands.keys.all()
    server = sshd.server
    assert pin == Pin(server.host, server.port, shown_by(sshd), pin.pinned_at, None, "127.0.0.1")
    assert before <= pin.pinned_at <= now_ms()
    shown = fingerprint(server.host_key)
    assert result.stdout == f"{where(sshd)} ssh-ed25519 {shown}\n"
    assert result.stderr == f"{where(sshd)} at 127.0.0.1 shows ssh-ed25519 {shown}\n"


def test_nothing_is_proved_to_the_server(commands: Commands, tmp_path: Path, openssh: None) -> None:
    with open_sshd(tmp_path / "sshd", options={"LogLevel": "VERBOSE"}) as sshd:
        commands("trust", where(sshd), "--yes")
        wait_for(lambda: "[preauth]" in sshd.log(), "the end of the connection")

    # Else it is `by authenticating user NAME`.
    assert re.findall("closed by (.*) port", sshd.log()) == ["127.0.0.1"]


@pytest.mark.parametrize(("answer", "code"), [("y", 0), ("n", 1), ("", 1)])
def test_at_a_terminal_the_key_is_shown_and_asked_for(
    answer: str, code: int, commands: Commands, sshd: Sshd
) -> None:
    ours, theirs = pty.openpty()
    with os.fdopen(ours, "wb") as terminal:
        process = subprocess.Popen(
            [sys.executable, "-m", "worker", "hosts", "trust", where(sshd)],
            env={"CRONIUM_STATE_DIR": str(commands.state)},
            stdin=theirs,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        os.close(theirs)
        terminal.write(f"{answer}\n".encode())
        terminal.flush()
        output, errors = process.communicate(timeout=30)

    assert process.returncode == code, errors
    assert f"shows ssh-ed25519 {fingerprint(sshd.server.host_key)}\n" in errors
    assert "Trust this key? [y/N]" in errors
    assert [pin.public_key for pin in commands.keys.all()] == [shown_by(sshd)] * (code == 0)
    assert bool(output) == (code == 0)


def test_a_fingerprint_pins_the_key_that_has_it_of_any_kind(
    commands: Commands, tmp_path: Path, openssh: None
) -> None:
    line = make_key(tmp_path / "rsa", "rsa")
    options = {"HostKey": str(tmp_path / "rsa")}
    with open_sshd(tmp_path / "sshd", options=options) as sshd:
        commands("trust", where(sshd), fingerprint(line))

    assert [pin.public_key for pin in commands.keys.all()] == [line]
    assert line == public(tmp_path / "rsa")


def test_a_fingerprint_that_the_server_does_not_show_is_a_failure(
    commands: Commands, sshd: Sshd, line: str
) -> None:
    result = commands("trust", where(sshd), fingerprint(line), "--yes", code=1)

    assert fingerprint(line) in result.stderr
    assert result.stderr.count(fingerprint(sshd.server.host_key)) == 1
    assert commands.keys.all() == ()


def test_a_server_that_does_not_answer_is_unavailable(commands: Commands) -> None:
    with socket.socket() as closed:
        closed.bind(("127.0.0.1", 0))
        port = closed.getsockname()[1]

        result = commands("trust", f"127.0.0.1:{port}", "--yes", code=69)

    assert result.stderr == f"cronium-worker: 127.0.0.1:{port} refused the connection\n"


def test_a_name_that_cannot_be_resolved_is_unavailable(commands: Commands) -> None:
    result = commands("trust", "no-such-host.invalid", "--yes", code=69)

    assert "cannot be resolved" in result.stderr


def test_a_server_that_says_nothing_is_unavailable(
    commands: Commands, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("worker.cli.hosts.ANSWER_SECONDS", 0.3)
    with socket.socket() as silent:
        silent.bind(("127.0.0.1", 0))
        silent.listen()
        address = f"127.0.0.1:{silent.getsockname()[1]}"

        result = commands("trust", address, "--yes", code=69)

    assert result.stderr == f"cronium-worker: {address} does not answer\n"


# The state


def test_where_no_worker_has_been_is_a_fault_of_the_configuration(tmp_path: Path) -> None:
    environ = {"CRONIUM_STATE_DIR": str(tmp_path)}

    result = CliRunner().invoke(hosts, ["list"], env=environ)

    assert result.exit_code == 2
    assert "there is no state.db" in result.stderr
    assert list(tmp_path.iterdir()) == []
