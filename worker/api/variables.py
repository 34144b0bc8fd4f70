"""Scripts' variables: JSON to the script, text to the app."""

import msgspec

from worker.errors import ProtocolError

# Whole numbers beyond this are others in JavaScript and in Go.
MAX_WHOLE = 2**53 - 1


def sent(value: msgspec.Raw) -> msgspec.Raw:
    """What to put for `value`, which is valid JSON.

    The app keeps a text, and makes it of what it has read: a number that it would write in
    another way is sent as the text that the script gave, and so is null, which it may not take.
    """
    decoded = msgspec.json.decode(value)
    if decoded is None or (_is_number(decoded) and not _is_plain(decoded, _text(value))):
        return _string(_text(value))
    return value


def read(value: msgspec.Raw) -> msgspec.Raw | None:
    """The variable as the script is given it, for `value` as the API gave it; None for none.

    A text that is JSON is that JSON, unless its own text would not come back from it: `1.10`,
    `007` and `"quoted"` stay what they are.

    Raises ProtocolError if it is not JSON.
    """
    try:
        decoded = msgspec.json.decode(value)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        raise ProtocolError(f"the variable: {error}") from error
    if decoded is None:
        return None
    return value if not isinstance(decoded, str) else _of_text(decoded)


def _of_text(text: str) -> msgspec.Raw:
    try:
        decoded = msgspec.json.decode(text)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
        return _string(text)
    if isinstance(decoded, str) or (_is_number(decoded) and str(decoded) != text):
        return _string(text)
    return msgspec.Raw(text.encode())


def _is_number(value: object) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


def _is_plain(value: object, text: str) -> bool:
    return isinstance(value, int) and abs(value) <= MAX_WHOLE and str(value) == text


def _text(value: msgspec.Raw) -> str:
    return bytes(value).decode().strip()


def _string(text: str) -> msgspec.Raw:
    return msgspec.Raw(msgspec.json.encode(text))
