"""Many servers on loopback, and how OpenSSH's own client is to reach them."""

import shutil
import tempfile
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path

from tests.bench.bench import CannotMeasureError
from worker.demo.sshd import (
    ADDRESSES_PER_SSHD,
    LocalServer,
    Sshd,
    free_port,
    running,
    unusable_reason,
)

MEMORY = Path("/dev/shm")  # noqa: S108  in a directory of its own
# The most that an experiment has lie on its servers is 2 GiB.
MEMORY_BYTES = 6 * 1024**3
HOSTS_PER_NET = 250
# The fleet's own default drops connections from 200 on that have not logged in yet; sixteen
# servers share one sshd process here, so that a fan-out is up to sixteen of them.
MAX_STARTUPS = "1000:30:1000"


@dataclass(frozen=True, slots=True)
class Fleet:
    """`servers` all listen on `port`, each at an address of its own."""

    servers: tuple[LocalServer, ...]
    port: int
    ssh_config: Path

    def names(self, start: int = 0, stop: int | None = None) -> list[str]:
        return [server.name for server in self.servers[start:stop]]


@contextmanager
def open_fleet(size: int) -> Iterator[Fleet]:
    """`size` servers, sixteen to one sshd process.

    Their homes are in memory where there is room: servers do not share one disk. On that of one
    machine (ext4 without a journal) a new file took the longer the more were deleted within
    the last minute, up to as long as all else that a run costs.

    Raises CannotMeasureError if there can be none.
    """
    has_room = MEMORY.is_dir() and shutil.disk_usage(MEMORY).free > MEMORY_BYTES
    with (
        tempfile.TemporaryDirectory(
            prefix="cronium-fleet-", dir=MEMORY if has_room else None, ignore_cleanup_errors=True
        ) as folder,
        _fleet_in(Path(folder), size) as fleet,
    ):
        yield fleet


@contextmanager
def _fleet_in(folder: Path, size: int) -> Iterator[Fleet]:
    if reason := unusable_reason():
        raise CannotMeasureError(reason)
    numbers = range(size)
    port = free_port()
    with ExitStack() as stack:
        servers: list[LocalServer] = []
        for first in numbers[::ADDRESSES_PER_SSHD]:
            addresses = {
                f"server-{number}": _address(number)
                for number in numbers[first:][:ADDRESSES_PER_SSHD]
            }
            sshd = Sshd(
                folder / f"sshd-{first}",
                addresses,
                port=port,
                options={"MaxStartups": MAX_STARTUPS},
            )
            servers += stack.enter_context(running(sshd)).servers
        yield Fleet(tuple(servers), port, _ssh_config(folder, servers))


def forget_runners(fleet: Fleet) -> None:
    """Make the servers fresh ones."""
    for server in fleet.servers:
        shutil.rmtree(server.home / ".cache", ignore_errors=True)


def _address(number: int) -> str:
    return f"127.0.{1 + number // HOSTS_PER_NET}.{1 + number % HOSTS_PER_NET}"


def _ssh_config(folder: Path, servers: list[LocalServer]) -> Path:
    """Nothing of the account's own counts; each sshd process has keys of its own."""
    known_hosts = folder / "known_hosts"
    known_hosts.write_text(
        "".join(f"[{each.host}]:{each.port} {each.host_key}\n" for each in servers)
    )
    hosts = []
    for server in servers:
        key = server.home.parents[1] / "client_key"
        hosts.append(f"Host {server.host}\n  IdentityFile {key}\n")
    common = {
        "BatchMode": "yes",
        "GSSAPIAuthentication": "no",
        "GlobalKnownHostsFile": "/dev/null",
        "IdentitiesOnly": "yes",
        "IdentityAgent": "none",
        "LogLevel": "ERROR",
        "Port": str(servers[0].port),
        "StrictHostKeyChecking": "yes",
        "User": servers[0].user,
        "UserKnownHostsFile": str(known_hosts),
    }
    config = folder / "ssh_config"
    config.write_text(
        "".join(hosts)
        + "Host *\n"
        + "".join(f"  {name} {value}\n" for name, value in common.items())
    )
    return config
