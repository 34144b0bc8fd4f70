"""Whether a server's host key is the one expected; decided before anything is proved to it."""

from dataclasses import dataclass

import asyncssh
from asyncssh.public_key import SSHOpenSSHCertificate

from worker.errors import HostKeyError
from worker.remote.address import Address
from worker.remote.given_keys import GivenKey, fingerprint, public_line
from worker.remote.host_certificate import fault_of
from worker.remote.key_kinds import algorithms, with_all
from worker.remote.known_hosts import Listed
from worker.settings import HostKeyPolicy

NOTHING_LISTED = Listed()


@dataclass(frozen=True, slots=True)
class HostKeyCheck:
    """What is known of one server's host key before the server shows it.

    `given` keys are those of the server's entry in the job: they alone count then, but for what
    is revoked. `pinned` is a public key's line.
    """

    policy: HostKeyPolicy
    address: Address
    listed: Listed = NOTHING_LISTED
    pinned: str | None = None
    given: tuple[GivenKey, ...] = ()

    def judge(self, key: asyncssh.SSHKey, certificate: SSHOpenSSHCertificate | None = None) -> bool:
        """Whether `key` is a new one, to be pinned; `certificate` is what the server showed it in.

        Raises HostKeyError if it is not to be trusted.
        """
        self._refuse_revoked(key, certificate)
        if self.given:
            self._compare_with_given(key)
            return False
        if self.policy is HostKeyPolicy.OFF:
            return False
        doubt = ""
        if certificate is not None and certificate.signing_key in self.listed.authorities:
            fault = fault_of(certificate, self.address.host)
            if fault is None:
                return False
            # Its key may be known for itself, as with OpenSSH; but it is not new.
            doubt = f"; its certificate {fault}"
        if key in self.listed.keys or key in self.listed.elsewhere:
            return False
        shown = key.get_fingerprint()
        if self.listed.keys:
            known = " or ".join(each.get_fingerprint() for each in self.listed.keys)
            raise HostKeyError(
                f"host key changed: known_hosts has {known} for {self.address}, got {shown}{doubt}"
            )
        if self.policy is HostKeyPolicy.STRICT:
            raise HostKeyError(
                f"host key {shown} is not in known_hosts (CRONIUM_SSH_HOST_KEYS){doubt}"
            )
        if self.pinned is not None:
            # To read a key takes ten times as long as to write one.
            if public_line(key) != self.pinned and fingerprint(self.pinned) != shown:
                raise changed(self.address, self.pinned, shown, doubt)
            return False
        if doubt:
            raise HostKeyError(f"host key {shown} is not known{doubt}")
        return True

    def algorithms(self) -> list[str]:
        """What to ask the server for, best first: one that also has a key of another kind than
        the known one must not look like a changed one."""
        if self.given:
            return algorithms(with_all(each.kind for each in self.given if each.kind))
        known = [key.get_algorithm() for key in (*self.listed.keys, *self.listed.elsewhere)]
        if self.pinned is not None:
            known.append(self.pinned.split(" ", 1)[0])
        kinds = with_all(known)
        certified = algorithms(kinds, certified=True) if self.listed.authorities else []
        return [*certified, *algorithms(kinds)]

    def _refuse_revoked(
        self, key: asyncssh.SSHKey, certificate: SSHOpenSSHCertificate | None
    ) -> None:
        if key in self.listed.revoked:
            raise HostKeyError(f"known_hosts revokes the host key {key.get_fingerprint()}")
        if certificate is not None and certificate.signing_key in self.listed.revoked:
            authority = certificate.signing_key.get_fingerprint()
            raise HostKeyError(
                f"known_hosts revokes {authority}, which signed the host key "
                f"{key.get_fingerprint()}"
            )

    def _compare_with_given(self, key: asyncssh.SSHKey) -> None:
        shown = key.get_fingerprint()
        wanted = [each.fingerprint for each in self.given]
        if shown not in wanted:
            raise HostKeyError(
                f"host key is not the hostKey of the server's entry: expected "
                f"{' or '.join(wanted)}, got {shown} ({key.get_algorithm()})"
            )


def changed(address: Address, pinned: str, shown: str, doubt: str = "") -> HostKeyError:
    """`pinned` is a public key's line, `shown` a fingerprint."""
    return HostKeyError(
        f"host key changed: {fingerprint(pinned)} is pinned, got {shown}{doubt}; if that is right: "
        f"cronium-worker hosts trust {address}"
    )
