"""Jobs of the embedded queue: `cronium-worker queue submit`, `jobs`, `show` and `cancel`."""

import json
import os
import sys
from pathlib import Path
from typing import Any, TextIO, Unpack

import click

from worker.cli.exits import EXIT_INTERRUPTED, MOST_EXIT_CODE
from worker.cli.parameters import FILE, MOST_ROWS, Moment, Name
from worker.cli.printing import print_table
from worker.cli.queue.opened import database_option, opened
from worker.cli.queue.scripts import ScriptOptions, script_of, script_options
from worker.clock import now_ms, rfc3339
from worker.log_forms import printable
from worker.queue_server.follow import follow, outcome, server_name, state
from worker.queue_server.model import Execution, JobReport, Priority
from worker.queue_server.store import Store
from worker.queue_server.transform import execution_row, job_row
from worker.shown.fold import harmless_lines


@click.command("submit")
@database_option
@click.argument("event", type=Name(), required=False)
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
    given = None if script_file is None else (_label(script_file), script_of(script_file, options))
    with opened(database) as store:
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
    # Outside, where an output that cannot be written is no fault of the queue's.
    click.echo(job_id)
    if wait:
        with opened(database) as store:
            sys.exit(_wait(store, job_id))


def _label(file: Path) -> str:
    """The file's name, also where that is not UTF-8."""
    return os.fsencode(file.name).decode(errors="replace")


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
    return min(code, MOST_EXIT_CODE) if code >= 0 else MOST_EXIT_CODE


@click.command("jobs")
@database_option
@click.option(
    "--limit",
    type=click.IntRange(1, MOST_ROWS),
    default=50,
    show_default=True,
    help="How many at most.",
)
@click.option("--json", "as_json", is_flag=True, help="One JSON array.")
def jobs(database: Path, limit: int, as_json: bool) -> None:
    """List jobs, the newest first.

    \b
    Example:
      cronium-worker queue jobs --json
    """
    with opened(database) as store:
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


@click.command("show")
@database_option
@click.argument("job", type=Name("id"))
@click.option("--json", "as_json", is_flag=True, help="One JSON object.")
@click.option("--output", is_flag=True, help="Only the job's stdout and stderr, to ours.")
def show(database: Path, job: str, as_json: bool, output: bool) -> None:
    """Show a job: its servers with outcome, exit code and phase times.

    Of a job that is not over --output prints to stdout what its worker has told so far.

    \b
    Example:
      cronium-worker queue show job_Xh7bQ2mK9sLp --output
    """
    if as_json and output:
        raise click.UsageError("--json has the output, too: give one of --json and --output")
    with opened(database) as store:
        report = store.report(job)
    if as_json:
        click.echo(json.dumps(_report_json(report), indent=2))
    elif output and not report.is_over:
        click.echo(f"{report.job.id} is {state(report.job)}: its output so far", err=True)
        _print_output(_output_so_far(report), sys.stdout, err=False)
    elif output:
        _print_output(report.stdout, sys.stdout, err=False)
        _print_output(report.stderr, sys.stderr, err=True)
    else:
        _print_report(report)


@click.command("cancel")
@database_option
@click.argument("job", type=Name("id"))
def cancel(database: Path, job: str) -> None:
    """Cancel a job; a worker that runs it is told by its next heartbeat.

    \b
    Example:
      cronium-worker queue cancel job_Xh7bQ2mK9sLp
    """
    with opened(database) as store:
        after = store.cancel(job, now_ms())
    if after.status != "cancelled":
        raise click.ClickException(f"{job} is over already: {after.status}")
    click.echo(f"{job}: {after.status}", err=True)


def _report_json(report: JobReport) -> dict[str, Any]:
    return {
        **job_row(report.job),
        "outcome": report.job.outcome,
        "exitCode": report.exit_code,
        "message": report.message,
        "executions": [execution_row(execution) for execution in report.executions],
        "output": {"stdout": report.stdout, "stderr": report.stderr},
    }


def _output_so_far(report: JobReport) -> str:
    """Each line with its server's name where there are several, as in what a job ends with."""
    lines = []
    for execution in report.executions:
        prefix = f"[{server_name(execution)}] " if len(report.executions) > 1 else ""
        lines += [f"{prefix}{line}\n" for line in (execution.output or "").splitlines()]
    return "".join(lines)


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
        server_name(execution),
        outcome(execution),
        "" if execution.exit_code is None else str(execution.exit_code),
        *("" if ms is None else f"{ms / 1000:.2f} s" for ms in durations),
        execution.error or "",
    )
