"""What a connection costs in round trips, and that the short ways lead where the long ones do."""

import time
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import (
    AbstractAsyncContextManager,
    asynccontextmanager,
    closing,
    contextmanager,
)
from dataclasses import replace
from pathlib import Path

import asyncssh
import pytest
import trio
import trio_asyncio
from structlog.testing import capture_logs

from tests.conftest import Account
from tests.faults.background import Background, open_background
from tests.faults.delay_lines import open_lines
from tests.faults.tcp_proxy import TcpProxy
from worker.demo.sshd import LocalServer, Sshd, open_sshd
from worker.errors import AuthenticationError, ConnectionLostError
from worker.remote import shortcuts
from worker.remote.address import Address
from worker.remote.channel import PAUSE_BYTES
from worker.remote.connection import Connection, open_connection
from worker.remote.credentials import OpenedCredential
from worker.remote.host_keys import HostKeyCheck
from worker.remote.shortcuts import ShortConnection
from worker.remote.target import Credential, Target
from worker.remote.windows import HEADROOM_BYTES, LEAST_BYTES, PLAIN_BYTES
from worker.secret import Secret
from worker.settings import HostKeyPolicy

# Long against what a loaded machine takes for its own part of a handshake.
ROUND_TRIP_SECONDS = 0.2
KINDS = ("ssh-ed25519", "ssh-rsa", "ecdsa-sha2-nistp256")
# A stall is of 40 ms, in Linux.
STALL_SECONDS = 0.04
MIB = 1024 * 1024

pytestmark = pytest.mark.usefixtures("openssh")


@pytest.fixture
def background() -> Iterator[Background]:
    with open_background() as background:
        yield background


@pytest.fixture(params=["short", "plain"])
def ways(request: pytest.FixtureRequest) -> str:
    """Both ways, one after the other."""
    if request.param == "plain":
        request.getfixturevalue("plain")
    return str(request.param)


@pytest.fixture
def plain(monkeypatch: pytest.MonkeyPatch) -> None:
    """With an asyncssh of another time."""
    monkeypatch.setattr(asyncssh, "__version__", "99.0.0")
    shortcuts._say_once.cache_clear()


@contextmanager
def sshd_with(folder: Path, kind: str = "ssh-ed25519", **options: str) -> Iterator[Sshd]:
    """A server that lets a key of that kind in."""
    folder.mkdir()
    key = asyncssh.generate_private_key(kind)
    key.write_private_key(folder / "client_key")
    key.write_public_key(folder / "client_key.pub")
    with open_sshd(folder, options=options) as sshd:
        yield sshd


@contextmanager
def far_away(server: LocalServer) -> Iterator[LocalServer]:
    """The same server behind a long line."""
    with open_lines([server], ROUND_TRIP_SECONDS) as (far,):
        yield far


def key_of(server: LocalServer) -> OpenedCredential:
    return OpenedCredential(asyncssh.import_private_key(server.private_key), None)


def connection_to(
    server: LocalServer, credential: OpenedCredential, keepalive_seconds: float = 30
) -> AbstractAsyncContextManager[Connection]:
    check = HostKeyCheck(HostKeyPolicy.OFF, Address(server.host, server.port))
    target = Target(server.host, server.port, server.user, Credential())
    return open_connection(target, credential, check, keepalive_seconds=keepalive_seconds)


@asynccontextmanager
async def connected(server: LocalServer, credential: OpenedCredential) -> AsyncIterator[Connection]:
    with trio.fail_after(30):
        async with trio_asyncio.open_loop(), connection_to(server, credential) as connection:
            yield connection


async def is_refused(server: LocalServer, credential: OpenedCredential) -> bool:
    async with trio_asyncio.open_loop():
        try:
            with trio.fail_after(30):
                async with connection_to(server, credential):
                    return False
        except AuthenticationError:
            return True


async def output(connection: Connection, command: str, message: bytes = b"") -> bytes:
    with closing(await connection.exec(command)) as channel:
        if message:
            await channel.send_all(message)
            channel.send_eof()
        parts = []
        while data := await channel.receive():
            parts.append(data)
        return b"".join(parts)


def stopwatch() -> Callable[[], int]:
    """How many whole round trips have gone since the last call."""
    began = time.perf_counter()

    def rounds() -> int:
        nonlocal began
        before, began = began, time.perf_counter()
        return int((began - before) / ROUND_TRIP_SECONDS)

    return rounds


