"""JSON that is cut by its brackets."""

import json
import time

import pytest
from hypothesis import given
from hypothesis import strategies as st

from worker.api.cut import MOST_LEVELS, elements, member, shallow

# Brackets, commas, quotes and backslashes, as keys and as values.
texts = st.text(st.sampled_from('[]{},:"\\a\n\u00e9'), max_size=8)
values = st.recursive(
    st.none() | st.booleans() | st.integers() | texts,
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(texts, inner, max_size=4),
    max_leaves=12,
)


def text_of(value: object, *, indent: int | None = None) -> bytes:
    return json.dumps(value, indent=indent).encode()


@given(st.lists(values, max_size=5), st.sampled_from([None, 2]))
def test_an_array_is_cut_into_its_elements(array: list[object], indent: int | None) -> None:
    found = list(elements(text_of(array, indent=indent)))

    assert [json.loads(each) for each in found] == array


@given(st.dictionaries(texts.filter(lambda key: ":" not in key), values, max_size=5), values)
def test_a_member_is_found_by_its_name(others: dict[str, object], value: object) -> None:
    found = member(text_of({**others, "jobs": value}), "jobs")

    assert found is not None
    assert json.loads(found) == value
    assert member(text_of(others), "jobs") is None


@given(values)
def test_what_is_not_deep_stays_as_it_is(value: object) -> None:
    assert shallow(text_of(value)) == text_of(value)


@pytest.mark.parametrize(("opening", "closing"), [(b"[", b"]"), (b'{"a":', b"}")])
def test_what_is_too_deep_is_null(opening: bytes, closing: bytes) -> None:
    def nested(inner: bytes, levels: int) -> bytes:
        return opening * levels + inner + closing * levels

    deep = nested(b"1", 100_000)

    assert shallow(nested(b"1", MOST_LEVELS)) == nested(b"1", MOST_LEVELS)
    assert shallow(deep) == nested(b"null", MOST_LEVELS)
    assert shallow(b'{"a": [%s, %s], "b": 2}' % (deep, deep)) == b'{"a": [%s, %s], "b": 2}' % (
        2 * (nested(b"null", MOST_LEVELS - 2),)
    )


@pytest.mark.parametrize("text", [b"", b"1", b'"[]"', b"[1", b'{"a": [1}', b'["', b"null"])
def test_what_does_not_close_is_a_named_error(text: bytes) -> None:
    with pytest.raises(ValueError, match="from end to end"):
        list(elements(text))


def test_a_text_that_is_never_closed_takes_no_time() -> None:
    began = time.process_time()

    shallow(b'["' + 200_000 * b'\\"')

    assert time.process_time() - began < 1
