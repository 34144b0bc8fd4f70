"""Servers that mean harm: what they say ends their own execution, and costs nobody else."""

import asyncio
import contextlib
import os
import re
from collections.abc import AsyncIterator, Callable, Iterable, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from functools import partial
from itertools import repeat
from pathlib import Path
from typing import Any, cast

import asyncssh
import pytest
import trio
import trio_asyncio

from tests.real_log import a_log, events
from tests.worker_rig import WorkerRig, entry_of, outcomes, running_worker, until_idle
from worker.demo.sshd import Sshd
from worker.errors import ConnectError, ConnectionLostError, PassingConnectError, SshError
from worker.queue_server.model import JobReport
from worker.remote.address import Address
from worker.remote.channel import Channel
from worker.remote.connection import open_connection
from worker.remote.credentials import OpenedCredential
from worker.remote.host_keys import HostKeyCheck
from worker.remote.runner import read_answer
from worker.remote.target import Credential, Target
from worker.remote.windows import Headroom
from worker.settings import HostKeyPolicy
from worker.state.directory import SPOOLS

MIB = 1024 * 1024
KEY = asyncssh.generate_private_key("ssh-ed25519")
PEM = KEY.export_private_key().decode()
GOOD = "good"
# Clears a screen, goes back in its line, and has lines that look like somebody else's.
EVIL = 'x\x1b[2J\x9b1m\r\n{"event": "forged"}\n[good] forged\u2028[good] forged\u202e\x07'
LIMIT_SECONDS = 2
# What the worker waits beyond its limits; a test has to sit it out.
QUICK = {
    "worker.dispatch.following.LATEST_WORD_SECONDS": 0.3,
    "worker.dispatch.following.UNHEARD_SECONDS": 0.3,
    "worker.dispatch.setup.STRAY_SECONDS": 0.3,
    "worker.remote.session.PAUSE_MOST_SECONDS": 0.4,
}
ENVIRON = {
    "CRONIUM_SETUP_TIMEOUT": "30s",
    "CRONIUM_CLEANUP_TIMEOUT": "1s",
    "CRONIUM_JOBS_MAX_CONCURRENT": "20",
    "CRONIUM_RUN_MAX_OUTPUT": "1MiB",
}
# For those that end no other way; who should be done before is not to be in a hurry.
PATIENCE = {"CRONIUM_SETUP_TIMEOUT": "5s"}


@pytest.fixture(autouse=True)
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    for name, seconds in QUICK.items():
        monkeypatch.setattr(name, seconds)


# Those who mean harm


@dataclass(frozen=True)
class Hostile:
    """A server that lets everybody in.

    `says` comes in the place of the frames of `run` and `attach`, behind the runner's greeting
    unless it `is_mute`; `installs` is the installer's answer, where there is none `says` comes in
    its place too; `complains` comes on stderr.
    """

    says: Iterable[bytes] = ()
    is_mute: bool = False
    seconds_between: float = 0.0
    installs: str = "d NONCE /tmp/runner"
    complains: str = ""
    status: int = 0
    refuses: str = ""
    disconnects: str = ""


@dataclass(frozen=True)
class Fleet:
    """Hostile servers at one port, told apart by the account that is asked for."""

    servers: Mapping[str, Hostile]
    commands: list[str] = field(default_factory=list)

    async def serve(self, hostile: Hostile, process: asyncssh.SSHServerProcess[bytes]) -> None:
        with contextlib.suppress(OSError, asyncssh.Error):
            await self._serve(hostile, process)
            process.exit(hostile.status)

    async def _serve(self, hostile: Hostile, process: asyncssh.SSHServerProcess[bytes]) -> None:
        command = process.command or ""
        self.commands.append(command)
        told = await _message(process) if " run " in command else await process.stdin.read()
        process.stderr.write(hostile.complains.encode())
        if command == "sh" and hostile.installs:
            match = re.search(rb"^nonce='(\w+)'$", told, re.MULTILINE)
            assert match is not None
            answer = hostile.installs.replace("NONCE", match[1].decode())
            process.stdout.write(f"\ncronium {answer}\n".encode())
            return
        verb, nonce = ("run", "") if command == "sh" else command.split(" ")[2:4]
        if not hostile.is_mute:
            process.stdout.write(f"\ncronium h {nonce} 1 0123456789ab\n".encode())
        if verb == "answer":
            await asyncio.sleep(60)
        for piece in hostile.says if verb in ("run", "attach") else ():
            process.stdout.write(piece)
            await process.stdout.drain()
            await asyncio.sleep(hostile.seconds_between)


