"""A script's requests and their answers, and its variables on their way to the app and back."""

import json
from typing import Any

import pytest
from hypothesis import example, given
from hypothesis import strategies as st
from msgspec import Raw

from worker.api import variables
from worker.dispatch import calls
from worker.dispatch.calls import (
    MAX_DEPTH,
    BadCallError,
    ExecuteToolAction,
    Form,
    GetVariable,
    GiveEvent,
    GiveInput,
    Name,
    SayCondition,
    SayOutput,
    SetVariable,
    parse,
)
from worker.errors import ProtocolError

# What JSON can say and the app can keep.
characters = st.characters(codec="utf-8", exclude_characters="\0\ufffd")
texts = st.text(characters)
scalars = (
    st.none()
    | st.booleans()
    | st.integers(-(2**63), 2**64 - 1)
    | st.floats(allow_nan=False, allow_infinity=False)
    | texts
)
values = st.recursive(scalars, lambda inner: st.lists(inner) | st.dictionaries(texts, inner))


def request(call: str, form: str = "json", **fields: object) -> bytes:
    return json.dumps({"call": call, "form": form, **fields}).encode()


def fault(asked: bytes) -> str:
    with pytest.raises(BadCallError) as caught:
        parse(asked)
    return str(caught.value)


def said(**fields: object) -> Any:  # noqa: ANN401  any JSON
    call = parse(request("output", "json", **fields)).call
    assert isinstance(call, SayOutput)
    return json.loads(bytes(call.data))


@pytest.mark.parametrize("form", Form)
@pytest.mark.parametrize(
    ("name", "fields", "call"),
    [
        ("input", {}, GiveInput()),
        ("event", {}, GiveEvent()),
        ("output", {"data": {"a": [1]}}, SayOutput(Raw(b'{"a": [1]}'))),
        ("output", {"data": None}, SayOutput(Raw(b"null"))),
        ("output", {"dataText": "plain"}, SayOutput(Raw(b'"plain"'))),
        ("setCondition", {"condition": True}, SayCondition(condition=True)),
        ("setCondition", {"condition": "false"}, SayCondition(condition=False)),
        ("getVariable", {"key": "A_b.c-1"}, GetVariable("A_b.c-1")),
        ("setVariable", {"key": "K", "value": "v"}, SetVariable("K", Raw(b'"v"'))),
        ("setVariable", {"key": "K", "valueText": "1.10"}, SetVariable("K", Raw(b"1.10"))),
        (
            "executeToolAction",
            {"tool": "email", "action": "send", "configText": '{"to":"a"}'},
            ExecuteToolAction("email", "send", Raw(b'{"to":"a"}')),
        ),
        (
            "executeToolAction",
            {"tool": "email", "action": "send"},
            ExecuteToolAction("email", "send", Raw(b"{}")),
        ),
    ],
)
def test_a_request_is_a_call(
    form: Form, name: str, fields: dict[str, object], call: calls.Call
) -> None:
    asked = parse(request(name, form, **fields))

    assert (asked.name, asked.form) == (name, form)
    assert asked.call == call


@given(
    st.binary()
    | st.builds(
        lambda fields: json.dumps(fields).encode(),
        st.dictionaries(
            st.sampled_from(["call", "form", "data", "dataText", "key", "value", "condition"]),
            values | st.sampled_from([*Name, *Form]),
        ),
    )
)
@example(b"")
@example(b"{}")
@example(b"\xff")
@example(b'{"call":"output","form":"json","data":' + b"[" * 100_000 + b"}")
@example(b'{"call":"output","form":"json","dataText":"' + b"[" * 100_000 + b"]" * 100_000 + b'"}')
@example(rb'{"call":"getVariable","form":"json","key":"\ud800"}')
def test_any_bytes_are_a_call_or_a_named_error(asked: bytes) -> None:
    try:
        parsed = parse(asked)
    except BadCallError as error:
        answer = calls.error(error.form, str(error))
        assert answer.startswith(b"error\n")
        assert answer.count(b"\n") == 1
    else:
        assert isinstance(parsed.call, calls.Call)


@given(value=values)
def test_a_value_is_what_was_said(value: object) -> None:
    assert said(data=value) == value


@given(value=values)
def test_a_text_that_is_json_is_that_json(value: object) -> None:
    assert said(dataText=f" {json.dumps(value)}\n") == value


@given(text=texts)
@example("")
@example("  ")
@example("NaN")
@example("1e400")
@example("'single'")
@example("{not json}")
@example("007")
def test_a_text_that_is_no_json_is_itself(text: str) -> None:
    try:
        json.loads(text, parse_constant=lambda _: "no JSON")
        is_json = text != "NaN" and text != "1e400"
    except ValueError:
        is_json = False

    if not is_json:
        assert said(dataText=text) == text