@pytest.mark.quiet
@pytest.mark.parametrize("kind", KINDS)
async def test_cold_it_is_six_round_trips_to_a_commands_output(kind: str, tmp_path: Path) -> None:
    with sshd_with(tmp_path / "sshd", kind) as sshd, far_away(sshd.server) as far:
        rounds = stopwatch()
        async with connected(far, key_of(far)) as made:
            connect = rounds()
            said = await output(made, "echo hello")
            execute = rounds()
            heard = await output(made, "cat", b"hello")
            execute_with_stdin = rounds()

    assert (said, heard) == (b"hello\n", b"hello")
    # TCP, versions, keys, and who we are; a channel and the command; what it reads.
    assert (connect, execute, execute_with_stdin) == (4, 2, 3)


@pytest.mark.quiet
async def test_with_an_asyncssh_that_is_not_known_it_is_nine(plain: None, sshd: Sshd) -> None:
    with capture_logs() as logs, far_away(sshd.server) as far:
        rounds = stopwatch()
        async with connected(far, key_of(far)) as made:
            connect = rounds()
            await output(made, "echo hello")
            execute = rounds()
        async with connected(sshd.server, key_of(sshd.server)) as again:
            assert type(again._connection) is asyncssh.SSHClientConnection

    assert (connect, execute) == (7, 2)
    said = [line["reason"] for line in logs if line["event"] == "ssh_shortcuts_off"]
    assert said == ["asyncssh 99.0.0 is not known"]


@pytest.mark.quiet
async def test_with_a_password_it_is_seven(password_account: Account, open_path: Path) -> None:
    options = {"PasswordAuthentication": "yes"}
    password = OpenedCredential(None, Secret(password_account.password))
    with (
        open_sshd(open_path, user=password_account.name, options=options) as sshd,
        far_away(sshd.server) as far,
    ):
        rounds = stopwatch()
        async with connected(far, password) as made:
            connect = rounds()
            said = await output(made, "echo hello")

    assert said == b"hello\n"
    assert connect == 5  # which ways there are decides where the password goes


async def test_the_installed_asyncssh_is_known(sshd: Sshd) -> None:
    async with connected(sshd.server, key_of(sshd.server)) as made:
        assert type(made._connection) is ShortConnection
        assert shortcuts.reason_against(made._connection) == ""


