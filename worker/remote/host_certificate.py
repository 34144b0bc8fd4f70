"""Whether a host certificate speaks for a host, by OpenSSH's rules."""

from asyncssh.packet import SSHPacket
from asyncssh.pattern import WildcardPattern
from asyncssh.public_key import (
    CERT_TYPE_HOST,
    KeyImportError,
    SSHOpenSSHCertificate,
    decode_ssh_certificate,
)

# So many fields has the key in a certificate of that kind; OpenSSH's PROTOCOL.certkeys.
_KEY_FIELDS = {b"ssh-rsa": 2, b"ssh-ed25519": 1}
_ECDSA_FIELDS = 2


def certificate_in(shown: bytes) -> SSHOpenSSHCertificate | None:
    """The certificate that a server shows, its signature verified; None if it shows a plain key,
    or something that is neither."""
    try:
        certificate = decode_ssh_certificate(shown)
    except KeyImportError:
        return None
    return certificate if isinstance(certificate, SSHOpenSSHCertificate) else None


def fault_of(certificate: SSHOpenSSHCertificate, host: str) -> str | None:
    """Why `certificate` does not speak for `host`, in words that follow its mention."""
    try:
        certificate.validate(CERT_TYPE_HOST, None)
    except ValueError as error:
        return f"is of no use: {str(error).lower()}"
    if _signature_algorithm(certificate) == b"ssh-rsa":
        return "is signed with SHA-1"
    if not certificate.principals:
        return "names no host"
    if not any(WildcardPattern(name).matches(host.lower()) for name in certificate.principals):
        return "is for " + ", ".join(certificate.principals)
    return None


def _signature_algorithm(certificate: SSHOpenSSHCertificate) -> bytes:
    """With which its authority signed it; asyncssh takes any, and does not tell."""
    packet = SSHPacket(certificate.public_data)
    packet.get_string()
    packet.get_string()  # nonce
    for _ in range(_KEY_FIELDS.get(certificate.key.algorithm, _ECDSA_FIELDS)):
        packet.get_string()
    packet.get_uint64()  # serial
    packet.get_uint32()  # type
    packet.get_string()  # id
    packet.get_string()  # principals
    packet.get_uint64()  # valid after
    packet.get_uint64()  # valid before
    for _ in ("critical options", "extensions", "reserved", "authority"):
        packet.get_string()
    return SSHPacket(packet.get_string()).get_string()
