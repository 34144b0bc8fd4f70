"""Host keys as people give them: a public key's line, or its fingerprint."""

import re
from dataclasses import dataclass

import asyncssh

from worker.remote.key_kinds import KINDS

_fingerprint = re.compile(r"(SHA256:[A-Za-z0-9+/]{43})=?")


@dataclass(frozen=True, slots=True)
class GivenKey:
    """`line` is the key as it is pinned, None where its fingerprint is all that was given."""

    fingerprint: str
    line: str | None = None

    @property
    def kind(self) -> str | None:
        return self.line.split(" ", 1)[0] if self.line else None


def public_line(key: asyncssh.SSHKey) -> str:
    """The key as it is pinned: algorithm and base64, no comment."""
    return " ".join(key.export_public_key("openssh").decode().split()[:2])


def fingerprint(line: str) -> str:
    return asyncssh.import_public_key(line).get_fingerprint()


def parse_given_key(text: str) -> GivenKey:
    """Raises ValueError, which does not repeat it, if `text` is neither form: it may be a secret
    in the wrong place."""
    text = text.strip()
    if match := _fingerprint.fullmatch(text):
        return GivenKey(match[1])
    if text.split(" ", 1)[0] not in KINDS:
        raise ValueError(
            "neither a SHA256: fingerprint nor the line of a public key that starts with one of "
            + ", ".join(KINDS)
        )
    try:
        key = asyncssh.import_public_key(text)
    except (ValueError, OverflowError):  # the latter where a number in it is negative
        raise ValueError("the public key is damaged") from None
    return GivenKey(key.get_fingerprint(), public_line(key))


def parse_given_keys(text: str) -> tuple[GivenKey, ...]:
    """One key to a line; blank lines do not count.

    Raises ValueError, naming the line, if there is something else, or no key at all.
    """
    keys = []
    for number, line in enumerate(text.splitlines(), 1):
        if line.strip():
            try:
                keys.append(parse_given_key(line))
            except ValueError as error:
                raise ValueError(f"line {number}: {error}") from None
    if not keys:
        raise ValueError("holds no key")
    return tuple(keys)