async def _message(process: asyncssh.SSHServerProcess[bytes]) -> bytes:
    """What starts a run; its end is that of the stream, unless it comes in lines."""
    header = await process.stdin.readline()
    if not header.endswith(b" lines\n"):
        return header + await process.stdin.read()
    return header + b"".join(
        [await process.stdin.readline() for _ in range(int(header.split()[4]))]
    )


class _Account(asyncssh.SSHServer):
    def __init__(self, fleet: Fleet) -> None:
        self._fleet = fleet

    def connection_made(self, conn: asyncssh.SSHServerConnection) -> None:
        self._connection = conn

    def begin_auth(self, username: str) -> bool:
        self._hostile = self._fleet.servers[username]
        return False

    def session_requested(self) -> asyncssh.SSHServerProcess[bytes]:
        if self._hostile.disconnects:
            self._connection.disconnect(asyncssh.DISC_BY_APPLICATION + 1, self._hostile.disconnects)
        if self._hostile.refuses:
            raise asyncssh.ChannelOpenError(asyncssh.OPEN_CONNECT_FAILED, self._hostile.refuses)
        return asyncssh.SSHServerProcess(
            partial(self._fleet.serve, self._hostile), None, 3, allow_scp=False
        )


@asynccontextmanager
async def listening(server_factory: Callable[[], asyncssh.SSHServer]) -> AsyncIterator[int]:
    """The port of an SSH server in this process."""
    async with trio_asyncio.open_loop() as loop:
        server = await trio_asyncio.aio_as_trio(asyncssh.listen)(
            "127.0.0.1", 0, server_factory=server_factory, server_host_keys=[KEY], encoding=None
        )
        try:
            yield server.get_port()
        finally:
            server.close()
            # asyncssh's server stumbles over a login whose client has left; while the loop ends
            # that would be the test's failure.
            with trio.move_on_after(1, shield=True):
                while asyncio.all_tasks(loop):
                    await trio.sleep(0.01)


@asynccontextmanager
async def shouting(says: Iterable[bytes]) -> AsyncIterator[int]:
    """The port of a server that speaks at once, and what may be no SSH."""

    async def shout(stream: trio.SocketStream) -> None:
        with contextlib.suppress(trio.BrokenResourceError):
            for piece in says:
                await stream.send_all(piece)
            while await stream.receive_some():
                pass

    async with trio.open_nursery() as nursery:
        (listener,) = await nursery.start(partial(trio.serve_tcp, shout, 0, host="127.0.0.1"))
        yield listener.socket.getsockname()[1]
        nursery.cancel_scope.cancel()


# The worker among them


@asynccontextmanager
async def a_worker(
    tmp_path: Path, sshd: Sshd, environ: Mapping[str, str] | None = None
) -> AsyncIterator[WorkerRig]:
    """With one good server, that it has been on before."""
    async with running_worker(tmp_path, ENVIRON | dict(environ or {})) as rig:
        good = sshd.server
        rig.add_entry(
            GOOD,
            host=good.host,
            port=good.port,
            username=good.user,
            private_key=good.private_key,
        )
        await runs_on(rig, GOOD)
        yield rig


async def runs_on(rig: WorkerRig, *names: str) -> JobReport:
    with trio.fail_after(30):
        report = await rig.run("echo fine", names, timeout_seconds=LIMIT_SECONDS)
        await until_idle(rig)
    assert outcomes(report)[GOOD] == ("success", 0), entry_of(report, GOOD)["error"]
    return report


