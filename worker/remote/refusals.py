"""Credentials that were refused a moment ago, and are not shown again so soon."""

import hashlib
from collections.abc import Iterator
from contextlib import contextmanager

import trio

from worker.errors import AuthenticationError
from worker.remote.target import Credential, Target

# Newer servers of OpenSSH shut out an address that fails too often (PerSourcePenalties).
REMEMBERED_SECONDS = 60.0

_Key = tuple[str, int, str, bytes]


class Refusals:
    """By server, user and credential, of which a digest is kept."""

    def __init__(self) -> None:
        self._until: dict[_Key, tuple[float, str]] = {}

    @contextmanager
    def heeded(self, target: Target) -> Iterator[None]:
        """Around an attempt to log in.

        Raises AuthenticationError at once, with the words of the last time, if that was refused
        less than 60 s ago.
        """
        key = (target.host, target.port, target.user, _digest(target.credential))
        now = trio.current_time()
        until, reason = self._until.get(key, (now, ""))
        if until > now:
            raise AuthenticationError(
                f"{reason} {REMEMBERED_SECONDS - until + now:.0f} s ago; it is not tried again "
                f"for another {until - now:.0f} s"
            )
        try:
            yield
        except AuthenticationError as error:
            self._until = {each: at for each, at in self._until.items() if at[0] > now}
            self._until[key] = (trio.current_time() + REMEMBERED_SECONDS, str(error))
            raise


def _digest(credential: Credential) -> bytes:
    parts = (credential.private_key, credential.passphrase, credential.password)
    texts = (b"" if part is None else b"+" + part.reveal().encode() for part in parts)
    return hashlib.sha256(b"\0".join(texts)).digest()