@given(text=st.text(st.characters(codec=None, categories=None)))
@example("\ud83d\ude00\ud83d")
@example("\\u0000\0\\\0")
@example("\udc00\ud83d\ude00\udc00")
@example("A\udc00")
@example("\0\udc00")
def test_what_the_app_cannot_keep_is_replaced_and_nothing_else(text: str) -> None:
    """Escaped, as Python's and Node's helpers do; pairs of surrogates are one character."""
    as_read = json.loads(json.dumps(text))
    kept = "".join("\ufffd" if c == "\0" or "\ud800" <= c <= "\udfff" else c for c in as_read)

    assert said(data=text) == kept
    assert said(data={text: text}) == {kept: kept}


def test_invalid_utf8_is_replaced() -> None:
    call = parse(b'{"call":"output","form":"text","dataText":"a\xffb"}').call

    assert call == SayOutput(Raw('"a\ufffdb"'.encode()))


@pytest.mark.parametrize(
    "key",
    [
        "",
        ".",
        "..",
        "../other-user/KEY",
        "a/b",
        "a%2fb",
        "a b",
        "ä",
        "K\n",
        "K\0",
        "x" * 129,
        "?a=1",
        "a#b",
        "a\\b",
    ],
)
@pytest.mark.parametrize("name", ["getVariable", "setVariable"])
def test_a_key_outside_the_allowed_characters_is_refused(name: str, key: str) -> None:
    assert "no variable's key" in fault(request(name, key=key, value=1))


@given(key=st.from_regex(r"[A-Za-z0-9_.-]{1,128}", fullmatch=True))
@example("...")
@example("-")
@example("x" * 128)
def test_a_key_of_allowed_characters_is_one_unless_it_is_a_step_in_a_path(key: str) -> None:
    if key in (".", ".."):
        assert "no variable's key" in fault(request("getVariable", key=key))
    else:
        assert parse(request("getVariable", key=key)).call == GetVariable(key)


@pytest.mark.parametrize(
    ("asked", "named"),
    [
        (b"[]", "object"),
        (request("sing"), "call"),
        (b'{"call":"input"}', "form"),
        (request("input", "yaml"), "form"),
        (request("output"), "data"),
        (request("output", data=1, dataText="1"), "data"),
        (request("setVariable", key="K"), "value"),
        (request("setCondition"), "condition"),
        (request("setCondition", condition="maybe"), "condition"),
        (request("setCondition", condition=1), "condition"),
        (request("executeToolAction", tool="email"), "action"),
        (request("executeToolAction", tool="a", action="b", config=[1]), "config"),
        (request("executeToolAction", tool="a", action="b", configText="x"), "config"),
        (b'{"call":"output","form":"json","data":1e400}', "range"),
        (request("output", dataText="[" * 101 + "]" * 101), "deep"),
    ],
)
def test_a_fault_names_its_field(asked: bytes, named: str) -> None:
    assert named in fault(asked)


@pytest.mark.parametrize(
    ("asked", "form"),
    [
        (request("sing", "json"), Form.JSON),
        (request("getVariable", "json", key=".."), Form.JSON),
        (request("getVariable", "text", key=".."), Form.TEXT),
        (b"not JSON", Form.TEXT),
    ],
)
def test_a_fault_is_answered_in_the_form_that_was_asked_for(asked: bytes, form: Form) -> None:
    with pytest.raises(BadCallError) as caught:
        parse(asked)

    assert caught.value.form is form


def test_nesting_has_a_bound() -> None:
    deep = json.loads("[" * MAX_DEPTH + "]" * MAX_DEPTH)

    assert said(data=deep) == deep
    assert "deep" in fault(request("output", data=[deep]))
    assert "deep" in fault(request("output", data={"a": deep}))


@given(value=values)
def test_an_answer_is_one_json_value(value: object) -> None:
    raw = Raw(json.dumps(value).encode())

    head, body = calls.ok(Form.JSON, raw).split(b"\n", 1)

    assert (head, json.loads(body)) == (b"ok", value)


@given(value=values)
def test_an_answer_in_text_is_the_string_or_the_json(value: object) -> None:
    text = json.dumps(value)

    head, body = calls.ok(Form.TEXT, Raw(text.encode())).split(b"\n", 1)

    assert head == b"ok"
    assert body.decode() == (value if isinstance(value, str) else text)


def test_a_call_that_gives_nothing_back_is_answered_with_nothing() -> None:
    assert calls.ok(Form.JSON) == b"ok\nnull"
    assert calls.ok(Form.TEXT) == b"ok\n"


