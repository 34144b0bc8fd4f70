"""Names and output folded, timelines drawn, log lines in words."""

import re

import pytest
from hypothesis import given
from hypothesis import strategies as st

from worker.shown.fold import fold_lines, group, harmless_lines
from worker.shown.names import NameRange, fold_names, folded, natural_key
from worker.shown.timeline import EXECUTION, SETUP, WAITING, Span, duration, timeline

# Few enough that there are rows of them, zeros in front included.
NAMES = st.one_of(
    st.builds("{}{}{}".format, st.sampled_from(["web-", "db", ""]), st.integers(0, 30),
              st.sampled_from(["", ".eu", "-a"])),
    st.builds("n{:0{}}".format, st.integers(0, 120), st.integers(1, 4)),
    st.text(max_size=6),
)  # fmt: skip
OUTPUTS = st.lists(
    st.tuples(NAMES, st.sampled_from([b"", b"a\n", b"a\nb\n", b"\x1b[2Jb\n", b"\xff"])), max_size=20
)


def members(each: NameRange) -> list[str]:
    """What a range stands for, from its ends and its count alone."""
    if each.count == 1:
        return [each.first]
    match = re.fullmatch(r"(.*?)([0-9]+)([^0-9]*)", each.first, re.DOTALL)
    assert match
    head, digits, tail = match.groups()
    numbers = range(int(digits), int(digits) + each.count)
    return [f"{head}{number:0{len(digits)}}{tail}" for number in numbers]


# Names.


@given(st.lists(NAMES, max_size=60))
def test_folded_names_are_the_names_in_natural_order(names: list[str]) -> None:
    ranges = fold_names(names)

    unfolded = [name for each in ranges for name in members(each)]
    assert unfolded == sorted(set(names), key=natural_key)
    assert all(members(each)[-1] == each.last for each in ranges)


@pytest.mark.parametrize(
    ("names", "text"),
    [
        ([f"web-{n}" for n in range(1, 49)], "web-1..web-48"),
        (["web-9", "web-10", "web-11", "db-1"], "db-1, web-9..web-11"),
        (["n08", "n09", "n10"], "n08..n10"),
        (["n8", "n09", "n10"], "n8, n09, n10"),
        (["a1", "a2"], "a1, a2"),
        (["a1", "a2", "a4", "a5", "a6"], "a1, a2, a4..a6"),
        (["w1.eu", "w2.eu", "w3.eu", "w3.us"], "w1.eu..w3.eu, w3.us"),
        (["a", "a", "a"], "a"),
        ([], ""),
    ],
)
def test_names_in_a_row_are_a_range(names: list[str], text: str) -> None:
    assert folded(names) == text


# Output.


@given(OUTPUTS)
def test_every_server_is_in_the_group_of_what_it_printed(outputs: list[tuple[str, bytes]]) -> None:
    groups = group(outputs)

    assert sorted((name, each.content) for each in groups for name in each.names) == sorted(outputs)
    assert len({each.content for each in groups}) == len(groups)
    assert [len(each.names) for each in groups] == sorted(
        (len(each.names) for each in groups), reverse=True
    )


@given(OUTPUTS, st.binary(max_size=200))
def test_nothing_that_is_printed_moves_a_cursor(
    outputs: list[tuple[str, bytes]], content: bytes
) -> None:
    lines = [*fold_lines([(f"s{n}", each) for n, (_, each) in enumerate(outputs)])]

    assert all(line.replace("\t", "").isprintable() for line in lines)
    assert all(line.replace("\t", "").isprintable() for line in harmless_lines(content))


def test_the_others_are_shown_by_how_they_differ() -> None:
    common = b"".join(b"line %d\n" % n for n in range(9))
    outputs = [(f"web-{n}", common) for n in range(1, 49)]
    outputs += [("db-1", common.replace(b"line 4", b"other")), ("db-2", b"quite other\n")]

    lines = list(fold_lines([*outputs, ("db-3", b"")]))

    assert lines[:10] == ["web-1..web-48 (48):", *(f"line {n}" for n in range(9))]
    assert lines[10:] == [
        "db-1 (1), unlike web-1..web-48:",
        "@@ -4,3 +4,3 @@",
        " line 3",
        "-line 4",
        "+other",
        " line 5",
        "db-2 (1):",
        "quite other",
        "db-3 (1): no output",
    ]


# Time.

SPANS = st.lists(
    st.builds(
        Span, st.integers(0, 10**6), st.integers(0, 10**6), st.integers(0, 10**6),
        st.integers(0, 10**6),
    )
)  # fmt: skip


@given(SPANS, st.integers(1, 200))
def test_bars_are_as_wide_as_they_may_and_in_the_order_of_the_phases(
    spans: list[Span], width: int
) -> None:
    bars = timeline(spans, width)

    assert len(bars) == len(spans)
    for bar in bars:
        assert 0 < len(bar) <= width
        assert re.fullmatch(rf" *{WAITING}*{SETUP}*{EXECUTION}*", bar)
        assert bar.strip()


def test_bars_are_drawn_to_scale() -> None:
    spans = [Span(1000, 2000, 200, 800), Span(1000, 1500, 100, 300), Span(1000, 1001, 1, 0)]

    assert timeline(spans, 10) == ["░░████████", "·░███", "░"]


@pytest.mark.parametrize(
    ("ms", "text"),
    [(0, "0 ms"), (999, "999 ms"), (1000, "1.0 s"), (59_949, "59.9 s"), (59_990, "1 m 00 s"),
     (245_000, "4 m 05 s"), (7_380_000, "2 h 03 m")],
)  # fmt: skip
def test_durations_have_the_unit_that_suits_them(ms: int, text: str) -> None:
    assert duration(ms) == text
