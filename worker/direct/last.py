"""The last call of `exec`: which servers, and how it ended on each."""

import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path

import msgspec

from worker.direct.servers import NamedServer
from worker.dispatch.result import Outcome
from worker.errors import StateError
from worker.remote.address import Address

LAST = "last-exec.json"


class LastServer(msgspec.Struct, frozen=True):
    """`outcome` is None where the call did not come to an end."""

    name: str
    user: str
    host: str
    port: int
    outcome: Outcome | None

    @property
    def server(self) -> NamedServer:
        return NamedServer(self.name, self.user, Address(self.host, self.port))


_last = msgspec.json.Decoder(tuple[LastServer, ...])


def keep_last(
    directory: Path, servers: Sequence[NamedServer], outcomes: Mapping[str, Outcome]
) -> None:
    """By names. Raises StateError if there is no room."""
    entries = tuple(
        LastServer(
            server.name,
            server.user,
            server.address.host,
            server.address.port,
            outcomes.get(server.name),
        )
        for server in servers
    )
    try:
        # Another call may read it meanwhile.
        with tempfile.TemporaryDirectory(dir=directory) as folder:
            file = Path(folder) / LAST
            file.touch(0o600)
            file.write_bytes(msgspec.json.encode(entries))
            file.replace(directory / LAST)
    except OSError as error:
        raise StateError(f"{directory / LAST}: {error.strerror}") from error


def unsuccessful(directory: Path) -> list[NamedServer]:
    """The servers on which the last call did not succeed, as far as is known.

    Raises StateError if there was none, or what is left of it cannot be read.
    """
    path = directory / LAST
    try:
        entries = _last.decode(path.read_bytes())
    except FileNotFoundError:
        raise StateError(f"{path}: there was no call before") from None
    except (OSError, msgspec.DecodeError) as error:
        raise StateError(f"{path}: {error}") from error
    return [each.server for each in entries if each.outcome is not Outcome.SUCCESS]
