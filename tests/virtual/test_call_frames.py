"""Calls on their way from the runner to the worker and back, over connections that come and go."""

import json
import math
from collections import deque
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import cast

import pytest
import trio
from msgspec import Raw
from structlog.testing import capture_logs
from trio.testing import MockClock

from tests.fakes import NO_ANSWER, Rig, relay_rig
from tests.virtual.test_helper_calls import FakeRuntime
from tests.virtual.test_jobs import SETTINGS, a_job, a_server, ran
from worker.api.runtime import Runtimes
from worker.api.tokens import Identity
from worker.crew import Surroundings
from worker.dispatch import following
from worker.errors import ConnectionLostError
from worker.jobs import Jobs
from worker.ownership import Ownership
from worker.remote.connector import Connector
from worker.remote.deployments import Deployments, Source, UsableRunner
from worker.remote.pool import Pool
from worker.remote.session import Remote
from worker.telemetry import Telemetry

RUNNER = "/home/deploy/runner-1"
LOST = ConnectionLostError("the connection was lost")


class Channel:
    """One exec: what comes on its stdout, and what was written to its stdin."""

    def __init__(self, bytes_per_second: float = math.inf) -> None:
        self._bytes_per_second = bytes_per_second
        self._send, self._receive = trio.open_memory_channel[bytes | Exception](1000)
        self.stdin = b""
        self.told = trio.Event()
        self.exit_status: int | None = None
        self.stderr = ""

    async def send_all(self, data: bytes) -> None:
        await trio.sleep(len(data) / self._bytes_per_second)
        self.stdin += data

    def send_soon(self, data: bytes) -> None:
        if self.is_closed:
            raise ConnectionLostError("the connection was lost while sending")
        self.stdin += data

    def send_eof(self) -> None:
        self.told.set()

    def close(self) -> None:
        pass

    @property
    def is_closed(self) -> bool:
        return self.exit_status is not None

    async def receive(self) -> bytes:
        try:
            said = await self._receive.receive()
        except trio.EndOfChannel:
            return b""
        if isinstance(said, Exception):
            raise said
        return said

    def say(self, *said: bytes | Exception) -> None:
        for each in said:
            self._send.send_nowait(each)

    def call(self, call_id: str, call: str, **fields: object) -> None:
        request = json.dumps({"call": call, "form": "json", **fields}).encode()
        self.say(b"c %b %d\n%b" % (call_id.encode(), len(request), request))

    def exit(self, status: int) -> None:
        self.exit_status = status
        self._send.close()


# What the runner does for one `run` or `attach`, one after another.
Play = Callable[[Channel], Awaitable[None]]


@dataclass
class FakeServer:
    """A server whose runner does as it is told; it is its own connection and connector."""

    nursery: trio.Nursery
    plays: deque[Play] = field(default_factory=deque)
    commands: list[str] = field(default_factory=list)
    answers: list[tuple[str, bytes]] = field(default_factory=list)
    # What becomes of the next answers: an error of the connection, or the runner's status.
    answer_faults: deque[Exception | int] = field(default_factory=deque)
    answer_seconds: float = 0
    bytes_per_second: float = math.inf
    answering: int = 0
    most_answering: int = 0
    connections: int = 0
    channels: int = 0
    lost: trio.Event = field(default_factory=trio.Event)

    @asynccontextmanager
    async def connection(self, *_args: object) -> AsyncIterator["FakeServer"]:
        await trio.lowlevel.checkpoint()
        self.connections += 1
        self.lost = trio.Event()
        yield self

    def edition(self) -> None:
        """There is no known_hosts."""

    async def check(self, *_args: object) -> None:
        await trio.lowlevel.checkpoint()

    def judge(self, *_args: object) -> bool:
        return False

    async def runner(self, *_args: object) -> UsableRunner:
        await trio.lowlevel.checkpoint()
        return UsableRunner(RUNNER, Source.CACHED, None)

    async def exec(self, command: str) -> Channel:
        await trio.lowlevel.checkpoint()
        self.commands.append(command)
        shell, path, verb, nonce, *arguments = command.split(" ")
        assert (shell, path) == ("sh", RUNNER)
        channel = Channel(self.bytes_per_second)
        channel.say(b"\ncronium h %b 1 abc\n" % nonce.encode())
        if verb in ("run", "attach"):
            self.nursery.start_soon(self.plays.popleft(), channel)
        elif verb == "answer":
            self.answering += 1
            self.most_answering = max(self.most_answering, self.answering)
            await trio.sleep(self.answer_seconds)
            fault = self.answer_faults.popleft() if self.answer_faults else 0
            if isinstance(fault, Exception):
                self.answering -= 1
                raise fault
            channel.exit(fault)

            def answered() -> None:
                self.answering -= 1
                if fault == 0:
                    assert channel.told.is_set()
                    assert arguments[0] == "exec_job_1_1_0"
                    self.answers.append((arguments[1], channel.stdin))

            channel.close = answered  # type: ignore[method-assign]
        else:
            channel.exit(0)
        return channel

    def answered(self, call_id: str) -> list[bytes]:
        return [answer for each, answer in self.answers if each == call_id]

    async def until_answered(self, call_id: str) -> None:
        while not self.answered(call_id):
            await trio.sleep(0.01)


