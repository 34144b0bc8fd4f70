"""The database when there is no room for what it is to keep."""

from functools import partial
from importlib.resources import files

import pytest
import trio
from trio.testing import MockClock

from worker.database import Database
from worker.errors import StateError
from worker.state.outbox import Entry, Kind, Outbox

MIGRATIONS = files("worker.state") / "migrations"


async def test_what_is_to_be_kept_waits_until_there_is_room(autojump_clock: MockClock) -> None:
    database = Database(":memory:", MIGRATIONS, inline=True)
    outbox = Outbox(database)
    entry = Entry("job_1", Kind.COMPLETE, "job_1", bytes(100_000))
    with database.transaction() as tx:
        (pages,) = tx.execute("PRAGMA page_count").fetchone()
    database._connection.execute(f"PRAGMA max_page_count = {pages + 2}")

    async with trio.open_nursery() as nursery:
        nursery.start_soon(partial(database.run, partial(outbox.put, [entry], now=0)))
        await trio.sleep(10)
        was_stuck = database.is_stuck
        assert outbox.pending_jobs() == ()

        database._connection.execute("PRAGMA max_page_count = 1000")

    assert outbox.pending_jobs() == ("job_1",)
    assert (was_stuck, database.is_stuck) == (True, False)
    database.close()


async def test_what_does_not_pass_is_an_error_and_not_waited_for(
    autojump_clock: MockClock,
) -> None:
    database = Database(":memory:", MIGRATIONS, inline=True)

    with pytest.raises(StateError, match="no such table"):
        await database.run(lambda: database._connection.execute("SELECT * FROM absent"))

    database.close()
