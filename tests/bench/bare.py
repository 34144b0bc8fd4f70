"""asyncssh under trio-asyncio and nothing else: what a job cannot cost less than.

`python -m tests.bench.bare` is a program of its own, so that what it costs is its alone. It takes
its targets from stdin, and says in JSON what connecting to all of them at once and running one
command on each took. Connections are closed after that.
"""

import json
import sys
import time
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass

import asyncssh
import trio
import trio_asyncio

from tests.bench.bench import CannotMeasureError
from tests.bench.processes import spend
from worker.demo.sshd import LocalServer

# As in worker/remote/connection.py: what is compared are the programs, not the algorithms.
KEX = ["mlkem768x25519-sha256", "curve25519-sha256"]
CIPHERS = ["aes128-gcm@openssh.com"]
COMMAND = "echo hi; exit 0"
ANSWER = "hi\n"


@dataclass(frozen=True, slots=True)
class Told:
    """Seconds for all servers together."""

    wall_seconds: float
    cpu_seconds: float


def run_bare(servers: Sequence[LocalServer], warm_up: LocalServer) -> Told:
    """All of `servers` at once; `warm_up` comes before them, one alone, and does not count.

    Raises CannotMeasureError if one of them does not answer.
    """
    order = {
        "servers": [_target(server) for server in servers],
        "warm_up": _target(warm_up),
    }
    spent = spend([sys.executable, "-m", "tests.bench.bare"], text=json.dumps(order))
    with suppress(ValueError):
        return Told(**json.loads(spent.output.splitlines()[-1]))
    raise CannotMeasureError(f"the bare client failed: {spent.output[-300:]}")


def _target(server: LocalServer) -> dict[str, str | int]:
    return {
        "host": server.host,
        "port": server.port,
        "user": server.user,
        "key": server.private_key,
        "host_key": server.host_key,
    }


async def _all(order: dict[str, list[dict[str, str]]], warm_up: dict[str, str]) -> Told:
    keys = {
        text: asyncssh.import_private_key(text)
        for text in {target["key"] for target in [*order["servers"], warm_up]}
    }
    connections: list[asyncssh.SSHClientConnection] = []

    async def visit(target: dict[str, str]) -> None:
        connection = await asyncssh.connect(
            target["host"],
            int(target["port"]),
            username=target["user"],
            client_keys=[keys[target["key"]]],
            known_hosts=([target["host_key"].encode()], [], []),
            server_host_key_algs=["ssh-ed25519"],
            preferred_auth=["publickey"],
            kex_algs=KEX,
            encryption_algs=CIPHERS,
            compression_algs=["none"],
            agent_path=None,
            config=None,
            gss_kex=False,
            gss_auth=False,
            x509_trusted_certs=None,
        )
        connections.append(connection)
        ended = await connection.run(COMMAND)
        if ended.stdout != ANSWER or ended.exit_status != 0:
            raise CannotMeasureError(f"{target['host']} said {ended.stdout!r}")

    visit_as_trio = trio_asyncio.aio_as_trio(visit)
    async with trio_asyncio.open_loop():
        await visit_as_trio(warm_up)
        wall, cpu = time.perf_counter(), time.process_time()
        async with trio.open_nursery() as nursery:
            for target in order["servers"]:
                nursery.start_soon(visit_as_trio, target)
        told = Told(time.perf_counter() - wall, time.process_time() - cpu)
        for connection in connections:
            connection.abort()
    return told


def main() -> None:
    order = json.load(sys.stdin)
    told = trio.run(_all, order, order["warm_up"])
    sys.stdout.write(json.dumps(asdict(told)) + "\n")


if __name__ == "__main__":
    main()
