"""Whether a server's host key is the one expected; decided before anything is proved to it."""

from dataclasses import dataclass

import asyncssh

from worker.errors import HostKeyError
from worker.settings import HostKeyPolicy


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

    def preferred_algorithms(self) -> list[str]:
        """The pinned key's own algorithms first: a server that has since got a key of another
        kind must not look like a changed one."""
        if self.pinned is None:
            return []
        algorithm = self.pinned.split(" ", 1)[0]
        if algorithm == "ssh-rsa":
            return ["rsa-sha2-512", "rsa-sha2-256", "ssh-rsa"]
        return [algorithm]


def public_line(key: asyncssh.SSHKey) -> str:
    """The key as it is pinned: algorithm and base64, no comment."""
    return " ".join(key.export_public_key("openssh").decode().split()[:2])
