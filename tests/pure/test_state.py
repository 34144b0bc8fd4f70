"""What the worker remembers over restarts."""

import fcntl
import os
import sqlite3
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import cast

import pytest

from tests.due import first_due
from worker.database import Database
from worker.errors import StateError, StateLockedError
from worker.state.directory import DATABASE, LOCK, MIGRATIONS, open_state
from worker.state.host_keys import HostKeys, Pin
from worker.state.identity import worker_id
from worker.state.outbox import GO_BYTES, GO_ENTRIES, PARKED_MS, Entry, Kind, Outbox
from worker.state.runner_cache import CachedRunner, RunnerCache, ServerKey

WEB = ServerKey("1", "web.example.com", 22, "deploy")
RUNNER = CachedRunner("abc", "abcdef", "/home/deploy/.cache/cronium/runner-abc", "SHA256:xyz", 1000)


@pytest.fixture
def database() -> Iterator[Database]:
    database = Database(":memory:", MIGRATIONS)
    yield database
    database.close()


@pytest.fixture
def outbox(database: Database) -> Outbox:
    return Outbox(database)


def entry(job_id: str, kind: Kind, subject: str = "", body: bytes = b"{}") -> Entry:
    return Entry(job_id, kind, subject or job_id, body)


def heads(outbox: Outbox, *, now: int = 10, limit: int = 10) -> list[tuple[str, Kind]]:
    return [(q.entry.job_id, q.entry.kind) for q in first_due(outbox, limit=limit, now=now)]


def deliver_all(outbox: Outbox, *, now: int = 10) -> list[tuple[str, str]]:
    """Kind and subject of each entry, as a relay that always succeeds would send them."""
    said = []
    while found := first_due(outbox, limit=1, now=now):
        said.append((str(found[0].entry.kind), found[0].entry.subject))
        outbox.delivered(found[0].id)
    return said


# The database.


def test_what_was_given_up_is_kept_for_a_month(outbox: Outbox) -> None:
    outbox.put([entry("a", Kind.COMPLETE), entry("b", Kind.COMPLETE)], now=0)
    outbox.park(1, "refused")

    outbox.sweep(now=PARKED_MS - 1)
    kept = outbox.parked()
    outbox.sweep(now=PARKED_MS)

    assert (len(kept), outbox.parked()) == (1, [])
    assert heads(outbox) == [("b", Kind.COMPLETE)]


def test_a_new_database_has_the_newest_version(database: Database) -> None:
    newest = max(int(file.name[:4]) for file in MIGRATIONS.iterdir() if file.name.endswith(".sql"))

    with database.transaction() as tx:
        assert tx.execute("PRAGMA user_version").fetchone() == (newest,)


def test_a_database_opened_again_keeps_what_it_has(tmp_path: Path) -> None:
    first = Database(tmp_path / "s.db", MIGRATIONS)
    name = worker_id(first, None)
    first.close()

    second = Database(tmp_path / "s.db", MIGRATIONS)

    assert worker_id(second, None) == name
    second.close()


def migration(folder: Path, name: str, sql: str) -> None:
    folder.mkdir(exist_ok=True)
    (folder / name).write_text(sql)


def test_migrations_are_applied_in_order_and_once(tmp_path: Path) -> None:
    folder = tmp_path / "migrations"
    migration(folder, "0002_second.sql", "INSERT INTO t VALUES (2);")
    migration(folder, "0001_first.sql", "CREATE TABLE t (n INTEGER); INSERT INTO t VALUES (1);")
    migration(folder, "README.md", "not one")
    Database(tmp_path / "s.db", folder).close()
    migration(folder, "0003_third.sql", "INSERT INTO t VALUES (3);")

    database = Database(tmp_path / "s.db", folder)

    with database.transaction() as tx:
        assert tx.execute("SELECT n FROM t ORDER BY rowid").fetchall() == [(1,), (2,), (3,)]
    database.close()


def test_a_migration_that_fails_leaves_the_database_as_it_was(tmp_path: Path) -> None:
    folder = tmp_path / "migrations"
    migration(folder, "0001_first.sql", "CREATE TABLE t (n INTEGER);")
    Database(tmp_path / "s.db", folder).close()
    migration(folder, "0002_bad.sql", "INSERT INTO t VALUES (1); INSERT INTO nowhere VALUES (2);")

    with pytest.raises(sqlite3.OperationalError):
        Database(tmp_path / "s.db", folder)

    (folder / "0002_bad.sql").unlink()
    database = Database(tmp_path / "s.db", folder)
    with database.transaction() as tx:
        assert tx.execute("SELECT count(*) FROM t").fetchone() == (0,)
    database.close()


