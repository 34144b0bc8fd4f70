"""What is told to an API at the end of a slow line."""

import re
import socket
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import trio

from worker.api.transport import open_http

MIB = 1024 * 1024
PIECE_BYTES = 64 * 1024


@asynccontextmanager
async def slow_api(seconds: float) -> AsyncIterator[str]:
    """Its address; it reads for about so long what it is told, and answers then."""

    async def visit(client: trio.SocketStream) -> None:
        async with client:
            heard = b""
            while b"\r\n\r\n" not in heard:
                heard += await client.receive_some(PIECE_BYTES)
            head, _, body = heard.partition(b"\r\n\r\n")
            length = re.search(rb"(?i)content-length: (\d+)", head)
            assert length is not None
            whole = count = int(length[1])
            count -= len(body)
            while count:
                data = await client.receive_some(PIECE_BYTES)
                count -= len(data)
                await trio.sleep(seconds * len(data) / whole)
            await client.send_all(b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\n{}")

    listener = trio.socket.socket()
    # What is under way is no more than on a line.
    listener.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, PIECE_BYTES)
    await listener.bind(("127.0.0.1", 0))
    listener.listen()
    async with trio.open_nursery() as nursery:
        await nursery.start(trio.serve_listeners, visit, [trio.SocketListener(listener)])
        yield f"http://127.0.0.1:{listener.getsockname()[1]}"
        nursery.cancel_scope.cancel()


async def test_a_large_result_over_a_slow_line_has_the_time_that_it_takes() -> None:
    with trio.fail_after(20):
        async with slow_api(seconds=2) as address, open_http(address) as http:
            answer = await http.request(
                "POST", "jobs/job_1/complete", content=bytes(16 * MIB), headers={}, seconds=0.4
            )

    assert answer.status_code == 200
