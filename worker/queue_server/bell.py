"""Ringing for a server from another process: a named pipe beside the database."""

import os
import stat
from contextlib import suppress
from pathlib import Path

import trio

# As many as had come by then count as one.
MOST_BYTES = 64 * 1024


def bell_of(database: Path) -> Path:
    return database.with_name(f"{database.name}-bell")


def ring(bell: Path) -> None:
    """Have the server that listens, if there is one, look at the database at once."""
    with suppress(OSError):  # nobody listens, or has been rung for often enough
        fd = os.open(bell, os.O_WRONLY | os.O_NONBLOCK | os.O_CLOEXEC | os.O_NOFOLLOW)
        try:
            if stat.S_ISFIFO(os.fstat(fd).st_mode):
                os.write(fd, b"\n")
        finally:
            os.close(fd)


class Bell:
    """Hears `ring`; never, where there can be no such pipe."""

    def __init__(self, path: Path) -> None:
        self._fd: int | None = None
        with suppress(OSError):  # it is there, or the file system has none
            os.mkfifo(path, 0o600)
        with suppress(OSError):
            # For writing too, as the pipe would be at its end after whoever rang first.
            fd = os.open(path, os.O_RDWR | os.O_NONBLOCK | os.O_CLOEXEC | os.O_NOFOLLOW)
            if stat.S_ISFIFO(os.fstat(fd).st_mode):
                self._fd = fd
            else:
                os.close(fd)

    async def rung(self) -> None:
        if self._fd is None:
            await trio.sleep_forever()
        await trio.lowlevel.wait_readable(self._fd)
        with suppress(BlockingIOError):  # another server on this database was quicker
            os.read(self._fd, MOST_BYTES)

    def close(self) -> None:
        if self._fd is not None:
            os.close(self._fd)
            self._fd = None
