"""What is kept of a stream: its first and last half, and when its lines came."""

import re

from hypothesis import example, given
from hypothesis import strategies as st

from tests.captures import a_capture, new_path
from worker.dispatch.capture import FEW_ARRIVALS, Arrivals, Capture
from worker.dispatch.output import MAX_LINE_BYTES, interleave
from worker.state.spool import Spool

chunks = st.lists(st.binary(min_size=1, max_size=40), max_size=30)
limits = st.integers(0, 200)
MARKER = re.compile(rb"\n\[cronium\] \.\.\. (\d+) bytes left out \.\.\.\n")


@given(chunks, limits)
def test_a_stream_within_the_limit_is_kept_byte_for_byte(data: list[bytes], more: int) -> None:
    stream = b"".join(data)

    assert a_capture(data, limit=len(stream) + more).content() == stream


@example([b"%02d" % number for number in range(40)], 11)
@given(chunks, limits)
def test_a_stream_over_the_limit_keeps_its_first_and_last_half(
    data: list[bytes], limit: int
) -> None:
    stream = b"".join(data)

    capture = a_capture(data, limit=limit)

    if len(stream) > limit:
        half = limit // 2
        first, last = stream[: limit - half], stream[len(stream) - half :]
        marker = b"\n[cronium] ... %d bytes left out ...\n" % (len(stream) - limit)
        assert capture.content() == first + marker + last


@example([b"%02d" % number for number in range(40)], 30, 10)
@given(chunks, limits, limits)
def test_a_smaller_share_is_as_a_smaller_limit(data: list[bytes], one: int, other: int) -> None:
    small, large = sorted((one, other))

    blocks = a_capture(data, limit=large).blocks(small)

    assert b"".join(block for _, block in blocks) == a_capture(data, limit=small).content()


sparse = st.lists(
    st.tuples(st.integers(1, 3), st.binary(min_size=1, max_size=5)), min_size=1, max_size=300
)


@given(sparse, st.integers(0, 400))
def test_each_kept_byte_knows_when_it_came(steps: list[tuple[int, bytes]], share: int) -> None:
    order, data, orders = 0, [], []
    for step, chunk in steps:
        order += step
        data.append((order, chunk))
        orders += [order] * len(chunk)

    capture = a_capture(data, limit=10_000, share=share)

    # Where nothing came in between, bytes may share a number.
    runs: dict[int, int] = {}
    for each in sorted(set(orders)):
        runs[each] = runs.get(each - 1, each)
    found = [
        (number, byte)
        for number, block in capture.blocks(share)
        if not MARKER.fullmatch(block)
        for byte in block
    ]
    told = [(runs[number], byte) for number, chunk in data for byte in chunk]
    half = share // 2
    assert found == (
        told if len(told) <= share else told[: share - half] + told[len(told) - half :]
    )


def test_what_is_known_of_arrivals_is_bounded() -> None:
    arrivals = Arrivals(1000)
    most = 0
    for number in range(100_000):
        arrivals.note(2 * number, 10 * (number + 1))
        most = max(most, len(arrivals._ends))

    assert most <= 4 * max(FEW_ARRIVALS, 1000 // 10)


def test_a_stream_that_nothing_comes_between_is_one_arrival() -> None:
    arrivals = Arrivals(1000)
    for number in range(1000):
        arrivals.note(number, number + 1)

    assert list(arrivals.between(0, 1000)) == [(0, 0, 1000)]


@given(chunks, chunks, st.integers(10, 300))
def test_a_capture_goes_on_where_another_process_stopped(
    before: list[bytes], after: list[bytes], limit: int
) -> None:
    path = new_path()
    first = Capture(Spool(path, limit), limit)
    for chunk in before:
        first.write(chunk)
    first.close()

    second = Capture(Spool(path, limit), limit)
    rest = second.take_up(7)
    for chunk in after:
        second.write(chunk)
    second.close()

    assert second.content() == a_capture([*before, *after], limit=limit).content()
    stream = b"".join(before)
    if len(stream) <= limit:
        assert rest == stream[stream.rfind(b"\n") + 1 :]


def test_the_beginning_of_a_line_that_is_taken_up_is_below_a_cutters_limit() -> None:
    path = new_path()
    first = Capture(Spool(path, 2**20), 2**20)
    first.write(b"x" * 500_000)
    first.close()

    assert 0 < len(Capture(Spool(path, 2**20), 2**20).take_up(0)) < MAX_LINE_BYTES


def test_the_note_of_what_is_left_out_stands_where_it_is() -> None:
    capture = a_capture([b"first line\n", b"x" * 100, b"\nlast line\n"], limit=22)

    whole = interleave([("a", capture.blocks(22))])

    assert (
        whole
        == b"[a] first line\n[a] \n[a] [cronium] ... 100 bytes left out ...\n[a] \n[a] last line\n"
    )
