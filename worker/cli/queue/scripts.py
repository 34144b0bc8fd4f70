"""What scripts are run with, and `cronium-worker queue add-event`."""

import json
import math
from collections.abc import Callable
from pathlib import Path
from typing import TypedDict, Unpack

import click
import msgspec

from worker.cli.parameters import (
    FILE,
    Assignment,
    Directory,
    Duration,
    Name,
    text_of,
    type_of,
)
from worker.cli.queue.opened import database_option, opened
from worker.clock import now_ms
from worker.queue_server.model import Script, ScriptType

TYPES = {"bash": ScriptType.BASH, "python": ScriptType.PYTHON, "node": ScriptType.NODEJS}


class ScriptOptions(TypedDict):
    """What `script_options` adds, but for the servers."""

    script_type: str | None
    environment: tuple[tuple[str, str], ...]
    timeout: float
    script_input: str
    workdir: str


def script_options(command: Callable[..., None]) -> Callable[..., None]:
    """What a script is run with; shared by add-event and submit."""
    for option in reversed(
        (
            click.option(
                "--server",
                "servers",
                type=Name(),
                multiple=True,
                help="Run on this one; repeatable.",
            ),
            click.option(
                "--type",
                "script_type",
                type=click.Choice(list(TYPES)),
                help="The script's language.  [default: by the file's suffix, else bash]",
            ),
            click.option(
                "--env",
                "environment",
                type=Assignment(only_unicode=True),
                multiple=True,
                help="A variable of the script's environment; repeatable.",
            ),
            click.option(
                "--timeout", type=Duration(), default="1h", show_default=True, help="Its limit."
            ),
            click.option("--input", "script_input", default="{}", help="Its input, as JSON."),
            click.option(
                "--workdir", type=Directory(), default="", help="The directory to run it in."
            ),
        )
    ):
        command = option(command)
    return command


@click.command("add-event")
@database_option
@click.argument("name", type=Name())
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
    script = script_of(script_file, options)
    with opened(database) as store:
        event_id = store.put_event(name, script, servers, now_ms())
    click.echo(f"event {name} has id {event_id}", err=True)


def script_of(file: Path, options: ScriptOptions) -> Script:
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
