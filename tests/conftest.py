"""Servers and accounts to log into."""

import gc
import os
import secrets
import signal
import subprocess
import tempfile
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path

import pytest

from tests.ports import reserved_port
from worker.demo.sshd import LocalServer, Sshd, open_fleet, open_sshd, unusable_reason

pytest_plugins = ["tests.quiet"]

# A shell cannot undo that it was ignored, as nohup has it, and neither could a runner started here.
signal.signal(signal.SIGHUP, signal.SIG_DFL)


def pytest_collection_finish() -> None:
    """All that was collected stays: Python is not to go through it for garbage."""
    gc.freeze()


@dataclass(frozen=True, slots=True)
class Account:
    name: str
    password: str = field(repr=False)


@pytest.fixture
def openssh() -> None:
    """For tests that open servers on their own: they are skipped where there is no sshd."""
    if reason := unusable_reason():
        pytest.skip(reason)


@pytest.fixture
def sshd(openssh: None, tmp_path: Path) -> Iterator[Sshd]:
    """A server that we log into as ourselves."""
    with open_sshd(tmp_path / "sshd") as sshd:
        yield sshd


@pytest.fixture
def fleet(openssh: None, tmp_path: Path) -> Iterator[Callable[[int], tuple[LocalServer, ...]]]:
    """Call it with a number of servers; they last as long as the test."""
    with ExitStack() as stack:
        yield lambda size: stack.enter_context(open_fleet(tmp_path / "fleet", size))


@pytest.fixture
def password_account() -> Iterator[Account]:
    """An unprivileged account with a password, made for this test; its directory is `/`."""
    if os.getuid() != 0:
        pytest.skip("only root can make an account")
    account = Account("cw" + secrets.token_hex(3), secrets.token_hex(8))
    _retry_locked("useradd", "--no-create-home", "--home-dir=/", "--shell=/bin/bash", account.name)
    try:
        # -c keeps PAM out, whose rules for passwords differ from machine to machine.
        _retry_locked("chpasswd", "-c", "SHA512", stdin=f"{account.name}:{account.password}\n")
        yield account
    finally:
        _retry_locked("userdel", "--force", account.name)


@pytest.fixture
def spare_port() -> Iterator[int]:
    with reserved_port() as port:
        yield port


@pytest.fixture
def open_path() -> Iterator[Path]:
    """Like `tmp_path`, but any account can reach it."""
    with tempfile.TemporaryDirectory(prefix="cronium-test-") as path:
        Path(path).chmod(0o755)
        yield Path(path)


@pytest.fixture
def plain_sshd(openssh: None, open_path: Path, request: pytest.FixtureRequest) -> Iterator[Sshd]:
    """A server that we log into without privileges, also when we are root."""
    user = request.getfixturevalue("password_account").name if os.getuid() == 0 else None
    with open_sshd(open_path, user=user) as sshd:
        yield sshd


def _retry_locked(*command: str, stdin: str = "") -> None:
    # Another test run may hold the lock on /etc/passwd, for some milliseconds.
    for _ in range(20):
        done = subprocess.run(command, input=stdin, capture_output=True, text=True, check=False)
        if "lock" not in done.stderr:
            done.check_returncode()
            return
    pytest.fail(f"{command[0]}: /etc/passwd stayed locked")
