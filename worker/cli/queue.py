"""`cronium-worker queue`: the embedded queue, its servers, events and jobs."""

import json
import math
import os
import signal
import sys
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, TextIO, TypedDict, Unpack

import click
import msgspec
import trio

from worker.cli.exits import EXIT_CONFIGURATION, EXIT_INTERRUPTED, fail
from worker.cli.host_key import HostKeyText
from worker.cli.parameters import (
    FILE,
    MOST_ROWS,
    Assignment,
    Duration,
    Moment,
    Place,
    text_of,
    type_of,
)
from worker.cli.printing import print_table
from worker.clock import now_ms, rfc3339
from worker.errors import SettingsError, StateError, WorkerError
from worker.log_forms import printable
from worker.queue_server.follow import follow, outcome, state
from worker.queue_server.keys import api_token, jwt_secret, open_keyring
from worker.queue_server.model import Execution, JobReport, Priority, Script, ScriptType, Server
from worker.queue_server.serve import ServeSettings, Tls, is_loopback, serve
from worker.queue_server.store import Store
from worker.queue_server.transform import execution_row, job_row
from worker.remote.given_keys import GivenKey
from worker.shown.fold import harmless_lines
from worker.values import is_header_text

DEFAULT_DATABASE = "~/.local/state/cronium-worker/queue.db"
MAX_EXIT_CODE = 255

TYPES = {"bash": ScriptType.BASH, "python": ScriptType.PYTHON, "node": ScriptType.NODEJS}


Options = Callable[[Callable[..., None]], Callable[..., None]]


class ScriptOptions(TypedDict):
    """What `script_options` adds, but for the servers."""

    script_type: str | None
    environment: tuple[tuple[str, str], ...]
    timeout: float
    script_input: str
    workdir: str


database_option: Options = click.option(
    "--db",
    "database",
    type=Place(is_directory=False),
    envvar="CRONIUM_QUEUE_DB",
    default=lambda: Path(DEFAULT_DATABASE).expanduser(),
    show_default=f"$CRONIUM_QUEUE_DB or {DEFAULT_DATABASE}",
    help="The queue's file.",
)


def script_options(command: Callable[..., None]) -> Callable[..., None]:
    """What a script is run with; shared by add-event and submit."""
    for option in reversed(
        (
            click.option("--server", "servers", multiple=True, help="Run on this one; repeatable."),
            click.option(
                "--type",
                "script_type",
                type=click.Choice(list(TYPES)),
                help="The script's language.  [default: by the file's suffix, else bash]",
            ),
            click.option(
                "--env",
                "environment",
                type=Assignment(),
                multiple=True,
                help="A variable of the script's environment; repeatable.",
            ),
            click.option(
                "--timeout", type=Duration(), default="1h", show_default=True, help="Its limit."
            ),
            click.option("--input", "script_input", default="{}", help="Its input, as JSON."),
            click.option("--workdir", default="", help="The directory to run it in."),
        )
    ):
        command = option(command)
    return command


@click.group()
def queue() -> None:
    """An embedded queue: the Cronium app's queue API over one SQLite file.

    \b
    Example:
      cronium-worker queue serve &
      cronium-worker queue add-server web-1 --host 10.0.0.5 --user deploy --key-file ~/.ssh/id
      cronium-worker queue submit --script hello.sh --server web-1 --wait
    """


@queue.command("serve")
@database_option
@click.option("--host", default="127.0.0.1", show_default=True, help="The address to listen on.")
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
    envvar="CRONIUM_JWT_SECRET_FILE",
    show_envvar=True,
    help="Has the secret that workers sign scripts' tokens with.",
)
@click.option("--lease", type=Duration(), default="60s", show_default=True, help="Of a claim.")
@click.option("--tls-cert", type=FILE, help="The certificate chain, PEM.")
@click.option("--tls-key", type=FILE, help="The certificate's key, PEM.")
@click.option("--insecure", is_flag=True, help="Let other machines connect without TLS.")
def serve_command(
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

    The runtime API, at the same address, is served if there is a secret for it: --jwt-secret-file
    or CRONIUM_JWT_SECRET. Workers need the same one, and this address as CRONIUM_RUNTIME_URL.
    Without it their scripts have variables all the same, by the queue API. There are no tool
    actions.

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
    with _errors_shown():
        keyring = open_keyring(database, os.environ)
        token, kept_in = api_token(database, os.environ, token_file)
        if not is_header_text(token.reveal()):
            where = kept_in or "CRONIUM_API_TOKEN"
            raise click.UsageError(f"{where}: expected a token of visible ASCII characters")
        if kept_in is not None:
            click.echo(f"the token is in {kept_in}", err=True)
        secret = jwt_secret(os.environ, jwt_secret_file)
        if secret is None:
            click.echo(
                "no runtime API: neither --jwt-secret-file nor CRONIUM_JWT_SECRET is given",
                err=True,
            )
        settings = ServeSettings(database, keyring, token, host, port, lease, tls, secret)
        trio.run(_serve_until_signalled, settings)


async def _serve_until_signalled(settings: ServeSettings) -> None:
    with trio.open_signal_receiver(signal.SIGINT, signal.SIGTERM) as signals:
        await serve(settings, signals.__anext__, _print_ready)


def _print_ready(address: str) -> None:
    click.echo(f"queue ready at {address}")


@queue.command("add-server")
@database_option
@click.argument("name")
@click.option("--host", required=True, help="Its address.")
@click.option("--port", type=click.IntRange(1, 65535), default=22, show_default=True)
@click.option("--user", required=True, help="The account to log into.")
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
            "NAME": server.name,
            "--host": server.host,
            "--user": server.username,
            f"the key in {key_file}": server.private_key,
            f"the password in {password_file}": server.password,
        }
    )
    with _opened(database, is_new=True) as store:
        server_id = store.put_server(server, now_ms())
    click.echo(f"server {name} has id {server_id}", err=True)


