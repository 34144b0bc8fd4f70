"""`cronium-worker queue serve`."""

import os
import signal
from pathlib import Path

import click
import trio

from worker.cli.parameters import FILE, Duration, Name
from worker.cli.queue.opened import database_option, errors_shown
from worker.queue_server.file import check_file
from worker.queue_server.keys import api_token, jwt_secret, open_keyring
from worker.queue_server.serve import ServeSettings, Tls, is_loopback
from worker.queue_server.serve import serve as serve_queue
from worker.values import is_header_text


@click.command("serve")
@database_option
@click.option(
    "--host",
    type=Name("address"),
    default="127.0.0.1",
    show_default=True,
    help="The address to listen on.",
)
@click.option(
    "--port",
    type=click.IntRange(0, 65535),
    default=8370,
    show_default=True,
    help="The port; 0 picks a free one.",
)
@click.option("--token-file", type=FILE, help="Has the token that workers must send.")
@click.option(
    "--jwt-secret-file",
    type=FILE,
    help="Has the secret that workers sign scripts' tokens with.",
)
@click.option("--lease", type=Duration(), default="60s", show_default=True, help="Of a claim.")
@click.option("--tls-cert", type=FILE, help="The certificate chain, PEM.")
@click.option("--tls-key", type=FILE, help="The certificate's key, PEM.")
@click.option("--insecure", is_flag=True, help="Let other machines connect without TLS.")
def serve(
    database: Path,
    host: str,
    port: int,
    token_file: Path | None,
    jwt_secret_file: Path | None,
    lease: float,
    tls_cert: Path | None,
    tls_key: Path | None,
    insecure: bool,
) -> None:
    """Serve the queue API, and scripts' variables, until SIGTERM or Ctrl-C.

    The token comes from --token-file, CRONIUM_API_TOKEN or CRONIUM_API_TOKEN_FILE; without one it
    is made once and kept beside the queue's file. Prints one line when it is ready.

    The runtime API, at the same address, is served if there is a secret for it: --jwt-secret-file,
    CRONIUM_JWT_SECRET or CRONIUM_JWT_SECRET_FILE. Workers need the same one, and this address as
    CRONIUM_RUNTIME_URL. Without it their scripts have variables all the same, by the queue API.
    There are no tool actions.

    \b
    Example:
      cronium-worker queue serve --db /var/lib/cronium/queue.db --port 8370
    """
    if (tls_cert is None) != (tls_key is None):
        raise click.UsageError("--tls-cert and --tls-key go together")
    tls = Tls(tls_cert, tls_key) if tls_cert and tls_key else None
    if tls is None and not insecure and not is_loopback(host):
        raise click.UsageError(
            f"other machines can reach {host}, and claims carry the servers' credentials: "
            "give --tls-cert and --tls-key, or --insecure if the network is trusted"
        )
    with errors_shown():
        check_file(database)
        secret = jwt_secret(os.environ, jwt_secret_file)
        keyring = open_keyring(database, os.environ)
        token, kept_in = api_token(database, os.environ, token_file)
        if not is_header_text(token.reveal()):
            where = kept_in or "CRONIUM_API_TOKEN"
            raise click.UsageError(f"{where}: expected a token of visible ASCII characters")
        if kept_in is not None:
            click.echo(f"the token is in {kept_in}", err=True)
        if secret is None:
            click.echo(
                "no runtime API: neither --jwt-secret-file nor CRONIUM_JWT_SECRET is given",
                err=True,
            )
        settings = ServeSettings(database, keyring, token, host, port, lease, tls, secret)
        trio.run(_serve_until_signalled, settings)


async def _serve_until_signalled(settings: ServeSettings) -> None:
    with trio.open_signal_receiver(signal.SIGINT, signal.SIGTERM) as signals:
        await serve_queue(settings, signals.__anext__, _print_ready)


def _print_ready(address: str) -> None:
    click.echo(f"queue ready at {address}")
