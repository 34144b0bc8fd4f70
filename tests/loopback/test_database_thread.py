"""What waits for the database together is committed together, and fails alone."""

import fcntl
import multiprocessing
import os
import sqlite3
import threading
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager, closing
from functools import partial
from multiprocessing.synchronize import Barrier
from pathlib import Path

import pytest
import structlog
import trio

from worker.database import Database
from worker.errors import StateError
from worker.serial_thread import MOST_TOGETHER

SCHEMA = "CREATE TABLE kept (name TEXT PRIMARY KEY, data BLOB);"
SECONDS = 5


class Kept:
    """A database of names, that counts its commits."""

    def __init__(self, folder: Path) -> None:
        migrations = folder / "migrations"
        migrations.mkdir()
        (migrations / "0001_first.sql").write_text(SCHEMA)
        self.database = Database(folder / "kept.db", migrations)
        self.commits = 0
        self.connection: sqlite3.Connection = self.database._connection
        self.connection.set_trace_callback(self._note)

    def _note(self, statement: str) -> None:
        self.commits += statement == "COMMIT"

    def keep(self, name: str, *, size: int = 0, fault: Exception | None = None) -> None:
        with self.database.transaction() as tx:
            tx.execute("INSERT INTO kept VALUES (?, ?)", (name, bytes(size)))
            if fault is not None:
                raise fault

    def names(self) -> set[str]:
        with self.database.transaction() as tx:
            return {name for (name,) in tx.execute("SELECT name FROM kept")}

    @asynccontextmanager
    async def at_once(self) -> AsyncIterator[trio.Nursery]:
        """What tasks in the nursery have done waits until the end of the block."""
        held = threading.Event()
        async with trio.open_nursery() as nursery:
            nursery.start_soon(self.database.run, partial(held.wait, SECONDS))
            await trio.testing.wait_all_tasks_blocked()
            yield nursery
            await trio.testing.wait_all_tasks_blocked()
            self.commits = 0
            held.set()


@pytest.fixture
def kept(tmp_path: Path) -> Iterator[Kept]:
    kept = Kept(tmp_path)
    yield kept
    kept.database.close()


async def test_what_waits_is_committed_together(kept: Kept) -> None:
    names = {str(number) for number in range(MOST_TOGETHER + 1)}
    with trio.fail_after(SECONDS):
        async with kept.at_once() as tasks:
            for name in names:
                tasks.start_soon(kept.database.run, partial(kept.keep, name))

    assert kept.commits == 2  # as many as go together, and one
    assert kept.names() == names


@pytest.mark.parametrize("fault", [ValueError("no"), sqlite3.IntegrityError("no")])
async def test_what_fails_is_undone_alone(kept: Kept, fault: Exception) -> None:
    caught: list[BaseException] = []

    async def fail() -> None:
        try:
            await kept.database.run(partial(kept.keep, "failing", fault=fault))
        except (ValueError, sqlite3.IntegrityError) as error:
            caught.append(error)

    with trio.fail_after(SECONDS):
        async with kept.at_once() as tasks:
            tasks.start_soon(kept.database.run, partial(kept.keep, "before"))
            await trio.testing.wait_all_tasks_blocked()
            tasks.start_soon(fail)
            await trio.testing.wait_all_tasks_blocked()
            tasks.start_soon(kept.database.run, partial(kept.keep, "after"))

    assert caught == [fault]
    assert kept.names() == {"before", "after"}


async def test_where_there_is_room_for_some_only_the_others_wait(kept: Kept) -> None:
    (pages,) = kept.connection.execute("PRAGMA page_count").fetchone()
    kept.connection.execute(f"PRAGMA max_page_count = {pages + 1}")
    with trio.fail_after(SECONDS):
        async with trio.open_nursery() as nursery:
            async with kept.at_once() as tasks:
                tasks.start_soon(kept.database.run, partial(kept.keep, "small"))
                await trio.testing.wait_all_tasks_blocked()
                nursery.start_soon(kept.database.run, partial(kept.keep, "large", size=100_000))
            while not kept.database.is_stuck:
                await trio.sleep(0.01)
            assert await kept.database.run(kept.names) == {"small"}
            kept.connection.execute("PRAGMA max_page_count = 1000")

    assert kept.names() == {"small", "large"}


async def test_what_sqlite_undoes_with_what_fails_is_done_again(kept: Kept) -> None:
    def fail() -> None:
        with kept.database.transaction() as tx:
            tx.execute("ROLLBACK")  # as SQLite does by itself where a disk fails
            raise sqlite3.OperationalError("no")

    async def run_failing() -> None:
        with pytest.raises(StateError):
            await kept.database.run(fail)

    with trio.fail_after(SECONDS):
        async with kept.at_once() as tasks:
            tasks.start_soon(kept.database.run, partial(kept.keep, "before"))
            await trio.testing.wait_all_tasks_blocked()
            tasks.start_soon(run_failing)
            await trio.testing.wait_all_tasks_blocked()
            tasks.start_soon(kept.database.run, partial(kept.keep, "after"))

    assert kept.names() == {"before", "after"}


