"""OpenSSH's own client and server as the measure of what a known_hosts file says."""

import subprocess
from base64 import b64decode
from dataclasses import dataclass
from pathlib import Path

import asyncssh

from worker.demo.sshd import ready_sshd
from worker.errors import HostKeyError
from worker.remote.address import Address
from worker.remote.host_certificate import certificate_in
from worker.remote.host_keys import HostKeyCheck
from worker.remote.known_hosts import KnownHosts
from worker.settings import HostKeyPolicy

# The usual exchange takes eight times as long as this one, of what hundreds of calls take.
CONFIG = """\
KexAlgorithms curve25519-sha256
HostKey {folder}/host
PidFile none
UsePAM no
StrictModes no
LogLevel ERROR
"""


def keygen(*arguments: object) -> str:
    done = subprocess.run(
        ["ssh-keygen", *map(str, arguments)], check=True, capture_output=True, text=True
    )
    return done.stdout


def make_key(path: Path, kind: str = "ed25519") -> str:
    """Algorithm and base64 of a new key whose private half is at `path`."""
    keygen("-q", "-t", kind, "-N", "", "-f", path)
    return public(path)


def public(path: Path) -> str:
    return " ".join(path.with_name(path.name + ".pub").read_text().split()[:2])


def certify(authority: Path, key: Path, *options: str, principals: str | None = "web") -> Path:
    """A host certificate of `key`; it lies beside it."""
    names = () if principals is None else ("-n", principals)
    keygen("-q", "-s", authority, "-I", "a host", "-h", *names, *options, f"{key}.pub")
    return key.with_name(f"{key.name}-cert.pub")


def hashed(lines: str, folder: Path) -> str:
    """`lines` with their names hashed by ssh-keygen."""
    file = folder / "to_hash"
    file.write_text(lines)
    keygen("-H", "-f", file)
    return file.read_text()


@dataclass(frozen=True, slots=True)
class Judges:
    """Two who judge one server's host key: OpenSSH's client, and the worker.

    Neither opens a connection, so that the server has any name and port that is asked for.
    """

    folder: Path
    key: str
    other: str
    authority: str
    certificate: Path | None = None

    def openssh(self, lines: str, host: str, port: int, policy: HostKeyPolicy) -> bool:
        """Whether it goes on to authenticate."""
        file, config = self.folder / "known_hosts", self.folder / "sshd_config"
        file.write_text(lines)
        certificate = f"HostCertificate {self.certificate}\n" if self.certificate else ""
        config.write_text(CONFIG.format(folder=self.folder) + certificate)
        options = {
            "BatchMode": "yes",
            "GlobalKnownHostsFile": "/dev/null",
            "IdentityAgent": "none",
            "IdentityFile": "none",
            "ProxyCommand": f"{ready_sshd()} -i -e -f {config}",
            "StrictHostKeyChecking": "yes" if policy is HostKeyPolicy.STRICT else policy,
            "UserKnownHostsFile": str(file),
        }
        given = [word for name, value in options.items() for word in ("-o", f"{name}={value}")]
        done = subprocess.run(
            ["ssh", "-F", "none", *given, "-p", str(port), f"deploy@{host}", "true"],
            capture_output=True,
            text=True,
            timeout=20,
        )
        verdicts = {
            "Permission denied": True,
            "Host key verification failed": False,
        }
        (verdict,) = (verdicts[words] for words in verdicts if words in done.stderr)
        return verdict

    def worker(self, lines: str, host: str, port: int, policy: HostKeyPolicy) -> bool:
        address = Address(host, port)
        check = HostKeyCheck(policy, address, KnownHosts(lines).listed(address))
        certificate = None
        if self.certificate is not None:
            certificate = certificate_in(b64decode(self.certificate.read_text().split()[1]))
            if certificate is None:
                return False  # asyncssh refuses what it cannot read
        try:
            check.judge(asyncssh.import_public_key(self.key), certificate)
        except HostKeyError:
            return False
        return True
