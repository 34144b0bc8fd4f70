"""What `exec`, `runs` and `cache` have in common: settings, and the key that opens servers."""

import os
import socket
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests.forked import run_forked
from tests.loopback.openssh import keygen, make_key
from worker.state.directory import open_state

Done = subprocess.CompletedProcess[str]
Call = Callable[..., Done]
ALL = ("exec", "runs", "cache")


@pytest.fixture
def silent() -> Iterator[int]:
    """The port of a server that takes connections and says nothing."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        yield server.getsockname()[1]


@pytest.fixture
def call(tmp_path: Path, silent: int) -> Call:
    """One of the commands with its way to that server, and `CRONIUM_` variables."""
    key, script = tmp_path / "key", tmp_path / "script.sh"
    make_key(key)
    script.write_text("true\n")
    with open_state(tmp_path / "state"):
        pass
    access = ("--server", f"deploy@127.0.0.1:{silent}", "--key", str(key))
    directory = ("--directory", str(tmp_path / "exec"))
    arguments = {
        "exec": ("exec", *access, *directory, str(script)),
        "runs": ("runs", "list", *access, *directory),
        "cache": ("cache", "deploy", *access, "--id", "1"),
        "run": ("run",),
        "hosts": ("hosts", "list"),
        "history": ("history",),
        "outbox": ("outbox", "list"),
        "status": ("status",),
        "orphans": ("orphans",),
        "check": ("check", *access),
        "health": ("health",),
    }

    def call(name: str, **environ: str) -> Done:
        bare = {each: text for each, text in os.environ.items() if "CRONIUM" not in each}
        given = {"STATE_DIR": str(tmp_path / "state"), "SETUP_TIMEOUT": "1s", **environ}
        named = {f"CRONIUM_{each}": text for each, text in given.items()}
        return run_forked(arguments[name], {**bare, **named}, 45)

    return call


@pytest.mark.parametrize("name", ALL)
def test_a_silent_server_costs_the_setup_limit(name: str, call: Call) -> None:
    done = call(name)

    assert done.returncode == (255 if name == "exec" else 69)
    assert "over its limit of 1 s" in " ".join(done.stderr.split())


@pytest.mark.parametrize("name", ALL)
def test_a_misspelt_variable_is_warned_of(name: str, call: Call) -> None:
    done = call(name, SETUP_TIMOUT="1s")

    assert done.returncode in (69, 255)
    assert (
        "cronium-worker: CRONIUM_SETUP_TIMOUT is not a setting of this program; "
        "did you mean CRONIUM_SETUP_TIMEOUT?\n" in done.stderr
    )


@pytest.mark.parametrize("name", ["hosts", "history", "outbox", "status", "orphans"])
def test_it_is_warned_of_by_what_looks_at_the_state_too(name: str, call: Call) -> None:
    done = call(name, STATE_DIRR="x", API_ENDPOINT="http://127.0.0.1:1", API_TOKEN="token")

    assert done.returncode == (69 if name == "orphans" else 0)
    assert "did you mean CRONIUM_STATE_DIR?\n" in done.stderr


@pytest.mark.parametrize("name", ALL)
def test_a_key_that_cannot_be_used_is_named(name: str, call: Call, tmp_path: Path) -> None:
    key = tmp_path / "key"

    keygen("-q", "-p", "-P", "", "-N", "secret", "-f", key)
    encrypted = call(name)
    key.write_text("no key\n")
    damaged = call(name)

    assert (encrypted.returncode, damaged.returncode) == (2, 2)
    assert encrypted.stderr == (
        f"cronium-worker: {key}: the private key needs a passphrase; expected --ask-passphrase\n"
    )
    assert damaged.stderr == (
        f"cronium-worker: {key}: the private key is not a key; expected a private key\n"
    )


@pytest.mark.parametrize("name", [*ALL, "run"])
def test_known_hosts_that_cannot_be_read_is_told_of_with_the_other_faults(
    name: str, call: Call, tmp_path: Path
) -> None:
    file = tmp_path / "known_hosts"
    file.write_text("nonsense\n")

    done = call(name, SSH_KNOWN_HOSTS=str(file), SETUP_TIMEOUT="soon")

    assert done.returncode == 2
    *_, first, second = done.stderr.splitlines()
    assert first.startswith("cronium-worker: CRONIUM_SETUP_TIMEOUT: 'soon' is not a duration")
    assert second == (
        f"cronium-worker: CRONIUM_SSH_KNOWN_HOSTS: {file}: line 1: "
        "no host name, or no key behind it"
    )


@pytest.mark.parametrize(
    ("option", "arguments"),
    [
        ("--id", ["cache", "deploy", "--server", "h1", "--id", ""]),
        ("[ID]...", ["cache", "forget", ""]),
        ("RUN...", ["runs", "signal", "--server", "h1", " "]),
        ("[RUN]...", ["runs", "forget", "--server", "h1", ""]),
        ("JOB", ["show", ""]),
        ("--job", ["logs", "--job", ""]),
    ],
)
def test_an_empty_id_is_refused(option: str, arguments: list[str]) -> None:
    done = run_forked(arguments, {})

    assert done.returncode == 2
    assert f"Invalid value for '{option}': it is empty" in done.stderr


@pytest.mark.parametrize("name", ["orphans", "status", "check", "run"])
def test_a_state_directory_that_cannot_be_looked_for_is_told_of(name: str, call: Call) -> None:
    far = "x" * 300

    done = call(name, STATE_DIR=far, API_ENDPOINT="http://127.0.0.1:1", API_TOKEN="token")

    assert done.returncode == (1 if name == "check" else 2)
    assert f"{far}: " in done.stdout + done.stderr
    assert "File name too long" in done.stdout + done.stderr
    assert "Traceback" not in done.stderr


def test_a_probe_that_may_not_look_says_so(call: Call) -> None:
    done = call("health", STATE_DIR="x" * 300)

    assert done.returncode == 1
    assert done.stderr.endswith("/heartbeat cannot be looked at: File name too long\n")
