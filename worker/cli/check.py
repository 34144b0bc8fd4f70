"""`cronium-worker check`: the whole set-up in one look."""

import json
import os
import re
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict
from functools import partial
from pathlib import Path

import click
from rich.console import Console
from rich.text import Text

from worker.checkup import (
    Finding,
    Say,
    Verdict,
    failed,
    look_at_api,
    look_at_machine,
    look_at_settings,
)
from worker.cli.access import credential
from worker.cli.exits import EXIT_FAILED
from worker.cli.printing import silence_log
from worker.cli.running import name_account, run
from worker.database import Database
from worker.errors import StateError
from worker.remote.address import parse_address
from worker.remote.target import Credential, Target
from worker.secret import Secret
from worker.settings import Settings
from worker.state.directory import DATABASE, MIGRATIONS, open_beside
from worker.trial import Trial

_STYLES = {Verdict.PASSED: "green", Verdict.WARNED: "yellow", Verdict.FAILED: "red"}


class ServerName(click.ParamType[tuple[str, str, int]]):
    name = "user@host[:port]"

    def convert(
        self, value: object, param: click.Parameter | None, ctx: click.Context | None
    ) -> tuple[str, str, int]:
        user, at, rest = str(value).rpartition("@")
        try:
            address = parse_address(rest)
        except ValueError:
            address = None
        if address is None or not at or not re.fullmatch(r"\S+", user):
            self.fail(f"{value!r} is not USER@HOST or USER@HOST:PORT", param, ctx)
        return user, address.host, address.port


@click.command
@click.option("--server", type=ServerName(), help="Also go the whole way to this server.")
@click.option(
    "--key",
    "key_file",
    type=click.Path(path_type=Path, dir_okay=False, exists=True),
    help="The private key for --server.",
)
@click.option("--ask-passphrase", is_flag=True, help="Ask for the passphrase of --key.")
@click.option("--ask-password", is_flag=True, help="Ask for the password for --server.")
@click.option("--json", "as_json", is_flag=True, help="Print a JSON array.")
def check(
    server: tuple[str, str, int] | None,
    key_file: Path | None,
    ask_passphrase: bool,
    ask_password: bool,
    as_json: bool,
) -> None:
    """Look through the set-up: settings, keys, state, files, the API and the clock.

    Nothing is claimed, and a worker may be running. With --server it connects as a job would,
    looks for a shell and tools, deploys the runner and runs `true`. It pins the host key if that
    is new and a worker has been started on CRONIUM_STATE_DIR; before, nothing is kept of it. The
    exit code is 1 if anything failed; a warning is none.

    \b
    Examples:
      cronium-worker check
      cronium-worker check --server deploy@web-1:2222 --key ~/.ssh/id_ed25519
    """
    if server is not None and (key_file is None) is not ask_password:
        raise click.UsageError("--server takes one of --key and --ask-password")
    if server is None and (key_file is not None or ask_password):
        raise click.UsageError("--key and --ask-password are for --server")
    if ask_passphrase and key_file is None:
        raise click.UsageError("--ask-passphrase is for --key")
    password = click.prompt("Password", hide_input=True, err=True) if ask_password else None
    findings: list[Finding] = []
    console = Console(markup=False, highlight=False, soft_wrap=True)

    def say(finding: Finding) -> None:
        findings.append(finding)
        if not as_json:
            console.print(_line(finding))

    silence_log()
    name_account()
    loaded = look_at_settings(os.environ, say)
    if loaded is not None:
        target = None
        if server is not None:
            user, host, port = server
            given = (
                credential(key_file, loaded.encryption_key, ask_passphrase=ask_passphrase)
                if password is None
                else Credential(password=Secret(password))
            )
            target = Target(host, port, user, given)
        look_at_machine(loaded, say)
        run(partial(look_at_api, loaded, say))
        if target is not None:
            run(partial(_try_server, loaded, target, say))
    if as_json:
        click.echo(json.dumps([asdict(finding) for finding in findings], indent=2))
    if any(finding.verdict is Verdict.FAILED for finding in findings):
        sys.exit(EXIT_FAILED)


async def _try_server(loaded: Settings, target: Target, say: Say) -> None:
    try:
        with _state(loaded.state_dir) as database:
            await Trial(target, loaded, database, say).run()
    except StateError as error:
        say(failed("state", str(error), "see the lines above"))


@contextmanager
def _state(directory: Path) -> Iterator[Database]:
    """The worker's own, with its pinned keys; where there is none yet, or it may not be looked for,
    one that is thrown away."""
    if os.path.exists(directory / DATABASE):  # noqa: PTH110  Path's raises where it may not look
        with open_beside(directory) as database:
            yield database
        return
    with tempfile.TemporaryDirectory() as folder:
        database = Database(Path(folder) / DATABASE, MIGRATIONS)
        try:
            yield database
        finally:
            database.close()


def _line(finding: Finding) -> Text:
    took = "" if finding.seconds is None else f" ({1000 * finding.seconds:.0f} ms)"
    advice = f"\n        → {finding.advice}" if finding.advice else ""
    return Text.assemble(
        (f"{finding.verdict:<7}", _STYLES[finding.verdict]),
        f" {finding.subject}: {finding.told}{took}{advice}",
    )