async def run_among(
    fleet: Fleet, tmp_path: Path, sshd: Sshd, environ: Mapping[str, str] | None = None
) -> tuple[JobReport, list[dict[str, Any]]]:
    """One job on the good server and on all of the `fleet`, a second one on the good server; what
    came of the first, and the log."""
    with a_log() as log:
        async with (
            listening(lambda: _Account(fleet)) as port,
            a_worker(tmp_path, sshd, environ) as rig,
        ):
            for name in fleet.servers:
                rig.add_entry(name, port=port, username=name, private_key=PEM)
            report = await runs_on(rig, GOOD, *fleet.servers)
            await runs_on(rig, GOOD)
    return report, events(log)


def ends(report: JobReport) -> dict[str, tuple[str, str]]:
    """Outcome and error of the hostile ones."""
    assert report.job.result is not None
    return {
        entry["name"]: (entry["outcome"], entry["error"])
        for entry in report.job.result["metrics"]["servers"]
        if entry["name"] != GOOD
    }


def assert_ended(report: JobReport, wanted: Mapping[str, tuple[str, str]]) -> None:
    """`wanted` is each one's outcome, and what its error says."""
    found = ends(report)
    assert {name: outcome for name, (outcome, _) in found.items()} == {
        name: outcome for name, (outcome, _) in wanted.items()
    }, found
    for name, (_, words) in wanted.items():
        assert words in (found[name][1] or ""), name
        assert "fault of the worker" not in (found[name][1] or ""), name


class Memory:
    """How much more there is at the most, from now on."""

    def __init__(self) -> None:
        Path("/proc/self/clear_refs").write_text("5")
        self._before = self._peak_kib()

    @property
    def most_mib(self) -> float:
        return (self._peak_kib() - self._before) / 1024

    def _peak_kib(self) -> int:
        match = re.search(r"VmHWM:\s+(\d+)", Path("/proc/self/status").read_text())
        assert match is not None
        return int(match[1])


# Before anybody has logged in


def a_goodbye(reason: bytes) -> bytes:
    """A packet that ends the connection, for `reason`."""
    body = b"\x01\0\0\0\x02" + len(reason).to_bytes(4, "big") + reason + bytes(4)
    padding = 16 - (5 + len(body)) % 8
    return (1 + len(body) + padding).to_bytes(4, "big") + bytes([padding]) + body + bytes(padding)


NO_SSH: dict[str, tuple[Iterable[bytes], str]] = {
    "endless banner": (repeat(b"Welcome!\r\n" * 100), "Too many banner lines"),
    "endless version": (repeat(b"SSH-2.0-" + b"x" * 65536), "Banner line too long"),
    "long version": ([b"SSH-2.0-" + b"x" * 5000 + b"\r\n"], "Version too long"),
    "binary version": ([b"SSH-2.0-\xff\0\x1b[2J\r\n"], "nonsense"),
    "old version": ([b"SSH-1.5-x\r\n"], "Unsupported SSH version"),
    "binary": (repeat(bytes(range(256))), "no SSH session"),
    "huge packet": ([b"SSH-2.0-x\r\n\xff\xff\xff\xff", b"\0" * MIB], "Max packet size exceeded"),
    "empty packets": ([b"SSH-2.0-x\r\n", bytes(4096)], "no SSH session"),
    "bad exchange": ([b"SSH-2.0-x\r\n\0\0\0\x0c\x04\x14" + b"\xff" * 10], "no SSH session"),
    "goodbye": ([b"SSH-2.0-x\r\n", a_goodbye(EVIL.encode())], "forged"),
}


async def test_what_does_not_speak_ssh_is_unreachable_and_the_others_go_on(
    sshd: Sshd, tmp_path: Path
) -> None:
    with a_log() as log:
        async with contextlib.AsyncExitStack() as stack:
            rig = await stack.enter_async_context(a_worker(tmp_path, sshd))
            for name, (says, _) in NO_SSH.items():
                port = await stack.enter_async_context(shouting(says))
                rig.add_entry(name, port=port, private_key=PEM)
            grown = Memory()
            report = await runs_on(rig, GOOD, *NO_SSH)
            assert grown.most_mib < 60
            await runs_on(rig, GOOD)

    assert_ended(report, {name: ("unreachable", words) for name, (_, words) in NO_SSH.items()})
    assert all(error.isprintable() for _, error in ends(report).values())
    assert "forged" not in {event["event"] for event in events(log)}


