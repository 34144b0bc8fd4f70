"""What a run prints: lines, the kept halves, and the servers' lines together."""

import re

import pytest
from hypothesis import given
from hypothesis import strategies as st

from worker.dispatch.output import MAX_LINE_BYTES, Block, LineCutter, interleave

lines = st.lists(
    st.one_of(st.binary(max_size=20), st.just(b"\n"), st.just(b"a\nb\nc")), max_size=20
)


@given(lines)
def test_a_cutter_loses_nothing_and_hands_on_whole_lines(data: list[bytes]) -> None:
    cutter = LineCutter()

    fed = [cutter.feed(piece) for piece in data]
    rest = cutter.flush()

    assert b"".join(fed) + rest == b"".join(data)
    assert all(piece.endswith(b"\n") for piece in fed if piece)
    assert b"\n" not in rest
    assert cutter.flush() == b""


@given(st.lists(st.integers(0, 2 * MAX_LINE_BYTES), max_size=8), st.booleans())
def test_a_cutter_never_holds_a_line_over_its_limit(sizes: list[int], with_ends: bool) -> None:
    cutter = LineCutter()
    fed = held = 0
    for size in sizes:
        data = b"x" * size + (b"\n" if with_ends and size % 2 else b"")
        fed += len(data)

        handed_on = len(cutter.feed(data))

        held += len(data) - handed_on
        assert 0 <= held < MAX_LINE_BYTES
    assert len(cutter.flush()) == held


def test_a_line_of_10_mb_comes_out_in_pieces() -> None:
    cutter = LineCutter()
    line = bytes(range(11, 256)) * 40_000 + b"\n"

    pieces = [cutter.feed(line[at : at + 30_000]) for at in range(0, len(line), 30_000)]

    assert b"".join(pieces) + cutter.flush() == line


@st.composite
def servers(draw: st.DrawFn) -> tuple[list[tuple[int, bytes]], int]:
    """Chunks of several servers in the order in which they came, and how many servers."""
    count = draw(st.integers(1, 4))
    chunk = st.tuples(st.integers(0, count - 1), st.one_of(lines_of_text, partial_line))
    return draw(st.lists(chunk, max_size=20)), count


lines_of_text = st.lists(
    st.from_regex(rb"[a-z]{0,6}\n", fullmatch=True), min_size=1, max_size=3
).map(b"".join)
partial_line = st.from_regex(rb"[a-z]{1,6}", fullmatch=True)


@given(servers())
def test_every_line_carries_its_servers_name(came: tuple[list[tuple[int, bytes]], int]) -> None:
    whole = interleave(streams(*came))

    assert whole == b"" or whole.endswith(b"\n")
    assert all(re.match(rb"\[s\d\] [a-z]*\Z", line) for line in whole.split(b"\n")[:-1])


@given(servers())
def test_each_servers_output_is_whole_and_in_order(
    came: tuple[list[tuple[int, bytes]], int],
) -> None:
    chunks, count = came

    whole = interleave(streams(chunks, count)).split(b"\n")[:-1]

    for number in range(count):
        prefix = b"[s%d] " % number
        own = b"".join(line.removeprefix(prefix) for line in whole if line.startswith(prefix))
        sent = b"".join(data for server, data in chunks if server == number)
        assert own == sent.replace(b"\n", b"")


@given(servers())
def test_lines_stand_in_the_order_in_which_they_came(
    came: tuple[list[tuple[int, bytes]], int],
) -> None:
    chunks, count = came

    whole = interleave(streams(chunks, count))

    body = re.sub(rb"(?m)^\[s\d\] ", b"", whole).replace(b"\n", b"")
    assert body == b"".join(data for _, data in chunks).replace(b"\n", b"")


def test_a_line_that_comes_in_pieces_is_joined() -> None:
    blocks: list[Block] = [(0, b"one "), (1, b"line\n"), (2, b"and another")]

    assert interleave([("web-1", blocks)]) == b"[web-1] one line\n[web-1] and another\n"


def test_a_line_that_another_server_breaks_into_goes_on_under_its_name() -> None:
    whole = interleave([("a", [(0, b"begun "), (2, b"ended\n")]), ("b", [(1, b"between\n")])])

    assert whole == b"[a] begun \n[b] between\n[a] ended\n"


@pytest.mark.parametrize("data", [b"\r50%\r100%\n", b"\x0c\x85\xe2\x80\xa8\n", b"\0\n"])
def test_only_a_line_feed_ends_a_line(data: bytes) -> None:
    assert interleave([("a", [(0, data)])]) == b"[a] " + data


def test_a_name_may_be_any_text() -> None:
    assert interleave([("wéb-1", [(0, b"x\n")])]) == b"[w\xc3\xa9b-1] x\n"


def streams(chunks: list[tuple[int, bytes]], count: int) -> list[tuple[str, list[Block]]]:
    return [
        (f"s{number}", [(at, data) for at, (server, data) in enumerate(chunks) if server == number])
        for number in range(count)
    ]
