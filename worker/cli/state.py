"""The state of CRONIUM_STATE_DIR, for commands that look at it beside a worker."""

import os
from collections.abc import Iterator
from contextlib import contextmanager

import click

from worker.cli.exits import EXIT_CONFIGURATION, fail
from worker.database import Database
from worker.errors import SettingsError, StateError
from worker.settings.environment import load_state_dir, unknown_variables
from worker.state.directory import open_beside


@contextmanager
def opened_state() -> Iterator[Database]:
    """Warns of unknown variables, and ends the command where the state cannot be used."""
    warn_of_unknown_variables()
    try:
        with open_beside(load_state_dir(os.environ)) as database:
            yield database
    except (SettingsError, StateError) as error:
        fail(str(error), EXIT_CONFIGURATION)


def warn_of_unknown_variables() -> None:
    for warning in unknown_variables(os.environ):
        click.echo(f"cronium-worker: {warning}", err=True)
