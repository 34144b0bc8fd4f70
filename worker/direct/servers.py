"""Servers as an operator names them: `web-1=deploy@10.0.0.1:2222`."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from worker.remote.address import Address, parse_address

EXPECTED = "[NAME=][USER@]HOST[:PORT]"


@dataclass(frozen=True, slots=True)
class NamedServer:
    name: str
    user: str
    address: Address

    def __str__(self) -> str:
        return f"{self.user}@{self.address}"


def parse_server(text: str, *, user: str) -> NamedServer:
    """The name is the host's where none is given; `user` is the account where none is.

    Raises ValueError, in words for an operator.
    """
    name, equals, rest = text.partition("=")
    if not equals:
        name, rest = "", text
    account, at, place = rest.rpartition("@")
    try:
        address = parse_address(place)
    except ValueError:
        raise ValueError(f"{text!r} is no server; expected {EXPECTED}") from None
    for given, part, what in ((equals, name, "NAME"), (at, account, "USER")):
        if given and (not part.isprintable() or not part.strip() or len(part) > 100):
            raise ValueError(f"{text!r}: {what} is empty or cannot be printed; expected {EXPECTED}")
    return NamedServer(name or str(address), account or user, address)


def read_servers(text: str, *, user: str) -> list[NamedServer]:
    """One to a line; empty lines, and what stands behind a `#`, are not read.

    Raises ValueError, naming the line.
    """
    servers = []
    for number, line in enumerate(text.splitlines(), start=1):
        written = line.partition("#")[0].strip()
        if written:
            try:
                servers.append(parse_server(written, user=user))
            except ValueError as error:
                raise ValueError(f"line {number}: {error}") from None
    return servers


def distinct(servers: Iterable[NamedServer]) -> Sequence[NamedServer]:
    """In their order; one that is given twice is one.

    Raises ValueError if two have the same name.
    """
    by_name: dict[str, NamedServer] = {}
    for server in servers:
        if by_name.setdefault(server.name, server) != server:
            raise ValueError(
                f"{server.name} is both {by_name[server.name]} and {server}; "
                "expected a name for each"
            )
    return tuple(by_name.values())
