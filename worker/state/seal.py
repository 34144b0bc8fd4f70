"""The state's own key: what the state file keeps of a claim is sealed under it."""

import os
import secrets
from pathlib import Path

from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.ciphers.aead import AESGCM

from worker.errors import SealedValueError, StateError
from worker.secret import Secret

FILE = "seal.key"
KEY_BYTES = 32
NONCE_BYTES = 12


class StateSeal:
    """AES-256-GCM; `about` is bound to what is sealed, so rows cannot be exchanged."""

    def __init__(self, key: bytes) -> None:
        self._cipher = AESGCM(key)

    def seal(self, content: bytes, *, about: str) -> bytes:
        nonce = os.urandom(NONCE_BYTES)
        return nonce + self._cipher.encrypt(nonce, content, about.encode())

    def open(self, sealed: bytes, *, about: str) -> bytes:
        """Raises SealedValueError if `sealed` was not made with this key, about this."""
        nonce, content = sealed[:NONCE_BYTES], sealed[NONCE_BYTES:]
        try:
            return self._cipher.decrypt(nonce, content, about.encode())
        except (InvalidTag, ValueError) as error:
            raise SealedValueError("sealed with another key, or damaged") from error


def open_state_seal(directory: Path, configured: Secret | None) -> StateSeal:
    """The seal under `configured` (64 hex digits), or under a key made once in `directory`.

    Raises StateError if the key's file cannot be used.
    """
    if configured is not None:
        return StateSeal(bytes.fromhex(configured.reveal()))
    path = directory / FILE
    try:
        key = path.read_bytes() if path.exists() else _make(path)
    except OSError as error:
        raise StateError(f"{path}: {error.strerror}") from error
    if len(key) != KEY_BYTES:
        raise StateError(
            f"{path} is not a key of {KEY_BYTES} bytes; remove it, and the plans of "
            "jobs in flight with it, or set CRONIUM_STATE_KEY"
        )
    return StateSeal(key)


def _make(path: Path) -> bytes:
    """A new key, whole and 0600 before it has its name."""
    key = secrets.token_bytes(KEY_BYTES)
    draft = path.with_suffix(".new")
    draft.unlink(missing_ok=True)
    draft.touch(mode=0o600, exist_ok=False)
    with draft.open("wb") as file:
        file.write(key)
        file.flush()
        os.fsync(file.fileno())
    draft.rename(path)
    return key
