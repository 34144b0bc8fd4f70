"""`cronium-worker runs`: what lies on a server."""

from collections.abc import Awaitable, Callable, Iterable
from functools import partial
from pathlib import Path
from typing import TypedDict, TypeVar, Unpack

import click

from worker.cli.access import (
    access_options,
    credential,
    directory_option,
    exit_codes_of,
    named_server,
    server_option,
)
from worker.cli.configured import load_without_queue
from worker.cli.exits import EXIT_FAILED, fail
from worker.cli.parameters import Name
from worker.cli.printing import print_json, print_table, silence_log
from worker.cli.running import run
from worker.direct.visit import visit
from worker.errors import ConnectError, ConnectionLostError, WorkerError
from worker.remote.runner import RunOnServer
from worker.remote.session import ServerSession
from worker.shown.timeline import duration
from worker.state.directory import open_shared

T = TypeVar("T")
F = TypeVar("F", bound=Callable[..., object])


class Access(TypedDict):
    server: str
    servers_file: Path | None
    key: Path | None
    ask_passphrase: bool
    directory: Path


def server_options(command: F) -> F:
    return server_option(access_options(directory_option(command)))


@click.group()
def runs() -> None:
    """The runs on a server, of the account that is logged into, whoever started them.

    A worker forgets a run once the API has its result; the runner itself after 7 days. What
    a command needs of host keys and the runner cache is that of `exec`. CRONIUM_SSH_* and
    CRONIUM_SETUP_TIMEOUT (300s) count.

    \b
    Examples:
      cronium-worker runs list --server deploy@10.0.0.1
      cronium-worker runs signal --server web-1 --servers-file web.txt exec_job_7_1_0
    """


@runs.command("list")
@server_options
@click.option("--json", "as_json", is_flag=True, help="Print a JSON array.")
def list_command(as_json: bool, **access: Unpack[Access]) -> None:
    """List what runs and what has ended there.

    \b
    Example:
      cronium-worker runs list --server deploy@10.0.0.1 --key deploy.pem --json
    """
    found = _visit(access, ServerSession.list_runs)
    if as_json:
        print_json([_row(run) for run in found])
        return
    print_table(
        ("run", "state", "began", "stdout", "stderr"),
        [
            (
                run.execution_id,
                run.state,
                f"{duration(run.age_seconds * 1000)} ago",
                str(run.stdout_bytes),
                str(run.stderr_bytes),
            )
            for run in found
        ],
    )


@runs.command("signal")
@server_options
@click.argument("ids", nargs=-1, required=True, type=Name("id"), metavar="RUN...")
def signal(ids: tuple[str, ...], **access: Unpack[Access]) -> None:
    """End runs as a cancelled job's: TERM to all of their processes, 5 s, KILL.

    A worker that is attached reports them as cancelled.

    \b
    Example:
      cronium-worker runs signal --server deploy@10.0.0.1 exec_job_7_1_0
    """
    _each(access, ids, ServerSession.signal)


@runs.command("forget")
@server_options
@click.argument("ids", nargs=-1, type=Name("id"), metavar="[RUN]...")
@click.option("--ended", is_flag=True, help="All that have ended, or were lost.")
def forget(ids: tuple[str, ...], ended: bool, **access: Unpack[Access]) -> None:
    """Remove runs that have ended, with their output; they are never started again.

    A worker that has not fetched all of it reports them as lost.

    \b
    Examples:
      cronium-worker runs forget --server deploy@10.0.0.1 exec_job_7_1_0
      cronium-worker runs forget --server deploy@10.0.0.1 --ended
    """
    if bool(ids) == ended:
        raise click.UsageError("give either RUN... or --ended")
    _each(access, ids, ServerSession.forget)


def ended(found: Iterable[RunOnServer]) -> list[str]:
    """The ids of those that are over, however they ended."""
    return [run.execution_id for run in found if run.state != "running"]


def _each(
    access: Access,
    ids: tuple[str, ...],
    do: Callable[[ServerSession, str], Awaitable[None]],
) -> None:
    """Without `ids`, with each that has ended."""

    async def work(session: ServerSession) -> tuple[list[str], list[str]]:
        found = {run.execution_id: run for run in await session.list_runs()}
        chosen = ids or ended(found.values())
        done, faults = [], []
        for execution_id in chosen:
            # Of one that is not there, the runner would keep in mind never to start it.
            if execution_id not in found:
                faults.append(f"{execution_id}: there is no such run")
                continue
            try:
                await do(session, execution_id)
            except (ConnectError, ConnectionLostError):
                raise
            except WorkerError as error:
                faults.append(f"{execution_id}: {error}")
            else:
                done.append(execution_id)
        return done, faults

    done, faults = _visit(access, work)
    for execution_id in done:
        click.echo(execution_id)
    if faults:
        fail("\n".join(faults), EXIT_FAILED)


def _visit(access: Access, do: Callable[[ServerSession], Awaitable[T]]) -> T:
    silence_log()
    loaded = load_without_queue()
    server = named_server(access["server"], access["servers_file"])
    opened = credential(
        access["key"], loaded.encryption_key, ask_passphrase=access["ask_passphrase"]
    )
    with exit_codes_of(server), open_shared(access["directory"], "--directory") as database:
        return run(partial(visit, loaded, database, server, opened, do))


def _row(run: RunOnServer) -> dict[str, object]:
    return {
        "execution_id": run.execution_id,
        "state": run.state,
        "age_seconds": run.age_seconds,
        "stdout_bytes": run.stdout_bytes,
        "stderr_bytes": run.stderr_bytes,
    }
