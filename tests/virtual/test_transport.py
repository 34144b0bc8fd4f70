"""The connections to an API: as many as there are calls at once."""

from collections.abc import AsyncIterator

import httpx
import pytest
import trio
from trio.testing import MockClock

from worker.api.transport import (
    CALLS_AT_ONCE,
    IDLE_SECONDS,
    MOST_CONNECTIONS,
    PATIENCE_SECONDS,
    Http,
)

MANY = 4 * CALLS_AT_ONCE


class Line(httpx.AsyncBaseTransport):
    """One that answers after `seconds`, and counts."""

    def __init__(self, lines: "list[Line]", seconds: float) -> None:
        lines.append(self)
        self._lines = lines
        self.most = 0
        self._seconds = seconds
        self.calls = self.at_once = 0
        self.is_closed = False

    async def handle_async_request(self, request: httpx.Request) -> httpx.Response:
        assert not self.is_closed
        self.calls += 1
        self.at_once += 1
        assert self.at_once == 1
        self.most = sum(line.at_once for line in self._lines)
        try:
            await trio.sleep(self._seconds)
        finally:
            self.at_once -= 1
        return httpx.Response(200, json={}, request=request)

    async def aclose(self) -> None:
        await trio.lowlevel.checkpoint()
        self.is_closed = True


async def call(http: Http) -> None:
    await http.request("GET", "jobs", content=None, headers={}, seconds=30)


async def call_many(http: Http, count: int = MANY) -> None:
    async with trio.open_nursery() as nursery:
        for _ in range(count):
            nursery.start_soon(call, http)


async def test_calls_one_after_another_share_a_connection(autojump_clock: MockClock) -> None:
    lines: list[Line] = []
    http = Http("http://queue", lambda: Line(lines, 0.01))

    for _ in range(20):
        await call(http)

    assert [line.calls for line in lines] == [20]


async def test_an_api_that_answers_is_called_a_few_times_at_once(autojump_clock: MockClock) -> None:
    lines: list[Line] = []
    http = Http("http://queue", lambda: Line(lines, 0.01))

    await call_many(http)

    assert len(lines) == CALLS_AT_ONCE
    assert sum(line.calls for line in lines) == MANY


async def test_a_slow_one_is_called_all_the_same_and_spare_connections_go(
    autojump_clock: MockClock,
) -> None:
    lines: list[Line] = []
    http = Http("http://queue", lambda: Line(lines, 60 * PATIENCE_SECONDS))

    began = trio.current_time()
    await call_many(http)

    assert trio.current_time() - began < 70 * PATIENCE_SECONDS
    assert len(lines) == MANY
    assert sum(not line.is_closed for line in lines) == CALLS_AT_ONCE
    await http.aclose()
    assert all(line.is_closed for line in lines)


async def test_a_call_that_is_given_up_leaves_its_connection_to_the_next(
    autojump_clock: MockClock,
) -> None:
    lines: list[Line] = []
    http = Http("http://queue", lambda: Line(lines, 1))

    for _ in range(5):
        with trio.move_on_after(0.5):
            await call(http)

    assert [line.calls for line in lines] == [5]


async def test_however_slow_it_is_there_are_not_more_than_so_many(
    autojump_clock: MockClock,
) -> None:
    lines: list[Line] = []
    http = Http("http://queue", lambda: Line(lines, 10))

    await call_many(http, 3 * MOST_CONNECTIONS)

    assert max(line.most for line in lines) == MOST_CONNECTIONS


async def test_one_that_was_not_used_for_long_is_closed(autojump_clock: MockClock) -> None:
    lines: list[Line] = []
    http = Http("http://queue", lambda: Line(lines, 0.01))
    await call_many(http)

    await trio.sleep(IDLE_SECONDS + 1)
    for _ in range(CALLS_AT_ONCE):
        await call(http)

    assert sum(not line.is_closed for line in lines) == 1


class Drip(httpx.AsyncByteStream):
    """A body of which a piece comes every second."""

    def __init__(self, pieces: int, size: int) -> None:
        self._left = pieces
        self._size = size

    def __aiter__(self) -> AsyncIterator[bytes]:
        return self

    async def __anext__(self) -> bytes:
        if not self._left:
            raise StopAsyncIteration
        await trio.sleep(1)
        self._left -= 1
        return b" " * self._size


async def test_an_answer_that_comes_byte_by_byte_is_given_up(autojump_clock: MockClock) -> None:
    answer = httpx.Response(200, stream=Drip(1000, 1))
    http = Http("http://queue", lambda: httpx.MockTransport(lambda _request: answer))
    began = trio.current_time()

    with pytest.raises(httpx.ReadTimeout):
        await call(http)

    assert trio.current_time() - began == pytest.approx(30, abs=1)


async def test_a_large_answer_over_a_slow_line_is_waited_for(autojump_clock: MockClock) -> None:
    answer = httpx.Response(200, stream=Drip(300, 60_000))
    http = Http("http://queue", lambda: httpx.MockTransport(lambda _request: answer))

    response = await http.request("GET", "jobs", content=None, headers={}, seconds=30)

    assert len(response.content) == 300 * 60_000
