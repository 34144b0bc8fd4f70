"""What a script says, and why it failed, without secrets."""

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from worker.dispatch.result import Outcome, ServerResult
from worker.masked import mask_json, mask_result
from worker.masking import Masker
from worker.secret import Secret

MASKER = Masker([Secret('a","b"c\\d'), Secret("pässwörter"), Secret("12345678")])

json_values = st.recursive(
    st.none()
    | st.booleans()
    | st.integers()
    | st.text()
    | st.floats(allow_nan=False, allow_infinity=False),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(), inner, max_size=3),
    max_leaves=10,
)


def masked(value: object, *, ascii_only: bool = True) -> object:
    return json.loads(mask_json(json.dumps(value, ensure_ascii=ascii_only).encode(), MASKER))


@pytest.mark.parametrize("ascii_only", [True, False])
@pytest.mark.parametrize(
    ("said", "told"),
    [
        ('it is a","b"c\\d!', "it is ***!"),
        ({"pässwörter": ["pässwörter", None, True]}, {"***": ["***", None, True]}),
        ([12345678, 1234567, 0.5], ["***", 1234567, 0.5]),
        (["a", "b"], ["a", "b"]),
    ],
)
def test_secrets_are_masked_within_texts_and_the_json_stays_json(
    said: object, told: object, *, ascii_only: bool
) -> None:
    assert masked(said, ascii_only=ascii_only) == told


@given(json_values)
def test_what_holds_no_secret_is_not_changed(value: object) -> None:
    text = json.dumps(value).encode()

    assert mask_json(text, Masker([Secret("never-in-there-~~~")])) == text


def test_a_result_is_told_without_secrets() -> None:
    result = ServerResult(
        "exec",
        "1",
        "web",
        Outcome.FAILED,
        1,
        0,
        1,
        error="no pässwörter",
        script_output=b"12345678",
    )

    told = mask_result(result, MASKER)

    assert (told.error, told.script_output) == ("no ***", b'"***"')
    assert (
        mask_result(ServerResult("exec", "1", "web", Outcome.SUCCESS, 0, 0, 1), MASKER).error
        is None
    )
