"""The state directory: made, locked, and its database opened."""

import fcntl
import os
import sqlite3
from collections.abc import Iterator
from contextlib import contextmanager
from importlib.resources import files
from pathlib import Path
from typing import TextIO

from worker.database import Database
from worker.errors import StateError, StateLockedError
from worker.file_lock import lock_within

DATABASE = "state.db"
LOCK = "lock"
HEARTBEAT = "heartbeat"
READY = "ready"
STATUS = "status.json"
SPOOLS = "spool"
BEGUN = "begun"

MIGRATIONS = files("worker.state") / "migrations"

# A command that asks for the `holder` has the lock itself for some microseconds.
LOOKED_AT_SECONDS = 0.15


@contextmanager
def open_state(directory: Path) -> Iterator[Database]:
    """The database of `directory`, which belongs to this process alone until the end.

    Raises StateLockedError if another worker has it, StateError if it cannot be used.
    """
    try:
        directory.mkdir(mode=0o700, parents=True, exist_ok=True)
        lock = (directory / LOCK).open("a+")
    except OSError as error:
        raise StateError(f"CRONIUM_STATE_DIR {directory}: {error.strerror}") from error
    with lock:
        if not _has(lock):
            lock.seek(0)
            holder = lock.read().strip() or "unknown"
            raise StateLockedError(
                f"CRONIUM_STATE_DIR {directory} is in use by another worker (pid {holder}); "
                "each worker needs a state directory of its own"
            )
        lock.truncate(0)
        lock.write(f"{os.getpid()}\n")
        lock.flush()
        try:
            database = Database(directory / DATABASE, MIGRATIONS)
        except (OSError, sqlite3.Error, StateError) as error:
            raise StateError(f"CRONIUM_STATE_DIR {directory}: {DATABASE}: {error}") from error
        try:
            yield database
        finally:
            database.close()


def _has(lock: TextIO) -> bool:
    try:
        return lock_within(lock.fileno(), LOOKED_AT_SECONDS)
    except OSError:
        return False


@contextmanager
def open_shared(directory: Path, name: str) -> Iterator[Database]:
    """The database of a `directory` that is no worker's, made where there is none; several
    processes may have it. `name` says in errors where the directory comes from.

    Raises StateError if it cannot be used.
    """
    try:
        directory.mkdir(mode=0o700, parents=True, exist_ok=True)
        database = Database(directory / DATABASE, MIGRATIONS)
    except OSError as error:
        raise StateError(f"{name} {directory}: {error.strerror}") from error
    except (sqlite3.Error, StateError) as error:
        raise StateError(f"{name} {directory}: {DATABASE}: {error}") from error
    try:
        yield database
    except sqlite3.Error as error:
        raise StateError(f"{name} {directory}: {DATABASE}: {error}") from error
    finally:
        database.close()


@contextmanager
def open_beside(directory: Path) -> Iterator[Database]:
    """The database of `directory` for a command, whether a worker is running on it or not.

    Raises StateError if there is none, it is of another version, or it cannot be used.
    """
    path = directory / DATABASE
    try:
        path.stat()  # opening it would make it
        database = Database(path, MIGRATIONS, migrate=False)
    except FileNotFoundError:
        raise StateError(
            f"CRONIUM_STATE_DIR {directory}: there is no {DATABASE}; a worker has to be started "
            "on it first"
        ) from None
    except (OSError, sqlite3.Error, StateError) as error:
        raise StateError(f"CRONIUM_STATE_DIR {directory}: {error}") from error
    try:
        yield database
    except sqlite3.Error as error:
        raise StateError(f"CRONIUM_STATE_DIR {directory}: {DATABASE}: {error}") from error
    finally:
        database.close()


def holder(directory: Path) -> str | None:
    """The pid of the worker that has `directory`, as it wrote it there; None if none has."""
    try:
        with (directory / LOCK).open("r+") as lock:
            fcntl.flock(lock, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except BlockingIOError:
        return (directory / LOCK).read_text().strip() or "unknown"
    except OSError:
        pass  # there is none yet
    return None
