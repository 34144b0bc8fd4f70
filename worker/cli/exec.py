"""`cronium-worker exec`: a script on servers, without a queue."""

import os
import sys
import tempfile
from collections.abc import Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import TypedDict, Unpack

import click
import trio

from worker import logs
from worker.cli.access import ServerOption, access_options, credential, directory_option, servers_of
from worker.cli.configured import load_without_queue
from worker.cli.exits import EXIT_CONFIGURATION, EXIT_INTERRUPTED, MOST_EXIT_CODE, fail
from worker.cli.parameters import FILE, Assignment, Directory, Duration, type_of
from worker.cli.printing import print_json, print_table
from worker.cli.show import execution_row
from worker.database import Database
from worker.direct.call import Call, CallEnd, Left
from worker.direct.last import keep_last, unsuccessful
from worker.direct.plan import Order, plan_order
from worker.direct.reach import open_remote
from worker.direct.screen import Screen
from worker.direct.servers import NamedServer
from worker.dispatch.plan import DEFAULT_LIMIT_SECONDS, Plan
from worker.dispatch.result import ServerResult
from worker.errors import JobError, StateError, first_of
from worker.file_limit import raise_file_limit
from worker.settings import LogFormat, LogLevel, Settings
from worker.shown.fold import both_streams, fold_lines
from worker.shown.timeline import duration
from worker.state.directory import open_shared
from worker.state.spool import Spools
from worker.trigger import Trigger


class Options(TypedDict):
    kind: str | None
    environment: tuple[tuple[str, str], ...]
    workdir: str
    timeout: float


@click.command("exec")
@click.option("-s", "--server", "servers", type=ServerOption(), multiple=True,
              help="A server; repeatable.")  # fmt: skip
@access_options
@click.option("--retry-failed", is_flag=True, help="The last call's servers without success.")
@click.option("--type", "kind", type=click.Choice(["bash", "python", "node"]),
              help="Default: by SCRIPT's suffix (.py, .js, .mjs, .cjs), else bash.")  # fmt: skip
@click.option(
    "-e",
    "--env",
    "environment",
    type=Assignment(),
    multiple=True,
    help="A variable of the script's environment; repeatable.",
)
@click.option("--workdir", type=Directory(), default="",
              help="The script's directory (default: one of its own).")  # fmt: skip
@click.option("--timeout", type=Duration(), default=float(DEFAULT_LIMIT_SECONDS),
              help="The script's limit (default: 1h).")  # fmt: skip
@click.option("--fold", is_flag=True, help="No lines as they come: at the end, folded output.")
@click.option("--json", "as_json", is_flag=True, help="No lines as they come: a JSON object.")
@click.option("-v", "--verbose", is_flag=True, help="The worker's own log, to stderr.")
@directory_option
@click.argument("script", type=FILE)
def exec_script(
    servers: tuple[NamedServer, ...],
    servers_file: Path | None,
    key: Path | None,
    ask_passphrase: bool,
    retry_failed: bool,
    fold: bool,
    as_json: bool,
    verbose: bool,
    directory: Path,
    script: Path,
    **options: Unpack[Options],
) -> None:
    """Run SCRIPT on servers, without a queue.

    By the same ways as a worker: the runner is deployed, the run outlives a lost connection, and
    is forgotten at the end. The first Ctrl-C ends the runs, the second leaves them to themselves
    and names them. CRONIUM_SSH_* and the limits of the environment count, and no other setting is
    needed.

    Exits with the sum of the servers' exit codes, 255 at most; 130 after Ctrl-C; 2 for wrong
    usage or configuration.

    \b
    Examples:
      cronium-worker exec -s web-1=deploy@10.0.0.1 -s web-2=deploy@10.0.0.2:2222 uptime.sh
      cronium-worker exec --servers-file web.txt --key deploy.pem --fold versions.sh
      cronium-worker exec --retry-failed --key deploy.pem fixed.sh
    """
    if fold and as_json:
        raise click.UsageError("--fold is for people and --json for programs: expected one of them")
    if retry_failed and (servers or servers_file):
        raise click.UsageError("--retry-failed takes the servers of the last call, and no others")
    try:
        loaded = load_without_queue()
        chosen = unsuccessful(directory) if retry_failed else servers_of(servers, servers_file)
        if not chosen:
            if retry_failed:
                click.echo("the last call succeeded on all servers", err=True)
                return
            raise click.UsageError("no server is given: expected --server or --servers-file")
        order = Order(
            script.read_bytes(),
            options["kind"] or type_of(script),
            chosen,
            credential(key, loaded.encryption_key, ask_passphrase=ask_passphrase),
            dict(options["environment"]),
            options["workdir"],
            options["timeout"],
        )
        plan = plan_order(order, loaded)
        raise_file_limit()
        level = loaded.logs.level if verbose else LogLevel.ERROR
        log = replace(loaded.logs, level=level, format=LogFormat.CONSOLE)
        writer = logs.configure(
            log, worker_id="exec", stream=sys.stderr.buffer, colours=not os.environ.get("NO_COLOR")
        )
        try:
            with open_shared(directory, "--directory") as database:
                run = partial(_run, loaded, database, directory, order, plan)
                try:
                    end, was_cancelled = trio.run(partial(run, shows_lines=not (fold or as_json)))
                except* StateError as group:
                    raise StateError(str(first_of(group))) from group
        finally:
            writer.close()
    except (JobError, StateError) as error:
        fail(str(error), EXIT_CONFIGURATION)
    except KeyboardInterrupt:
        sys.exit(EXIT_INTERRUPTED)
    if isinstance(end, Left):
        fail(_told(end), EXIT_INTERRUPTED)
    _print(end, fold=fold, as_json=as_json)
    sys.exit(EXIT_INTERRUPTED if was_cancelled else min(end.job.exit_code, MOST_EXIT_CODE))