async def test_one_that_says_nothing_is_unreachable_at_the_limit(
    sshd: Sshd, tmp_path: Path
) -> None:
    async with shouting([]) as port, a_worker(tmp_path, sshd, PATIENCE) as rig:
        rig.add_entry("silence", port=port, private_key=PEM)
        report = await runs_on(rig, GOOD, "silence")

    assert_ended(report, {"silence": ("unreachable", "over its limit of 5 s while connecting")})


# In the place of the runner, before a run has started

BEFORE: dict[str, tuple[Hostile, str, str]] = {
    "2**63": (Hostile([b"o 9223372036854775808\n"]), "unreachable", "where a number belongs"),
    "10**14": (Hostile([b"o 100000000000000\n"]), "unreachable", "over 1 MiB"),
    "negative": (Hostile([b"e -1\n"]), "unreachable", "b'-1' where a number belongs"),
    "NUL": (Hostile([b"\0\n"]), "unreachable", "an unknown frame b'\\x00'"),
    "escape": (Hostile([b"\x1b[2J\n"]), "unreachable", "an unknown frame b'\\x1b[2J'"),
    "endless header": (Hostile(repeat(b"z" * 4096)), "unreachable", "frame header over 256"),
    "endless past": (Hostile([b"r new 1" + b"0" * 30 + b"\n"]), "unreachable", "a number belongs"),
    "end": (Hostile([b"x 0 exit 1 1\n"]), "unreachable", "end (exit) before its start"),
    "forgotten": (Hostile([b"x 125 forgotten 0 0\n"]), "lost", "reported before"),
    "no greeting": (
        Hostile(repeat(b"motd\n" * 2000), is_mute=True),
        "not_deployed",
        "64 KiB of other output",
    ),
    "a path to run": (
        Hostile(installs="d NONCE /tmp/$(touch$IFS/tmp/pwned)"),
        "not_deployed",
        "unusable path",
    ),
    "a path with a line": (Hostile(installs="d NONCE /tmp/a\r;reboot"), "not_deployed", "unusable"),
    "a long reason": (
        Hostile(installs="f NONCE " + "x" * 60_000),
        "not_deployed",
        "x" * 900,
    ),
}


async def test_a_runner_that_says_no_start_is_an_outcome_with_its_reason(
    sshd: Sshd, tmp_path: Path
) -> None:
    fleet = Fleet({name: hostile for name, (hostile, _, _) in BEFORE.items()})

    report, _ = await run_among(fleet, tmp_path, sshd)

    assert_ended(report, {name: (outcome, words) for name, (_, outcome, words) in BEFORE.items()})
    assert all(len(error) <= 1000 for _, error in ends(report).values())
    assert not any("touch" in command or "reboot" in command for command in fleet.commands)


ON_AND_ON: dict[str, tuple[Hostile, str]] = {
    "endless signs of life": (
        Hostile(repeat(b"k\n" * 5000), seconds_between=0.1),
        "over its limit of 5 s while starting the run",
    ),
    "output before the start": (
        Hostile(repeat(b"o 5000\n" + b"x" * 5000), seconds_between=0.1),
        "over its limit of 5 s while starting the run",
    ),
    "superseded, and speaks on": (
        Hostile([b"t\n", *([b"k\n"] * 1000)], seconds_between=0.1),
        "over its limit of 5 s while starting the run",
    ),
    "an endless installer": (
        Hostile(repeat(b"x" * 60_000), installs="", seconds_between=0.1),
        "over its limit of 5 s while deploying the runner",
    ),
}


async def test_a_runner_that_goes_on_without_a_start_is_unreachable_at_the_limit(
    sshd: Sshd, tmp_path: Path
) -> None:
    fleet = Fleet({name: hostile for name, (hostile, _) in ON_AND_ON.items()})

    report, _ = await run_among(fleet, tmp_path, sshd, PATIENCE)

    assert_ended(report, {name: ("unreachable", words) for name, (_, words) in ON_AND_ON.items()})


