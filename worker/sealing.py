"""The Cronium app's sealed values: AES-256-GCM under the operator's key."""

import base64
import binascii
import os
import re

from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.ciphers.aead import AESGCM

from worker.errors import SealedValueError
from worker.secret import Secret

# The app's own format (packages of the app, `encryption-service`): base64 of
# 16-byte IV, ciphertext, 16-byte tag.
IV_BYTES = 16
TAG_BYTES = 16
AAD = b"cronium-server-encryption"

_base64_text = re.compile(r"[A-Za-z0-9+/]+={0,2}\Z")


class SealingKey:
    """`CRONIUM_ENCRYPTION_KEY`: 64 hexadecimal digits.

    Raises SealedValueError if `key` is not that.
    """

    def __init__(self, key: Secret) -> None:
        if not re.fullmatch(r"[0-9A-Fa-f]{64}", key.reveal()):
            raise SealedValueError("the encryption key must be 64 hexadecimal digits")
        self._cipher = AESGCM(bytes.fromhex(key.reveal()))

    def seal(self, text: str) -> str:
        iv = os.urandom(IV_BYTES)
        return base64.b64encode(iv + self._cipher.encrypt(iv, text.encode(), AAD)).decode()

    def open(self, sealed: str) -> str:
        """Raises SealedValueError if `sealed` was not made with this key."""
        try:
            raw = base64.b64decode(sealed, validate=True)
            return self._cipher.decrypt(raw[:IV_BYTES], raw[IV_BYTES:], AAD).decode()
        except (InvalidTag, ValueError, binascii.Error) as error:
            raise SealedValueError("sealed with another key, or damaged") from error


def may_be_sealed(text: str) -> bool:
    """Whether `text` has the shape of a sealed value; a plain text can have it too."""
    if len(text) % 4 or not _base64_text.match(text):
        return False
    return len(base64.b64decode(text)) > IV_BYTES + TAG_BYTES
