"""The host keys that a server shows to anybody: a key exchange, and no authentication."""

from collections.abc import Sequence

import asyncssh
import trio
from trio_asyncio import aio_as_trio

from worker.errors import ConnectError, HostKeyError, SshError
from worker.remote.address import Address
from worker.remote.connection import KEX, HostKey, translated
from worker.remote.key_kinds import KINDS, algorithms, with_all
from worker.remote.loop import open_loop
from worker.remote.target import Credential, Target

# A server has one key of each of these, and no other.
_FAMILIES = (KINDS[:1], KINDS[1:4], KINDS[4:])


async def shown_host_key(address: Address, first: Sequence[str] = ()) -> HostKey:
    """The server's key of a kind of `first`, or of the best kind that it has otherwise.

    Raises ConnectError.
    """
    target = Target(address.host, address.port, "", Credential())
    try:
        # Resolved here, for asyncssh does not say at which address it was.
        found = await trio.socket.getaddrinfo(
            address.host, address.port, type=trio.socket.SOCK_STREAM
        )
    except OSError as error:
        raise translated(error, target) from error
    failure: SshError = ConnectError(f"{address} has no address")
    for *_, place in found:
        ip = str(place[0])
        try:
            return HostKey.of(await _exchange(ip, address.port, algorithms(with_all(first))), ip)
        except Exception as error:  # noqa: BLE001  nonsense on the wire, as in open_connection
            failure = translated(error, target)
    raise failure


async def host_key_with(address: Address, fingerprints: Sequence[str]) -> HostKey:
    """The server's key that has one of `fingerprints`.

    Raises HostKeyError, with what the server showed, if none has; ConnectError.
    """
    shown: dict[str, HostKey] = {}
    for kinds in _FAMILIES:
        key = await shown_host_key(address, kinds)
        if key.fingerprint in fingerprints:
            return key
        shown[key.fingerprint] = key
    told = " and ".join(f"{key.fingerprint} ({key.kind})" for key in shown.values())
    raise HostKeyError(f"no host key of {address} is {' or '.join(fingerprints)}: it showed {told}")


async def _exchange(ip: str, port: int, asked: Sequence[str]) -> asyncssh.SSHKey:
    failure: Exception
    # Its own loop, as a command has none. What it raises would come out in a group.
    async with open_loop():
        try:
            key: asyncssh.SSHKey | None = await aio_as_trio(asyncssh.get_server_host_key)(
                ip,
                port,
                server_host_key_algs=asked,
                kex_algs=KEX,
                client_version="cronium-worker",
                config=None,
            )
        except Exception as error:  # noqa: BLE001  told outside
            failure = error
        else:
            if key is not None:
                return key
            failure = ValueError("it showed no host key")
    raise failure