def test_a_database_of_a_newer_version_is_refused(tmp_path: Path) -> None:
    Database(tmp_path / "s.db", MIGRATIONS).close()
    connection = sqlite3.connect(tmp_path / "s.db")
    connection.execute("PRAGMA user_version = 99")
    connection.close()

    with pytest.raises(StateError, match="newer release"):
        Database(tmp_path / "s.db", MIGRATIONS)


def test_a_transaction_that_fails_changes_nothing(database: Database, outbox: Outbox) -> None:
    broken = Entry("job_1", Kind.CREATE, "e", cast("bytes", None))  # refused by the table

    with pytest.raises(sqlite3.IntegrityError):
        outbox.put([entry("job_1", Kind.CREATE), broken], now=0)

    assert heads(outbox) == []


# The directory.


def test_a_state_directory_is_made_for_us_alone(tmp_path: Path) -> None:
    with open_state(tmp_path / "a" / "b") as database:
        assert worker_id(database, "w")

    assert (tmp_path / "a" / "b").stat().st_mode & 0o777 == 0o700
    assert (tmp_path / "a" / "b" / DATABASE).exists()


def test_a_second_worker_on_a_state_directory_is_refused(tmp_path: Path) -> None:
    with (
        open_state(tmp_path),
        pytest.raises(StateLockedError, match=f"pid {os.getpid()}"),
        open_state(tmp_path),
    ):
        pass


def test_a_look_at_who_has_a_state_directory_keeps_no_worker_from_it(tmp_path: Path) -> None:
    with (tmp_path / LOCK).open("a") as lock:
        fcntl.flock(lock, fcntl.LOCK_SH)  # as `holder` does
        threading.Timer(0.02, fcntl.flock, (lock, fcntl.LOCK_UN)).start()

        with open_state(tmp_path) as database:
            assert worker_id(database, "w")


def test_a_state_directory_is_free_again_after_its_worker(tmp_path: Path) -> None:
    with open_state(tmp_path):
        pass

    with open_state(tmp_path) as database:
        assert worker_id(database, "w")
    assert (tmp_path / LOCK).read_text() == f"{os.getpid()}\n"


