"""What a script prints on its way into the spools: masked, counted, and taken up again."""

import errno
import os
from pathlib import Path

import pytest
import trio
from hypothesis import given, settings
from hypothesis import strategies as st
from trio.testing import MockClock

from tests.captures import new_path
from worker.dispatch.capture import Capture
from worker.masking import ExecutionMasker, Masker
from worker.printed import Orders, Printed
from worker.remote.frames import Stream
from worker.secret import Secret
from worker.state.spool import Spool

LIMIT = 100_000
SECRET = "s3cret-of-the-job"  # noqa: S105  opens nothing
ADDED = "added-at-run-time"
TEXT = (
    f"first {SECRET} line\n::add-mask::{ADDED}\nthen {ADDED}{SECRET}\n"
    f"{SECRET[:9]}\n{SECRET[9:]} and half: {SECRET[:8]}"
).encode()
MASKED = b"first *** line\n::add-mask::***\nthen ******\n*** and half: " + SECRET[:8].encode()


class Stage:
    """Printed over a spool that outlives it, as the masks that were kept do."""

    def __init__(self) -> None:
        self.path = new_path()
        self.kept: tuple[Secret, ...] = ()
        self.seconds_to_keep = 0.0
        self.masks_when_written: list[int] = []

    def printed(self) -> Printed:
        masker = ExecutionMasker(Masker([Secret(SECRET)]), self.kept)

        async def keep_masks() -> None:
            await trio.sleep(self.seconds_to_keep)
            self.kept = masker.added

        captures = {
            Stream.STDOUT: Capture(Spool(self.path, LIMIT), LIMIT),
            Stream.STDERR: Capture(Spool(new_path(), LIMIT), LIMIT),
        }
        printed = Printed(captures, masker, keep_masks, Orders(), into_log=False)
        printed.take_up()
        return printed

    def content(self) -> bytes:
        spool = Spool(self.path, LIMIT)
        return spool.read(0, spool.received)


@settings(deadline=None, max_examples=60)
@given(st.lists(st.integers(0, len(TEXT)), max_size=6), st.lists(st.booleans(), min_size=8))
def test_a_worker_that_is_killed_at_any_point_leaves_what_the_next_goes_on_from(
    cuts: list[int], deaths: list[bool]
) -> None:
    stage = Stage()

    async def print_all() -> None:
        printed = stage.printed()
        for cut, dies in zip((*sorted(cuts), len(TEXT)), deaths, strict=False):
            at = printed.offsets.stdout
            await printed.take_in(Stream.STDOUT, TEXT[max(at, printed_so_far(printed)) : cut])
            so_far[printed] = cut
            if dies and cut < len(TEXT):
                printed.close()
                printed = stage.printed()
        at = printed_so_far(printed)
        await printed.take_in(Stream.STDOUT, TEXT[at:])
        await printed.end()

    # What the server has sent to each; a new one is sent what follows its offset.
    so_far: dict[Printed, int] = {}

    def printed_so_far(printed: Printed) -> int:
        return so_far.get(printed, printed.offsets.stdout)

    trio.run(print_all)

    assert stage.content() == MASKED


async def test_a_secret_is_on_no_disk_before_it_is_known_to_be_one(
    autojump_clock: MockClock,
) -> None:
    stage = Stage()
    printed = stage.printed()
    for at in range(len(TEXT)):
        await printed.take_in(Stream.STDOUT, TEXT[at : at + 1])
        content = stage.path.read_bytes()
        assert SECRET[:9].encode() not in content
        assert ADDED.encode() not in content
    await printed.end()

    assert stage.content() == MASKED


async def test_masks_are_kept_before_what_they_mask(
    autojump_clock: MockClock, monkeypatch: pytest.MonkeyPatch
) -> None:
    stage = Stage()
    printed = stage.printed()
    kept_when_written = []
    real = Spool.write

    def write(spool: Spool, data: bytes, *, source: int | None = None) -> None:
        kept_when_written.append((b"add-mask" in data, len(stage.kept)))
        real(spool, data, source=source)

    monkeypatch.setattr(Spool, "write", write)
    await printed.take_in(Stream.STDOUT, TEXT)
    await printed.end()

    assert [count for has_mask, count in kept_when_written if has_mask] == [1]


async def test_what_there_was_no_room_for_when_the_end_came_is_not_skipped(
    autojump_clock: MockClock, monkeypatch: pytest.MonkeyPatch
) -> None:
    stage = Stage()
    printed = stage.printed()

    def full(*_: object) -> int:
        raise OSError(errno.ENOSPC, "No space left on device")

    with monkeypatch.context() as disk:
        disk.setattr(os, "pwrite", full)
        with trio.move_on_after(10):
            await printed.take_in(Stream.STDOUT, TEXT)
    await printed.end()

    assert stage.content() == MASKED


async def test_more_than_a_hundred_masks_are_lines_as_any(
    autojump_clock: MockClock, tmp_path: Path
) -> None:
    stage = Stage()
    printed = stage.printed()
    lines = b"".join(b"::add-mask::value-%04d\n" % number for number in range(102))
    await printed.take_in(Stream.STDOUT, lines + b"value-0007 value-0101\n")
    await printed.end()

    assert stage.content().endswith(b"*** value-0101\n")
    assert len(stage.kept) == 100


async def test_what_waits_for_its_masks_to_be_kept_is_not_lost_over_a_cancel(
    autojump_clock: MockClock,
) -> None:
    stage = Stage()
    stage.seconds_to_keep = 60
    printed = stage.printed()

    with trio.move_on_after(1):
        await printed.take_in(Stream.STDOUT, TEXT)
    stage.seconds_to_keep = 0
    await printed.end()

    assert stage.content() == MASKED
    assert [mask.reveal() for mask in stage.kept] == [ADDED]


async def test_what_was_held_back_until_the_end_waits_for_room_too(
    autojump_clock: MockClock, monkeypatch: pytest.MonkeyPatch
) -> None:
    stage = Stage()
    printed = stage.printed()
    await printed.take_in(Stream.STDOUT, f"all: {SECRET[:8]}".encode())
    really_write = Spool.write

    def write(spool: Spool, data: bytes, *, source: int | None = None) -> None:
        if trio.current_time() < 5:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        really_write(spool, data, source=source)

    monkeypatch.setattr(Spool, "write", write)
    await printed.end()

    assert stage.content() == f"all: {SECRET[:8]}".encode()
