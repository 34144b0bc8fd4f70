"""The state's own key, and what is sealed under it."""

import os
from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from worker.errors import SealedValueError, StateError
from worker.secret import Secret
from worker.state.seal import FILE, KEY_BYTES, StateSeal, open_state_seal

SEAL = StateSeal(bytes(KEY_BYTES))
CONFIGURED = Secret("0123456789abcdef" * 4)

keys = st.binary(min_size=KEY_BYTES, max_size=KEY_BYTES)


@pytest.fixture
def loose_umask() -> Iterator[None]:
    before = os.umask(0)
    yield
    os.umask(before)


def files(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


# Sealing.


@given(keys, st.binary(), st.text(max_size=20))
def test_what_is_sealed_opens_with_the_same_key_about_the_same(
    key: bytes, content: bytes, about: str
) -> None:
    sealed = StateSeal(key).seal(content, about=about)

    assert StateSeal(key).open(sealed, about=about) == content


@given(keys.filter(any), st.binary())
def test_what_is_sealed_does_not_open_with_another_key(key: bytes, content: bytes) -> None:
    sealed = StateSeal(key).seal(content, about="a")

    with pytest.raises(SealedValueError):
        SEAL.open(sealed, about="a")


@given(st.text(max_size=5), st.text(max_size=5))
def test_what_is_sealed_about_one_does_not_open_about_another(one: str, another: str) -> None:
    sealed = SEAL.seal(b"content", about=one)

    if one != another:
        with pytest.raises(SealedValueError):
            SEAL.open(sealed, about=another)


@given(st.binary(max_size=50), st.integers(0), st.integers(1, 255))
def test_one_damaged_byte_is_noticed(content: bytes, place: int, change: int) -> None:
    sealed = bytearray(SEAL.seal(content, about="a"))
    sealed[place % len(sealed)] ^= change

    with pytest.raises(SealedValueError):
        SEAL.open(bytes(sealed), about="a")


def test_what_is_cut_short_or_longer_does_not_open() -> None:
    sealed = SEAL.seal(b"content", about="a")

    for damaged in (*(sealed[:length] for length in range(len(sealed))), sealed + b"\0"):
        with pytest.raises(SealedValueError):
            SEAL.open(damaged, about="a")


def test_the_same_is_never_sealed_the_same_way() -> None:
    assert len({SEAL.seal(b"content", about="a") for _ in range(100)}) == 100


# The key.


def test_a_key_is_made_once_and_for_us_alone(tmp_path: Path, loose_umask: None) -> None:
    sealed = open_state_seal(tmp_path, None).seal(b"content", about="a")
    key = (tmp_path / FILE).read_bytes()

    again = open_state_seal(tmp_path, None)

    assert again.open(sealed, about="a") == b"content"
    assert (tmp_path / FILE).read_bytes() == key
    assert len(key) == KEY_BYTES
    assert (tmp_path / FILE).stat().st_mode & 0o777 == 0o600
    assert files(tmp_path) == [FILE]


def test_each_state_has_a_key_of_its_own(tmp_path: Path) -> None:
    for name in ("one", "two"):
        (tmp_path / name).mkdir()
        open_state_seal(tmp_path / name, None)

    assert (tmp_path / "one" / FILE).read_bytes() != (tmp_path / "two" / FILE).read_bytes()


def test_a_key_that_a_killed_worker_had_half_written_is_made_anew(
    tmp_path: Path, loose_umask: None
) -> None:
    draft = tmp_path / "seal.new"
    draft.write_bytes(b"half")  # 0666

    open_state_seal(tmp_path, None)

    assert (tmp_path / FILE).stat().st_mode & 0o777 == 0o600
    assert (tmp_path / FILE).stat().st_size == KEY_BYTES
    assert files(tmp_path) == [FILE]


def test_the_configured_key_wins_and_no_file_is_made(tmp_path: Path) -> None:
    sealed = open_state_seal(tmp_path, CONFIGURED).seal(b"content", about="a")

    assert files(tmp_path) == []
    assert StateSeal(bytes.fromhex(CONFIGURED.reveal())).open(sealed, about="a") == b"content"


def test_the_configured_key_wins_over_a_file_whatever_that_is(tmp_path: Path) -> None:
    (tmp_path / FILE).write_bytes(b"no key")

    sealed = open_state_seal(tmp_path, CONFIGURED).seal(b"content", about="a")

    assert open_state_seal(tmp_path, CONFIGURED).open(sealed, about="a") == b"content"
    assert (tmp_path / FILE).read_bytes() == b"no key"


@pytest.mark.parametrize("size", [0, KEY_BYTES - 1, KEY_BYTES + 1, 2 * KEY_BYTES])
def test_a_key_of_another_size_is_refused_and_left_alone(tmp_path: Path, size: int) -> None:
    (tmp_path / FILE).write_bytes(b"k" * size)

    with pytest.raises(StateError, match="CRONIUM_STATE_KEY") as error:
        open_state_seal(tmp_path, None)

    assert str(tmp_path / FILE) in str(error.value)
    assert "kkk" not in str(error.value)
    assert (tmp_path / FILE).read_bytes() == b"k" * size


def test_a_key_that_cannot_be_read_is_a_state_error(tmp_path: Path) -> None:
    (tmp_path / FILE).mkdir()  # which stops root too

    with pytest.raises(StateError, match=f"{FILE}: Is a directory"):
        open_state_seal(tmp_path, None)


@pytest.mark.skipif(os.getuid() == 0, reason="root reads every file")
def test_a_key_that_is_not_ours_to_read_is_a_state_error(tmp_path: Path) -> None:
    (tmp_path / FILE).touch(mode=0)

    with pytest.raises(StateError, match=f"{FILE}: Permission denied"):
        open_state_seal(tmp_path, None)


def test_a_key_that_cannot_be_written_is_a_state_error(tmp_path: Path) -> None:
    with pytest.raises(StateError, match=f"{FILE}: No such file"):
        open_state_seal(tmp_path / "nowhere", None)
