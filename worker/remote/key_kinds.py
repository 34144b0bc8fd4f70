"""The kinds of host keys that are taken, best first, and what they are called in a handshake."""

from collections.abc import Iterable

KINDS = (
    "ssh-ed25519",
    "ecdsa-sha2-nistp256",
    "ecdsa-sha2-nistp384",
    "ecdsa-sha2-nistp521",
    "ssh-rsa",
)
# An RSA key signs with newer digests than the one it is named after.
_SIGNATURES = {"ssh-rsa": ("rsa-sha2-512", "rsa-sha2-256")}
_CERTIFICATE = "-cert-v01@openssh.com"


def algorithms(kinds: Iterable[str], *, certified: bool = False) -> list[str]:
    """Under what names a server is asked for keys of these kinds, or for certificates of them."""
    suffix = _CERTIFICATE if certified else ""
    return [name + suffix for kind in kinds for name in _SIGNATURES.get(kind, (kind,))]


def with_all(first: Iterable[str]) -> tuple[str, ...]:
    """Every kind that is taken, those of `first` before the others."""
    wanted = [kind for kind in first if kind in KINDS]
    return tuple(dict.fromkeys((*wanted, *KINDS)))
