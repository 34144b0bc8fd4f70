"""`cronium-worker queue add-server`."""

from collections.abc import Mapping
from pathlib import Path

import click

from worker.cli.host_key import HostKeyText
from worker.cli.parameters import FILE, Name, text_of
from worker.cli.queue.opened import database_option, opened
from worker.clock import now_ms
from worker.queue_server.model import Server
from worker.remote.address import is_host, is_user
from worker.remote.given_keys import GivenKey


@click.command("add-server")
@database_option
@click.argument("name", type=Name())
@click.option("--host", type=Name("host", is_host), required=True, help="Its address.")
@click.option(
    "--port",
    type=click.IntRange(1, 65535),
    default=22,
    show_default=True,
    help="The port of its sshd.",
)
@click.option("--user", type=Name("user", is_user), required=True, help="The account to log into.")
@click.option("--key-file", type=FILE, help="The private key.")
@click.option("--passphrase-file", type=FILE, help="The key's passphrase.")
@click.option("--password-file", type=FILE, help="The account's password.")
@click.option(
    "--host-key",
    "host_keys",
    type=HostKeyText(),
    multiple=True,
    help="What its host key has to be; repeatable.  [default: as workers are configured]",
)
def add_server(
    database: Path,
    name: str,
    host: str,
    port: int,
    user: str,
    key_file: Path | None,
    passphrase_file: Path | None,
    password_file: Path | None,
    host_keys: tuple[GivenKey, ...],
) -> None:
    """Add a server, or replace the one of that name. Credentials are kept sealed.

    \b
    Example:
      cronium-worker queue add-server web-1 --host 10.0.0.5 --user deploy --key-file ~/.ssh/id
    """
    if (key_file is None) == (password_file is None):
        raise click.UsageError("give either --key-file or --password-file")
    if passphrase_file is not None and key_file is None:
        raise click.UsageError("--passphrase-file goes with --key-file")
    server = Server(
        id=0,
        name=name,
        host=host,
        port=port,
        username=user,
        private_key=_text(key_file),
        passphrase=_line(passphrase_file),
        password=_line(password_file),
        host_key="\n".join(key.line or key.fingerprint for key in host_keys) or None,
    )
    _refuse_nothing(
        {
            f"the key in {key_file}": server.private_key,
            f"the password in {password_file}": server.password,
        }
    )
    with opened(database, is_new=True) as store:
        server_id = store.put_server(server, now_ms())
    click.echo(f"server {name} has id {server_id}", err=True)


def _refuse_nothing(given: Mapping[str, str | None]) -> None:
    for what, text in given.items():
        if text is not None and not text.strip():
            raise click.UsageError(f"{what} is empty")


def _text(file: Path | None) -> str | None:
    return None if file is None else text_of(file)


def _line(file: Path | None) -> str | None:
    return None if file is None else text_of(file).rstrip("\r\n")