def _refuse_nothing(given: Mapping[str, str | None]) -> None:
    for what, text in given.items():
        if text is not None and not text.strip():
            raise click.UsageError(f"{what} is empty")


@queue.command("add-event")
@database_option
@click.argument("name")
@click.option("--script", "script_file", type=FILE, required=True, help="What it runs.")
@script_options
def add_event(
    database: Path,
    name: str,
    script_file: Path,
    servers: tuple[str, ...],
    **options: Unpack[ScriptOptions],
) -> None:
    """Add an event, a script with its servers, or replace the one of that name.

    \b
    Example:
      cronium-worker queue add-event backup --script backup.sh --server db-1 --timeout 30m
    """
    if not servers:
        raise click.UsageError("give at least one --server")
    script = _script(script_file, options)
    with _opened(database) as store:
        event_id = store.put_event(name, script, servers, now_ms())
    click.echo(f"event {name} has id {event_id}", err=True)


@queue.command("submit")
@database_option
@click.argument("event", required=False)
@click.option("--script", "script_file", type=FILE, help="A script given on the spot.")
@script_options
@click.option(
    "--priority",
    type=click.Choice([priority.name.lower() for priority in Priority]),
    default="normal",
    show_default=True,
    help="Higher is claimed first.",
)
@click.option("--at", "scheduled_for", type=Moment(), help="Not before this: a time, or +10m.")
@click.option("--wait", is_flag=True, help="Show its progress; exit with its exit code.")
@click.pass_context
def submit(
    ctx: click.Context,
    /,
    database: Path,
    event: str | None,
    script_file: Path | None,
    servers: tuple[str, ...],
    priority: str,
    scheduled_for: int | None,
    wait: bool,
    **options: Unpack[ScriptOptions],
) -> None:
    """Queue a job of EVENT, or of a script and servers given on the spot; print its id.

    With --wait, Ctrl-C leaves the job running.

    \b
    Examples:
      cronium-worker queue submit backup --at +10m
      cronium-worker queue submit --script hello.sh --server web-1 --server web-2 --wait
    """
    if (event is None) == (script_file is None):
        raise click.UsageError("give either an EVENT or --script")
    if event is not None:
        _refuse_script_options(ctx)
    elif not servers:
        raise click.UsageError("--script needs at least one --server")
    level = Priority[priority.upper()]
    given = None if script_file is None else (script_file.name, _script(script_file, options))
    with _opened(database) as store:
        if given is not None:
            job_id = store.submit_script(
                *given, servers, now_ms(), priority=level, scheduled_for=scheduled_for
            )
        else:
            assert event is not None  # noqa: S101  one of the two is there
            job_id = store.submit(
                event,
                now_ms(),
                priority=level,
                scheduled_for=scheduled_for,
                environment=dict(options["environment"]),
            )
        click.echo(job_id)
        if wait:
            sys.exit(_wait(store, job_id))


def _refuse_script_options(ctx: click.Context) -> None:
    for name in ("servers", "script_type", "timeout", "script_input", "workdir"):
        if ctx.get_parameter_source(name) is click.core.ParameterSource.COMMANDLINE:
            option = next(param.opts[0] for param in ctx.command.params if param.name == name)
            raise click.UsageError(f"{option} goes with --script; an EVENT has its own")


def _wait(store: Store, job_id: str) -> int:
    try:
        for line in follow(store, job_id):
            click.echo(line, err=True)
    except KeyboardInterrupt:
        click.echo(f"{job_id} goes on; see: cronium-worker queue show {job_id}", err=True)
        return EXIT_INTERRUPTED
    code = store.report(job_id).exit_code or 0
    return min(code, MAX_EXIT_CODE) if code >= 0 else MAX_EXIT_CODE


