"""A TCP connection's way, with whatever can become of it on the way."""

from collections import Counter
from enum import Enum, auto

import trio

from tests.faults.background import Background
from tests.faults.door import Door, reset

PIECE_BYTES = 64 * 1024
LOST = (trio.BrokenResourceError, trio.ClosedResourceError)


class Way(Enum):
    TO_SERVER = auto()
    TO_CLIENT = auto()


class TcpProxy:
    """`accepted` and `open` count connections, `passed` bytes.

    While it is stalled, bytes, ends and resets wait, as packets do that are sent again and again;
    `heal` lets them go on.
    """

    def __init__(
        self, background: Background, target: tuple[str, int], host: str = "127.0.0.1"
    ) -> None:
        self._background = background
        self._target = target
        self._pairs: set[tuple[trio.SocketStream, trio.SocketStream]] = set()
        self._room: dict[Way, int] = {}
        self._healed = trio.Event()
        self.accepted = 0
        self.passed: Counter[Way] = Counter()
        self._door = Door(background, self._visit, host)

    @property
    def port(self) -> int:
        return self._door.port

    @property
    def open(self) -> int:
        return len(self._pairs)

    @property
    def is_stalled(self) -> bool:
        return all(self._room.get(way) == 0 for way in Way)

    def cut(self) -> None:
        """Reset every open connection on both sides."""
        self._background.call(self._cut)

    def stall(self) -> None:
        """Pass nothing on, either way, of these connections and those to come."""
        self._background.call(self._limit, dict.fromkeys(Way, 0))

    def stall_after(self, count: int, way: Way) -> None:
        """As `stall`, once `count` more bytes, at least one, went that way."""
        self._background.call(self._limit, {way: count})

    def mute(self, way: Way) -> None:
        """As `stall`, one way only."""
        self._background.call(self._limit, {way: 0})

    def refuse(self) -> None:
        """Take no new connections."""
        self._background.call(self._door.shut)

    def heal(self) -> None:
        self._background.call(self._heal)

    def _limit(self, room: dict[Way, int]) -> None:
        self._room |= room

    def _cut(self) -> None:
        for pair in self._pairs:
            for stream in pair:
                reset(stream)

    def _heal(self) -> None:
        self._room.clear()
        self._healed.set()
        self._healed = trio.Event()
        self._door.open()

    async def _visit(self, client: trio.SocketStream) -> None:
        self.accepted += 1
        async with client:
            try:
                server = await trio.open_tcp_stream(*self._target)
            except OSError:
                reset(client)
                return
            async with server, trio.open_nursery() as nursery:
                self._pairs.add((client, server))
                nursery.start_soon(self._pass_on, client, server, Way.TO_SERVER)
                nursery.start_soon(self._pass_on, server, client, Way.TO_CLIENT)
            self._pairs.discard((client, server))

    async def _pass_on(self, source: trio.SocketStream, sink: trio.SocketStream, way: Way) -> None:
        try:
            while data := await source.receive_some(PIECE_BYTES):
                while data:
                    piece = data[: await self._wait_for_room(way)]
                    await sink.send_all(piece)
                    self._count(way, len(piece))
                    data = data[len(piece) :]
            await self._wait_for_room(way)
            await sink.send_eof()
        except LOST:
            await self._wait_for_room(way)
            reset(source)
            reset(sink)

    async def _wait_for_room(self, way: Way) -> int:
        while self._room.get(way) == 0:
            await self._healed.wait()
        return self._room.get(way, PIECE_BYTES)

    def _count(self, way: Way, count: int) -> None:
        self.passed[way] += count
        if way in self._room:
            # What was on its way when the limit was set may be more than that.
            self._room[way] = max(0, self._room[way] - count)
            if not self._room[way]:
                self._limit(dict.fromkeys(Way, 0))
