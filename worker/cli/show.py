"""`cronium-worker show`: one job of this worker's."""

import sys

import click

from worker.cli.exits import EXIT_FAILED, fail
from worker.cli.history import job_row, opened_history, status
from worker.cli.parameters import Name
from worker.cli.printing import print_json, print_table, width
from worker.clock import rfc3339
from worker.dispatch.result import ServerResult
from worker.log_forms import printable
from worker.shown.fold import both_streams, fold_lines, harmless_lines
from worker.shown.names import folded, natural_key
from worker.shown.timeline import Span, duration, timeline
from worker.state.history import KeptOutput, PastExecution, PastJob

Ended = tuple[ServerResult, KeptOutput | None]


@click.command
@click.argument("job_id", type=Name("id"), metavar="JOB")
@click.argument("server", required=False)
@click.option("--output", is_flag=True, help="What the scripts printed, of SERVER if one is given.")
@click.option(
    "--fold", is_flag=True, help="As --output, with servers that printed the same as one."
)
@click.option("--json", "as_json", is_flag=True, help="Print a JSON object.")
def show(job_id: str, server: str | None, output: bool, fold: bool, as_json: bool) -> None:
    """Show a job: each server's outcome, exit code, error, and when it did what.

    In the timeline · is waiting, ░ setup and █ execution. Of each stream the first and last 8 KiB
    are kept, without secrets; --output SERVER prints them to our stdout and stderr as they are,
    and without what would move a cursor where ours are a terminal.

    \b
    Examples:
      cronium-worker show job_Xh7bQ2mK9sLp
      cronium-worker show job_Xh7bQ2mK9sLp --fold
      cronium-worker show job_Xh7bQ2mK9sLp --output web-1
    """
    if server is not None and not (output or as_json):
        raise click.UsageError("SERVER goes with --output or --json")
    if fold and (server is not None or as_json):
        raise click.UsageError("--fold is of all servers, for people: give it alone")
    with opened_history() as past:
        job = past.job(job_id)
        executions = past.executions(job_id)
    if job is None:
        fail(f"{job_id}: this worker's state has no such job; see: history", EXIT_FAILED)
    ended = [each for each in _ended(executions) if server in (None, *_called(each[0]))]
    if server is not None and not ended:
        fail(f"{job_id}: no execution on {server} has ended", EXIT_FAILED)
    if as_json:
        print_json(job_row(job) | {"executions": [execution_row(*each) for each in ended]})
    elif fold:
        _say_what_is_missing(ended)
        kept = [
            (result.server_name, both_streams(output.stdout, output.stderr))
            for result, output in ended
            if output
        ]
        kept += [(result.server_name, b"") for result, output in ended if not output]
        for line in fold_lines(kept):
            click.echo(line)
    elif output:
        _say_what_is_missing(ended)
        for result, kept_output in ended:
            if kept_output is not None:
                _print_output(result.server_name if len(ended) > 1 else "", kept_output)
    else:
        _print_job(job, [result for result, _ in ended])


def _ended(executions: list[PastExecution]) -> list[Ended]:
    found = [(ServerResult.from_json(each.result), each.output) for each in executions]
    return sorted(found, key=lambda each: natural_key(each[0].server_name))


def _called(result: ServerResult) -> tuple[str, str]:
    return result.server_name, result.server_id


def _print_output(name: str, output: KeptOutput) -> None:
    for content, stream, err in (
        (output.stdout, sys.stdout, False), (output.stderr, sys.stderr, True),
    ):  # fmt: skip
        if name or stream.isatty():
            prefix = f"[{name}] " if name else ""
            for line in harmless_lines(content):
                click.echo(prefix + line, err=err)
        else:
            click.echo(content, nl=False, err=err)


def _say_what_is_missing(ended: list[Ended]) -> None:
    names = [result.server_name for result, output in ended if output is None]
    if names:
        click.echo(f"no output, or it had to make way for newer: {folded(names)}", err=True)


def _print_job(job: PastJob, results: list[ServerResult]) -> None:
    ended_at = "" if job.ended_at is None else f", took {duration(job.ended_at - job.began_at)}"
    click.echo(printable(f"{job.job_id} {job.event}".rstrip()))
    click.echo(f"{status(job)}, began {rfc3339(job.began_at)}{ended_at}")
    if job.end is not None:
        click.echo(printable(job.end.message))
    if results:
        bars = timeline([_span(result) for result in results], width())
        print_table(
            ("server", "outcome", "exit", "setup", "execution", "timeline", "error"),
            [
                (
                    result.server_name,
                    result.outcome,
                    str(result.exit_code),
                    _took(result.times.setup_ms),
                    _took(result.times.execution_ms),
                    bar,
                    result.error or "",
                )
                for result, bar in zip(results, bars, strict=True)
            ],
        )
    known = {result.execution_id for result in results}
    running = [name for execution_id, name in job.servers.items() if execution_id not in known]
    if running and job.end is None:
        click.echo(f"running: {folded(running)}")


def _took(ms: int | None) -> str:
    return "" if ms is None else duration(ms)


def _span(result: ServerResult) -> Span:
    times = result.times
    return Span(result.started_at, result.ended_at, times.setup_ms or 0, times.execution_ms or 0)


def execution_row(result: ServerResult, output: KeptOutput | None) -> dict[str, object]:
    return {
        "execution_id": result.execution_id,
        "server_id": result.server_id,
        "server": result.server_name,
        "outcome": result.outcome,
        "exit_code": result.exit_code,
        "error": result.error,
        "started_at": rfc3339(result.started_at),
        "ended_at": rfc3339(result.ended_at),
        "setup_ms": result.times.setup_ms,
        "execution_ms": result.times.execution_ms,
        "runner": result.runner,
        "stdout": None if output is None else output.stdout.decode(errors="replace"),
        "stderr": None if output is None else output.stderr.decode(errors="replace"),
    }