# The name of the command, and of the module's attribute that the group looks for.
exec = exec_script  # noqa: A001  that of the command


async def _run(
    loaded: Settings,
    database: Database,
    directory: Path,
    order: Order,
    plan: Plan,
    *,
    shows_lines: bool,
) -> tuple[CallEnd | Left, bool]:
    cancelled = Trigger()
    screen = Screen(
        len(plan.executions),
        sys.stdout.buffer,
        sys.stderr.buffer,
        shows_lines=shows_lines,
        nobody_reads=cancelled.set,
    )

    def keep(results: Sequence[ServerResult]) -> None:
        outcomes = {each.server_name: each.outcome for each in results}
        try:
            keep_last(directory, order.servers, outcomes)
        except StateError as error:  # no reason to lose what the scripts have done
            click.echo(
                f"cronium-worker: the call cannot be kept for --retry-failed: {error}", err=True
            )

    keep_last(directory, order.servers, {})
    with tempfile.TemporaryDirectory(prefix="cronium-exec-") as spools:
        async with open_remote(loaded.ssh, database) as remote:
            call = Call(
                plan, remote, loaded, Spools(Path(spools)), screen, cancelled=cancelled, keep=keep
            )
            end = await call.run()
    return end, cancelled.is_set()


def _told(left: Left) -> str:
    if not left.executions:
        return "no run goes on"
    lines = [f"{each.server.name}: the run {each.id} may go on" for each in left.executions]
    return "\n".join((*lines, "see: cronium-worker runs list, runs signal"))


def _print(end: CallEnd, *, fold: bool, as_json: bool) -> None:
    pairs = list(zip(end.results, end.outputs, strict=True))
    if as_json:
        print_json(
            {
                "status": end.job.status,
                "exit_code": end.job.exit_code,
                "message": end.job.message,
                "executions": [execution_row(*pair) for pair in pairs],
            }
        )
        return
    if fold:
        outputs = [
            (result.server_name, both_streams(output.stdout, output.stderr))
            for result, output in pairs
        ]
        for line in fold_lines(outputs):
            click.echo(line)
    print_table(
        ("server", "outcome", "exit", "setup", "execution", "error"),
        [
            (
                result.server_name,
                result.outcome,
                str(result.exit_code),
                "" if result.times.setup_ms is None else duration(result.times.setup_ms),
                "" if result.times.execution_ms is None else duration(result.times.execution_ms),
                result.error or "",
            )
            for result in end.results
        ],
        err=True,
    )
    click.echo(end.job.message, err=True)
