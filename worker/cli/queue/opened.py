"""The file of the embedded queue, as its commands open it."""

import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import click

from worker.cli.exits import EXIT_CONFIGURATION, fail
from worker.cli.parameters import Place
from worker.errors import SettingsError, StateError, WorkerError
from worker.queue_server.file import check_file, faults_named
from worker.queue_server.keys import open_keyring
from worker.queue_server.store import Store

DEFAULT_DATABASE = "~/.local/state/cronium-worker/queue.db"

Options = Callable[[Callable[..., None]], Callable[..., None]]

database_option: Options = click.option(
    "--db",
    "database",
    type=Place(is_directory=False),
    envvar="CRONIUM_QUEUE_DB",
    default=lambda: Path(os.path.expanduser(DEFAULT_DATABASE)),  # noqa: PTH111  Path's raises without a home
    show_default=f"$CRONIUM_QUEUE_DB or {DEFAULT_DATABASE}",
    help="The queue's file.",
)


@contextmanager
def opened(database: Path, *, is_new: bool = False) -> Iterator[Store]:
    """Where there is none it is made only if it may be `is_new`."""
    with errors_shown(), faults_named(database):
        if not is_new and not database.exists():
            raise StateError(
                f"{database}: there is no queue; `queue serve` and `queue add-server` make one"
            )
        check_file(database)
        store = Store.open(database, open_keyring(database, os.environ))
        try:
            yield store
        finally:
            store.close()


@contextmanager
def errors_shown() -> Iterator[None]:
    """Errors that an operator can act on, as a line on stderr, or one for each setting; exit
    code 2 where settings, or what they name, cannot be used, else 1."""
    try:
        yield
    except (SettingsError, StateError) as error:
        fail(str(error), EXIT_CONFIGURATION)
    except WorkerError as error:
        raise click.ClickException(str(error)) from error
    except OSError as error:
        if error.filename is not None:
            fail(f"{error.filename}: {error.strerror}", EXIT_CONFIGURATION)
        raise click.ClickException(str(error.strerror or error)) from error
