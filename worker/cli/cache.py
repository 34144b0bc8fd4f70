"""`cronium-worker cache`: which runner lies where, as a worker remembers it."""

from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path

import click

from worker.cli.access import (
    access_options,
    credential,
    exit_codes_of,
    named_server,
    server_option,
)
from worker.cli.configured import load_without_queue
from worker.cli.exits import EXIT_FAILED, fail
from worker.cli.parameters import Name
from worker.cli.printing import print_json, print_table, silence_log
from worker.cli.running import run
from worker.cli.state import opened_state
from worker.clock import now_ms, rfc3339
from worker.direct.servers import NamedServer
from worker.direct.visit import connect
from worker.errors import RunnerMissingError
from worker.remote.address import Address
from worker.remote.artifact import Artifact, load_artifact
from worker.remote.connection import Connection
from worker.remote.runner import deploy, verify
from worker.state.directory import open_beside
from worker.state.runner_cache import CachedRunner, CacheEntry, RunnerCache, ServerKey


@click.group()
def cache() -> None:
    """The runners that a worker has deployed, one a server and account.

    From CRONIUM_STATE_DIR; a worker may be running on it. It deploys by itself what is not here,
    and what turns out to be gone: these commands are for looking, and for deploying beforehand.
    CRONIUM_SSH_* and CRONIUM_SETUP_TIMEOUT (300s) count.

    \b
    Examples:
      cronium-worker cache list
      cronium-worker cache verify --server deploy@10.0.0.1 --key deploy.pem
    """


@cache.command("list")
@click.option("--json", "as_json", is_flag=True, help="Print a JSON array.")
def list_command(as_json: bool) -> None:
    """List what lies where, since when, and how often that has spared a deployment.

    \b
    Example:
      cronium-worker cache list --json
    """
    with _cache() as kept:
        entries = kept.all()
    current = load_artifact()
    if as_json:
        print_json([_row(each, current) for each in entries])
        return
    print_table(
        ("id", "server", "runner", "deployed", "verified", "hits", "path"),
        [
            (
                each.key.server_id,
                _name(each.key),
                each.runner.artifact + ("" if _is_current(each, current) else " (another)"),
                rfc3339(each.deployed_at),
                rfc3339(each.runner.verified_at),
                str(each.hits),
                each.runner.path,
            )
            for each in entries
        ],
    )


@cache.command("forget")
@click.argument("ids", nargs=-1, type=Name("id"), metavar="[ID]...")
@click.option("--all", "every", is_flag=True, help="All servers.")
def forget(ids: tuple[str, ...], every: bool) -> None:
    """Forget the runners of servers, by the app's ids of them: the next job deploys anew.

    What lies on a server stays there, until its runner has not been used for 30 days.

    \b
    Example:
      cronium-worker cache forget 12 17
    """
    if bool(ids) == every:
        raise click.UsageError("give either ID... or --all")
    with _cache() as kept:
        entries = [each for each in kept.all() if every or each.key.server_id in ids]
        for each in entries:
            kept.drop(each.key)
    for each in entries:
        click.echo(f"{each.key.server_id} {_name(each.key)}")
    known = {each.key.server_id for each in entries}
    if missing := [each for each in ids if each not in known]:
        fail("\n".join(f"nothing is known of a server {each}" for each in missing), EXIT_FAILED)


