"""One SQLite file: opening it, its migrations, transactions off the event loop."""

import re
import sqlite3
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from importlib.resources.abc import Traversable
from pathlib import Path
from typing import TypeVar

import structlog
import trio

from worker.errors import StateError

T = TypeVar("T")

log = structlog.get_logger()

_PASSING = (sqlite3.SQLITE_FULL, sqlite3.SQLITE_IOERR, sqlite3.SQLITE_BUSY)
STUCK_SECONDS = 1.0


class Database:
    """Raises StateError if the file is of a newer version than `migrations` know, or of an older
    one and is not to be migrated."""

    def __init__(
        self,
        path: Path | str,
        migrations: Traversable,
        *,
        migrate: bool = True,
        inline: bool = False,
    ) -> None:
        self._connection = sqlite3.connect(path, isolation_level=None, check_same_thread=False)
        self._inline = inline
        # Whether something waits for room.
        self.is_stuck = False
        self._after_commit: list[Callable[[], object]] = []
        self._limiter = trio.CapacityLimiter(1)
        try:
            # Readers never wait for the writer.
            self._connection.execute("PRAGMA journal_mode = WAL")
            # An outbox that can lose a commit in a power cut is no outbox.
            self._connection.execute("PRAGMA synchronous = FULL")
            self._connection.execute("PRAGMA foreign_keys = ON")
            # Commands such as `queue submit` write to the file beside the server.
            self._connection.execute("PRAGMA busy_timeout = 10000")
            self._migrate(migrations, is_allowed=migrate)
        except BaseException:
            self._connection.close()
            raise

    async def run(self, work: Callable[[], T]) -> T:
        """Run `work` off the event loop, one at a time; it is never cut short.

        A disk that is full, or fails, is waited for: what would be lost otherwise is what this
        file exists for. Raises StateError if SQLite refuses for a reason that does not pass.
        """
        waited = False
        while True:
            try:
                result = await self._run_once(work)
            except sqlite3.IntegrityError:
                raise  # a constraint is the store's own word to its caller
            except sqlite3.Error as error:
                # The primary code; the rest of it says where within SQLite it came up.
                if getattr(error, "sqlite_errorcode", 0) & 0xFF not in _PASSING:
                    raise StateError(f"the database cannot be used: {error}") from error
                if not self.is_stuck:
                    log.warning("state_unwritable", error=str(error))
                self.is_stuck = waited = True
            else:
                # Only who has waited knows: a read succeeds on a full disk.
                if waited and self.is_stuck:
                    log.info("state_writable_again")
                    self.is_stuck = False
                return result
            await trio.sleep(STUCK_SECONDS)

    async def _run_once(self, work: Callable[[], T]) -> T:
        if self._inline:
            await trio.lowlevel.checkpoint()
            return work()
        return await trio.to_thread.run_sync(work, limiter=self._limiter)

    @contextmanager
    def transaction(self) -> Iterator[sqlite3.Connection]:
        """All or nothing; within another one, a part of that."""
        if self._connection.in_transaction:
            yield self._connection
            return
        self._connection.execute("BEGIN IMMEDIATE")
        self._after_commit.clear()
        try:
            yield self._connection
            self._connection.execute("COMMIT")
        except BaseException:
            self._roll_back()
            raise
        for action in self._after_commit:
            action()

    def after_commit(self, action: Callable[[], object]) -> None:
        """Do `action` once the present transaction holds, and not at all if it does not."""
        self._after_commit.append(action)

    def _roll_back(self) -> None:
        # On a full disk SQLite has done so by itself.
        if self._connection.in_transaction:
            self._connection.execute("ROLLBACK")

    def close(self) -> None:
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
        if version > newest:
            raise StateError(
                f"the database is of version {version}, this program knows {newest}: "
                "it was written by a newer release"
            )
        if version < newest and not is_allowed:
            raise StateError(
                f"the database is of version {version}, this program needs {newest}: "
                "a worker of this release has to be started on it first"
            )
        for number in sorted(numbered):
            if number > version:
                self._connection.executescript(
                    f"BEGIN IMMEDIATE; {numbered[number].read_text()}\n"
                    f"PRAGMA user_version = {number}; COMMIT;"
                )
