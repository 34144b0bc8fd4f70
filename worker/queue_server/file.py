"""The queue's file: opening it, and what may be wrong with it."""

import sqlite3
from collections.abc import Iterator
from contextlib import contextmanager
from importlib import resources
from pathlib import Path

from worker.database import Database
from worker.errors import SealedValueError, StateError
from worker.queue_server.keys import Keyring


def check_file(path: Path) -> None:
    """Raises StateError, or OSError, if what there is at `path` cannot be a queue's file.

    Makes nothing where there is none; secrets made beside it would be of no use to anybody.
    """
    if path.exists():
        _open_any(path).close()


def open_database(path: Path, keyring: Keyring) -> Database:
    """Made where there is none, with its directory; what is in it is sealed with `keyring`.

    Raises StateError if it was sealed with another key, and StateError or OSError if what there is
    at `path` cannot be a queue's file.
    """
    path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
    database = _open_any(path)
    try:
        _check_key(database, keyring)
    except BaseException:
        database.close()
        raise
    return database


@contextmanager
def faults_named(path: Path) -> Iterator[None]:
    """Has what SQLite finds wrong with the file raised as StateError, with its name."""
    try:
        yield
    except sqlite3.Error as error:
        raise StateError(f"{path}: {error}") from error


def _open_any(path: Path) -> Database:
    """Whatever key it was sealed with."""
    try:
        return Database(path, resources.files("worker.queue_server") / "migrations")
    except (sqlite3.Error, StateError) as error:
        raise StateError(f"{path}: {error}") from error


def _check_key(database: Database, keyring: Keyring) -> None:
    with database.transaction() as tx:
        row = tx.execute("SELECT value FROM settings WHERE name = 'key_check'").fetchone()
        if row is None:
            tx.execute("INSERT INTO settings VALUES ('key_check', ?)", (keyring.key.seal("ok"),))
            return
    try:
        keyring.key.open(row[0])
    except SealedValueError as error:
        raise StateError(
            "the queue's database was sealed with another key: CRONIUM_ENCRYPTION_KEY must be "
            "what it was when the database was made (unset, if it was)"
        ) from error