@cache.command("verify")
@server_option
@access_options
def verify_command(
    server: str, servers_file: Path | None, key: Path | None, ask_passphrase: bool
) -> None:
    """Compare the digest of the runner on a server; one that is not what it was is forgotten.

    \b
    Example:
      cronium-worker cache verify --server deploy@10.0.0.1 --key deploy.pem
    """
    loaded = load_without_queue()
    there = named_server(server, servers_file)
    opened = credential(key, loaded.encryption_key, ask_passphrase=ask_passphrase)
    silence_log()
    with exit_codes_of(there), open_beside(loaded.state_dir) as database:
        kept = RunnerCache(database)
        entries = [each for each in kept.all() if _is_of(each.key, there)]
        if not entries:
            fail(f"{there}: no runner of it is known", EXIT_FAILED)
        wrong = run(partial(connect, loaded, database, there, opened, partial(_wrong, entries)))
        for each in entries:
            if each.key in wrong:
                kept.drop(each.key)
            else:
                kept.verified(each.key, now=now_ms())
                click.echo(f"{each.key.server_id} {_name(each.key)} {each.runner.path}")
    if wrong:
        fail("\n".join(f"{_name(each)}: {why}" for each, why in wrong.items()), EXIT_FAILED)


@cache.command("deploy")
@server_option
@access_options
@click.option(
    "--id",
    "ids",
    type=Name("id"),
    multiple=True,
    help="The app's id of it, where it is not known yet.",
)
def deploy_command(
    server: str,
    servers_file: Path | None,
    key: Path | None,
    ask_passphrase: bool,
    ids: tuple[str, ...],
) -> None:
    """Put the runner on a server and remember that, for no job to spend the time.

    A host key that is new is pinned, as a job would do it.

    \b
    Example:
      cronium-worker cache deploy --server deploy@10.0.0.1 --key deploy.pem --id 12
    """
    loaded = load_without_queue()
    there = named_server(server, servers_file)
    opened = credential(key, loaded.encryption_key, ask_passphrase=ask_passphrase)
    silence_log()
    with exit_codes_of(there), open_beside(loaded.state_dir) as database:
        kept = RunnerCache(database)
        address = there.address
        keys = {each.key for each in kept.all() if _is_of(each.key, there)}
        keys |= {ServerKey(each, address.host, address.port, there.user) for each in ids}
        if not keys:
            raise click.UsageError(
                f"nothing is known of {there} yet; expected --id, the app's id of it"
            )
        runner = run(partial(connect, loaded, database, there, opened, _deployed))
        for each in sorted(keys, key=lambda key: key.server_id):
            kept.put(each, runner)
            click.echo(f"{each.server_id} {_name(each)} {runner.path}")


async def _wrong(entries: list[CacheEntry], connection: Connection) -> dict[ServerKey, str]:
    """What is not as it is remembered, and why."""
    wrong = {}
    for each in entries:
        if each.runner.host_key != connection.host_key.fingerprint:
            wrong[each.key] = "it was deployed to a server with another host key"
            continue
        try:
            await verify(connection, each.runner.path, each.runner.sha256)
        except RunnerMissingError as error:
            wrong[each.key] = str(error)
    return wrong


async def _deployed(connection: Connection) -> CachedRunner:
    artifact = load_artifact()
    path = await deploy(connection, artifact)
    host_key = connection.host_key.fingerprint
    return CachedRunner(artifact.version, artifact.sha256, path, host_key, now_ms())


@contextmanager
def _cache() -> Iterator[RunnerCache]:
    with opened_state() as database:
        yield RunnerCache(database)


def _is_of(key: ServerKey, server: NamedServer) -> bool:
    address = server.address
    return (key.host, key.port, key.user) == (address.host, address.port, server.user)


def _is_current(entry: CacheEntry, current: Artifact) -> bool:
    return entry.runner.sha256 == current.sha256


def _name(key: ServerKey) -> str:
    return f"{key.user}@{Address(key.host, key.port)}"


def _row(entry: CacheEntry, current: Artifact) -> dict[str, object]:
    return {
        "server_id": entry.key.server_id,
        "host": entry.key.host,
        "port": entry.key.port,
        "user": entry.key.user,
        "artifact": entry.runner.artifact,
        "is_current": _is_current(entry, current),
        "sha256": entry.runner.sha256,
        "path": entry.runner.path,
        "host_key": entry.runner.host_key,
        "deployed_at": rfc3339(entry.deployed_at),
        "verified_at": rfc3339(entry.runner.verified_at),
        "hits": entry.hits,
    }
