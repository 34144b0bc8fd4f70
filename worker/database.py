"""One SQLite file: opening it, its migrations, transactions off the event loop."""

import errno
import os
import re
import sqlite3
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager, suppress
from importlib.resources.abc import Traversable
from pathlib import Path
from typing import TypeVar

import structlog
import trio

from worker.errors import EarlierStateError, StateError
from worker.file_lock import lock_within
from worker.serial_thread import SerialThread, Work

T = TypeVar("T")

log = structlog.get_logger()

# Something else stands where our file belongs: to wait does not help.
_IN_THE_WAY = (errno.ENOTDIR, errno.EISDIR, errno.ELOOP)
# A full disk, a failing one, another process's lock: worth waiting for.
_PASSING = (sqlite3.SQLITE_FULL, sqlite3.SQLITE_IOERR, sqlite3.SQLITE_BUSY)
STUCK_SECONDS = 1.0
# How long another process's lock is waited for.
BUSY_SECONDS = 10.0


class Database:
    """Made where there is none, for this account alone.

    Raises OSError or sqlite3.Error if the file cannot be opened, StateError if it is not of this
    program, of a newer version than `migrations` know, or of an older one and is not to be
    migrated."""

    def __init__(
        self,
        path: Path | str,
        migrations: Traversable,
        *,
        migrate: bool = True,
        inline: bool = False,
    ) -> None:
        self._inline = inline
        # Whether something waits for room.
        self.is_stuck = False
        self._after_commit: list[Callable[[], object]] = []
        # Within a transaction that a caller has opened, and within one around several callers'.
        self._is_open = self._is_shared = False
        self._thread = SerialThread(self._do)
        with _opening_alone(path):
            if isinstance(path, Path):
                # SQLite gives its -wal and -shm files the mode of the database.
                os.close(os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600))
            self._connection = sqlite3.connect(path, isolation_level=None, check_same_thread=False)
            try:
                self._set_up(migrations, migrate=migrate)
            except BaseException:
                self._connection.close()
                raise

    def _set_up(self, migrations: Traversable, *, migrate: bool) -> None:
        # An outbox that can lose a commit in a power cut is no outbox.
        self._connection.execute("PRAGMA synchronous = FULL")
        self._connection.execute("PRAGMA foreign_keys = ON")
        # Commands such as `queue submit` write to the file beside the server.
        self._connection.execute(f"PRAGMA busy_timeout = {round(BUSY_SECONDS * 1000)}")
        self._migrate(migrations, is_allowed=migrate)
        # Readers never wait for the writer. It stays in the file: not in one that is not ours.
        self._connection.execute("PRAGMA journal_mode = WAL")

    async def run(self, work: Callable[[], T]) -> T:
        """Run `work` off the event loop, one at a time; it is never cut short, and may be done
        again.

        Calls that wait while a commit is being synced are committed together after it: `work` may
        find a transaction open before it opens its own.

        A disk that is full, or fails, is waited for: what would be lost otherwise is what this
        file exists for. Raises StateError if SQLite refuses for a reason that does not pass.
        """
        waited = False
        while True:
            try:
                result = await self._run_once(work)
            except sqlite3.IntegrityError:
                raise  # a constraint is the store's own word to its caller
            except OSError as error:  # of a file beside it, which `work` reads
                if error.errno in _IN_THE_WAY:
                    raise StateError(f"the state cannot be used: {error}") from error
                self._note_stuck(error)
                waited = True
            except sqlite3.Error as error:
                # The primary code; the rest of it says where within SQLite it came up.
                if getattr(error, "sqlite_errorcode", 0) & 0xFF not in _PASSING:
                    raise StateError(f"the database cannot be used: {error}") from error
                self._note_stuck(error)
                waited = True
            else:
                # Only who has waited knows: a read succeeds on a full disk.
                if waited and self.is_stuck:
                    log.info("state_writable_again")
                    self.is_stuck = False
                return result
            await trio.sleep(STUCK_SECONDS)

    def _note_stuck(self, error: Exception) -> None:
        if not self.is_stuck:
            log.warning("state_unwritable", error=str(error))
        self.is_stuck = True

    async def _run_once(self, work: Callable[[], T]) -> T:
        if self._inline:
            await trio.lowlevel.checkpoint()
            return work()
        return await self._thread.run(work)

    def _do(self, works: Sequence[Work]) -> None:
        if len(works) == 1 or not self._do_together(works):
            for work in works:
                work.do()

    def _do_together(self, works: Sequence[Work]) -> bool:
        """With one commit for all; where that fails, or one of them finds fault with the database,
        each is to be done by itself."""
        self._is_shared = True
        is_begun = False
        try:
            with self._transaction("BEGIN IMMEDIATE", "COMMIT", "ROLLBACK"):
                is_begun = True
                for work in works:
                    work.do()
                    if isinstance(work.failure, sqlite3.Error):
                        raise work.failure
        except sqlite3.Error as error:
            if is_begun:
                return False
            # Another process has it locked: not each of them is to wait as long again.
            for work in works:
                work.failure = error
            return True
        finally:
            self._is_shared = False
        self._act()
        return True

    @contextmanager
    def transaction(self) -> Iterator[sqlite3.Connection]:
        """All or nothing; within another one, a part of that."""
        if self._is_open:
            yield self._connection
            return
        self._is_open = True
        try:
            with (
                self._transaction("SAVEPOINT own", "RELEASE own", "ROLLBACK TO own; RELEASE own")
                if self._is_shared
                else self._transaction("BEGIN IMMEDIATE", "COMMIT", "ROLLBACK")
            ):
                yield self._connection
        finally:
            self._is_open = False
        self._act()

    @contextmanager
    def _transaction(self, begin: str, commit: str, roll_back: str) -> Iterator[None]:
        self._connection.execute(begin)
        before = len(self._after_commit)
        try:
            yield
            self._connection.execute(commit)
        except BaseException:
            del self._after_commit[before:]
            # On a full disk SQLite has done so by itself.
            if self._connection.in_transaction:
                for statement in roll_back.split("; "):
                    self._connection.execute(statement)
            raise

    def _act(self) -> None:
        if not self._connection.in_transaction:
            actions, self._after_commit = self._after_commit, []
            for action in actions:
                try:
                    action()
                except Exception:  # the commit stands, and no caller is to be told otherwise
                    log.exception("after_commit_fault")

    def after_commit(self, action: Callable[[], object]) -> None:
        """Do `action` once the present transaction holds, and not at all if it does not."""
        self._after_commit.append(action)

    def close(self) -> None:
        self._thread.close()
        self._connection.close()

    def _migrate(self, migrations: Traversable, *, is_allowed: bool) -> None:
        """Apply the files `NNNN_name.sql` that this database has not had, one transaction each."""
        numbered = {
            int(file.name[:4]): file
            for file in migrations.iterdir()
            if re.fullmatch(r"\d{4}_\w+\.sql", file.name)
        }
        (version,) = self._connection.execute("PRAGMA user_version").fetchone()
        newest = max(numbered)
        if version == 0 and self._connection.execute("SELECT 1 FROM sqlite_master").fetchone():
            raise StateError("it is the database of another program")
        if version > newest:
            raise StateError(
                f"the database is of version {version}, this program knows {newest}: "
                "it was written by a newer release"
            )
        if version < newest and not is_allowed:
            raise EarlierStateError(
                f"the database is of version {version}, this program needs {newest}: "
                "a worker of this release has to be started on it first"
            )
        for number in sorted(numbered):
            if number > version:
                self._connection.executescript(
                    f"BEGIN IMMEDIATE; {numbered[number].read_text()}\n"
                    f"PRAGMA user_version = {number}; COMMIT;"
                )


@contextmanager
def _opening_alone(path: Path | str) -> Iterator[None]:
    """While nobody else opens a database in that directory, as far as that can be had: of two that
    make its tables at once one would fail."""
    with ExitStack() as opened:
        if isinstance(path, Path):
            # The directory, as to close the file itself would end SQLite's own locks on it.
            with suppress(OSError):  # may not be read, or is on a disk without locks
                folder = os.open(path.parent, os.O_RDONLY | os.O_CLOEXEC)
                opened.callback(os.close, folder)
                lock_within(folder, BUSY_SECONDS)
        yield