async def test_what_follows_a_commit_waits_for_that_of_all_and_is_left_out_where_one_is_undone(
    kept: Kept,
) -> None:
    seen: list[tuple[str, int]] = []

    def keep(name: str, fault: Exception | None = None) -> None:
        with kept.database.transaction():
            kept.keep(name)
            kept.database.after_commit(lambda: seen.append((name, kept.commits)))
            if fault is not None:
                raise fault

    async def fail() -> None:
        with pytest.raises(ValueError, match="no"):
            await kept.database.run(partial(keep, "failing", ValueError("no")))

    with trio.fail_after(SECONDS):
        async with kept.at_once() as tasks:
            tasks.start_soon(fail)
            tasks.start_soon(kept.database.run, partial(keep, "one"))
            tasks.start_soon(kept.database.run, partial(keep, "two"))

    assert sorted(seen) == [("one", 1), ("two", 1)]


async def test_what_waits_is_done_although_its_task_is_cancelled(kept: Kept) -> None:
    scope = trio.CancelScope()

    async def keep() -> None:
        with scope:
            await kept.database.run(partial(kept.keep, "begun"))

    with trio.fail_after(SECONDS):
        async with kept.at_once() as tasks:
            tasks.start_soon(keep)
            await trio.testing.wait_all_tasks_blocked()
            scope.cancel()

    assert kept.names() == {"begun"}


async def test_it_is_done_in_the_order_of_the_calls(kept: Kept) -> None:
    order: list[int] = []
    with trio.fail_after(SECONDS):
        async with kept.at_once() as tasks:
            for number in range(10):
                tasks.start_soon(kept.database.run, partial(order.append, number))
                await trio.testing.wait_all_tasks_blocked()

    assert order == list(range(10))


async def test_of_a_database_that_somebody_else_has_locked_all_hear_after_one_wait(
    kept: Kept, tmp_path: Path
) -> None:
    kept.connection.execute("PRAGMA busy_timeout = 300")
    names = {str(number) for number in range(10)}
    with trio.fail_after(SECONDS), closing(sqlite3.connect(tmp_path / "kept.db")) as other:
        async with kept.at_once() as tasks:
            other.execute("BEGIN IMMEDIATE")
            for name in names:
                tasks.start_soon(kept.database.run, partial(kept.keep, name))
            tasks.start_soon(unlock_when_stuck, kept, other)

    assert kept.names() == names


async def unlock_when_stuck(kept: Kept, other: sqlite3.Connection) -> None:
    began = trio.current_time()
    while not kept.database.is_stuck:
        await trio.sleep(0.01)
    waited = trio.current_time() - began
    other.rollback()
    assert waited < 1.5  # where each waits for itself, they are told together after 3 s


async def test_what_fails_after_a_commit_is_nobodys_failure(kept: Kept) -> None:
    done: list[str] = []

    def fail() -> None:
        raise ValueError("no")

    def keep(name: str, action: Callable[[], object]) -> None:
        with kept.database.transaction():
            kept.keep(name)
            kept.database.after_commit(action)

    with trio.fail_after(SECONDS), structlog.testing.capture_logs() as lines:
        async with kept.at_once() as tasks:
            tasks.start_soon(kept.database.run, partial(keep, "one", fail))
            await trio.testing.wait_all_tasks_blocked()
            tasks.start_soon(kept.database.run, partial(keep, "two", partial(done.append, "two")))

    assert kept.names() == {"one", "two"}
    assert done == ["two"]
    assert [line["event"] for line in lines] == ["after_commit_fault"]


async def test_a_thread_that_cannot_be_started_is_tried_again(
    kept: Kept, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(_: threading.Thread) -> None:
        raise RuntimeError("can't start new thread")

    with trio.fail_after(SECONDS):
        with monkeypatch.context() as patch:
            patch.setattr(threading.Thread, "start", fail)
            with pytest.raises(RuntimeError):
                await kept.database.run(kept.names)
        assert await kept.database.run(kept.names) == set()


async def test_after_its_end_nothing_is_waited_for(kept: Kept) -> None:
    with trio.fail_after(SECONDS):
        await kept.database.run(kept.names)
        kept.database.close()
        with pytest.raises(trio.ClosedResourceError):
            await kept.database.run(kept.names)


def open_databases(folder: Path, start: Barrier) -> None:
    start.wait(SECONDS)
    for number in range(20):
        Database(folder / f"{number}.db", folder).close()


def test_those_that_make_a_database_at_once_all_have_it(tmp_path: Path) -> None:
    (tmp_path / "0001_first.sql").write_text(SCHEMA)
    spawning = multiprocessing.get_context("spawn")
    start = spawning.Barrier(3)
    processes = [
        spawning.Process(target=open_databases, args=(tmp_path, start))
        for _ in range(start.parties)
    ]

    for process in processes:
        process.start()
    for process in processes:
        process.join()

    assert [process.exitcode for process in processes] == [0, 0, 0]


def test_one_that_is_stuck_while_it_opens_a_database_holds_others_up_for_a_while_only(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "0001_first.sql").write_text(SCHEMA)
    monkeypatch.setattr("worker.database.BUSY_SECONDS", 0.2)
    folder = os.open(tmp_path, os.O_RDONLY)
    try:
        fcntl.flock(folder, fcntl.LOCK_EX)
        Database(tmp_path / "one.db", tmp_path).close()
    finally:
        os.close(folder)

    assert (tmp_path / "one.db").stat().st_size > 0