class FakeRuntimes:
    def __init__(self) -> None:
        self.runtime = FakeRuntime()
        self.identities: list[Identity] = []

    def of(self, identity: Identity) -> FakeRuntime:
        self.identities.append(identity)
        return self.runtime


@pytest.fixture
def rig() -> Iterator[Rig]:
    with relay_rig() as rig:
        yield rig


@pytest.fixture
def there(nursery: trio.Nursery) -> FakeServer:
    return FakeServer(nursery)


@pytest.fixture
def runtimes() -> FakeRuntimes:
    return FakeRuntimes()


@pytest.fixture
def jobs(rig: Rig, there: FakeServer, runtimes: FakeRuntimes, nursery: trio.Nursery) -> Jobs:
    pool = Pool(cast("Connector", there), SETTINGS.ssh, nursery)
    remote = Remote(pool, cast("Deployments", there))
    around = Surroundings(
        SETTINGS,
        rig.database,
        remote,
        rig.relay,
        rig.runs,
        cast("Runtimes", runtimes),
        Telemetry(),
    )
    return Jobs(around, Ownership(rig.queue.client, poll_seconds=10))


async def begin(run: Channel, state: bytes = b"new") -> None:
    await trio.lowlevel.checkpoint()
    run.say(b"r %b 0\n" % state)


def end(run: Channel) -> None:
    """Of the run, and of the call: this runner serves no more."""
    run.say(b"x 0 exit 1 1\n")
    run.exit(0)


async def test_a_call_is_answered_over_the_connection_that_it_came_over(
    autojump_clock: MockClock, rig: Rig, jobs: Jobs, there: FakeServer, runtimes: FakeRuntimes
) -> None:
    async def play(run: Channel) -> None:
        await begin(run)
        run.call("1", "setVariable", key="K", value="v")
        await there.until_answered("1")
        run.call("2", "getVariable", key="K")
        await there.until_answered("2")
        end(run)

    there.plays.append(play)

    await ran(rig, jobs, a_job(a_server(1)))

    assert there.answers == [("1", b"ok\nnull"), ("2", b'ok\n"v"')]
    assert there.connections == 1
    assert [each.execution_id for each in runtimes.identities] == ["exec_job_1_1_0"]
    assert rig.queue.completions == [("job_1", "completed")]


async def test_what_is_said_is_reported_though_the_end_comes_at_once(
    autojump_clock: MockClock, rig: Rig, jobs: Jobs, there: FakeServer
) -> None:
    async def play(run: Channel) -> None:
        await begin(run)
        run.call("1", "output", data={"rows": [1, 2]})
        run.call("2", "setCondition", condition=False)
        run.call("3", "setCondition", condition=True)
        end(run)

    there.plays.append(play)

    await ran(rig, jobs, a_job(a_server(1)))

    assert rig.queue.results["job_1"]["scriptOutput"] == {"rows": [1, 2]}
    assert rig.queue.results["job_1"]["condition"] is True


async def test_of_a_script_that_says_nothing_nothing_is_reported(
    autojump_clock: MockClock, rig: Rig, jobs: Jobs, there: FakeServer
) -> None:
    async def play(run: Channel) -> None:
        await begin(run)
        end(run)

    there.plays.append(play)

    await ran(rig, jobs, a_job(a_server(1)))

    assert {"scriptOutput", "condition"} & rig.queue.results["job_1"].keys() == set()


async def test_what_was_said_to_an_earlier_worker_is_reported(
    autojump_clock: MockClock, rig: Rig, jobs: Jobs, there: FakeServer
) -> None:
    async def play(run: Channel) -> None:
        await begin(run, b"attached")
        run.call("output", "output", data="said before")
        run.call("condition", "setCondition", condition=True)
        end(run)

    there.plays.append(play)

    await ran(rig, jobs, a_job(a_server(1)))

    assert rig.queue.results["job_1"]["scriptOutput"] == "said before"
    assert rig.queue.results["job_1"]["condition"] is True
    assert there.answers == []


