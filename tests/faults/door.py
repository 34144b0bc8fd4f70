"""A port on loopback that can turn connections away and keep its number."""

import socket
from collections.abc import Awaitable, Callable
from contextlib import ExitStack
from typing import NoReturn

import trio

from tests.faults.background import Background

Visit = Callable[[trio.SocketStream], Awaitable[None]]


class Door:
    """`visit` is called for each connection, which it has to close."""

    def __init__(self, background: Background, visit: Visit, host: str = "127.0.0.1") -> None:
        self._visit = visit
        self._opened = trio.Event()
        self._host = host
        self._listener: trio.socket.SocketType | None = None
        self.port = 0
        background.start(self._serve)

    def shut(self) -> None:
        if self._listener is not None:
            self._listener.close()
            self._listener = None

    def open(self) -> None:
        if self._listener is None:
            self._listener = trio.socket.from_stdlib_socket(self._bound())
            self._listener.listen()
            self._opened.set()

    async def _serve(self, task_status: trio.TaskStatus[None]) -> NoReturn:
        with ExitStack() as stack:
            # Bound and never listening: nobody else gets the port while the door is shut.
            reserved = stack.enter_context(self._bound())
            self.port = reserved.getsockname()[1]
            stack.callback(self.shut)
            self.open()
            async with trio.open_nursery() as visits:
                task_status.started()
                while True:
                    await self._let_in(visits)

    async def _let_in(self, visits: trio.Nursery) -> None:
        listener = self._listener
        if listener is None:
            self._opened = trio.Event()
            await self._opened.wait()
            return
        try:
            client, _ = await listener.accept()
        except (trio.ClosedResourceError, OSError):
            if listener.fileno() >= 0:
                raise
            return  # shut meanwhile
        visits.start_soon(self._visit, trio.SocketStream(client))

    def _bound(self) -> socket.socket:
        listener = socket.socket()
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
        listener.bind((self._host, self.port))
        return listener


def reset(stream: trio.SocketStream) -> None:
    """Close with an RST instead of a FIN."""
    if stream.socket.fileno() >= 0:
        stream.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, b"\1\0\0\0\0\0\0\0")
        stream.socket.close()