@given(text=st.text())
def test_an_error_is_one_line(text: str) -> None:
    head, body = calls.error(Form.TEXT, text).split(b"\n", 1)
    assert head == b"error"
    assert len(body.decode().splitlines()) <= 1

    head, body = calls.error(Form.JSON, text).split(b"\n", 1)
    assert head == b"error"
    assert isinstance(json.loads(body), str)


# Variables


def kept_by_the_app(value: Raw) -> Raw:
    """As the app does it, whose language has one kind of number: a text as it is, else JSON."""
    decoded = json.loads(bytes(value), parse_int=float)
    if not isinstance(decoded, str):
        decoded = json.dumps(_as_javascript(decoded), separators=(",", ":"), ensure_ascii=False)
    return Raw(json.dumps(decoded).encode())


def _as_javascript(value: object) -> object:
    match value:
        case float() if value.is_integer() and abs(value) < 1e21:
            return int(value)
        case list():
            return [_as_javascript(each) for each in value]
        case dict():
            return {key: _as_javascript(each) for key, each in value.items()}
    return value


def back(value: Raw) -> Raw:
    read = variables.read(kept_by_the_app(variables.sent(value)))
    assert read is not None
    return read


# Without the numbers that JavaScript has not.
numbers = st.integers(-(2**53) + 1, 2**53 - 1)
plain = st.recursive(
    st.none() | st.booleans() | numbers | texts,
    lambda inner: st.lists(inner) | st.dictionaries(texts, inner),
)


@given(value=plain)
def test_a_variable_comes_back_as_it_was_put(value: object) -> None:
    came = back(Raw(json.dumps(value).encode()))

    if isinstance(value, str):  # one that is JSON comes back as that, in the same words
        assert calls.as_text(came).decode() == value
    else:
        assert json.loads(bytes(came)) == value


@given(text=texts)
@example("1.10")
@example("007")
@example("12345678901234567890123")
@example("-0")
@example("1e5")
@example('"quoted"')
@example("true")
@example("null")
def test_a_variable_of_text_has_the_same_text_when_it_comes_back(text: str) -> None:
    """What a shell sees: JSON or not, `getVariable` prints what `setVariable` was given."""
    asked = parse(request("setVariable", key="K", valueText=text)).call
    assert isinstance(asked, SetVariable)

    printed = calls.as_text(back(asked.value)).decode()

    try:
        value = json.loads(text)
    except ValueError:
        assert printed == text
    else:
        if isinstance(value, str):
            assert printed == value
        elif isinstance(value, list | dict):
            assert json.loads(printed) == value
        else:
            assert printed == text.strip()


@pytest.mark.parametrize(
    ("stored", "given"),
    [
        ("42", 42),
        ("-1.5", -1.5),
        ("true", True),
        ('{"a":1}', {"a": 1}),
        ("[]", []),
        ("hello", "hello"),
        ("", ""),
        ("1.10", "1.10"),
        ("007", "007"),
        ("+1", "+1"),
        ("1e400", "1e400"),
        ('"quoted"', '"quoted"'),
        ("[" * 5000, "[" * 5000),
    ],
)
def test_a_text_of_the_app_is_json_where_nothing_is_lost(stored: str, given: object) -> None:
    value = variables.read(Raw(json.dumps(stored).encode()))

    assert value is not None
    assert json.loads(bytes(value)) == given
    assert calls.as_text(value).decode() == stored


def test_a_value_that_the_api_gives_as_json_is_that() -> None:
    assert variables.read(Raw(b'{"a": 1}')) == Raw(b'{"a": 1}')
    assert variables.read(Raw(b"1.10")) == Raw(b"1.10")


def test_no_value_is_no_variable() -> None:
    assert variables.read(Raw(b"null")) is None


@pytest.mark.parametrize("odd", [b"", b"\xff", b'"\\ud800"', b"[" * 100_000])
def test_what_is_no_json_is_an_error_of_the_api(odd: bytes) -> None:
    with pytest.raises(ProtocolError):
        variables.read(Raw(odd))


@pytest.mark.parametrize(
    ("value", "sent"),
    [
        (b'"v"', b'"v"'),
        (b'{"a": 1.10}', b'{"a": 1.10}'),
        (b"5", b"5"),
        (b"true", b"true"),
        (b"1.10", b'"1.10"'),
        (b"12345678901234567890", b'"12345678901234567890"'),
        (b"null", b'"null"'),
    ],
)
def test_what_would_be_written_in_another_way_is_put_as_text(value: bytes, sent: bytes) -> None:
    assert variables.sent(Raw(value)) == Raw(sent)
