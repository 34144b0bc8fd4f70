"""Lines with a round trip time: a process of its own, so that nothing here slows it down.

Order is kept and nothing is lost; there is no limit to what is on the way. As over a real link,
the server learns of a connection, and of what was sent first, one and a half round trips after
the client began to connect.
"""

import json
import math
import socket
import subprocess
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import replace
from functools import partial

import trio

from worker.demo.sshd import LocalServer

PIECE_BYTES = 256 * 1024
BACKLOG = 1024
END_SECONDS = 10.0
GONE = (OSError, trio.BrokenResourceError, trio.ClosedResourceError)

# When it is due, and what: nothing at the end.
_Sender = trio.MemorySendChannel[tuple[float, bytes]]
_Receiver = trio.MemoryReceiveChannel[tuple[float, bytes]]


@contextmanager
def open_lines(
    servers: Sequence[LocalServer], round_trip_seconds: float
) -> Iterator[list[LocalServer]]:
    """`servers` as they are reached through lines of that round trip time."""
    order = {"way": round_trip_seconds / 2, "targets": [(each.host, each.port) for each in servers]}
    with subprocess.Popen(
        [sys.executable, "-m", "tests.faults.delay_lines", json.dumps(order)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        start_new_session=True,
    ) as process:
        assert process.stdin is not None
        assert process.stdout is not None
        try:
            ports = json.loads(process.stdout.readline())
            yield [
                replace(server, host="127.0.0.1", port=port)
                for server, port in zip(servers, ports, strict=True)
            ]
        finally:
            process.stdin.close()  # it ends when we do
            try:
                process.wait(END_SECONDS)
            except subprocess.TimeoutExpired:
                process.kill()


async def _serve(way_seconds: float, targets: list[tuple[str, int]]) -> None:
    async with trio.open_nursery() as nursery:
        ports = []
        for host, port in targets:
            visit = partial(_visit, way_seconds, (host, port))
            (listener,) = await trio.open_tcp_listeners(0, host="127.0.0.1", backlog=BACKLOG)
            ports.append(listener.socket.getsockname()[1])
            nursery.start_soon(trio.serve_listeners, visit, [listener])
        sys.stdout.write(json.dumps(ports) + "\n")
        sys.stdout.flush()
        with suppress(*GONE):
            await trio.lowlevel.wait_readable(sys.stdin)
        nursery.cancel_scope.cancel()


async def _visit(way_seconds: float, target: tuple[str, int], client: trio.SocketStream) -> None:
    began = trio.current_time()
    to_server, for_server = trio.open_memory_channel[tuple[float, bytes]](math.inf)
    to_client, for_client = trio.open_memory_channel[tuple[float, bytes]](math.inf)
    async with client, trio.open_nursery() as nursery:
        # The client sends nothing before the server's half of the handshake has come.
        nursery.start_soon(_read, client, to_server, way_seconds, began + 2 * way_seconds)
        await trio.sleep_until(began + 3 * way_seconds)
        with suppress(OSError):
            async with await trio.open_tcp_stream(*target) as server, trio.open_nursery() as ways:
                ways.start_soon(_write, server, for_server)
                ways.start_soon(_read, server, to_client, way_seconds, 0.0)
                ways.start_soon(_write, client, for_client)
        nursery.cancel_scope.cancel()


async def _read(
    source: trio.SocketStream, sink: _Sender, way_seconds: float, not_before: float
) -> None:
    data = b"."
    while data:
        try:
            data = await source.receive_some(PIECE_BYTES)
            # Else sshd's Nagle would wait for our delayed acknowledgements, which over a real
            # line are the client's own; the kernel forgets this after each packet.
            source.setsockopt(socket.IPPROTO_TCP, socket.TCP_QUICKACK, 1)
        except GONE:
            data = b""
        due = max(trio.current_time(), not_before) + way_seconds
        sink.send_nowait((due, data))


async def _write(sink: trio.SocketStream, source: _Receiver) -> None:
    async for due, data in source:
        await trio.sleep_until(due)
        with suppress(*GONE):
            await (sink.send_all(data) if data else sink.send_eof())
        if not data:
            return


if __name__ == "__main__":
    order = json.loads(sys.argv[1])
    trio.run(_serve, order["way"], order["targets"])