async def test_calls_that_hang_hold_up_neither_output_nor_the_end(
    autojump_clock: MockClock, rig: Rig, jobs: Jobs, there: FakeServer, runtimes: FakeRuntimes
) -> None:
    runtimes.runtime.seconds = 10**6

    async def play(run: Channel) -> None:
        await begin(run)
        for number in range(30):
            run.call(str(number), "setVariable", key="K", value=number)
        run.say(b"o 6\nhello\n")
        await trio.sleep(5)
        end(run)

    there.plays.append(play)
    began = trio.current_time()

    await ran(rig, jobs, a_job(a_server(1)))

    assert trio.current_time() - began < 10
    assert "hello" in rig.queue.results["job_1"]["output"]["stdout"]
    assert runtimes.runtime.going == 0


async def test_a_call_that_a_lost_connection_left_is_answered_over_the_next_and_done_once(
    autojump_clock: MockClock, rig: Rig, jobs: Jobs, there: FakeServer, runtimes: FakeRuntimes
) -> None:
    runtimes.runtime.seconds = 20

    async def first(run: Channel) -> None:
        await begin(run)
        run.call("1", "executeToolAction", tool="email", action="send")
        run.call("2", "output", data="heard")
        await there.until_answered("2")
        run.say(LOST)

    async def second(run: Channel) -> None:
        await begin(run, b"attached")
        run.call("output", "output", data="heard")
        run.call("1", "executeToolAction", tool="email", action="send")
        await there.until_answered("1")
        end(run)

    there.plays += [first, second]

    await ran(rig, jobs, a_job(a_server(1)))

    assert there.connections == 2
    assert len(runtimes.runtime.done) == 1
    assert there.answered("1") == [b'ok\n{"sent":true}']
    assert rig.queue.results["job_1"]["scriptOutput"] == "heard"


async def test_an_answer_that_was_lost_with_its_connection_is_given_again(
    autojump_clock: MockClock, rig: Rig, jobs: Jobs, there: FakeServer, runtimes: FakeRuntimes
) -> None:
    there.answer_faults.extend([LOST] * 100)

    async def first(run: Channel) -> None:
        await begin(run)
        run.call("1", "executeToolAction", tool="email", action="send")
        await trio.sleep(60)
        there.answer_faults.clear()
        run.say(LOST)

    async def second(run: Channel) -> None:
        await begin(run, b"attached")
        run.call("1", "executeToolAction", tool="email", action="send")
        await there.until_answered("1")
        end(run)

    there.plays += [first, second]

    with capture_logs() as logs:
        await ran(rig, jobs, a_job(a_server(1)))

    assert len(runtimes.runtime.done) == 1
    assert "answer_failed" in {entry["event"] for entry in logs}


async def test_an_answer_that_was_tried_for_the_last_time_makes_way_for_others(
    autojump_clock: MockClock, rig: Rig, jobs: Jobs, there: FakeServer
) -> None:
    there.answer_faults.extend([LOST] * 4)

    async def play(run: Channel) -> None:
        await begin(run)
        run.call("1", "event")
        while there.answer_faults:
            await trio.sleep(0.1)
        await trio.sleep(1)
        assert "answer_failed" in {entry["event"] for entry in logs}
        end(run)

    there.plays.append(play)

    with capture_logs() as logs:
        await ran(rig, jobs, a_job(a_server(1)))


async def test_an_answer_is_tried_again_where_no_channel_could_be_had(
    autojump_clock: MockClock, rig: Rig, jobs: Jobs, there: FakeServer
) -> None:
    there.answer_faults.extend([LOST, 70])

    async def play(run: Channel) -> None:
        await begin(run)
        run.call("1", "event")
        await there.until_answered("1")
        end(run)

    there.plays.append(play)

    await ran(rig, jobs, a_job(a_server(1)))

    assert len(there.answered("1")) == 1
    assert there.connections == 2


async def test_an_answer_for_a_run_that_is_gone_is_dropped(
    autojump_clock: MockClock, rig: Rig, jobs: Jobs, there: FakeServer
) -> None:
    there.answer_faults.append(66)

    async def play(run: Channel) -> None:
        await begin(run)
        run.call("1", "event")
        await trio.sleep(30)
        end(run)

    there.plays.append(play)

    await ran(rig, jobs, a_job(a_server(1)))

    assert sum(" answer " in command for command in there.commands) == 1


