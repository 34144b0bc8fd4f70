"""Pinned host keys in the state file, and the file beside a running worker."""

import sqlite3
from collections.abc import Iterator
from pathlib import Path

import pytest

from worker.database import Database
from worker.errors import SettingsError, StateError
from worker.settings.environment import load_state_dir
from worker.state.directory import DATABASE, LOCK, MIGRATIONS, open_beside, open_state
from worker.state.host_keys import HostKeys, Pin

FIRST = Pin("web", 22, "ssh-ed25519 AAAA", 1, "job_1", "10.0.0.5")
SECOND = Pin("web", 22, "ssh-ed25519 BBBB", 2, "job_2", "10.0.0.6")
BY_HAND = Pin("web", 2222, "ssh-ed25519 CCCC", 3)


@pytest.fixture
def keys() -> Iterator[HostKeys]:
    database = Database(":memory:", MIGRATIONS)
    yield HostKeys(database)
    database.close()


def test_a_pin_is_kept_with_when_by_which_job_and_from_where(keys: HostKeys) -> None:
    assert keys.pin(FIRST) == FIRST
    keys.replace(BY_HAND)

    assert keys.pinned("web", 22) == FIRST
    assert keys.all() == (FIRST, BY_HAND)


def test_the_first_use_decides_until_it_is_replaced_by_hand(keys: HostKeys) -> None:
    keys.pin(FIRST)

    assert keys.pin(SECOND) == FIRST
    assert keys.all() == (FIRST,)
    keys.replace(SECOND)
    assert keys.all() == (SECOND,)


def test_a_pin_that_is_forgotten_leaves_the_others(keys: HostKeys) -> None:
    keys.pin(FIRST)
    keys.pin(BY_HAND)

    assert keys.forget("web", 22)
    assert not keys.forget("web", 22)
    assert keys.all() == (BY_HAND,)


def test_a_host_is_the_same_in_either_case(keys: HostKeys) -> None:
    keys.pin(Pin("Web", 22, "ssh-ed25519 AAAA", 1))

    assert keys.pinned("WEB", 22) == Pin("web", 22, "ssh-ed25519 AAAA", 1)
    assert keys.pin(SECOND).public_key == "ssh-ed25519 AAAA"
    assert keys.forget("wEB", 22)


def test_the_pins_of_older_releases_stay(tmp_path: Path) -> None:
    older = tmp_path / "older"
    older.mkdir()
    for file in MIGRATIONS.iterdir():
        if file.name < "0003":
            (older / file.name).write_text(file.read_text())
    Database(tmp_path / "s.db", older).close()
    rows = (("Web", "AAAA", "a"), ("web", "BBBB", "b"), ("DB", "CCCC", "c"))
    with sqlite3.connect(tmp_path / "s.db") as connection:
        for host, key, job in rows:
            connection.execute(
                "INSERT INTO host_keys VALUES (?, 22, ?, 1, ?)", (host, f"ssh-ed25519 {key}", job)
            )
    connection.close()

    database = Database(tmp_path / "s.db", MIGRATIONS)

    assert HostKeys(database).all() == (
        Pin("db", 22, "ssh-ed25519 CCCC", 1, "c"),
        Pin("web", 22, "ssh-ed25519 BBBB", 1, "b"),
    )
    database.close()


# Beside a running worker


def test_a_command_sees_and_changes_what_a_running_worker_has(tmp_path: Path) -> None:
    with open_state(tmp_path) as database:
        lock = (tmp_path / LOCK).read_text()
        HostKeys(database).pin(FIRST)

        with open_beside(tmp_path) as beside:
            assert HostKeys(beside).all() == (FIRST,)
            HostKeys(beside).replace(SECOND)

        assert HostKeys(database).pinned("web", 22) == SECOND
        assert (tmp_path / LOCK).read_text() == lock


def test_where_no_worker_has_been_nothing_is_made(tmp_path: Path) -> None:
    for directory in (tmp_path / "missing", tmp_path):
        with pytest.raises(StateError, match=r"there is no state\.db"), open_beside(directory):
            pytest.fail("opened")

    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("version", "reason"), [(99, "newer release"), (2, r"this program needs \d+")]
)
def test_a_file_of_another_version_is_left_as_it_is(
    version: int, reason: str, tmp_path: Path
) -> None:
    with open_state(tmp_path):
        pass
    with sqlite3.connect(tmp_path / DATABASE) as connection:
        connection.execute(f"PRAGMA user_version = {version}")

    with pytest.raises(StateError, match=reason), open_beside(tmp_path):
        pytest.fail("opened")

    assert connection.execute("PRAGMA user_version").fetchone() == (version,)
    connection.close()


def test_a_file_that_is_none_of_ours_is_an_error_that_names_the_directory(tmp_path: Path) -> None:
    (tmp_path / DATABASE).write_text("not a database, and longer than its header would be " * 9)

    with pytest.raises(StateError, match=str(tmp_path)), open_beside(tmp_path):
        pytest.fail("opened")


def test_what_goes_wrong_later_is_an_error_too(tmp_path: Path) -> None:
    with open_state(tmp_path):
        pass

    with (
        pytest.raises(StateError, match="no such table"),
        open_beside(tmp_path) as database,
        database.transaction() as tx,
    ):
        tx.execute("SELECT * FROM nowhere")


def test_the_state_directory_is_all_that_such_a_command_needs(tmp_path: Path) -> None:
    assert load_state_dir({"CRONIUM_STATE_DIR": str(tmp_path)}) == tmp_path
    assert load_state_dir({}).name == "cronium-worker"


def test_a_state_directory_below_no_home_is_a_fault_with_its_name() -> None:
    with pytest.raises(SettingsError, match="CRONIUM_STATE_DIR"):
        load_state_dir({"CRONIUM_STATE_DIR": "~nobody-of-that-name/x"})
