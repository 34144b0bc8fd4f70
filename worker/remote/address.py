"""A server's place on the network, as people write it."""

import re
from dataclasses import dataclass

SSH_PORT = 22
# RFC 1035; to encode what is much longer takes seconds.
MAX_NAME = 253

# An IPv6 address needs brackets where a port follows it.
_written = re.compile(r"(?:\[(?P<bracketed>[^][]+)]|(?P<plain>[^][:]+))(?::(?P<port>[0-9]{1,5}))?")
_ipv6 = re.compile(r"[0-9A-Fa-f:.]*:[0-9A-Fa-f:.]*:[0-9A-Fa-f:.]*(?:%\w+)?")


def is_host(text: str) -> bool:
    """Whether a resolver could be asked for it, be it a name or an address."""
    if len(text) > MAX_NAME:
        return False
    try:
        # As the resolver is asked: no part of a name may be empty, or longer than 63 characters.
        text.encode("idna")
    except UnicodeError:
        return False
    return bool(text) and text.isprintable() and " " not in text


@dataclass(frozen=True, slots=True)
class Address:
    host: str
    port: int = SSH_PORT

    def __str__(self) -> str:
        """As `parse_address` reads it: HOST[:PORT], and [HOST]:PORT where HOST has colons."""
        if self.port == SSH_PORT:
            return self.host
        return f"[{self.host}]:{self.port}" if ":" in self.host else f"{self.host}:{self.port}"

    @property
    def known_hosts_name(self) -> str:
        """As known_hosts has it."""
        return self.host if self.port == SSH_PORT else f"[{self.host}]:{self.port}"


def parse_address(text: str) -> Address:
    """HOST, HOST:PORT or [HOST]:PORT.

    Raises ValueError if `text` is none of these.
    """
    if _ipv6.fullmatch(text):
        return Address(text)
    match = _written.fullmatch(text)
    if match is None or not is_host(text):
        raise ValueError(text)
    port = int(match["port"] or SSH_PORT)
    if not 1 <= port <= 65535:
        raise ValueError(text)
    return Address(match["bracketed"] or match["plain"], port)


def is_user(text: str) -> bool:
    """Whether an account could have that name."""
    return bool(text) and text.isprintable()
