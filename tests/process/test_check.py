"""`check` on set-ups that are whole, and on each of the ways in which one is not."""

import json
import os
import sqlite3
import subprocess
import sys
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path

import pytest

from tests.forked import run_forked
from tests.loopback.openssh import keygen
from tests.process.worker_process import COMMAND, Site, open_site
from worker.checkup import Verdict, clock
from worker.demo.sshd import Sshd
from worker.state.directory import DATABASE

NOON = 1_700_000_000.0
NOON_DATE = "Tue, 14 Nov 2023 22:13:20 GMT"


@pytest.fixture
def site(tmp_path: Path) -> Iterator[Site]:
    with open_site(tmp_path) as site:
        yield site


def check(site: Site, *arguments: str, **environ: str) -> tuple[int, dict[str, tuple[str, str]]]:
    """The exit code, and by subject the verdict and what was told."""
    done = run_forked(["check", "--json", *arguments], site.environment("state", environ))
    assert not done.stderr
    assert done.returncode in (0, 1)
    rows = json.loads(done.stdout)
    assert all(row["advice"] for row in rows if row["verdict"] != "passed")
    return done.returncode, {row["subject"]: (row["verdict"], row["told"]) for row in rows}


def test_a_set_up_that_is_whole_passes_with_a_worker_and_without(site: Site) -> None:
    site.start_queue()

    code, before = check(site)
    worker = site.start_worker()
    worker.wait_for_event("worker_started")
    _, during = check(site)

    assert code == 0
    assert before.pop("encryption key")[0] == "warned"
    assert {verdict for verdict, _ in before.values()} == {"passed"}
    assert set(before) == {
        "settings", "state directory", "state lock", "file limit", "queue API", "clock"
    }  # fmt: skip
    assert during["state lock"] == ("passed", f"a worker runs on it (pid {worker.pid})")
    assert during["state file"] == ("passed", "of this release")


def test_nothing_is_claimed_by_it(site: Site, sshd: Sshd) -> None:
    site.start_queue()
    job_id = site.submit("true", site.add(sshd.server))

    check(site)

    assert site.status(job_id) == "queued"


def test_each_fault_is_told_of_with_what_to_do(site: Site, tmp_path: Path) -> None:
    known_hosts = tmp_path / "known_hosts"
    known_hosts.write_text("web-1 ssh-ed25519 nonsense\n")
    site.start_queue()

    code, found = check(site, API_TOKEN="another", SSH_KNOWN_HOSTS=str(known_hosts))
    _, without_api = check(site, API_ENDPOINT="http://127.0.0.1:1")
    _, without_settings = check(site, API_ENDPOINT="ftp://x", SETUP_TIMOUT="1s")

    assert code == 1
    assert found["API token"][0] == "failed"
    assert "401" in found["API token"][1]
    assert found["known_hosts"][0] == "failed"
    assert "line 1" in found["known_hosts"][1]
    assert without_api["queue API"][0] == "failed"
    assert without_settings["settings"][0] == "failed"


def test_a_state_directory_that_is_not_there_is_looked_for_and_not_made(site: Site) -> None:
    site.start_queue()

    code, found = check(site, STATE_DIR=str(site.folder / "new" / "state"))
    _, below_a_file = check(site, STATE_DIR=str(site.folder / "queue.db" / "state"))

    assert code == 0
    assert found["state directory"][0] == "passed"
    assert f"{site.folder}/new/state, which a worker will make, " in found["state directory"][1]
    assert not (site.folder / "new").exists()
    assert below_a_file["state directory"][0] == "failed"


@pytest.mark.parametrize(
    ("version", "verdict", "told"),
    [
        (1, "passed", "of an earlier release; a worker will migrate it"),
        (999, "failed", "it was written by a newer release"),
        (0, "failed", "it is the database of another program"),
    ],
)
def test_a_state_file_is_looked_at_as_a_worker_would_at_its_start(
    site: Site, version: int, verdict: str, told: str
) -> None:
    file = site.folder / "state" / DATABASE
    file.parent.mkdir()
    with closing(sqlite3.connect(file)) as database:
        database.execute("CREATE TABLE others (name TEXT)")
        database.execute(f"PRAGMA user_version = {version}")
    before = file.read_bytes()

    _, found = check(site)

    assert found["state file"][0] == verdict
    assert found["state file"][1].endswith(told)
    assert file.read_bytes() == before


