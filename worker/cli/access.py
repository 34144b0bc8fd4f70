"""Options by which commands reach servers: which, and with what key."""

import getpass
import os
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, TypeVar

import click

from worker.cli.exits import EXIT_CONFIGURATION, EXIT_FAILED, EXIT_UNAVAILABLE, fail
from worker.cli.parameters import FILE, Place
from worker.cli.running import name_account
from worker.direct.servers import EXPECTED, NamedServer, distinct, parse_server, read_servers
from worker.errors import (
    AuthenticationError,
    ConnectError,
    ConnectionLostError,
    PassphraseError,
    StateError,
    WorkerError,
)
from worker.remote.credentials import open_credential
from worker.remote.target import Credential
from worker.sealing import SealingKey
from worker.secret import Secret

F = TypeVar("F", bound=Callable[..., Any])

# As OpenSSH tries them, without the kinds that nobody should have any more.
USUAL_KEYS = ("id_ed25519", "id_ecdsa", "id_rsa")


def _account() -> str:
    try:
        return getpass.getuser()
    except (KeyError, OSError):  # a container's arbitrary uid
        return "root"


EXEC_DIR = "~/.local/state/cronium-exec"


def directory_option(command: F) -> F:
    """`directory`: what is kept between calls, apart from any worker's state."""
    return click.option(
        "--directory",
        type=Place(is_directory=True),
        envvar="CRONIUM_EXEC_DIR",
        default=lambda: Path(os.path.expanduser(EXEC_DIR)),  # noqa: PTH111  Path's raises without a home
        help=f"Host keys, runner cache, last call (default: {EXEC_DIR}).",
    )(command)


class ServerOption(click.ParamType[NamedServer]):
    name = EXPECTED

    def convert(
        self, value: object, param: click.Parameter | None, ctx: click.Context | None
    ) -> NamedServer:
        if isinstance(value, NamedServer):
            return value
        try:
            return parse_server(str(value), user=_account())
        except ValueError as error:
            self.fail(str(error), param, ctx)


def server_option(command: F) -> F:
    """`server`, for `named_server`."""
    return click.option(
        "--server", required=True, help="NAME of the servers file, or [USER@]HOST[:PORT]."
    )(command)


def access_options(command: F) -> F:
    """`servers_file`, `key` and `ask_passphrase`."""
    for option in (
        click.option(
            "--ask-passphrase", is_flag=True, help="Ask for the passphrase of the private key."
        ),
        click.option("--key", type=FILE, help="Private key (default: as ssh, from ~/.ssh)."),
        click.option("--servers-file", type=FILE, help=f"Servers, one a line: {EXPECTED}."),
    ):
        command = option(command)
    return command


def servers_of(given: Sequence[NamedServer], servers_file: Path | None) -> Sequence[NamedServer]:
    """Those of the options and of the file, each once."""
    try:
        return distinct((*given, *in_file(servers_file)))
    except ValueError as error:
        raise click.UsageError(str(error)) from None


def in_file(servers_file: Path | None) -> list[NamedServer]:
    if servers_file is None:
        return []
    try:
        return read_servers(servers_file.read_text(), user=_account())
    except (ValueError, OSError) as error:
        raise click.UsageError(f"--servers-file {servers_file}: {error}") from None


def named_server(text: str, servers_file: Path | None) -> NamedServer:
    """A name of the file's, or a server as it is written."""
    for server in in_file(servers_file):
        if server.name == text:
            return server
    try:
        return parse_server(text, user=_account())
    except ValueError as error:
        raise click.UsageError(f"--server: {error}") from None


@contextmanager
def exit_codes_of(server: NamedServer) -> Iterator[None]:
    """End the command with what a failure on the way to `server` stands for."""
    try:
        yield
    except StateError as error:
        fail(str(error), EXIT_CONFIGURATION)
    except (ConnectError, ConnectionLostError) as error:
        fail(f"{server}: {error}", EXIT_UNAVAILABLE)
    except WorkerError as error:
        fail(f"{server}: {error}", EXIT_FAILED)


def credential(
    key: Path | None, sealing_key: SealingKey | None, *, ask_passphrase: bool
) -> Credential:
    """Ends the command where the private key, which may be sealed, cannot be used."""
    name_account()
    path = key or _usual_key()
    text = _key_text(path)
    passphrase = click.prompt("Passphrase", hide_input=True, err=True) if ask_passphrase else None
    found = Credential(Secret(text), Secret(passphrase) if passphrase else None)
    try:
        open_credential(found, sealing_key)
    except PassphraseError as error:
        expected = "another" if ask_passphrase else "--ask-passphrase"
        fail(f"{path}: {error}; expected {expected}", EXIT_CONFIGURATION)
    except AuthenticationError as error:
        fail(f"{path}: {error}; expected a private key", EXIT_CONFIGURATION)
    return found


def _usual_key() -> Path:
    folder = Path(os.path.expanduser("~")) / ".ssh"  # noqa: PTH111  Path's raises without a home
    for name in USUAL_KEYS:
        if (folder / name).is_file():
            return folder / name
    raise click.UsageError(f"{folder} has none of {', '.join(USUAL_KEYS)}; expected --key FILE")


def _key_text(path: Path) -> str:
    """Ends the command where it cannot be read."""
    try:
        return path.read_text()
    except (OSError, UnicodeDecodeError) as error:
        fail(f"{path}: {error}; expected a private key", EXIT_CONFIGURATION)
