"""The queue API's way, one call at a time, with whatever can become of it on the way."""

import json
import re
import threading
from collections import Counter
from contextlib import suppress
from dataclasses import dataclass, field
from enum import Enum, auto

import trio

from tests.faults.background import Background
from tests.faults.door import Door, reset

REACH_SECONDS = 30.0
FORWARD_SECONDS = 40.0
PIECE_BYTES = 64 * 1024
GONE = (trio.BrokenResourceError, trio.ClosedResourceError)
FAULT_BODY = b'{"error":"made to fail"}'
FAULT = b"HTTP/1.1 500 Internal Server Error\r\nContent-Type: application/json\r\n" + (
    b"Content-Length: %d\r\n\r\n%b" % (len(FAULT_BODY), FAULT_BODY)
)


class Failure(Enum):
    ANSWERS_500 = auto()
    HANGS = auto()
    REFUSES = auto()
    RESETS = auto()


@dataclass(slots=True)
class Call:
    """`status` is the queue's answer, whether or not the worker got it."""

    route: str
    subject: str
    body: bytes = field(repr=False)
    status: int | None = None
    answer: bytes = field(default=b"", repr=False)


class Hold:
    """A call that is stopped at one point of its way."""

    def __init__(self, background: Background, route: str, *, at_answer: bool) -> None:
        self._background = background
        self._route = route
        self._at_answer = at_answer
        self._reached = threading.Event()
        self._released = trio.Event()
        self.call: Call | None = None

    def wait_reached(self) -> None:
        assert self._reached.wait(REACH_SECONDS), f"no {self._route} has come"

    def release(self) -> None:
        self._background.call(self._released.set)

    def takes(self, call: Call) -> bool:
        return (call.route, call.status is not None) == (self._route, self._at_answer) and not (
            # A poll that was answered with nothing claimed nothing.
            call.route == "claim" and self._at_answer and not json.loads(call.answer)["jobs"]
        )

    async def stop(self, call: Call) -> None:
        self.call = call
        self._reached.set()
        await self._released.wait()


class ApiProxy:
    """`calls` are all that reached the queue, in the order in which they came here."""

    def __init__(self, background: Background, target_port: int) -> None:
        self._background = background
        self._target_port = target_port
        self._clients: set[trio.SocketStream] = set()
        self._holds: list[Hold] = []
        self._failure: Failure | None = None
        self._healed = trio.Event()
        self.calls: list[Call] = []
        # As the app, whose claims have none.
        self.hides_tokens = False
        self.failed: Counter[str] = Counter()
        self._door = Door(background, self._visit)

    @property
    def port(self) -> int:
        return self._door.port

    def accepted(self, route: str) -> list[Call]:
        """The calls of that route which the queue said yes to."""
        return [call for call in self.calls if call.route == route and call.status == 200]

    def hold(self, route: str) -> Hold:
        """Stop the next call of that route before the queue gets it."""
        return self._add(Hold(self._background, route, at_answer=False))

    def hold_answer(self, route: str) -> Hold:
        """Stop the queue's next answer of that route; of polls, the next that has a job."""
        return self._add(Hold(self._background, route, at_answer=True))

    def fail(self, how: Failure) -> None:
        """Until `heal`; what hangs then goes on, if the worker still waits for it."""
        self._background.call(self._fail, how)

    def heal(self) -> None:
        self._background.call(self._heal)

    def _add(self, hold: Hold) -> Hold:
        self._holds.append(hold)
        return hold

    def _fail(self, how: Failure) -> None:
        self._failure = how
        if how is Failure.REFUSES:
            self._door.shut()
        if how in (Failure.REFUSES, Failure.RESETS):
            for client in self._clients:
                reset(client)

    def _heal(self) -> None:
        self._failure = None
        self._healed.set()
        self._healed = trio.Event()
        self._door.open()

    async def _visit(self, client: trio.SocketStream) -> None:
        self._clients.add(client)
        async with client:
            with suppress(*GONE):
                while request := await _read_message(client):
                    answer = await self._answer_unless_gone(request, client)
                    if answer is None:
                        reset(client)
                        break
                    await client.send_all(answer)
        self._clients.discard(client)

    async def _answer_unless_gone(self, request: bytes, client: trio.SocketStream) -> bytes | None:
        answer = None
        async with trio.open_nursery() as nursery:
            nursery.start_soon(_cancel_when_gone, client, nursery.cancel_scope)
            answer = await self._answer(request)
            nursery.cancel_scope.cancel()
        return answer

    async def _answer(self, request: bytes) -> bytes | None:
        """None: the connection is to be reset."""
        call = _call(request)
        await self._stop_if_held(call)
        if await self._fails(call):
            return self._fault()
        self.calls.append(call)
        answer = None
        # Whoever asked may be gone, what is said counts; but a poll is not to claim for the dead.
        with trio.move_on_after(FORWARD_SECONDS, shield=call.route != "claim"):
            answer = await self._forward(request)
        if answer is None:
            return None
        if self.hides_tokens and call.route == "claim":
            answer = answer.replace(b'"claimToken"', b'"claimPaper"')
        head, _, call.answer = answer.partition(b"\r\n\r\n")
        call.status = int(head.split(b" ", 2)[1])
        await self._stop_if_held(call)
        return self._fault() if await self._fails(call) else answer

    async def _forward(self, request: bytes) -> bytes | None:
        try:
            async with await trio.open_tcp_stream("127.0.0.1", self._target_port) as queue:
                await queue.send_all(request)
                return await _read_message(queue) or None
        except (OSError, *GONE):
            return None

    async def _stop_if_held(self, call: Call) -> None:
        hold = next((hold for hold in self._holds if hold.takes(call)), None)
        if hold is not None:
            self._holds.remove(hold)
            await hold.stop(call)

    async def _fails(self, call: Call) -> bool:
        if self._failure is not None:
            self.failed[call.route] += 1
        while self._failure is Failure.HANGS:
            await self._healed.wait()
        return self._failure is not None

    def _fault(self) -> bytes | None:
        return FAULT if self._failure is Failure.ANSWERS_500 else None


def _call(request: bytes) -> Call:
    head, _, body = request.partition(b"\r\n\r\n")
    path = head.split(b" ", 2)[1].decode().partition("?")[0]
    subject, route = path.split("/")[-2:]
    return Call("claim" if route == "queue" else route, subject, body)


async def _cancel_when_gone(client: trio.SocketStream, answering: trio.CancelScope) -> None:
    with suppress(*GONE):
        assert not await client.receive_some(1), "a second call before the first one's answer"
    answering.cancel()


async def _read_message(stream: trio.SocketStream) -> bytes:
    """A request or an answer whole; empty at the connection's end."""
    message = bytearray()
    length = None
    while length is None or len(message) < length:
        more = await stream.receive_some(PIECE_BYTES)
        if not more:
            return b""
        message += more
        if length is None and (end := message.find(b"\r\n\r\n")) >= 0:
            told = re.search(rb"\r\ncontent-length: *(\d+)", message[:end], re.IGNORECASE)
            length = end + 4 + (int(told[1]) if told else 0)
    return bytes(message)
