"""Ports for servers that a test starts later, or never."""

import socket
from collections.abc import Iterator
from contextlib import contextmanager


@contextmanager
def reserved_port() -> Iterator[int]:
    """A port of 127.0.0.1 where nothing listens but what is told its number."""
    with socket.socket() as holder:
        # Bound, it is given to nobody who asks for any free port; with this, and as it never
        # listens, whoever asks for it by number has it.
        holder.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        holder.bind(("127.0.0.1", 0))
        port: int = holder.getsockname()[1]
        yield port