# After its start

STARTED = b"r new 0\n"
ENDED = b"x 0 exit 1 1\n"
# One whose connections bring no end: it is heard of until its limit, and what was wrong is said.
AFTER: dict[str, tuple[Iterable[bytes], str, str]] = {
    "2**63": ([STARTED, b"o 9223372036854775808\n"], "lost", "where a number belongs"),
    "endless header": ([STARTED, *([b"z" * 4096] * 100)], "lost", "frame header over 256"),
    "code 256": ([STARTED, b"x 256 exit 1 1\n"], "lost", "gave 256 as an exit code"),
    "code 2**32": ([STARTED, b"x 4294967296 exit 1 1\n"], "lost", "gave 4294967296 as"),
    "bored": ([STARTED, b"x 0 bored 1 1\n"], "lost", "unknown reason b'bored'"),
    "half a frame": ([STARTED, b"o 100\nhalf"], "lost", "stopped speaking"),
    "superseded": ([STARTED, b"t\n"], "lost", "another worker has attached"),
    "leading zeros": ([STARTED, b"o 0005\nhello", ENDED], "success", ""),
    "all at once": ([b"k\n" * 500 + STARTED + b"o 5\nhello" + ENDED], "success", ""),
    "speaks on": ([STARTED + b"o 5\nhello" + ENDED + b"o 6\nforged"], "success", ""),
    "starts again": ([STARTED * 1000, b"o 5\nhello", ENDED], "success", ""),
    "takes ages": (
        [b"r new 999999999999999\no 5\nhellox 0 exit 999999999999999 999999999999999\n"],
        "success",
        "",
    ),
}


@pytest.mark.parametrize("ending", ["success", "lost"])
async def test_a_run_is_as_good_as_what_is_said_of_it_and_no_better(
    sshd: Sshd, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, ending: str
) -> None:
    told = {name: said for name, said in AFTER.items() if said[1] == ending}
    fleet = Fleet({name: Hostile(says) for name, (says, _, _) in told.items()})
    if ending == "success":
        # Nobody here has to be sat out, and a busy machine takes its time.
        monkeypatch.setattr("worker.dispatch.following.UNHEARD_SECONDS", 20)

    report, _ = await run_among(fleet, tmp_path, sshd)

    assert_ended(report, {name: (outcome, words) for name, (_, outcome, words) in told.items()})
    for name, (_, outcome, _) in told.items():
        entry = entry_of(report, name)
        assert 0 <= int(str(entry["executionMs"])) < 2**31, name
        assert 0 <= int(str(entry["exitCode"])) <= 255, name
        if outcome == "success":
            assert output_of(report, name) == "hello", name


def output_of(report: JobReport, name: str) -> str | None:
    run_id = entry_of(report, name)["executionId"]
    (row,) = [row for row in report.executions if row.id == run_id]
    return row.output


