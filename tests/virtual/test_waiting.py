"""One call of the runner, over which one run comes after the other."""

from typing import cast

import asyncssh
import pytest
import trio
from trio.testing import MockClock, wait_all_tasks_blocked

from tests.virtual.test_call_frames import LOST
from tests.virtual.test_call_frames import Channel as FakeChannel
from worker.errors import ConnectionLostError, ProtocolError
from worker.remote.channel import Channel
from worker.remote.frames import Ended, Hello, Reason, Started
from worker.remote.payload import Interpreter, Payload, run_message
from worker.remote.waiting import FORGET_SECONDS, RunRequest, WaitingRun
from worker.remote.windows import Headroom

GREETING = b"\ncronium h nonce 1 0123456789ab\n"
END = Ended(0, Reason.EXIT, 1, 1)


def request(script: bytes = b"true\n") -> RunRequest:
    return RunRequest("exec_1", 60, Payload(Interpreter.BASH, script, {}, "", b"null", 1))


class Server(FakeChannel):
    """Its side of the call, which is closed once it has been let go."""

    def close(self) -> None:
        self.exit(0)


@pytest.fixture
def server() -> Server:
    server = Server()
    server.say(GREETING)
    return server


@pytest.fixture
async def run(server: Server) -> WaitingRun:
    return WaitingRun(cast("Channel", server), "nonce")


async def first_run(run: WaitingRun, server: Server) -> None:
    """Of a call, whose greeting comes before it."""
    attachment = await run.begin(request())
    assert not run.is_waiting
    server.say(b"r new 0\nx 0 exit 1 1\n")
    frames = [await attachment.receive() for _ in range(3)]
    assert frames == [Hello(1, "0123456789ab"), Started("new", 0), END]


async def test_after_a_run_it_waits_for_the_next(
    autojump_clock: MockClock, run: WaitingRun, server: Server
) -> None:
    await first_run(run, server)

    assert run.is_waiting
    attachment = await run.begin(request())
    server.say(b"r new 0\nx 0 exit 1 1\n")
    assert [await attachment.receive() for _ in range(2)] == [Started("new", 0), END]
    assert server.stdin.count(b"exec_1 0 0 60 ") == 2


@pytest.mark.parametrize("script", [b"true\n", b"echo \xff\n"])
async def test_what_is_staged_starts_when_it_begins(
    autojump_clock: MockClock, run: WaitingRun, server: Server, script: bytes
) -> None:
    message = run_message("exec_1", 60, request(script).payload)
    run.stage(request(script))
    assert server.stdin == message.head
    assert not run.is_waiting
    assert run.is_ready_for(request(script))
    assert not run.is_ready_for(request(b"false\n"))

    attachment = await run.begin(request(script))
    server.say(b"r new 0\nx 0 exit 1 1\n")

    assert [await attachment.receive() for _ in range(3)][-1] == END
    assert server.stdin == message.data
    assert server.told.is_set() is not message.is_lines
    assert run.is_waiting is message.is_lines
    assert not run.is_ready_for(request(script))


async def test_what_is_staged_where_the_call_has_ended_is_not_ready(
    autojump_clock: MockClock, run: WaitingRun, server: Server
) -> None:
    run.stage(request())
    await wait_all_tasks_blocked()
    server.exit(66)
    assert not run.is_ready_for(request())

    run.stage(request())
    assert not run.is_waiting


async def test_after_a_payload_of_bytes_it_is_over(
    autojump_clock: MockClock, run: WaitingRun, server: Server
) -> None:
    attachment = await run.begin(request(b"echo \xff\n"))
    # Whatever a shell says at its end.
    server.say(b"r new 0\nx 0 exit 1 1\nlogout\n")

    assert [await attachment.receive() for _ in range(3)][-1] == END
    assert server.told.is_set()
    assert not run.is_waiting


async def test_a_run_that_begins_while_another_is_forgotten_hears_its_own(
    autojump_clock: MockClock, run: WaitingRun, server: Server, nursery: trio.Nursery
) -> None:
    await first_run(run, server)
    forgotten: list[bool] = []
    heard: list[object] = []

    async def forget() -> None:
        forgotten.append(await run.forget(["exec_0", "exec_1"]))

    async def begin() -> None:
        attachment = await run.begin(request())
        heard.extend([await attachment.receive(), await attachment.receive()])

    nursery.start_soon(forget)
    await wait_all_tasks_blocked()
    nursery.start_soon(begin)
    await wait_all_tasks_blocked()
    assert run.is_waiting is False
    server.say(b"f 0\nr new 0\nx 0 exit 1 1\n")
    await wait_all_tasks_blocked()

    assert forgotten == [True]
    assert heard == [Started("new", 0), END]
    assert server.stdin.index(b"forget exec_0 exec_1\n") < server.stdin.rindex(b"exec_1 0 0 60")


