"""Ringing for a queue's server from another process, by a socket that has a name and no file.

Linux alone has such names; elsewhere nobody is heard. Whoever is on this machine may ring, which
costs the server a look.
"""

import socket
from contextlib import suppress
from pathlib import Path

import trio

# As many as had come by then count as one.
MOST_AT_ONCE = 1000


def _address(database: Path) -> bytes:
    """By the file itself, whatever path leads to it. Raises OSError where there is none."""
    found = database.stat()
    return b"\0cronium-queue-%d-%d" % (found.st_dev, found.st_ino)


def _socket() -> socket.socket:
    return socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM | socket.SOCK_NONBLOCK)


def ring(database: Path) -> None:
    """Have the server of `database`, if one listens, look at it at once."""
    with suppress(OSError), _socket() as sender:  # nobody listens, or has been rung for enough
        sender.sendto(b"\n", _address(database))


class Bell:
    """Hears `ring`; never, where another server of that database does, or it cannot be had."""

    def __init__(self, database: Path) -> None:
        self._socket: socket.socket | None = None
        with suppress(OSError):
            listener = _socket()
            try:
                listener.bind(_address(database))
            except OSError:
                listener.close()
                raise
            self._socket = listener

    async def rung(self) -> None:
        if self._socket is None:
            await trio.sleep_forever()
        await trio.lowlevel.wait_readable(self._socket)
        with suppress(BlockingIOError):
            for _ in range(MOST_AT_ONCE):
                self._socket.recv(1)

    def close(self) -> None:
        if self._socket is not None:
            self._socket.close()
            self._socket = None
