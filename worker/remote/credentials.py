"""From a credential as it came to keys and passwords that SSH can use."""

import base64
import binascii
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from functools import partial

import asyncssh
import trio

from worker.errors import AuthenticationError, PassphraseError, SealedValueError
from worker.remote.target import Credential
from worker.sealing import SealingKey, may_be_sealed
from worker.secret import Secret


@dataclass(frozen=True, slots=True)
class OpenedCredential:
    """`doubt` says what may be wrong with a credential that is refused; it is empty mostly.

    `secrets` is what came to light when it was opened.
    """

    key: asyncssh.SSHKey | None = field(repr=False)
    password: Secret | None
    doubt: str = ""
    secrets: tuple[Secret, ...] = ()


class Credentials:
    """The credentials of one job, each opened once and dropped with the job.

    `learn` is told what comes to light.
    """

    def __init__(
        self, sealing_key: SealingKey | None, learn: Callable[[Iterable[Secret]], None]
    ) -> None:
        self._sealing_key = sealing_key
        self._learn = learn
        self._opened: dict[Credential, OpenedCredential] = {}
        self._lock = trio.Lock()

    async def opened(self, credential: Credential) -> OpenedCredential:
        """Raises AuthenticationError, with the reason, if `credential` cannot be used."""
        async with self._lock:
            if credential not in self._opened:
                work = partial(open_credential, credential, self._sealing_key)
                if credential.passphrase is None:
                    await trio.lowlevel.checkpoint()
                    self._opened[credential] = work()
                else:
                    # Off the loop: a passphrase is made to cost a tenth of a second, or ten.
                    self._opened[credential] = await trio.to_thread.run_sync(work)
                self.learn(self._opened[credential])
            return self._opened[credential]

    def learn(self, opened: OpenedCredential) -> None:
        """What another job has opened is known to this one, too."""
        self._learn(opened.secrets)


def open_credential(credential: Credential, sealing_key: SealingKey | None) -> OpenedCredential:
    """A parsed key or a password, the key first where there are both.

    Raises AuthenticationError, with the reason, if `credential` cannot be used.
    """
    passphrase = _opened(credential.passphrase, sealing_key)
    if credential.private_key is not None:
        text = _key_text(credential.private_key, sealing_key)
        secrets = (text,) if passphrase is None else (text, passphrase)
        return OpenedCredential(_private_key(text, passphrase), None, secrets=secrets)
    if credential.password is not None:
        password = _opened(credential.password, sealing_key)
        doubt = _doubt(password, sealing_key)
        return OpenedCredential(None, password, doubt, (password,) if password else ())
    raise AuthenticationError("the server entry has neither a private key nor a password")


def _opened(secret: Secret | None, key: SealingKey | None) -> Secret | None:
    """A sealed secret opened; anything else as it is, since a password may look sealed."""
    if secret is None or not may_be_sealed(secret.reveal()):
        return secret
    if key is None:
        return secret
    try:
        return Secret(key.open(secret.reveal()))
    except SealedValueError:
        return secret


def _doubt(password: Secret | None, key: SealingKey | None) -> str:
    if password is None or not may_be_sealed(password.reveal()):
        return ""
    reason = "does not open it" if key is not None else "is not set"
    return f"; the password looks sealed, and CRONIUM_ENCRYPTION_KEY {reason}"


def _key_text(secret: Secret, sealing_key: SealingKey | None) -> Secret:
    text = secret.reveal().strip()
    if "-----BEGIN" not in text:
        text = _plain_key_text(text, sealing_key)
    return Secret(text + "\n")


def _private_key(text: Secret, passphrase: Secret | None) -> asyncssh.SSHKey:
    try:
        return asyncssh.import_private_key(
            text.reveal(), passphrase.reveal() if passphrase else None
        )
    except ValueError as error:  # asyncssh's errors are such, and cryptography's of odd numbers
        raise _key_fault(error) from error


def _key_fault(error: ValueError) -> AuthenticationError:
    if "Passphrase must be specified" in str(error):
        return PassphraseError("the private key needs a passphrase")
    if isinstance(error, asyncssh.KeyEncryptionError) or "Unable to decrypt" in str(error):
        return PassphraseError("the private key's passphrase is wrong")
    return AuthenticationError("the private key is damaged or of an unknown form")


def _plain_key_text(text: str, sealing_key: SealingKey | None) -> str:
    """Undo base64 or the app's sealing; a key has lines of dashes, so it shows when it is one."""
    text = "".join(text.split())  # `base64` wraps its lines
    try:
        decoded = base64.b64decode(text, validate=True).decode("ascii")
        if "-----BEGIN" in decoded:
            return decoded
    except (binascii.Error, UnicodeDecodeError, ValueError):
        pass
    if not may_be_sealed(text):
        raise AuthenticationError("the private key is not a key")
    if sealing_key is None:
        raise AuthenticationError(
            "the private key arrived sealed and CRONIUM_ENCRYPTION_KEY is not set"
        )
    try:
        return sealing_key.open(text)
    except SealedValueError as error:
        raise AuthenticationError(f"the private key cannot be opened: {error}") from error
