"""The secrets that lie beside the database file, and the key that seals what is in it."""

import os
import secrets
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from worker import values
from worker.errors import SealedValueError, SettingsError, StateError
from worker.sealing import SealingKey, may_be_sealed
from worker.secret import Secret
from worker.settings.environment import given_secret
from worker.settings.variables import API_TOKEN, ENCRYPTION_KEY, JWT_SECRET


def kept_secret(path: Path, make: Callable[[], str]) -> Secret:
    """The text of `path`, made once, 0600; two processes that come together get the same.

    Raises StateError if it cannot be made.
    """
    try:
        _make_once(path, make)
    except OSError as error:
        raise StateError(f"{path} cannot be made: {error.strerror}") from error
    return Secret(_text(path).strip())


def _make_once(path: Path, make: Callable[[], str]) -> None:
    if not path.exists():
        path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        mine = path.with_name(f"{path.name}.{os.getpid()}")
        mine.touch(mode=0o600)
        try:
            mine.write_text(make() + "\n")
            with suppress(FileExistsError):
                # Unlike a rename, a link never replaces what another process made first.
                path.hardlink_to(mine)
        finally:
            mine.unlink()


@dataclass(frozen=True, slots=True)
class Keyring:
    """`shared` says whether the workers have the key too: it is `CRONIUM_ENCRYPTION_KEY`."""

    key: SealingKey
    shared: bool

    def seal(self, text: str | None) -> str | None:
        return None if text is None else self.key.seal(text)

    def seal_environment(self, environment: Mapping[str, str]) -> dict[str, str]:
        return {name: self.key.seal(value) for name, value in environment.items()}

    def open_credential(self, sealed: str | None) -> str | None:
        """In the open; as it stands if the key does not fit, like the app does (s17)."""
        if sealed is None or not may_be_sealed(sealed):
            return sealed
        try:
            return self.key.open(sealed)
        except SealedValueError:
            return sealed

    def environment_value(self, sealed: str) -> str:
        """As a claim carries it: sealed, as the app sends it, when the worker can open it.

        The key made beside the file is the queue's own, so under it the value goes out open.
        """
        return sealed if self.shared else self.key.open(sealed)


def open_keyring(database: Path, environ: Mapping[str, str]) -> Keyring:
    """Raises SettingsError if the key that is given, or kept, is not 64 hexadecimal digits."""
    given = given_secret(environ, ENCRYPTION_KEY)
    path = database.with_name(f"{database.name}.key")
    key = given or kept_secret(path, lambda: secrets.token_hex(32))
    try:
        return Keyring(SealingKey(key), shared=given is not None)
    except SealedValueError as error:
        raise SettingsError(
            (f"{path if given is None else ENCRYPTION_KEY.name}: {error}",)
        ) from error


def api_token(
    database: Path, environ: Mapping[str, str], file: Path | None
) -> tuple[Secret, Path | None]:
    """The token that clients must send, and the file that has it, if one has.

    From `file`, from `CRONIUM_API_TOKEN` or what its `_FILE` names, or else made once beside the
    database.
    """
    if file is None and (given := given_secret(environ, API_TOKEN)) is not None:
        return given, None
    if file is None:
        file = database.with_name(f"{database.name}.token")
        return kept_secret(file, lambda: secrets.token_urlsafe(32)), file
    return Secret(_text(file).strip()), file


def jwt_secret(environ: Mapping[str, str], file: Path | None) -> Secret | None:
    """What verifies scripts' tokens; None if it is not given.

    From `file`, or else from `CRONIUM_JWT_SECRET` or what its `_FILE` names. Raises SettingsError
    if it is not what a worker would take.
    """
    given = given_secret(environ, JWT_SECRET) if file is None else Secret(_text(file))
    if given is None:
        return None
    try:
        return values.jwt_secret(given.reveal().strip())
    except values.ValueFault as fault:
        where = file or JWT_SECRET.name
        raise SettingsError((f"{where}: its value {fault}",)) from fault


def _text(file: Path) -> str:
    try:
        return file.read_text()
    except UnicodeDecodeError as error:
        raise SettingsError((f"{file}: it is no text: {error}",)) from error
