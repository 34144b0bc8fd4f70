"""What scripts ask the worker for: a request's bytes as a call, and the bytes of its answer."""

import re
from collections.abc import Callable
from dataclasses import dataclass, field
from enum import StrEnum
from itertools import chain

import msgspec
from msgspec import UNSET, Raw, UnsetType

from worker.api.wire import UNDECODABLE
from worker.errors import HelperCallError

# Deeper than people nest, and far from where parsers give up: this one, and the app's.
MAX_DEPTH = 100
MAX_ERROR_CHARACTERS = 1000

_key = re.compile(r"(?!\.{1,2}\Z)[A-Za-z0-9_.-]{1,128}\Z")
# NUL, and halves of surrogate pairs without the other half, as JSON escapes them.
_unfit_escape = re.compile(
    r"\\u0000"
    r"|\\u[dD][89abAB][0-9a-fA-F]{2}(?!\\u[dD][c-fC-F][0-9a-fA-F]{2})"
    r"|(?<!\\u[dD][89abAB][0-9a-fA-F]{2})\\u[dD][c-fC-F][0-9a-fA-F]{2}"
)


class Form(StrEnum):
    """How the script wants its answer: one JSON value, or a text."""

    JSON = "json"
    TEXT = "text"


class Name(StrEnum):
    INPUT = "input"
    EVENT = "event"
    OUTPUT = "output"
    GET_VARIABLE = "getVariable"
    SET_VARIABLE = "setVariable"
    SET_CONDITION = "setCondition"
    EXECUTE_TOOL_ACTION = "executeToolAction"


@dataclass(frozen=True, slots=True)
class GiveInput:
    """The job's input."""


@dataclass(frozen=True, slots=True)
class GiveEvent:
    """What the job is a run of."""


@dataclass(frozen=True, slots=True)
class SayOutput:
    data: Raw = field(repr=False)


@dataclass(frozen=True, slots=True)
class SayCondition:
    condition: bool


@dataclass(frozen=True, slots=True)
class GetVariable:
    key: str


@dataclass(frozen=True, slots=True)
class SetVariable:
    key: str
    value: Raw = field(repr=False)


@dataclass(frozen=True, slots=True)
class ExecuteToolAction:
    tool: str
    action: str
    config: Raw = field(repr=False)


Call = (
    GiveInput | GiveEvent | SayOutput | SayCondition | GetVariable | SetVariable | ExecuteToolAction
)


@dataclass(frozen=True, slots=True)
class Asked:
    name: Name
    form: Form
    call: Call


class BadCallError(HelperCallError):
    """A request that is none; `form` is the one that its answer should have."""

    def __init__(self, message: str, form: Form) -> None:
        super().__init__(message)
        self.form = form


class _Request(msgspec.Struct, frozen=True, kw_only=True, rename="camel"):
    """Where the caller has text and not a value, it gives the field with `Text` at its end."""

    call: Name
    form: Form
    data: Raw | UnsetType = UNSET
    data_text: str | UnsetType = UNSET
    key: str = ""
    value: Raw | UnsetType = UNSET
    value_text: str | UnsetType = UNSET
    condition: bool | str | UnsetType = UNSET
    tool: str = ""
    action: str = ""
    config: Raw | UnsetType = UNSET
    config_text: str | UnsetType = UNSET


class _FormOnly(msgspec.Struct, frozen=True):
    form: Form = Form.TEXT


_request = msgspec.json.Decoder(_Request)
_form_only = msgspec.json.Decoder(_FormOnly)


def parse(request: bytes) -> Asked:
    """Raises BadCallError, naming the field, if `request` is no call."""
    text = clean_json(request)
    try:
        body = _request.decode(text)
    except UNDECODABLE as error:
        raise BadCallError(f"not a call: {error}", _form_of(text)) from error
    try:
        return Asked(body.call, body.form, _PARSERS[body.call](body))
    except HelperCallError as error:
        raise BadCallError(f"{body.call}: {error}", body.form) from error


def clean_json(text: bytes) -> str:
    """JSON as the app can keep it: its database takes no NUL, and neither invalid UTF-8 nor half
    of a surrogate pair is JSON."""
    # A backslash that is escaped itself begins no escape.
    parts = text.decode(errors="replace").split(r"\\")
    return r"\\".join(
        _unfit_escape.sub(r"\\ufffd", part) if r"\u" in part else part for part in parts
    )


