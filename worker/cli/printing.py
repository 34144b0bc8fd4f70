"""How commands print: tables and JSON."""

import json
import logging
import sys
from collections.abc import Sequence

import click
import structlog
from rich.console import Console
from rich.table import Table
from rich.text import Text

from worker.log_forms import printable

# Into a pipe rich would take 80 columns, whatever stands in them.
PIPE_WIDTH = 200

_STYLES = {
    "success": "green", "completed": "green", "ended": "green", "running": "cyan",
    "failed": "red", "timed_out": "red", "timeout": "red", "not_deployed": "red", "lost": "red",
    "unreachable": "magenta", "cancelled": "yellow", "parked": "red",
}  # fmt: skip


def print_table(
    columns: Sequence[str], rows: Sequence[Sequence[str]], *, err: bool = False
) -> None:
    """Colours are left out where NO_COLOR says so, or nobody would see them."""
    table = Table(*columns)
    for column in table.columns:
        column.overflow = "fold"  # an id that is cut is of no use
    for row in rows:
        table.add_row(*(Text(printable(cell), style=_STYLES.get(cell, "")) for cell in row))
    stream = sys.stderr if err else sys.stdout
    width = None if stream.isatty() else PIPE_WIDTH
    Console(file=stream, width=width, highlight=False).print(table)


def print_json(value: object) -> None:
    click.echo(json.dumps(value, indent=2))


def silence_log() -> None:
    """For a command that tells in its own words what the parts would log."""
    structlog.configure(wrapper_class=structlog.make_filtering_bound_logger(logging.CRITICAL))


def width() -> int:
    """Of what may be drawn beside a table's other columns."""
    return max(10, Console().width // 3) if sys.stdout.isatty() else 40
