"""A small SSH server in a process of its own, where no sshd is installed."""

import asyncio
import os
import sys
from pathlib import Path

import asyncssh

from worker.demo.sshd import Sshd, our_account


class AsyncsshServer(Sshd):
    """Like `Sshd` but on asyncssh, for one server; its directory suits either."""

    def _command(self, port: int) -> list[str]:
        ((name, address),) = self._addresses.items()
        return [
            sys.executable,
            "-P",  # not ./worker
            "-m",
            "worker.demo.asyncssh_server",
            str(self._directory),
            str(self._home(name)),
            address,
            str(port),
        ]


async def serve(directory: Path, home: Path, address: str, port: int) -> None:
    """Accept the client key of `directory` and run what clients ask for, HOME being `home`."""
    user = our_account()
    environment = {
        "HOME": str(home),
        "LOGNAME": user,
        "PATH": os.environ.get("PATH", os.defpath),
        "SHELL": "/bin/sh",
        "USER": user,
    }

    async def run(channel: asyncssh.SSHServerProcess[bytes]) -> None:
        # Its own session, as sshd does: a detached process must not be tied to ours.
        child = await asyncio.create_subprocess_exec(
            "/bin/sh",
            "-c",
            channel.command or "exit 0",
            stdin=asyncio.subprocess.PIPE,
            stdout=asyncio.subprocess.PIPE,
            stderr=asyncio.subprocess.PIPE,
            cwd=home,
            env=environment,
            start_new_session=True,
        )
        await channel.redirect(stdin=child.stdin, stdout=child.stdout, stderr=child.stderr)
        status = await child.wait()
        await channel.stdout.drain()
        await channel.stderr.drain()
        channel.exit(status if status >= 0 else 128 - status)

    server = await asyncssh.listen(
        address,
        port,
        server_host_keys=[directory / "host_key"],
        authorized_client_keys=str(directory / "client_key.pub"),
        process_factory=run,
        encoding=None,
        reuse_address=True,
    )
    await server.wait_closed()


if __name__ == "__main__":
    asyncio.run(serve(Path(sys.argv[1]), Path(sys.argv[2]), sys.argv[3], int(sys.argv[4])))