def _form_of(text: str) -> Form:
    try:
        return _form_only.decode(text).form
    except UNDECODABLE:
        return Form.TEXT


def _say_output(body: _Request) -> Call:
    return SayOutput(_value(body.data, body.data_text, "data"))


def _say_condition(body: _Request) -> Call:
    match body.condition:
        case bool() as condition:
            return SayCondition(condition)
        case "true" | "false" as text:
            return SayCondition(text == "true")
        case _:
            raise HelperCallError("condition must be true or false")


def _get_variable(body: _Request) -> Call:
    return GetVariable(_checked_key(body.key))


def _set_variable(body: _Request) -> Call:
    return SetVariable(_checked_key(body.key), _value(body.value, body.value_text, "value"))


def _execute_tool_action(body: _Request) -> Call:
    if not body.tool or not body.action:
        raise HelperCallError("tool and action must be given")
    config = _value(body.config, body.config_text, "config", default=Raw(b"{}"))
    if not bytes(config).startswith(b"{"):
        raise HelperCallError("config must be a JSON object")
    return ExecuteToolAction(body.tool, body.action, config)


_PARSERS: dict[Name, Callable[[_Request], Call]] = {
    Name.INPUT: lambda _: GiveInput(),
    Name.EVENT: lambda _: GiveEvent(),
    Name.OUTPUT: _say_output,
    Name.SET_CONDITION: _say_condition,
    Name.GET_VARIABLE: _get_variable,
    Name.SET_VARIABLE: _set_variable,
    Name.EXECUTE_TOOL_ACTION: _execute_tool_action,
}


def _checked_key(key: str) -> str:
    # It becomes a part of a URL; `../other-user/KEY` must not reach another user's variables.
    if not _key.match(key):
        shown = key if len(key) <= 128 and key.isprintable() else "the key"
        raise HelperCallError(
            f"{shown!r} is no variable's key; expected 1 to 128 of A-Z a-z 0-9 _ . -"
        )
    return key


def _value(
    value: Raw | UnsetType,
    text: str | UnsetType,
    name: str,
    default: Raw | None = None,
) -> Raw:
    """The JSON of a field that is given as a value or as a text, as it was written.

    A text that is not JSON stands for itself.
    """
    if isinstance(value, Raw) and text is UNSET:
        decoded = _decoded(value, name)
        if decoded is _NOT_JSON:
            raise HelperCallError(f"{name} holds a number that is out of range")
        return Raw(bytes(value))
    if isinstance(text, str) and value is UNSET:
        decoded = _decoded(text, name)
        return Raw(msgspec.json.encode(text) if decoded is _NOT_JSON else text.strip().encode())
    if default is not None and text is UNSET and value is UNSET:
        return default
    raise HelperCallError(f"either {name} or {name}Text must be given")


_NOT_JSON = object()


def _decoded(text: Raw | str, name: str) -> object:
    too_deep = HelperCallError(f"{name} is nested more than {MAX_DEPTH} deep")
    try:
        value: object = msgspec.json.decode(text)
    except RecursionError as error:
        raise too_deep from error
    except msgspec.DecodeError:
        return _NOT_JSON
    if _depth(value) > MAX_DEPTH:
        raise too_deep
    return value


def _depth(value: object) -> int:
    depth, level = 0, [value]
    while level:
        depth += 1
        inside = [each for each in level if isinstance(each, dict | list)]
        level = list(
            chain.from_iterable(
                each.values() if isinstance(each, dict) else each for each in inside
            )
        )
    return depth


def ok(form: Form, value: Raw | None = None) -> bytes:
    """The answer to a call that was done; a call that gives nothing back has no value."""
    if form is Form.JSON:
        return b"ok\n" + (b"null" if value is None else bytes(value))
    return b"ok\n" + (b"" if value is None else as_text(value))


def error(form: Form, text: str) -> bytes:
    """The answer to a call that was not; `text` becomes one line."""
    line = " ".join(text.split())[:MAX_ERROR_CHARACTERS]
    body = msgspec.json.encode(line) if form is Form.JSON else line.encode(errors="replace")
    return b"error\n" + body


def as_text(value: Raw) -> bytes:
    """A string as it is, anything else as the JSON that it is."""
    text = bytes(value)
    return msgspec.json.decode(text, type=str).encode() if text.startswith(b'"') else text
