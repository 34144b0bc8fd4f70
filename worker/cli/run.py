"""`cronium-worker run`: the worker."""

import gc
import os
import sys
import textwrap
from dataclasses import replace
from functools import partial

import click
import structlog
import trio

from worker import logs
from worker.cli import configured
from worker.cli.exits import EXIT_CONFIGURATION, EXIT_TRY_AGAIN, fail
from worker.cli.running import name_account
from worker.errors import SettingsError, StateError, StateLockedError, first_of
from worker.file_limit import connections_within, raise_file_limit
from worker.masking import compiled
from worker.service import serve
from worker.settings import Settings, secrets_of
from worker.settings.environment import unknown_variables
from worker.settings.variables import VARIABLES
from worker.state.directory import open_state
from worker.state.identity import worker_id
from worker.telemetry.opening import open_telemetry


def _variables() -> str:
    """Every setting, for the end of `--help`."""
    lines = ["\b", "Environment:"]
    for variable in VARIABLES:
        default = f" (default {variable.default})" if variable.default else ""
        lines.append(f"  {variable.name}{default}")
        text = f"{variable.meaning}; {variable.expected}"
        lines += textwrap.wrap(text, 84, initial_indent="      ", subsequent_indent="      ")
    return "\n".join(lines)


def _with_files_enough(loaded: Settings, files: int) -> Settings:
    """With no more connections than there can be."""
    wanted = loaded.ssh.max_connections
    possible = connections_within(files, wanted)
    if possible == wanted:
        return loaded
    structlog.get_logger().warning(
        "file_limit_low", files=files, connections=possible, wanted_connections=wanted
    )
    return replace(loaded, ssh=replace(loaded.ssh, max_connections=possible))


def spare_the_collector() -> None:
    """Have Python look for garbage less often.

    A job leaves some that only the collector finds. With its usual thresholds, and all that was
    imported to look through, it took a twentieth of the processor time of a job, and now and then
    0.1 s in which nothing else was done.
    """
    gc.set_threshold(5000, 10, 10)


@click.command(epilog=_variables())
def run() -> None:
    """Claim jobs from the queue and run them until SIGTERM.

    Configured by environment variables alone. Each secret can be given as a file instead, whose
    path is in the variable of the same name with _FILE behind it.

    \b
    Example:
      CRONIUM_API_ENDPOINT=https://cronium.example.com \\
      CRONIUM_API_TOKEN_FILE=/run/secrets/cronium-token cronium-worker run

    The first SIGTERM or SIGINT lets running jobs finish, the second cancels them, the third
    ends the process at once.
    """
    files = raise_file_limit()
    name_account()
    try:
        loaded = configured.load(os.environ)
    except SettingsError as error:
        faults = (*error.faults, *unknown_variables(os.environ))
        fail("\n".join(faults), EXIT_CONFIGURATION)
    try:
        with open_state(loaded.state_dir) as database:
            name = worker_id(database, loaded.orchestrator_id)
            writer = logs.configure(
                loaded.logs, worker_id=name, colours=not os.environ.get("NO_COLOR")
            )
            logs.mask_with(compiled(secrets_of(loaded)).mask_text)
            for warning in unknown_variables(os.environ):
                structlog.get_logger().warning("unknown_variable", message=warning)
            loaded = _with_files_enough(loaded, files)
            telemetry = open_telemetry(os.environ, name)
            spare_the_collector()
            try:
                all_said = trio.run(partial(serve, loaded, database, name, telemetry))
            except* StateError as group:
                raise StateError(str(first_of(group))) from group
            finally:
                telemetry.close()
                writer.close()
        if not all_said:
            # What is left is said at the next start on this state.
            sys.exit(EXIT_TRY_AGAIN)
    except StateLockedError as error:
        fail(str(error), EXIT_TRY_AGAIN)
    except StateError as error:
        fail(str(error), EXIT_CONFIGURATION)
