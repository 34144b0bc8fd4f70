"""The file of what was received: every byte at a place that follows from its offset."""

import errno
import os
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.captures import new_path
from worker.state.spool import PIECE_BYTES, Spool, Spools

LIMIT = 100_000
# Some wind around the ring several times.
sizes = st.lists(st.integers(0, PIECE_BYTES), max_size=12)


def stream_of(length: int) -> bytes:
    """Bytes that tell their offset."""
    numbers = b"".join(number.to_bytes(4, "big") for number in range(length // 4 + 1))
    return numbers[:length]


def kept(spool: Spool) -> tuple[bytes, bytes]:
    half = spool.limit // 2
    end = spool.received
    return spool.read(0, min(end, LIMIT - half)), spool.read(max(0, end - half), end)


def expected(stream: bytes) -> tuple[bytes, bytes]:
    half = LIMIT // 2
    return stream[: LIMIT - half], stream[max(0, len(stream) - half) :]


@given(sizes)
def test_the_first_and_last_half_can_be_read_at_any_moment(lengths: list[int]) -> None:
    stream = stream_of(sum(lengths))
    spool = Spool(new_path(), LIMIT)
    at = 0
    for length in lengths:
        spool.write(stream[at : at + length])
        at += length

        assert spool.received == at
        assert kept(spool) == expected(stream[:at])
    spool.close()


@given(sizes, st.integers(0, PIECE_BYTES))
def test_bytes_that_a_killed_process_had_not_counted_harm_nothing(
    lengths: list[int], uncounted: int
) -> None:
    path, length = new_path(), sum(lengths)
    stream = stream_of(length + uncounted)
    first = Spool(path, LIMIT)
    first.write(stream[:length])
    header = path.read_bytes()[:32]
    first.write(stream[length:])
    first.close()
    with path.open("r+b") as file:  # as if it had been killed before it counted the last bytes
        file.write(header)

    second = Spool(path, LIMIT)

    assert second.received == length
    assert kept(second) == expected(stream[:length])
    second.write(stream[length:])
    second.close()
    assert kept(second) == expected(stream)


def test_a_file_is_no_larger_than_its_limit_and_a_piece() -> None:
    spool = Spool(new_path(), LIMIT)
    for _ in range(50):
        spool.write(bytes(PIECE_BYTES))
    spool.close()

    assert spool._path.stat().st_size <= LIMIT + PIECE_BYTES + 32


def test_what_is_kept_and_what_it_stands_for_are_counted_as_one(tmp_path: Path) -> None:
    spool = Spool(tmp_path / "spool", LIMIT)
    spool.write(b"key ***\n", source=100)
    spool.write(b"", source=120)
    spool.write(b"plain\n")
    spool.close()

    again = Spool(tmp_path / "spool", LIMIT)

    assert (again.received, again.source) == (14, 126)


def test_a_spool_keeps_the_limit_that_it_was_begun_with() -> None:
    path = new_path()
    first = Spool(path, 100)
    first.write(b"x" * 70)
    first.close()

    assert Spool(path, 4000).limit == 100


@pytest.mark.parametrize("content", [b"", b"cwsp", b"something else that is long enough"])
def test_a_file_that_is_no_spool_is_begun_anew(content: bytes) -> None:
    path = new_path()
    path.write_bytes(content)

    spool = Spool(path, 100)
    spool.write(b"abc")
    spool.close()

    assert (spool.read(0, 3), Spool(path, 9).received) == (b"abc", 3)


def test_what_did_not_fit_is_not_counted(monkeypatch: pytest.MonkeyPatch) -> None:
    spool = Spool(new_path(), LIMIT)
    spool.write(b"first")
    real, left = os.pwrite, 3

    def pwrite(file: int, data: bytes, at: int) -> int:
        nonlocal left
        if left == 0:
            raise OSError(errno.ENOSPC, "No space left on device")
        left -= 1
        return real(file, data[:100], at)

    with monkeypatch.context() as full:
        full.setattr(os, "pwrite", pwrite)
        with pytest.raises(OSError, match="No space"):
            spool.write(b"x" * 1000)

    assert (spool.received, spool.read(0, 5)) == (5, b"first")
    spool.write(b"second")
    spool.close()
    assert spool.read(0, 11) == b"firstsecond"


def test_spools_belong_to_nobody_else(tmp_path: Path) -> None:
    folder = tmp_path / "spool"
    spool = Spools(folder).spool("job_1", "exec_1", "stdout", limit=10)
    spool.write(b"")
    spool.close()

    (path,) = folder.iterdir()
    assert path.stat().st_mode & 0o777 == 0o600
    assert folder.stat().st_mode & 0o777 == 0o700


def test_only_the_spools_of_jobs_in_flight_are_kept(tmp_path: Path) -> None:
    spools = Spools(tmp_path)
    for job_id in ("a", "b", "c"):
        spool = spools.spool(job_id, "exec", "stdout", limit=10)
        spool.write(b"x")
        spool.close()

    spools.remove("a")
    spools.remove("never there")
    spools.remove_all_but(["c"])

    assert [path.name for path in tmp_path.iterdir()] == ["exec.stdout@c"]


def test_a_spool_that_is_begun_while_its_job_is_dropped_goes_when_the_job_comes_back(
    tmp_path: Path,
) -> None:
    spools = Spools(tmp_path)
    spool = spools.spool("a", "exec", "stdout", limit=10)
    spools.remove("a")
    spool.write(b"x")
    spool.close()

    spools.remove("a")

    assert not spools.spool("a", "exec", "stdout", limit=10).exists


def test_a_spool_that_could_not_be_removed_goes_when_the_job_comes_back(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(_path: Path, *, missing_ok: bool = False) -> None:
        raise OSError(errno.EROFS, os.strerror(errno.EROFS))

    spool = Spools(tmp_path).spool("a", "exec", "stdout", limit=10)
    spool.write(b"x")
    spool.close()
    spools = Spools(tmp_path)
    with monkeypatch.context() as patch:
        patch.setattr(Path, "unlink", refuse)
        spools.remove_all_but([])
        spools.remove("a")
    assert spools.spool("a", "exec", "stdout", limit=10).exists

    spools.remove("a")

    assert not spools.spool("a", "exec", "stdout", limit=10).exists


def test_spools_of_an_earlier_version_are_read_on(tmp_path: Path) -> None:
    """It had a directory for each job."""
    for job_id in ("a", "b"):
        (tmp_path / job_id).mkdir()
        for stream in ("stdout", "stderr"):
            spool = Spool(tmp_path / job_id / f"exec_{job_id}.{stream}", 10)
            spool.write(stream.encode())
            spool.close()

    spools = Spools(tmp_path)
    spools.remove_all_but(["a"])

    for stream in ("stdout", "stderr"):
        spool = spools.spool("a", "exec_a", stream, limit=10)
        assert spool.read(0, 6) == stream.encode()
        assert not spools.spool("b", "exec_b", stream, limit=10).exists
    spools.remove("a")
    assert list(tmp_path.iterdir()) == []