@queue.command("jobs")
@database_option
@click.option("--limit", type=click.IntRange(1, MOST_ROWS), default=50, show_default=True)
@click.option("--json", "as_json", is_flag=True, help="One JSON array.")
def jobs(database: Path, limit: int, as_json: bool) -> None:
    """List jobs, the newest first.

    \b
    Example:
      cronium-worker queue jobs --json
    """
    with _opened(database) as store:
        found = store.jobs(limit)
    if as_json:
        click.echo(json.dumps([job_row(job) for job in found], indent=2))
        return
    print_table(
        ("job", "event", "status", "exit", "priority", "created", "worker"),
        [
            (
                job.id,
                job.event_name,
                state(job),
                str((job.result or {}).get("exitCode", "")),
                Priority(job.priority).name.lower(),
                rfc3339(job.created_at),
                job.orchestrator_id or "",
            )
            for job in found
        ],
    )


@queue.command("show")
@database_option
@click.argument("job")
@click.option("--json", "as_json", is_flag=True, help="One JSON object.")
@click.option("--output", is_flag=True, help="Only the job's stdout and stderr, to ours.")
def show(database: Path, job: str, as_json: bool, output: bool) -> None:
    """Show a job: its servers with outcome, exit code and phase times.

    \b
    Example:
      cronium-worker queue show job_Xh7bQ2mK9sLp --output
    """
    with _opened(database) as store:
        report = store.report(job)
    if as_json:
        click.echo(json.dumps(_report_json(report), indent=2))
    elif output:
        _print_output(report.stdout, sys.stdout, err=False)
        _print_output(report.stderr, sys.stderr, err=True)
    else:
        _print_report(report)


@queue.command("cancel")
@database_option
@click.argument("job")
def cancel(database: Path, job: str) -> None:
    """Cancel a job; a worker that runs it is told by its next heartbeat.

    \b
    Example:
      cronium-worker queue cancel job_Xh7bQ2mK9sLp
    """
    with _opened(database) as store:
        after = store.cancel(job, now_ms())
    if after.status != "cancelled":
        raise click.ClickException(f"{job} is over already: {after.status}")
    click.echo(f"{job}: {after.status}", err=True)


def _script(file: Path, options: ScriptOptions) -> Script:
    try:
        value = json.loads(options["script_input"])
        # Neither half of a surrogate pair nor a number that JSON has no word for.
        msgspec.json.encode(value)
        json.dumps(value, allow_nan=False)
    except RecursionError as error:
        raise click.UsageError("--input is nested too deep") from error
    except ValueError as error:  # UnicodeEncodeError is one
        raise click.UsageError(f"--input is not JSON: {error}") from error
    given = options["script_type"]
    return Script(
        type=TYPES[given or type_of(file)],
        content=text_of(file),
        working_directory=options["workdir"],
        environment=dict(options["environment"]),
        input=value,
        timeout_seconds=math.ceil(options["timeout"]),
    )


def _report_json(report: JobReport) -> dict[str, Any]:
    return {
        **job_row(report.job),
        "outcome": report.job.outcome,
        "exitCode": report.exit_code,
        "message": report.message,
        "executions": [execution_row(execution) for execution in report.executions],
        "output": {"stdout": report.stdout, "stderr": report.stderr},
    }


def _print_output(text: str, stream: TextIO, *, err: bool) -> None:
    if stream.isatty():  # where it could do more than be read
        text = "".join(f"{line}\n" for line in harmless_lines(text.encode(errors="replace")))
    click.echo(text, nl=False, err=err)


def _print_report(report: JobReport) -> None:
    job = report.job
    exit_code = "" if report.exit_code is None else f", exit {report.exit_code}"
    click.echo(printable(f"{job.id}  {job.event_name}  {state(job)}{exit_code}"))
    if report.message:
        click.echo(printable(report.message))
    if not report.executions:
        return
    print_table(
        ("server", "outcome", "exit", "setup", "execution", "error"),
        [_cells(execution) for execution in report.executions],
    )


def _cells(execution: Execution) -> tuple[str, ...]:
    durations = (execution.setup_duration, execution.execution_duration)
    return (
        execution.server_name or f"server {execution.server_id}",
        outcome(execution),
        "" if execution.exit_code is None else str(execution.exit_code),
        *("" if ms is None else f"{ms / 1000:.2f} s" for ms in durations),
        execution.error or "",
    )


def _text(file: Path | None) -> str | None:
    return None if file is None else text_of(file)


def _line(file: Path | None) -> str | None:
    return None if file is None else text_of(file).rstrip("\r\n")


@contextmanager
def _opened(database: Path, *, is_new: bool = False) -> Iterator[Store]:
    """Where there is none it is made only if it may be `is_new`."""
    with _errors_shown():
        if not is_new and not database.exists():
            raise StateError(
                f"{database}: there is no queue; `queue serve` and `queue add-server` make one"
            )
        store = Store.open(database, open_keyring(database, os.environ))
        try:
            yield store
        finally:
            store.close()


@contextmanager
def _errors_shown() -> Iterator[None]:
    """Errors that an operator can act on, as a line on stderr, or one for each setting; exit
    code 2 where settings, or what they name, cannot be used, else 1."""
    try:
        yield
    except (SettingsError, StateError) as error:
        fail(str(error), EXIT_CONFIGURATION)
    except (WorkerError, OSError) as error:
        raise click.ClickException(str(error)) from error
