"""From a setting's text to its value: each function raises ValueFault with what is wrong."""

import re
import ssl
from collections.abc import Callable
from enum import StrEnum
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from worker.errors import SealedValueError
from worker.sealing import SealingKey
from worker.secret import Secret

MIB = 1024 * 1024


def is_header_text(text: str) -> bool:
    return bool(re.fullmatch(r"[!-~]+", text))


class ValueFault(Exception):  # noqa: N818  a text on its way into SettingsError
    """What is wrong with one value, without its name."""


_UNITS = {"ms": 0.001, "s": 1.0, "m": 60.0, "h": 3600.0, "d": 86400.0}
_duration = re.compile(r"(?:[0-9]+(?:\.[0-9]+)?(?:ms|s|m|h|d))+\Z")
_duration_part = re.compile(r"([0-9]+(?:\.[0-9]+)?)(ms|s|m|h|d)")


def parse_duration(text: str) -> float:
    """Seconds from `30s`, `5m`, `1h30m`, `1.5h` or a bare number of seconds.

    Raises ValueError if `text` is none of these.
    """
    if re.fullmatch(r"[0-9]+(\.[0-9]+)?", text):
        return float(text)
    if not _duration.match(text):
        raise ValueError(text)
    return sum(float(count) * _UNITS[unit] for count, unit in _duration_part.findall(text))


def seconds(low: float, high: float) -> Callable[[str], float]:
    def parse(text: str) -> float:
        try:
            seconds = parse_duration(text)
        except ValueError:
            raise ValueFault("is not a duration") from None
        if not low <= seconds <= high:
            raise ValueFault("is out of bounds")
        return seconds

    return parse


def whole(low: int, high: int) -> Callable[[str], int]:
    def parse(text: str) -> int:
        if not re.fullmatch(r"-?[0-9]{1,18}", text):
            raise ValueFault("is not a whole number")
        if not low <= int(text) <= high:
            raise ValueFault("is out of bounds")
        return int(text)

    return parse


_SIZES = {"": 1, "B": 1, "KIB": 1024, "MIB": MIB, "GIB": 1024 * MIB}


def size(low: int, high: int) -> Callable[[str], int]:
    def parse(text: str) -> int:
        match = re.fullmatch(r"([0-9]{1,18})\s*([A-Za-z]*)", text)
        if not match or match[2].upper() not in _SIZES:
            raise ValueFault("is not a size")
        size = int(match[1]) * _SIZES[match[2].upper()]
        if not low <= size <= high:
            raise ValueFault("is out of bounds")
        return size

    return parse


def choice(kind: type[StrEnum]) -> Callable[[str], Any]:
    def parse(text: str) -> StrEnum:
        try:
            return kind(text.lower())
        except ValueError:
            raise ValueFault("is not one of them") from None

    return parse


def switch(text: str) -> bool:
    if text.lower() not in ("on", "off"):
        raise ValueFault("is neither on nor off")
    return text.lower() == "on"


def endpoint(text: str) -> str:
    url = _http_url(text, "the token as CRONIUM_API_TOKEN")
    return url.removesuffix("/api/internal") + "/api/internal"


def runtime_url(text: str) -> str:
    return _http_url(text, "the secret as CRONIUM_JWT_SECRET")


def _http_url(text: str, instead: str) -> str:
    """The URL without a slash at its end; `instead` is how to give what does not belong in it."""
    try:
        parts = urlsplit(text)
        host, _ = parts.hostname, parts.port
        # A part of a name that is empty or too long is a fault to whoever looks it up.
        (host or "").encode("idna")
    except ValueError:
        raise ValueFault("is not a URL") from None
    if parts.scheme not in ("http", "https") or not host or not is_header_text(text):
        raise ValueFault("is not an http(s) URL")
    if parts.username or parts.password:
        raise ValueFault(f"holds a user name or password; give {instead}")
    if parts.query or parts.fragment:
        raise ValueFault("has more than a path behind the host")
    return text.rstrip("/")


def worker_name(text: str) -> str:
    # 9 characters are kept for the suffix that tells replicas apart, of the API's 255.
    if not re.fullmatch(r"[A-Za-z0-9._-]{1,200}", text):
        raise ValueFault("is not a plain name")
    return text


def token(text: str) -> Secret:
    if not is_header_text(text):
        raise ValueFault("holds spaces or characters outside ASCII")
    return Secret(text)


# RFC 7518 asks HS256 for 32 bytes; there are apps with less, and the token must match theirs.
LEAST_JWT_SECRET = 16


def is_jwt_secret(text: str) -> bool:
    return len(text) >= LEAST_JWT_SECRET and text.isprintable()


def jwt_secret(text: str) -> Secret:
    if not text.isprintable():
        raise ValueFault("holds a line break or a control character")
    if not is_jwt_secret(text):
        raise ValueFault(f"is shorter than {LEAST_JWT_SECRET} characters")
    return Secret(text)


def name_patterns(text: str) -> tuple[str, ...]:
    """Patterns as a shell has them for the names of files, in upper case."""
    patterns = tuple(text.upper().split())
    for pattern in patterns:
        if not re.fullmatch(r"[A-Z0-9_*?\[\]!-]+", pattern):
            raise ValueFault(f"has {pattern!r}, which is no pattern of names")
    return patterns


def file_path(text: str) -> Path:
    try:
        return Path(text).expanduser()
    except RuntimeError:  # an account made up for a container
        raise ValueFault("is below a home directory, and there is none") from None


def readable_file(text: str) -> Path:
    path = file_path(text)
    try:
        path.open("rb").close()
    except OSError as error:
        raise ValueFault(f"cannot be read ({error.strerror})") from None
    return path


def certificates(text: str) -> Path:
    path = readable_file(text)
    try:
        ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT).load_verify_locations(path)
    except ssl.SSLError:
        raise ValueFault("has no certificates that can be read") from None
    return path


def hex_key(text: str) -> Secret:
    if not re.fullmatch(r"[0-9A-Fa-f]{64}", text):
        raise ValueFault("is not that")
    return Secret(text)


def sealing_key(text: str) -> SealingKey:
    try:
        return SealingKey(Secret(text))
    except SealedValueError:
        raise ValueFault("is not that") from None
