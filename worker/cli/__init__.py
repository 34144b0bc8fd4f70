"""The command `cronium-worker`: one module per subcommand, imported when it is called."""

import errno
import io
import os
import sys
from typing import Any

import click

from worker import __version__
from worker.cli.exits import EXIT_INTERRUPTED
from worker.cli.lazy import LazyGroup

# Name of the command: module that has a click command of the same name.
COMMANDS = {
    "run": "worker.cli.run",
    "check": "worker.cli.check",
    "status": "worker.cli.status",
    "health": "worker.cli.health",
    "history": "worker.cli.history",
    "show": "worker.cli.show",
    "exec": "worker.cli.exec",
    "orphans": "worker.cli.orphans",
    "runs": "worker.cli.runs",
    "outbox": "worker.cli.outbox",
    "cache": "worker.cli.cache",
    "hosts": "worker.cli.hosts",
    "logs": "worker.cli.logs",
    "queue": "worker.cli.queue",
    "demo": "worker.cli.demo",
}


# Nothing more can be written to a disk or a terminal.
_FULL = (errno.ENOSPC, errno.EDQUOT, errno.EIO)


def _has_not_all_letters(stream: io.TextIOWrapper) -> bool:
    """In the locale C Python has it "surrogateescape", of which only UTF-8 has all."""
    return stream.errors == "strict" or (
        stream.errors == "surrogateescape" and stream.encoding.lower() != "utf-8"
    )


class Main(LazyGroup):
    """What holds for every command: streams that are closed or full, and Ctrl-C."""

    def main(self, *arguments: Any, **named: Any) -> Any:  # noqa: ANN401  click's signature
        for name, mode in (("stdin", "r"), ("stdout", "w"), ("stderr", "w")):
            if getattr(sys, name) is None:  # it was closed
                setattr(sys, name, open(os.devnull, mode))  # noqa: SIM115, PTH123  to the end
        if isinstance(sys.stdout, io.TextIOWrapper) and _has_not_all_letters(sys.stdout):
            # What a terminal has no letter for is no reason to say nothing.
            sys.stdout.reconfigure(errors="backslashreplace")
        try:
            return super().main(*arguments, **named)
        except OSError as error:
            # One that names a file is not of the output.
            if error.errno not in _FULL or error.filename is not None:
                raise
            click.echo(f"cronium-worker: the output: {error.strerror}", err=True)
            # What waits in the buffer would fail once more at the program's end.
            os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
            sys.exit(1)

    def invoke(self, ctx: click.Context) -> Any:  # noqa: ANN401  click's signature
        try:
            return super().invoke(ctx)
        except KeyboardInterrupt:
            pass
        except click.Abort as error:
            # A prompt has it so: after Ctrl-C, as where its input ends, or nobody says yes.
            if not isinstance(error.__context__, KeyboardInterrupt):
                raise
        except BaseExceptionGroup as group:  # Trio has it so, from within a nursery
            if group.split(KeyboardInterrupt)[1] is not None:
                raise
        click.echo("Aborted!", err=True)
        raise click.exceptions.Exit(EXIT_INTERRUPTED)


@click.group(cls=Main, modules=COMMANDS, context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(__version__, prog_name="cronium-worker")
def main() -> None:
    """Run Cronium's jobs on servers over SSH.

    Exit codes: 0 done, 1 failed, 2 wrong usage or configuration, 69 service unavailable, 75 try
    again later, 130 cut short by Ctrl-C.
    """
