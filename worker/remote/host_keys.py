"""Whether a server's host key is the one expected; decided before anything is proved to it."""

from dataclasses import dataclass

import asyncssh

from worker.errors import HostKeyError
from worker.settings import HostKeyPolicy

# An RSA key signs with newer digests than the one it is named after.
_SIGNATURES = {"ssh-rsa": ("rsa-sha2-512", "rsa-sha2-256")}


@dataclass(frozen=True, slots=True)
class HostKeyCheck:
    """What is known of one server's host key. `pinned` is a public key line."""

    policy: HostKeyPolicy
    known_hosts: asyncssh.SSHKnownHosts | None
    pinned: str | None

    def judge(self, host: str, address: str, port: int, key: asyncssh.SSHKey) -> None:
        """Raises HostKeyError if `key` is not to be trusted."""
        if self.policy is HostKeyPolicy.OFF:
            return
        offered = key.get_fingerprint()
        known: list[asyncssh.SSHKey] = []
        if self.known_hosts is not None:
            trusted, _, revoked, *_ = self.known_hosts.match(host, address, port)
            if key in revoked:
                raise HostKeyError(f"known_hosts revokes the host key {offered}")
            if key in trusted:
                return
            known = list(trusted)
        if known:
            expected = ", ".join(each.get_fingerprint() for each in known)
            raise HostKeyError(f"host key changed: known_hosts has {expected}, got {offered}")
        if self.policy is HostKeyPolicy.STRICT:
            raise HostKeyError(f"host key {offered} is not in known_hosts (CRONIUM_SSH_HOST_KEYS)")
        if self.pinned is not None and asyncssh.import_public_key(self.pinned) != key:
            expected = asyncssh.import_public_key(self.pinned).get_fingerprint()
            raise HostKeyError(f"host key changed: {expected} is pinned, got {offered}")

    def judge_line(self, public_key: str) -> None:
        """As `judge`, for a public key line and against what is pinned alone."""
        self.judge("", "", 0, asyncssh.import_public_key(public_key))

    def preferred_algorithms(self, host: str, port: int) -> list[str]:
        """The algorithms of the keys that are known: a server that also has a key of another
        kind must not look like a changed one."""
        known = []
        if self.known_hosts is not None:
            known = [key.get_algorithm() for key in self.known_hosts.match(host, "", port)[0]]
        if self.pinned is not None:
            known.append(self.pinned.split(" ", 1)[0])
        return [name for kind in dict.fromkeys(known) for name in _SIGNATURES.get(kind, (kind,))]


def public_line(key: asyncssh.SSHKey) -> str:
    """The key as it is pinned: algorithm and base64, no comment."""
    return " ".join(key.export_public_key("openssh").decode().split()[:2])
