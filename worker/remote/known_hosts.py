"""What a known_hosts file says of a server, read as OpenSSH reads it.

asyncssh knows the lines and the patterns. What it makes of names and ports is its own: entries
without a port count on every port there, and stop to count, the revoked ones too, where the port
has an entry. So it is asked for one name at a time here.
"""

import os
import re
from dataclasses import dataclass
from pathlib import Path

import asyncssh

from worker.errors import ConnectError
from worker.remote.address import SSH_PORT, Address
from worker.remote.key_kinds import KINDS

Keys = tuple[asyncssh.SSHKey, ...]
Edition = tuple[int, int, int]

_entry = re.compile(r"(?P<marker>@\S+\s+)?(?P<names>\S+)(?P<rest>\s.*)", re.DOTALL)


@dataclass(frozen=True, slots=True)
class Listed:
    """What is listed of one server.

    `keys` are of its name and port: another key than these has changed. `elsewhere` are of its
    name without the port, where `keys` has none: they vouch, and another key is only new.
    """

    keys: Keys = ()
    elsewhere: Keys = ()
    authorities: Keys = ()
    revoked: Keys = ()


class KnownHosts:
    def __init__(self, text: str) -> None:
        """Raises ValueError, naming the line, if one cannot be read."""
        self._entries = asyncssh.SSHKnownHosts()
        for number, line in enumerate(text.splitlines(), 1):
            try:
                self._load(line.strip())
            except ValueError as error:
                raise ValueError(f"line {number}: {error}") from None
            except Exception as error:  # over some keys asyncssh stumbles
                raise ValueError(f"line {number}: Invalid public key") from error

    def _load(self, line: str) -> None:
        if not line or line.startswith("#"):
            return
        entry = _entry.fullmatch(line)
        if entry is None:
            raise ValueError("no host name, or no key behind it")
        names = entry["names"]
        if not names.startswith("|"):
            # asyncssh tells letters' cases apart, looks up an empty name with every server, and
            # takes what has a slash for a network; here it is a name that no host has.
            names = ",".join(name for name in names.lower().split(",") if name and "/" not in name)
        if not names:
            return
        # Without the comment: asyncssh passes over a key whose comment is not ASCII.
        key = entry["rest"].split()[:2]
        self._entries.load(f"{entry['marker'] or ''}{names} {' '.join(key)}")
        # It says nothing of a kind that it does not know, nor of damage to one that it does.
        if key[0] in KINDS:
            asyncssh.import_public_key(" ".join(key))

    def listed(self, address: Address) -> Listed:
        """Raises nothing: what is not listed is empty."""
        keys, authorities, revoked = self._match(address.known_hosts_name)
        if address.port == SSH_PORT:
            return Listed(keys, (), authorities, revoked)
        plain_keys, plain_authorities, plain_revoked = self._match(address.host)
        return Listed(
            keys,
            () if keys else plain_keys,
            (*authorities, *plain_authorities),
            # OpenSSH forgets these where it accepts new keys; revoked is revoked.
            (*revoked, *plain_revoked),
        )

    def _match(self, name: str) -> tuple[Keys, Keys, Keys]:
        keys, authorities, revoked, *_ = self._entries.match(name.lower(), "", None)
        return tuple(keys), tuple(authorities), tuple(revoked)


class KnownHostsFile:
    """The file as it is now: read again when it has changed."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._seen: Edition | None = None
        self._known = KnownHosts("")

    def edition(self) -> Edition | None:
        """Another one after every change; None while it cannot be read."""
        try:
            return _edition(self._path.stat())
        except OSError:
            return None

    def read(self) -> KnownHosts:
        """Raises ConnectError if it cannot be read: until it can, nobody is to be trusted."""
        try:
            with self._path.open("rb") as file:
                seen = _edition(os.fstat(file.fileno()))
                if seen != self._seen:
                    # Comments may be in any encoding.
                    self._known = KnownHosts(file.read().decode(errors="replace"))
                    self._seen = seen
        except OSError as error:
            raise ConnectError(
                f"CRONIUM_SSH_KNOWN_HOSTS: {error.strerror}: {self._path}"
            ) from error
        except ValueError as error:
            raise ConnectError(f"CRONIUM_SSH_KNOWN_HOSTS: {self._path}: {error}") from error
        return self._known


def _edition(status: os.stat_result) -> Edition:
    return status.st_ino, status.st_size, status.st_mtime_ns