def test_a_state_file_that_is_none_fails(site: Site) -> None:
    file = site.folder / "state" / DATABASE
    file.mkdir(parents=True)

    code, found = check(site)

    assert code == 1
    assert found["state file"][0] == "failed"
    assert "Is a directory" in found["state file"][1]


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write anywhere")
def test_a_state_directory_that_cannot_be_written_fails(site: Site) -> None:
    state = site.folder / "state"
    state.mkdir()
    state.chmod(0o500)

    code, found = check(site)

    assert code == 1
    assert found["state directory"][0] == "failed"


def test_it_goes_the_whole_way_to_a_server(site: Site, sshd: Sshd, tmp_path: Path) -> None:
    site.start_queue()
    server = sshd.server
    key = tmp_path / "key"
    key.write_text(server.private_key)
    where = f"{server.user}@{server.host}:{server.port}"

    code, found = check(site, "--server", where, "--key", str(key))
    wrong = tmp_path / "wrong"
    subprocess.run(["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", str(wrong)], check=True)
    refused, steps = check(site, "--server", where, "--key", str(wrong))

    assert code == 0
    assert not (site.folder / "state").exists()
    assert "SHA256:" in found["connection"][1]
    assert "bash" in found["shell"][1]
    assert "/runner-" in found["runner"][1]
    assert found["script"] == ("passed", "`true` ran, and was forgotten")
    assert not list((server.home / ".cache" / "cronium" / "runs").iterdir())
    assert refused == 1
    assert steps["connection"][0] == "failed"
    assert "refused the credential" in steps["connection"][1]
    assert "shell" not in steps


def test_a_key_with_a_passphrase_opens_a_server_once_it_is_asked_for(
    site: Site, sshd: Sshd, tmp_path: Path
) -> None:
    site.start_queue()
    server = sshd.server
    key = tmp_path / "key"
    key.write_text(server.private_key)
    key.chmod(0o600)
    keygen("-q", "-p", "-P", "", "-N", "secret", "-f", key)
    where = ["--server", f"{server.user}@{server.host}:{server.port}", "--key", str(key)]

    unasked = site.command("check", *where)
    asked = subprocess.run(
        [*COMMAND, "check", "--json", "--ask-passphrase", *where],
        env=site.environment("state", {}),
        input="secret\n",
        capture_output=True,
        text=True,
        timeout=60,
        start_new_session=True,  # without a terminal to ask at
    )

    assert unasked.returncode == 2
    assert f"{key}: the private key needs a passphrase; expected --ask-passphrase" in unasked.stderr
    assert asked.returncode == 0, asked.stderr
    assert json.loads(asked.stdout)[-1]["subject"] == "script"


def test_usage_is_checked_first(site: Site) -> None:
    for arguments in (
        ["--server", "web-1"],
        ["--server", "a@b"],
        ["--key", "/dev/null"],
        ["--server", "a@b", "--ask-password", "--ask-passphrase"],
    ):
        done = site.command("check", *arguments)
        assert done.returncode == 2
        assert "Usage" in done.stderr


def test_a_key_that_is_no_text_is_named(site: Site) -> None:
    done = site.command("check", "--server", "a@127.0.0.1", "--key", sys.executable)

    assert done.returncode == 2
    assert f"{sys.executable}: 'utf-8'" in done.stderr
    assert "expected a private key" in done.stderr


@pytest.mark.parametrize(
    ("date", "verdict"),
    [
        (NOON_DATE, Verdict.PASSED),
        ("Tue, 14 Nov 2023 22:13:50 GMT", Verdict.WARNED),
        ("Tue, 14 Nov 2023 23:13:20 GMT", Verdict.FAILED),
        (None, Verdict.WARNED),
        ("soon", Verdict.WARNED),
    ],
)
def test_the_clocks_are_compared(date: str | None, verdict: Verdict) -> None:
    assert clock(date, NOON).verdict is verdict