async def test_an_asyncssh_that_lacks_something_stays_as_it_is(
    sshd: Sshd, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(shortcuts, "RELIED_ON", (*shortcuts.RELIED_ON, "_auth_of_old"))

    async with connected(sshd.server, key_of(sshd.server)) as made:
        assert type(made._connection) is asyncssh.SSHClientConnection
        assert "_auth_of_old" in shortcuts.reason_against(made._connection)
        assert await output(made, "echo hello") == b"hello\n"


async def test_a_key_that_is_refused_is_refused_at_once(ways: str, sshd: Sshd) -> None:
    stranger = OpenedCredential(asyncssh.generate_private_key("ssh-ed25519"), None)

    assert await is_refused(sshd.server, stranger)


@pytest.mark.parametrize("credential", ["key", "password"])
async def test_a_server_that_wants_more_than_one_proof_refuses(
    credential: str, ways: str, password_account: Account, open_path: Path
) -> None:
    options = {
        "PasswordAuthentication": "yes",
        "AuthenticationMethods": "publickey,password"
        if credential == "key"
        else "password,publickey",
    }
    with open_sshd(open_path, user=password_account.name, options=options) as sshd:
        given = {
            "key": key_of(sshd.server),
            "password": OpenedCredential(None, Secret(password_account.password)),
        }
        assert await is_refused(sshd.server, given[credential])


async def test_a_key_is_no_use_where_only_passwords_are(ways: str, tmp_path: Path) -> None:
    options = {"PasswordAuthentication": "yes", "PubkeyAuthentication": "no"}
    with sshd_with(tmp_path / "sshd", **options) as sshd:
        assert await is_refused(sshd.server, key_of(sshd.server))


@pytest.mark.parametrize("kind", KINDS)
async def test_a_server_without_extensions_is_waited_for(kind: str, ways: str) -> None:
    host_key, client_key = (asyncssh.generate_private_key(kind) for _ in range(2))
    async with trio_asyncio.open_loop():
        server = await trio_asyncio.aio_as_trio(asyncssh.listen)(
            "127.0.0.1",
            0,
            server_factory=_Terse,
            server_host_keys=[host_key],
            authorized_client_keys=asyncssh.import_authorized_keys(
                client_key.export_public_key().decode()
            ),
            process_factory=lambda process: process.exit(0),
        )
        there = LocalServer("terse", "127.0.0.1", server.get_port(), "deploy", "", "", Path())
        async with connected(there, OpenedCredential(client_key, None)) as made:
            assert await output(made, "true") == b""
        server.close()


class _Terse(asyncssh.SSHServer):
    """Sends no SSH_MSG_EXT_INFO (RFC 8308)."""

    def connection_made(self, conn: asyncssh.SSHServerConnection) -> None:
        send = conn.send_packet

        def send_packet(kind: int, *parts: bytes, **options: object) -> None:
            if kind != shortcuts.MSG_EXT_INFO:
                send(kind, *parts, **options)  # type: ignore[arg-type]

        conn.send_packet = send_packet  # type: ignore[method-assign, assignment]  # on purpose


@pytest.mark.parametrize("stalls", [False, True])
async def test_a_server_is_given_up_when_it_no_longer_answers_and_not_before(
    stalls: bool,
    ways: str,
    background: Background,
    sshd: Sshd,
) -> None:
    address = (sshd.server.host, sshd.server.port)
    line = await trio.to_thread.run_sync(TcpProxy, background, address)
    far = replace(sshd.server, port=line.port)
    async with trio_asyncio.open_loop():
        with trio.fail_after(30):
            async with connection_to(far, key_of(far), keepalive_seconds=0.9) as made:
                assert await output(made, "for i in 1 2 3 4; do echo $i; sleep 0.1; done")
                if not stalls:
                    # More than the three keepalives that may stay without an answer.
                    assert await output(made, "sleep 1.5; echo hello") == b"hello\n"
                    return
                with closing(await made.exec("cat")) as channel:
                    await trio.to_thread.run_sync(line.stall)
                    with pytest.raises(ConnectionLostError):
                        await channel.receive()


@pytest.mark.quiet
@pytest.mark.skipif(shortcuts.QUICK_ACK is None, reason="acknowledgements cannot be hurried here")
async def test_nothing_waits_for_an_acknowledgement(
    sshd: Sshd, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def first_command(quick_ack: int | None) -> float:
        monkeypatch.setattr(shortcuts, "QUICK_ACK", quick_ack)
        began = time.perf_counter()
        async with connected(sshd.server, key_of(sshd.server)) as made:
            await output(made, "cat", b"hello")
            return time.perf_counter() - began

    options = (None, shortcuts.QUICK_ACK)
    seconds = [[await first_command(option) for option in options] for _ in range(8)]

    # The least of each: what else runs here holds up some, the stall each one.
    stalled, quick = map(min, zip(*seconds, strict=True))
    assert stalled - quick > STALL_SECONDS / 2


async def test_what_comes_behind_the_end_of_a_connection_is_not_looked_at(
    sshd: Sshd, monkeypatch: pytest.MonkeyPatch
) -> None:
    looked_at: list[int] = []

    def look(self: asyncssh.SSHClientConnection, data: bytes, datatype: None = None) -> None:
        looked_at.append(len(data))
        look_inside(self, data, datatype)

    look_inside = asyncssh.SSHClientConnection.data_received
    async with connected(sshd.server, key_of(sshd.server)) as made:
        monkeypatch.setattr(asyncssh.SSHClientConnection, "data_received", look)
        made._connection.data_received(bytes(4 * MIB))
        with pytest.raises(ConnectionLostError):
            await output(made, "true")

    assert looked_at.count(shortcuts.PART_BYTES) == 1


async def test_what_nobody_takes_is_not_sent(ways: str, sshd: Sshd) -> None:
    async with connected(sshd.server, key_of(sshd.server)) as made:
        channel = await made.exec(f"head -c {64 * MIB} /dev/zero")
        taken = most = 0
        limit = PAUSE_BYTES + 2 * PLAIN_BYTES if ways == "plain" else LEAST_BYTES
        while piece := await channel.receive():
            taken += len(piece)
            held = sum(len(data) for data, _ in channel._channel._recv_buf)
            most = max(most, channel._received_bytes + held)
            limit = max(limit, channel._window.size)
            await trio.sleep(0.001)

    assert taken == 64 * MIB
    assert most <= limit + 128 * 1024  # the piece being taken, and a packet


@pytest.mark.quiet
async def test_over_a_long_line_more_is_under_way_at_once(
    sshd: Sshd,
) -> None:
    with far_away(sshd.server) as far:
        async with connected(far, key_of(far)) as made:
            rounds = stopwatch()
            said = await output(made, f"head -c {16 * MIB} /dev/zero")
            took = rounds()
            left = made._headroom._left

    assert len(said) == 16 * MIB
    assert left == HEADROOM_BYTES
    # Two for the command, one for each doubling and two of the full size; the first window alone
    # would take 128.
    assert took < 20
