"""The names that tell which runs have begun."""

import errno
import os
from pathlib import Path

import pytest

from worker.state.marks import Marks
from worker.state.run_files import MARK


def names(folder: Path) -> set[str]:
    """Without that of the file which all of them are names of."""
    return {path.name for path in folder.iterdir()} - {MARK}


def test_a_mark_outlives_its_process_and_goes_with_its_job(tmp_path: Path) -> None:
    marks = Marks(tmp_path)
    marks.add("a", "exec_a_1")
    marks.add("a", "exec_a_1")
    marks.add("b", "exec_b_1")

    assert [marks.has("a", name) for name in ("exec_a_1", "exec_a_2")] == [True, False]
    marks = Marks(tmp_path)
    marks.remove_all_but(["a"])
    assert marks.has("a", "exec_a_1")
    assert not marks.has("b", "exec_b_1")

    marks.add("c", "exec_c_1")
    marks.remove("a")
    marks.remove("c")
    assert names(tmp_path) == set()


def test_marks_belong_to_nobody_else(tmp_path: Path) -> None:
    folder = tmp_path / "begun"
    Marks(folder).add("job_1", "exec_1")

    assert folder.stat().st_mode & 0o777 == 0o700
    assert {path.stat().st_mode & 0o777 for path in folder.iterdir()} == {0o600}


def test_a_mark_takes_no_file_of_its_own(tmp_path: Path) -> None:
    marks = Marks(tmp_path)
    for number in range(5):
        marks.add(f"job_{number}", "exec")
    file = (tmp_path / MARK).stat().st_ino
    for number in range(5):
        marks.remove(f"job_{number}")
    marks = Marks(tmp_path)
    marks.remove_all_but([])
    marks.add("job_5", "exec")

    assert {path.stat().st_ino for path in tmp_path.iterdir()} == {file}


@pytest.mark.parametrize("number", [errno.EPERM, errno.EMLINK])
def test_a_mark_is_made_where_a_file_can_have_no_more_names(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, number: int
) -> None:
    def refuse(_from: Path, _to: Path) -> None:
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr(os, "link", refuse)
    marks = Marks(tmp_path)
    marks.add("a", "exec")

    assert Marks(tmp_path).has("a", "exec")
    marks.remove("a")
    assert list(tmp_path.iterdir()) == []


def test_a_mark_that_is_made_while_its_job_is_dropped_goes_with_what_is_dropped_next(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    marks = Marks(tmp_path)
    marks.add("a", "exec_1")
    really_link = os.link

    def link(file: Path, path: Path) -> None:
        marks.remove("a")
        really_link(file, path)

    with monkeypatch.context() as patch:
        patch.setattr(os, "link", link)
        marks.add("a", "exec_2")
    marks.remove("a")

    assert names(tmp_path) == set()


def test_a_job_may_have_a_long_id(tmp_path: Path) -> None:
    long = "j" * 200
    marks = Marks(tmp_path)
    marks.add(long, "e" * 100)
    # Of eCryptfs.
    assert max(map(len, names(tmp_path))) <= 143

    marks = Marks(tmp_path)
    marks.remove_all_but([long])
    assert marks.has(long, "e" * 100)
    marks.remove(long)
    assert not marks.has(long, "e" * 100)


def test_jobs_whose_long_ids_begin_alike_share_no_mark(tmp_path: Path) -> None:
    first, second = "j" * 199 + "1", "j" * 199 + "2"
    marks = Marks(tmp_path)
    marks.add(first, "exec_1")
    marks.add(second, "exec_2")

    marks = Marks(tmp_path)
    marks.remove_all_but([first, second])
    marks.remove(second)

    assert marks.has(first, "exec_1")
    assert not marks.has(second, "exec_2")


def test_an_orphan_of_any_name_removes_nothing_of_others(tmp_path: Path) -> None:
    marks = Marks(tmp_path / "begun")
    marks.add("a", "exec")
    outside = tmp_path / "outside"
    outside.touch()

    for name in ("", "..", "../outside", f"exec{MARK}a", MARK, str(outside), "a\0b"):
        marks.remove(name)

    assert outside.exists()
    assert marks.has("a", "exec")