async def test_an_answer_that_nobody_waits_for_any_more_is_no_run_s(
    autojump_clock: MockClock, run: WaitingRun, server: Server
) -> None:
    await first_run(run, server)
    with trio.move_on_after(1):
        await run.forget(["exec_1"])

    attachment = await run.begin(request())
    server.say(b"f 0\nr new 0\n")

    assert await attachment.receive() == Started("new", 0)


async def test_what_is_not_forgotten_is_said_and_what_is_not_answered_is_given_up(
    autojump_clock: MockClock, run: WaitingRun, server: Server
) -> None:
    await first_run(run, server)
    server.say(b"f 66\n")
    assert not await run.forget(["exec_1"])
    assert run.is_waiting

    began = trio.current_time()
    assert not await run.forget(["exec_1"])
    assert trio.current_time() - began == FORGET_SECONDS
    assert not run.is_waiting


@pytest.mark.parametrize("said", [LOST, b"k\n", b"nonsense\n"])
async def test_a_call_that_fails_while_it_forgets_is_of_no_more_use(
    said: bytes | Exception, autojump_clock: MockClock, run: WaitingRun, server: Server
) -> None:
    await first_run(run, server)
    server.say(said)

    assert not await run.forget(["exec_1"])
    assert not run.is_waiting


async def test_an_answer_to_no_question_is_a_fault(
    autojump_clock: MockClock, run: WaitingRun, server: Server
) -> None:
    attachment = await run.begin(request())
    server.say(b"f 0\n")
    await attachment.receive()

    with pytest.raises(ProtocolError):
        await attachment.receive()


async def test_a_call_that_has_had_no_run_yet_forgets_too(
    autojump_clock: MockClock, run: WaitingRun, server: Server
) -> None:
    server.say(b"f 0\n")

    assert await run.forget(["exec_0"])
    attachment = await run.begin(request())
    server.say(b"r new 0\nx 0 exit 1 1\n")
    assert [await attachment.receive() for _ in range(2)] == [Started("new", 0), END]


class Wire:
    """asyncssh's side of a channel, on which nothing is ever answered."""

    def __init__(self) -> None:
        self.written = b""

    def get_connection(self) -> None:
        return None

    def write(self, data: bytes) -> None:
        self.written += data

    def write_eof(self) -> None:
        self.written += b"<eof>"

    def close(self) -> None:
        """The other side takes its time to close it too."""


def over(wire: Wire) -> WaitingRun:
    channel = Channel(Headroom(), lambda _: None)
    channel.connection_made(cast("asyncssh.SSHClientChannel[bytes]", wire))
    return WaitingRun(channel, "nonce")


@pytest.mark.parametrize("script", [b"true\n", b"\xff" * 300_000])
async def test_what_is_written_at_once_is_whole(script: bytes, autojump_clock: MockClock) -> None:
    for steps in [*range(5)] * 10:
        wire = Wire()
        run = over(wire)
        message = run_message("exec_1", 60, request(script).payload)
        async with trio.open_nursery() as nursery:
            nursery.start_soon(run.forget, ["exec_0"])
            for _ in range(steps):
                await trio.lowlevel.checkpoint()
            nursery.start_soon(run.begin, request(script))
            await wait_all_tasks_blocked()
            nursery.cancel_scope.cancel()

        whole = message.data if message.is_lines else message.data + b"<eof>"
        assert wire.written in (b"forget exec_0\n" + whole, whole)


async def test_one_that_was_given_up_waits_no_more_though_its_server_has_not_closed_it(
    autojump_clock: MockClock,
) -> None:
    run = over(Wire())

    assert not await run.forget(["exec_0"])
    assert not run.is_waiting


async def test_a_run_on_one_that_is_given_up_hears_of_it_at_once(
    autojump_clock: MockClock,
) -> None:
    run = over(Wire())
    began = trio.current_time()
    async with trio.open_nursery() as nursery:
        nursery.start_soon(run.forget, ["exec_0"])
        await trio.sleep(1)
        attachment = await run.begin(request())
        with pytest.raises(ConnectionLostError):
            await attachment.receive()

    assert trio.current_time() - began == FORGET_SECONDS


async def test_a_call_that_ended_between_two_runs_is_a_lost_connection(
    autojump_clock: MockClock, run: WaitingRun, server: Server
) -> None:
    await first_run(run, server)
    server.exit(0)

    attachment = await run.begin(request())
    with pytest.raises(ConnectionLostError):
        await attachment.receive()