def test_a_state_directory_that_cannot_be_made_is_a_state_error(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")

    with pytest.raises(StateError, match="CRONIUM_STATE_DIR"), open_state(tmp_path / "file" / "x"):
        pass


def test_a_state_file_that_is_no_database_is_a_state_error(tmp_path: Path) -> None:
    (tmp_path / DATABASE).write_bytes(b"no database " * 1000)

    with pytest.raises(StateError, match="CRONIUM_STATE_DIR"), open_state(tmp_path):
        pass


# The worker's id.


def test_a_worker_id_is_the_configured_name_and_8_digits_that_stay(database: Database) -> None:
    first = worker_id(database, "prod")

    name, suffix = first.rsplit("-", 1)
    assert name == "prod"
    assert len(suffix) == 8
    assert int(suffix, 16) >= 0
    assert worker_id(database, "prod") == first
    assert worker_id(database, "renamed") == f"renamed-{suffix}"


def test_two_workers_of_one_name_have_different_ids(database: Database) -> None:
    other = Database(":memory:", MIGRATIONS)

    assert worker_id(database, "prod") != worker_id(other, "prod")
    other.close()


def test_a_worker_without_a_name_has_one_that_fits_the_api(database: Database) -> None:
    made = worker_id(database, None)

    assert worker_id(database, None) == made
    assert 9 < len(made) <= 255


# The outbox.


def test_a_jobs_entries_go_in_order(outbox: Outbox) -> None:
    outbox.put([entry("a", Kind.CREATE, "e1"), entry("a", Kind.CREATE, "e2")], now=0)
    outbox.put([entry("a", Kind.UPDATE, "e2")], now=1)
    outbox.put([entry("a", Kind.UPDATE, "e1"), entry("a", Kind.COMPLETE)], now=2)

    assert deliver_all(outbox) == [
        ("create", "e1"),
        ("create", "e2"),
        ("update", "e2"),
        ("update", "e1"),
        ("complete", "a"),
    ]


def test_each_job_has_its_own_first_entry(outbox: Outbox) -> None:
    outbox.put([entry("a", Kind.CREATE), entry("a", Kind.COMPLETE)], now=0)
    outbox.put([entry("b", Kind.CREATE), entry("b", Kind.COMPLETE)], now=1)

    assert heads(outbox) == [("a", Kind.CREATE), ("b", Kind.CREATE)]


def test_an_entry_keeps_its_bytes(outbox: Outbox) -> None:
    body = bytes(range(256))
    outbox.put([entry("a", Kind.UPDATE, "e", body)], now=0)

    (queued,) = first_due(outbox, limit=1, now=0)

    assert queued.entry == Entry("a", Kind.UPDATE, "e", body)
    assert queued.attempts == 0


def test_a_postponed_entry_holds_back_what_follows_it_until_it_is_due(outbox: Outbox) -> None:
    outbox.put([entry("a", Kind.CREATE), entry("a", Kind.COMPLETE)], now=0)
    (queued,) = first_due(outbox, limit=1, now=0)

    outbox.postpone(queued.id, due_at=100)

    assert heads(outbox, now=99) == []
    assert heads(outbox, now=100) == [("a", Kind.CREATE)]
    assert first_due(outbox, limit=1, now=100)[0].attempts == 1


def test_the_longest_overdue_goes_first(outbox: Outbox) -> None:
    outbox.put([entry("a", Kind.CREATE)], now=5)
    outbox.put([entry("b", Kind.CREATE)], now=3)
    outbox.put([entry("c", Kind.CREATE)], now=4)

    assert heads(outbox, limit=2) == [("b", Kind.CREATE), ("c", Kind.CREATE)]


def test_the_next_time_is_that_of_what_is_not_due_yet(outbox: Outbox) -> None:
    outbox.put([entry("a", Kind.CREATE)], now=5)
    outbox.put([entry("b", Kind.CREATE), entry("b", Kind.COMPLETE)], now=50)
    outbox.put([entry("c", Kind.CREATE)], now=70)

    assert outbox.next_due_at(after=5) == 50
    assert outbox.next_due_at(after=50) == 70
    assert outbox.next_due_at(after=70) is None


def next_of(outbox: Outbox, job_id: str, *, now: int = 10) -> list[Kind]:
    return [queued.entry.kind for queued in outbox.next_of(job_id, now=now)]


def test_what_was_never_tried_goes_together(outbox: Outbox) -> None:
    kinds = [Kind.CREATE, Kind.CREATE, Kind.UPDATE, Kind.COMPLETE]
    outbox.put([entry("a", kind) for kind in kinds], now=0)
    outbox.put([entry("b", Kind.FAIL)], now=0)

    assert next_of(outbox, "a") == kinds
    assert next_of(outbox, "b") == [Kind.FAIL]
    assert next_of(outbox, "c") == []


def test_what_was_tried_goes_alone_once_it_is_due(outbox: Outbox) -> None:
    outbox.put([entry("a", Kind.CREATE), entry("a", Kind.COMPLETE)], now=0)
    outbox.postpone(outbox.next_of("a", now=0)[0].id, due_at=100)

    assert next_of(outbox, "a", now=99) == []
    assert next_of(outbox, "a", now=100) == [Kind.CREATE]


def test_what_was_tried_does_not_go_with_what_is_tried_anew_before_it(outbox: Outbox) -> None:
    outbox.put([entry("a", Kind.CREATE), entry("a", Kind.COMPLETE)], now=0)
    first, second = outbox.next_of("a", now=0)
    outbox.park(first.id, "refused")
    outbox.postpone(second.id, due_at=0)
    outbox.retry(first.id, now=0)

    assert next_of(outbox, "a") == [Kind.CREATE]


def test_what_goes_together_is_bounded_in_number_and_size(outbox: Outbox) -> None:
    outbox.put([entry("a", Kind.CREATE)] * (GO_ENTRIES + 1), now=0)
    large = bytes(GO_BYTES)
    outbox.put([entry("b", Kind.UPDATE, "e1", large), entry("b", Kind.COMPLETE)], now=0)

    assert next_of(outbox, "a") == [Kind.CREATE] * GO_ENTRIES
    assert next_of(outbox, "b") == [Kind.UPDATE]


def test_a_parked_entry_holds_nothing_back(outbox: Outbox) -> None:
    outbox.put([entry("a", Kind.CREATE), entry("a", Kind.COMPLETE)], now=0)
    (queued,) = first_due(outbox, limit=1, now=0)

    outbox.park(queued.id, "refused")

    assert heads(outbox) == [("a", Kind.COMPLETE)]
    assert outbox.parked() == [("a", "a", "refused")]
    assert deliver_all(outbox) == [("complete", "a")]
    assert outbox.pending_jobs() == ()


def test_a_final_update_replaces_a_running_one_that_has_not_gone_out(outbox: Outbox) -> None:
    outbox.put([entry("a", Kind.CREATE, "e1"), entry("a", Kind.RUNNING, "e1")], now=0)
    outbox.put([entry("a", Kind.RUNNING, "e2")], now=0)

    outbox.put([entry("a", Kind.UPDATE, "e1")], now=1)

    assert deliver_all(outbox) == [("create", "e1"), ("running", "e2"), ("update", "e1")]


def test_a_dropped_job_leaves_the_others(outbox: Outbox) -> None:
    outbox.put([entry("a", Kind.CREATE), entry("a", Kind.COMPLETE)], now=0)
    outbox.put([entry("b", Kind.COMPLETE)], now=0)

    outbox.drop_job("a")

    assert outbox.pending_jobs() == ("b",)


def test_jobs_are_pending_until_their_last_entry_is_gone(outbox: Outbox) -> None:
    outbox.put([entry("a", Kind.CREATE), entry("a", Kind.COMPLETE)], now=0)
    assert outbox.pending_jobs() == ("a",)

    deliver_all(outbox)

    assert outbox.pending_jobs() == ()


def test_an_outbox_outlives_its_worker(tmp_path: Path) -> None:
    with open_state(tmp_path) as database:
        Outbox(database).put([entry("a", Kind.COMPLETE)], now=0)

    with open_state(tmp_path) as database:
        assert heads(Outbox(database)) == [("a", Kind.COMPLETE)]


# The runner cache.


def test_a_runner_is_known_by_server_and_content(database: Database) -> None:
    cache = RunnerCache(database)
    cache.put(WEB, RUNNER)

    assert cache.use(WEB, "abcdef") == RUNNER
    assert cache.use(WEB, "another") is None


@pytest.mark.parametrize(
    "other",
    [
        ServerKey("2", "web.example.com", 22, "deploy"),
        ServerKey("1", "db.example.com", 22, "deploy"),
        ServerKey("1", "web.example.com", 2222, "deploy"),
        ServerKey("1", "web.example.com", 22, "root"),
    ],
)
def test_another_server_port_or_user_is_another_place(database: Database, other: ServerKey) -> None:
    cache = RunnerCache(database)
    cache.put(WEB, RUNNER)

    cache.drop(other)

    assert cache.use(other, "abcdef") is None
    assert cache.use(WEB, "abcdef") == RUNNER


def test_each_use_counts_as_a_hit(database: Database) -> None:
    cache = RunnerCache(database)
    cache.put(WEB, RUNNER)

    for sha256 in ("abcdef", "abcdef", "another"):
        cache.use(WEB, sha256)

    with database.transaction() as tx:
        assert tx.execute("SELECT hits FROM runner_cache").fetchall() == [(2,)]


def test_a_verified_runner_has_its_time(database: Database) -> None:
    cache = RunnerCache(database)
    cache.put(WEB, RUNNER)

    cache.verified(WEB, now=5000)

    found = cache.use(WEB, "abcdef")
    assert found is not None
    assert found.verified_at == 5000


def test_a_dropped_runner_is_not_known_and_a_new_one_replaces_an_old(database: Database) -> None:
    cache = RunnerCache(database)
    cache.put(WEB, RUNNER)
    cache.drop(WEB)
    assert cache.use(WEB, "abcdef") is None

    cache.put(WEB, RUNNER)
    newer = CachedRunner("fed", "fedcba", "/home/deploy/x", "SHA256:xyz", 2000)
    cache.put(WEB, newer)

    assert cache.use(WEB, "fedcba") == newer
    assert cache.use(WEB, "abcdef") is None


# Host keys.


def test_the_first_host_key_stays(database: Database) -> None:
    keys = HostKeys(database)
    assert keys.pinned("web", 22) is None

    first = keys.pin(Pin("web", 22, "ssh-ed25519 AAAA", 1, "job_1", "10.0.0.5"))
    second = keys.pin(Pin("web", 22, "ssh-ed25519 BBBB", 2, "job_2", "10.0.0.5"))

    assert keys.pinned("web", 22) == first == second
    assert first.public_key == "ssh-ed25519 AAAA"
    assert keys.pinned("web", 2222) is None
