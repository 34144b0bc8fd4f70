"""What a secret may look like in a text: as it is, line by line, and as encoders write it."""

import json
import re
import shlex
from base64 import b64encode
from collections.abc import Iterator
from urllib.parse import quote, quote_plus

# What is shorter is too common to be masked.
MIN_CHARACTERS = 6
# From this length on a value is looked for in its encoded forms too, and over several lines.
MIN_LONG_CHARACTERS = 12
# A value of more lines is a document: its lines are looked for as they are, not encoded.
MAX_ENCODED_LINES = 200

_line_break = re.compile(r"[\r\n]+")
_url_safe_alphabet = bytes.maketrans(b"+/", b"-_")
_nothing_to_escape = re.compile(r"[\w.-]*", re.ASCII)
_percent_escape = re.compile(r"%[0-9A-F]{2}")
_json_escape = re.compile(r"\\u[0-9a-f]{4}")
_html_sign = re.compile(r"[<>&]")
_single_quotes = re.compile("'+")
_sign_in_double_quotes = re.compile(r'([\\"$`])')
_sign_for_the_shell = re.compile(r"([ !\"$&'()*,;<>?\[\\\]^`{|}]|(?<=[=:])~)")
_ansi_c = {ord(sign): rf"\{sign}" for sign in "\\'"}
_ansi_c |= {code: rf"\{code:03o}" for code in (*range(32), 127)}
_ansi_c |= {
    ord(sign): rf"\{name}" for sign, name in zip("\a\b\t\n\v\f\r\x1b", "abtnvfrE", strict=True)
}
# Of a key these lines are no secret, and every other key has them.
_armour = re.compile(r"-----(?:BEGIN|END) [A-Z0-9 ]+-----")


def forms(secret: str) -> frozenset[bytes]:
    """All that is looked for of one secret: itself, its lines, and what encoders make of them.

    White space around it is no part of it. Of base64 only those characters that do not depend on
    what stands beside the secret.
    """
    text = secret.strip()
    # A key in one line, as it stands in JSON or in an environment file, is printed in many.
    lines = {line.strip() for line in _line_break.split(text.replace("\\n", "\n"))} - {text}
    lines = {line for line in lines if not _armour.fullmatch(line)}
    is_encoded = len(lines) <= MAX_ENCODED_LINES
    return frozenset(_forms_of(text, is_encoded=True)).union(
        *(_forms_of(line, is_encoded=is_encoded) for line in lines)
    )


def _forms_of(text: str, *, is_encoded: bool) -> Iterator[bytes]:
    length = len(_line_break.sub("", text))
    if length < MIN_CHARACTERS:
        return
    plain = text.replace("\r\n", "\n")
    for each in (text, plain, plain.replace("\n", "\r\n")):
        yield as_bytes(each)
    if is_encoded and length >= MIN_LONG_CHARACTERS:
        yield from _base64(as_bytes(text))
        if not _nothing_to_escape.fullmatch(text):
            yield from map(as_bytes, _escaped(text))


def _base64(data: bytes) -> Iterator[bytes]:
    for before, mixed in enumerate((0, 2, 3)):
        whole = (before + len(data)) * 8 // 6
        core = b64encode(bytes(before) + data)[mixed:whole]
        yield core
        yield core.translate(_url_safe_alphabet)


def _escaped(text: str) -> Iterator[str]:
    yield from _url_encoded(text)
    yield from _json_escaped(text)
    yield from _shell_quoted(text)


def _url_encoded(text: str) -> Iterator[str]:
    data = as_bytes(text)
    for encoded in (
        quote(data, safe=""),
        quote(data, safe="/"),
        quote(data, safe="!'()*"),  # encodeURIComponent
        quote(data, safe="!'()*;,/?:@&=+$#"),  # encodeURI
        quote_plus(data),
        quote_plus(data, safe="*").replace("~", "%7E"),  # a browser's form
    ):
        yield encoded
        yield _percent_escape.sub(lambda escape: escape[0].lower(), encoded)


def _json_escaped(text: str) -> Iterator[str]:
    for escaped in (json.dumps(text)[1:-1], json.dumps(text, ensure_ascii=False)[1:-1]):
        for each in (
            escaped,
            escaped.replace("/", "\\/"),  # PHP
            _html_sign.sub(lambda sign: f"\\u{ord(sign[0]):04x}", escaped),  # Go
        ):
            yield each
            yield _json_escape.sub(lambda escape: "\\u" + escape[0][2:].upper(), each)


def _shell_quoted(text: str) -> Iterator[str]:
    """Without the quotes around, which other text may share."""
    yield shlex.quote(text).strip("'")
    yield _single_quotes.sub(r"""'"\g<0>"'""", text).strip("'")  # dash
    yield text.replace("'", r"'\''")
    yield _sign_in_double_quotes.sub(r"\\\1", text)
    yield _sign_for_the_shell.sub(r"\\\1", text)
    ansi_c = text.translate(_ansi_c)
    yield ansi_c
    yield "".join(  # in a locale without UTF-8
        sign if sign.isascii() else "".join(rf"\{byte:03o}" for byte in as_bytes(sign))
        for sign in ansi_c
    )


def as_bytes(text: str) -> bytes:
    try:
        return text.encode(errors="surrogateescape")
    except UnicodeEncodeError:  # half a surrogate pair
        return text.encode(errors="surrogatepass")
