"""The servers that other tests log into."""

import asyncio
import socket
from collections.abc import Awaitable, Callable, Iterator
from pathlib import Path
from typing import TypeVar

import asyncssh
import pytest
import trio_asyncio

from tests.conftest import Account
from worker.demo.asyncssh_server import AsyncsshServer
from worker.demo.processes import processes_with_home
from worker.demo.sshd import LocalServer, Sshd, open_sshd, running

T = TypeVar("T")

pytestmark = pytest.mark.usefixtures("openssh")


def connect(
    server: LocalServer, password: str | None = None
) -> asyncssh.misc._ACMWrapper[asyncssh.SSHClientConnection]:
    return asyncssh.connect(
        server.host,
        server.port,
        username=server.user,
        password=password,
        client_keys=[] if password else [asyncssh.import_private_key(server.private_key)],
        known_hosts=asyncssh.import_known_hosts(f"[{server.host}]:{server.port} {server.host_key}"),
        agent_path=None,
        config=None,
        connect_timeout=5,
    )


def by_asyncio(work: Callable[[], Awaitable[T]]) -> T:
    """As asyncio.run, which a process that has loaded trio-asyncio cannot rely on."""
    result: T = trio_asyncio.run(trio_asyncio.aio_as_trio(work))
    return result


def ask(server: LocalServer, command: str, password: str | None = None) -> str:
    """Standard output of `command` on `server`, which must accept it and exit 0."""

    async def run() -> str:
        async with connect(server, password) as connection:
            return str((await connection.run(command, check=True, timeout=5)).stdout)

    return by_asyncio(run)


def test_a_server_has_a_home_of_its_own(sshd: Sshd) -> None:
    home = ask(sshd.server, "echo $HOME; cd; pwd")

    assert home.split() == [str(sshd.server.home)] * 2


def test_fifty_servers_behind_a_few_processes_have_fifty_homes(
    fleet: Callable[[int], tuple[LocalServer, ...]],
) -> None:
    servers = fleet(50)

    homes = {ask(server, "echo $HOME") for server in (*servers[:3], *servers[-3:])}

    assert homes == {f"{server.home}\n" for server in (*servers[:3], *servers[-3:])}
    assert len({(server.host, server.port) for server in servers}) == 50


@pytest.mark.parametrize("shell", ["bash", "fish", "csh", "zsh", "mksh"])
def test_another_login_shell_can_be_had(shell: str, tmp_path: Path) -> None:
    with open_sshd(tmp_path / "sshd", login_shell=shell) as sshd:
        # The shell is the parent of what it starts; `:` keeps it from becoming that.
        assert ask(sshd.server, "sh -c 'cat /proc/$PPID/comm'; :").strip() == shell


def test_a_bashrc_that_prints_is_heard(sshd: Sshd) -> None:
    (sshd.server.home / ".bashrc").write_text("echo hello from bashrc\n")

    assert ask(sshd.server, "echo $((1 + 1))") == "hello from bashrc\n2\n"


def test_a_plain_server_gives_no_privileges(plain_sshd: Sshd) -> None:
    uid, home, _ = (ask(plain_sshd.server, "id -u; echo $HOME; touch $HOME/x")).split("\n")

    assert uid != "0"
    assert home == str(plain_sshd.server.home)


def test_a_password_lets_in(open_path: Path, password_account: Account) -> None:
    with open_sshd(
        open_path, user=password_account.name, options={"PasswordAuthentication": "yes"}
    ) as sshd:
        assert ask(sshd.server, "id -un", password_account.password) == (
            f"{password_account.name}\n"
        )


@pytest.fixture(params=[Sshd, AsyncsshServer])
def either(tmp_path: Path, request: pytest.FixtureRequest) -> Iterator[Sshd]:
    with running(request.param(tmp_path / "sshd", {"server": "127.0.0.1"})) as sshd:
        yield sshd


def test_commands_have_input_output_and_status_on_either_kind(either: Sshd) -> None:
    sent = bytes(range(256)) * 4096

    async def run() -> tuple[bytes, bytes, int | None]:
        async with connect(either.server) as connection:
            done = await connection.run(
                "cat; printf 'over\\0' >&2; exit 7", input=sent, encoding=None, timeout=5
            )
        assert isinstance(done.stdout, bytes)
        assert isinstance(done.stderr, bytes)
        return done.stdout, done.stderr, done.returncode

    assert by_asyncio(run) == (sent, b"over\0", 7)


def test_one_connection_runs_several_commands_at_once_on_either_kind(either: Sshd) -> None:
    async def run() -> list[str]:
        async with connect(either.server) as connection:
            # Each waits for the next one's file, so none ends unless all are there.
            done = await asyncio.gather(
                *(
                    connection.run(
                        f"cd; : >f{n}; until [ -e f{(n + 1) % 5} ]; do sleep 0.01; done; echo {n}",
                        timeout=5,
                    )
                    for n in range(5)
                )
            )
        return [str(one.stdout) for one in done]

    assert by_asyncio(run) == [f"{n}\n" for n in range(5)]


def test_a_detached_process_outlives_its_connection_on_either_kind(either: Sshd) -> None:
    ask(either.server, "setsid sleep 60 </dev/null >/dev/null 2>&1 &")

    assert len(either.processes()) == 1


def test_a_restart_keeps_port_and_keys_and_ends_no_session(sshd: Sshd) -> None:
    before, pid = sshd.server, sshd.pid

    async def restart_within_a_session() -> str:
        async with connect(before) as connection:
            sshd.restart()
            return str((await connection.run("echo still here", timeout=5)).stdout)

    assert by_asyncio(restart_within_a_session) == "still here\n"
    assert (sshd.server, sshd.pid != pid) == (before, True)
    assert ask(sshd.server, "echo again") == "again\n"


def test_killed_sessions_break_their_connections(sshd: Sshd) -> None:
    async def kill_the_session() -> int:
        async with connect(sshd.server) as connection:
            killed = sshd.kill_sessions()
            await asyncio.wait_for(connection.wait_closed(), 2)
        return killed

    assert by_asyncio(kill_the_session) == 1
    assert ask(sshd.server, "echo again") == "again\n"


def test_nothing_is_left_when_a_server_closes(tmp_path: Path) -> None:
    with open_sshd(tmp_path / "sshd") as sshd:
        ask(sshd.server, "setsid sleep 60 </dev/null >/dev/null 2>&1 &")
        server, detached = sshd.server, sshd.processes()

    assert detached
    assert processes_with_home(server.home) == []
    with pytest.raises(ConnectionRefusedError):
        socket.create_connection((server.host, server.port), timeout=1)


def test_the_same_directory_is_the_same_server_again(tmp_path: Path) -> None:
    with open_sshd(tmp_path / "sshd") as first:
        pass
    with open_sshd(tmp_path / "sshd") as second:
        assert second.server == first.server


def test_a_taken_port_is_left_for_another(tmp_path: Path) -> None:
    with open_sshd(tmp_path / "sshd") as first:
        port = first.server.port
    with socket.socket() as other:
        other.bind(("127.0.0.1", port))
        other.listen()
        with open_sshd(tmp_path / "sshd") as second:
            assert second.server.port != port
            assert ask(second.server, "echo hello") == "hello\n"