async def test_calls_by_the_thousand_run_nothing_and_hold_up_nobody(
    sshd: Sshd, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # They end by themselves, and have more to say than others.
    monkeypatch.setattr("worker.dispatch.following.LATEST_WORD_SECONDS", 20)
    said = b'{"call":"output","form":"text","data":"the last one"}'
    asked = b'{"call":"getVariable","form":"text","key":"../../x"}'
    odd = [b"../../x", b"$(touch${IFS}/tmp/pwned)", b"a'b", b'a"b', b"`reboot`", b"a;b", b"-", b""]
    calls = [
        b"c id%d.%s %d\n%s" % (number, place, len(text), text)
        for number in range(500)
        for place, text in ((b"a", asked), (b"o", said))
    ]
    junk = [b"c j%d 7\n{{{{\xff\0\n" % number for number in range(500)]
    evil = [b"c %s %d\n%s" % (call_id, len(said), said) for call_id in odd]
    deep = b"[" * 500_000
    nested = b"c deep %d\n%s" % (len(deep), deep)
    pieces = [STARTED, *evil, b"".join(calls), b"".join(junk), nested, ENDED]
    fleet = Fleet({"caller": Hostile(pieces), "quiet": Hostile([STARTED, ENDED])})

    report, _ = await run_among(fleet, tmp_path, sshd)

    assert_ended(report, {"caller": ("success", ""), "quiet": ("success", "")})
    assert report.job.result is not None
    assert report.job.result["scriptOutput"] == {"caller": "the last one"}
    words = [word for command in fleet.commands for word in command.split(" ")]
    assert all(re.fullmatch(r"[A-Za-z0-9._/-]+", word) for word in words)
    assert "../../x" not in words


# Without end


@pytest.mark.quiet
async def test_what_never_ends_is_bounded_in_time_memory_and_disk(
    sshd: Sshd, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("worker.dispatch.following.OVERSHOOT_BYTES", 3 * MIB)
    monkeypatch.setattr("worker.dispatch.following.SLOWEST_BYTES_PER_SECOND", 10 * MIB)
    frame = b"o 100000\n" + b"x" * 100_000
    fleet = Fleet(
        {
            "output": Hostile([STARTED, *repeat(frame, 100)]),
            "a byte a frame": Hostile(
                [STARTED, *repeat(b"o 1\nx" * 10_000, 8)], seconds_between=0.5
            ),
            "a byte now and then": Hostile([STARTED, *repeat(b"o 1\nx", 200)], seconds_between=0.1),
            "signs of life": Hostile([STARTED, *repeat(b"k\n" * 100_000, 20)], seconds_between=0.3),
            "complaints": Hostile(
                [STARTED, *repeat(b"k\n", 100)], complains="x" * 5 * MIB, seconds_between=0.1
            ),
        }
    )
    longest, largest = 0.0, 0

    async def watch() -> None:
        nonlocal longest, largest
        while True:
            before = trio.current_time()
            await trio.sleep(0.01)
            longest = max(longest, trio.current_time() - before)
            with contextlib.suppress(FileNotFoundError):  # those of a job that is over
                spools = (tmp_path / "state" / SPOOLS).glob("*.std*")
                largest = max([largest, *(spool.stat().st_size for spool in spools)])

    grown = Memory()
    async with trio.open_nursery() as nursery:
        nursery.start_soon(watch)
        report, _ = await run_among(fleet, tmp_path, sshd)
        nursery.cancel_scope.cancel()

    assert_ended(
        report,
        {
            "output": ("failed", "printed more than its limit of 1048576 bytes"),
            "a byte a frame": ("lost", "long after its limit"),
            "a byte now and then": ("lost", "long after its limit"),
            "signs of life": ("lost", "long after its limit"),
            "complaints": ("lost", "long after its limit"),
        },
    )
    assert grown.most_mib < 100
    assert MIB < largest < 1.5 * MIB
    assert longest < 1


class Pausing:
    """What asyncssh has of a channel, as far as it is asked to wait."""

    def __init__(self) -> None:
        self.told: list[str] = []

    def get_connection(self) -> None:
        """None that is known."""

    def pause_reading(self) -> None:
        self.told.append("wait")

    def resume_reading(self) -> None:
        self.told.append("go on")


async def test_what_comes_is_taken_in_piece_by_piece_while_the_server_waits() -> None:
    below, packet = Pausing(), b"k\n" * 16384
    channel = Channel(Headroom(), lambda _: None)
    channel.connection_made(cast("asyncssh.SSHClientChannel[bytes]", below))
    for _ in range(40):
        channel.data_received(packet, None)
        channel.data_received(packet, asyncssh.EXTENDED_DATA_STDERR)
    before = list(below.told)

    with trio.fail_after(5):
        sizes = [len(await channel.receive()) for _ in range(20)]

    assert sizes == [64 * 1024] * 20
    assert (before, below.told) == (["wait"], ["wait", "go on"])
    assert len(channel.stderr) <= 4096


async def test_of_an_installer_that_never_ends_only_the_last_is_kept() -> None:
    class Endless:
        said = 0

        async def receive(self) -> bytes:
            await trio.lowlevel.checkpoint()
            self.said += 1
            return b"x" * MIB if self.said < 30 else b""

    assert len(await read_answer(cast("Channel", Endless()))) == 64 * 1024


# Words that are shown to people

TELLERS = {
    "installer": Hostile(installs=f"f NONCE {EVIL}"),
    "login shell": Hostile(installs="", complains=EVIL),
    "runner": Hostile(complains=EVIL, status=69),
    "runner that vanished": Hostile([STARTED], complains=EVIL, status=66),
    "no runner": Hostile(is_mute=True, complains=EVIL),
    "channel": Hostile(refuses=EVIL),
    "goodbye": Hostile(disconnects=EVIL),
    "frame": Hostile([EVIL.splitlines()[0].encode() + b"\n"]),
    "script": Hostile([STARTED, b"o %d\n%b" % (len(EVIL.encode()), EVIL.encode()), ENDED]),
}


async def test_no_server_speaks_for_another_or_for_the_worker(sshd: Sshd, tmp_path: Path) -> None:
    report, log = await run_among(Fleet(TELLERS), tmp_path, sshd)

    found = ends(report)
    assert found.pop("script")[0] == "success"
    assert all(outcome != "success" for outcome, _ in found.values())
    for name, (_, error) in found.items():
        assert error.isprintable(), name
        assert "fault of the worker" not in error, name
    lines = [*report.stdout.split("\n"), *report.stderr.split("\n")]
    assert "[script] [good] forged" in "\n".join(lines)
    assert [line for line in lines if line.startswith("[good]")] == ["[good] fine"]
    assert "forged" not in {event["event"] for event in log}
    assert {"x\x1b[2J\x9b1m\r", "[good] forged\u2028[good] forged\u202e\x07"} <= {
        event["text"] for event in log if event["event"] == "script_output"
    }


@pytest.mark.parametrize(
    "name", [EVIL, "../../x", "$(touch ../pwned)", "'\"; touch ../pwned #"], ids=ascii
)
async def test_a_servers_name_is_no_more_than_a_name(name: str, sshd: Sshd, tmp_path: Path) -> None:
    good = sshd.server
    shown = "".join(each if each.isprintable() else "?" for each in name)
    with a_log() as log:
        async with a_worker(tmp_path, sshd) as rig:
            rig.add_entry(
                name,
                host=good.host,
                port=good.port,
                username=good.user,
                private_key=good.private_key,
            )
            with trio.fail_after(30):
                report = await rig.run('printf %s "$CRONIUM_SERVER_NAME"', [name])
                await until_idle(rig)
            await runs_on(rig, GOOD)

    assert outcomes(report) == {shown: ("success", 0)}
    assert report.executions[0].output == shown
    assert report.stdout.split("\n")[0] == f"[{shown}] {shown}"
    assert shown in {event.get("server") for event in events(log)}
    # By a walk, as glob trips over what the server removes meanwhile.
    assert not any("pwned" in names for _, _, names in os.walk(tmp_path))


# Packets


def ssh_strings(*parts: bytes) -> bytes:
    return b"".join(len(part).to_bytes(4, "big") + part for part in parts)


class _Babbler(asyncssh.SSHServer):
    """Sends one packet of its own before the `at`-th that it has to send."""

    def __init__(self, at: int, packet: bytes) -> None:
        self._at = at
        self._packet = packet

    def connection_made(self, conn: asyncssh.SSHServerConnection) -> None:
        send = conn.send_packet

        def send_packet(kind: int, *parts: bytes, **options: Any) -> None:  # noqa: ANN401  asyncssh's own
            self._at -= 1
            if self._at == 0:
                send(self._packet[0], self._packet[1:])
            send(kind, *parts, **options)

        conn.send_packet = send_packet  # type: ignore[method-assign, assignment]  # on purpose

    def begin_auth(self, username: str) -> bool:  # noqa: ARG002  asyncssh's
        return False


KEXINIT, USERAUTH_SUCCESS, CHANNEL_CONFIRMATION, CHANNEL_DATA = 20, 52, 91, 94
KINDS = (1, 2, 3, 4, 6, 7, 20, 21, 31, 51, 52, 53, 60, 80, 81, 90, 91, 92, 93, 94, 96, 97, 98, 255)
BODIES = {"empty": b"", "ones": b"\xff" * 9, "a string that is none": bytes(5) + b"\x02\xff\xfe"}
# A key whose numbers are negative, where asyncssh stumbles, in the key exchange's last message.
NEGATIVE = ssh_strings(b"ssh-rsa", b"\xff", b"\xff")
KEY_EXCHANGE = b"\x1f" + ssh_strings(NEGATIVE, bytes(1088) + KEY.public_data[-32:], NEGATIVE)


@pytest.mark.parametrize("kind", BODIES)
async def test_a_packet_of_any_kind_at_any_time_costs_no_more_than_the_connection(
    kind: str,
) -> None:
    packets = [(2 + number % 8, bytes([each]) + BODIES[kind]) for number, each in enumerate(KINDS)]

    ends = [await end_of_a_call(partial(_Babbler, *each)) for each in packets]

    assert any(ends)
    assert all(end is None or isinstance(end, SshError) for end in ends)


async def test_a_host_key_with_negative_numbers_is_a_host_that_cannot_be_reached() -> None:
    end = await end_of_a_call(lambda: _Babbler(2, KEY_EXCHANGE))

    assert isinstance(end, ConnectError)
    assert "OverflowError" in str(end)


async def test_a_server_that_ends_the_connection_with_the_login_is_one_that_closed_it() -> None:
    end = await end_of_a_call(partial(_Breaker, USERAUTH_SUCCESS, CHANNEL_DATA, bytes(4)))

    assert isinstance(end, PassingConnectError)
    assert "after the login" in str(end)


@pytest.mark.parametrize("before", [True, False])
async def test_a_new_key_exchange_that_is_none_is_a_lost_connection(*, before: bool) -> None:
    end = await end_of_a_call(
        partial(_Breaker, CHANNEL_CONFIRMATION, KEXINIT, b"\xff" * 20, before=before)
    )

    assert isinstance(end, ConnectionLostError)


class _Breaker(asyncssh.SSHServer):
    """Says in one breath what is in its turn, and what breaks the connection."""

    def __init__(self, turn: int, kind: int, body: bytes, *, before: bool = False) -> None:
        self._turn = turn
        self._before = before
        self._kind = kind
        self._body = body

    def connection_made(self, conn: asyncssh.SSHServerConnection) -> None:
        send = conn.send_packet

        def send_packet(kind: int, *parts: bytes, **options: Any) -> None:  # noqa: ANN401  asyncssh's own
            if kind == self._turn and self._before:
                send(self._kind, self._body)
            send(kind, *parts, **options)
            if kind == self._turn and not self._before:
                send(self._kind, self._body)

        conn.send_packet = send_packet  # type: ignore[method-assign, assignment]  # on purpose

    def begin_auth(self, username: str) -> bool:  # noqa: ARG002  asyncssh's
        return False

    def session_requested(self) -> asyncssh.SSHServerProcess[bytes]:
        return asyncssh.SSHServerProcess(_say_nothing, None, 3, allow_scp=False)


def _say_nothing(process: asyncssh.SSHServerProcess[bytes]) -> None:
    process.exit(0)


async def end_of_a_call(server_factory: Callable[[], asyncssh.SSHServer]) -> SshError | None:
    """How a command on such a server ended; None if with all that it had to say."""
    async with listening(server_factory) as port, trio_asyncio.open_loop():
        check = HostKeyCheck(HostKeyPolicy.OFF, Address("127.0.0.1", port))
        with trio.fail_after(5):
            await trio.lowlevel.checkpoint()
            try:
                async with open_connection(
                    Target("127.0.0.1", port, "deploy", Credential()),
                    OpenedCredential(KEY, None),
                    check,
                    keepalive_seconds=30,
                ) as connection:
                    channel = await connection.exec("true")
                    while await channel.receive():
                        pass
            except SshError as error:
                return error
    return None
