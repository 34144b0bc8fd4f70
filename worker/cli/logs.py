"""`cronium-worker logs`: a worker's JSON lines, for people."""

import os
import re
import sys
from typing import TextIO

import click

from worker.cli.parameters import Name, Since
from worker.log_forms import Console, printable
from worker.shown.log_lines import LEVELS, Wanted, read_line


class Pattern(click.ParamType[re.Pattern[str]]):
    name = "regex"

    def convert(
        self, value: object, param: click.Parameter | None, ctx: click.Context | None
    ) -> re.Pattern[str]:
        if isinstance(value, re.Pattern):
            return value
        try:
            return re.compile(str(value))
        except re.error as error:
            self.fail(f"{value!r} is no regular expression: {error}", param, ctx)


@click.command
@click.argument("files", nargs=-1, type=click.File(encoding="utf-8", errors="replace"))
@click.option("--job", "job_id", type=Name("id"), help="Of this job.")
@click.option("--server", help="Of this server, by its name or id.")
@click.option("--level", type=click.Choice(LEVELS), default=LEVELS[0], help="From this level up.")
@click.option(
    "--since",
    type=Since(),
    help="Not older: 10m, 2h, or a time (without an offset, of this machine).",
)
@click.option("--grep", "pattern", type=Pattern(), help="With this in some value.")
def logs(
    files: tuple[TextIO, ...],
    job_id: str | None,
    server: str | None,
    level: str,
    since: int | None,
    pattern: re.Pattern[str] | None,
) -> None:
    """Show a worker's log, from FILES or standard input, as it looks on a terminal.

    Each line is shown as it comes, with what a container runtime put in front of it. Times are
    UTC. What is no line of a worker's is left as it is, and left out where something is asked for.

    \b
    Examples:
      docker logs -f cronium-worker 2>&1 | cronium-worker logs --level warning
      journalctl -u cronium-worker -o cat | cronium-worker logs --job job_7 --server web-1
      cronium-worker logs --since 10m --grep 'disk|quota' worker.log
    """
    wanted = Wanted(job_id, server, level, since, pattern)
    console = Console(colours=sys.stdout.isatty() and not os.environ.get("NO_COLOR"))
    day = ""
    for file in files or (sys.stdin,):
        for text in file:
            line = read_line(text)
            if line is None:
                if wanted.is_all:
                    click.echo(printable(text.rstrip("\n")))
                continue
            if not wanted.takes(line.event):
                continue
            if line.event["timestamp"][:10] != day:
                day = line.event["timestamp"][:10]
                click.echo(f"--- {printable(day)}")
            click.echo(printable(line.prefix) + console(None, "", line.event).decode())
