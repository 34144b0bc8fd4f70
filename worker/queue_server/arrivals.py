"""Waking long polls when there may be something to claim."""

import sqlite3
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import NoReturn

import trio

from worker.clock import now_ms
from worker.queue_server.bell import Bell

# What nobody rings for is found so late. A look costs some microseconds: it reads a counter in
# shared memory.
LOOK_SECONDS = 0.05
# However often somebody rings.
APART_SECONDS = 0.005


class Arrivals:
    """Watches the database file of `path`, for the server's own commits and for others'."""

    def __init__(self, path: Path) -> None:
        # A connection of its own: the counter stands still for the writes of the connection
        # that asks. It is used on the event loop, so it must never wait for a lock.
        self._connection = sqlite3.connect(path, isolation_level=None, timeout=0)
        self._bell = Bell(path)
        self._arrived = trio.Event()
        self._polls = 0
        self._polled = trio.Event()
        self._version = -1
        self._next_due_at: int | None = None
        self.closing = False

    @contextmanager
    def polling(self) -> Iterator[None]:
        """Around a long poll: the file is watched only while there is one."""
        self._polls += 1
        self._polled.set()
        try:
            yield
        finally:
            self._polls -= 1
            if not self._polls:
                self._polled = trio.Event()

    def next(self) -> trio.Event:
        """Take it before trying a claim, wait for it after: nothing in between is missed."""
        return self._arrived

    def notify(self) -> None:
        arrived, self._arrived = self._arrived, trio.Event()
        arrived.set()

    def end_polls(self) -> None:
        """Have every long poll answered, now and from now on."""
        self.closing = True
        self.notify()

    async def watch_forever(self) -> NoReturn:
        while True:
            await self._polled.wait()
            now = now_ms()
            if self._something_is_due(now):
                self.notify()
            await trio.sleep(APART_SECONDS)
            with trio.move_on_after(self._rest_seconds(now)):
                await self._bell.rung()

    def _rest_seconds(self, now: int) -> float:
        if self._next_due_at is None:
            return LOOK_SECONDS
        return min(max((self._next_due_at - now) / 1000 - APART_SECONDS, 0), LOOK_SECONDS)

    def close(self) -> None:
        self._bell.close()
        self._connection.close()

    def _something_is_due(self, now: int) -> bool:
        """False as long as nothing was written and no time was reached since the last call."""
        try:
            (version,) = self._connection.execute("PRAGMA data_version").fetchone()
            time_is_up = self._next_due_at is not None and self._next_due_at <= now
            if version == self._version and not time_is_up:
                return False
            due, self._next_due_at = self._connection.execute(
                """
                WITH due (at) AS (
                    SELECT min(scheduled_for) FROM jobs
                        WHERE status = 'queued' AND scheduled_for <= ?1
                    UNION ALL SELECT min(scheduled_for) FROM jobs
                        WHERE status = 'queued' AND scheduled_for > ?1
                    UNION ALL SELECT min(lease_until) FROM jobs
                        WHERE status IN ('claimed', 'running')
                )
                SELECT count(*) FILTER (WHERE at <= ?1), min(at) FILTER (WHERE at > ?1) FROM due
                """,
                (now,),
            ).fetchone()
        except sqlite3.OperationalError:
            return True  # locked just now: let the polls find out
        self._version = version
        return bool(due)