async def test_a_large_answer_has_the_time_that_it_takes_on_a_slow_line(
    autojump_clock: MockClock, rig: Rig, jobs: Jobs, there: FakeServer, runtimes: FakeRuntimes
) -> None:
    runtimes.runtime.kept["K"] = Raw(b'"' + b"x" * 4_000_000 + b'"')
    there.bytes_per_second = 100_000

    async def play(run: Channel) -> None:
        await begin(run)
        run.call("1", "getVariable", key="K")
        while not there.answered("1"):
            run.say(b"k\n")
            await trio.sleep(10)
        end(run)

    there.plays.append(play)

    await ran(rig, jobs, a_job(a_server(1)))

    assert len(there.answered("1")[0]) > 4_000_000


async def test_answers_take_a_few_channels_at_once_and_no_more(
    autojump_clock: MockClock, rig: Rig, jobs: Jobs, there: FakeServer
) -> None:
    there.answer_seconds = 1

    async def play(run: Channel) -> None:
        await begin(run)
        for number in range(20):
            run.call(str(number), "input")
        while len(there.answers) < 20:
            await trio.sleep(0.1)
        end(run)

    there.plays.append(play)

    await ran(rig, jobs, a_job(a_server(1)))

    assert there.most_answering == following.ANSWERS_AT_ONCE


@pytest.mark.parametrize("call_id", ["$(reboot)", "a;b", "../x", "x" * 65, "a'b"])
async def test_an_id_that_no_helper_makes_reaches_no_command_line(
    autojump_clock: MockClock, rig: Rig, jobs: Jobs, there: FakeServer, call_id: str
) -> None:
    async def play(run: Channel) -> None:
        await begin(run)
        run.call(call_id, "event")
        run.call("1", "event")
        await there.until_answered("1")
        end(run)

    there.plays.append(play)

    await ran(rig, jobs, a_job(a_server(1)))

    assert [each for each, _ in there.answers] == ["1"]
    assert not any(call_id in command for command in there.commands)


async def test_of_several_servers_what_was_said_is_reported_by_their_names(
    autojump_clock: MockClock, rig: Rig, jobs: Jobs, there: FakeServer
) -> None:
    async def one(run: Channel) -> None:
        await begin(run)
        run.call("1", "output", data=1)
        run.call("2", "setCondition", condition=True)
        end(run)

    async def silent(run: Channel) -> None:
        await begin(run)
        end(run)

    there.plays += [one, silent, one]

    await ran(rig, jobs, a_job(a_server(1), a_server(2), a_server(3)))

    said = rig.queue.results["job_1"]["scriptOutput"]
    assert len(said) == 2
    assert said.keys() <= {"web-1", "web-2", "web-3"}
    assert set(said.values()) == {1}
    assert rig.queue.results["job_1"]["condition"] is True


async def test_a_job_that_a_row_shows_to_be_another_s_is_let_go_with_its_run(
    autojump_clock: MockClock, rig: Rig, jobs: Jobs, there: FakeServer
) -> None:
    # That it runs is told a second after it does, and again and again after that.
    rig.queue.fault("update", "exec_job_1_1_0", *[NO_ANSWER] * 4)

    async def play(run: Channel) -> None:
        await begin(run)
        run.say(b"o 6\nhello\n")
        await trio.sleep(1.05)
        rig.queue.statuses["job_1"] = "another's"
        await trio.sleep(100)
        run.say(b"o 4\nend\n")
        end(run)

    there.plays.append(play)
    began = trio.current_time()

    await ran(rig, jobs, a_job(a_server(1)))

    # Sooner than by the look at the job that comes every 10 s.
    assert trio.current_time() - began < 8
    assert rig.queue.said("complete", "fail", "release") == []
    assert rig.runs.take_up() == []
    assert not any(" forget " in command for command in there.commands)


async def test_a_run_that_another_worker_has_reported_is_left_to_it(
    autojump_clock: MockClock, rig: Rig, jobs: Jobs, there: FakeServer
) -> None:
    async def play(run: Channel) -> None:
        await trio.lowlevel.checkpoint()
        # As after a stop of this worker that was longer than its lease.
        rig.queue.statuses["job_1"] = "another's"
        run.say(b"x 125 forgotten 0 0\n")
        run.exit(0)

    there.plays.append(play)

    await ran(rig, jobs, a_job(a_server(1)))

    assert rig.queue.said("update", "complete", "fail", "release") == []
    assert rig.runs.take_up() == []
