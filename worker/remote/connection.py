"""SSH connections, through trio-asyncio; the one place where asyncssh's errors are translated."""

import asyncio
import errno
import socket
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from functools import partial
from typing import Self

import asyncssh
import trio
import trio_asyncio
from asyncssh.public_key import SSHOpenSSHCertificate
from trio_asyncio import aio_as_trio

from worker.errors import (
    AuthenticationError,
    ConnectError,
    ConnectionLostError,
    HostKeyError,
    NoChannelError,
    PassingConnectError,
    SshError,
)
from worker.remote.channel import Channel
from worker.remote.credentials import OpenedCredential
from worker.remote.given_keys import public_line
from worker.remote.host_certificate import certificate_in
from worker.remote.host_keys import HostKeyCheck
from worker.remote.shortcuts import first_window, shorten
from worker.remote.target import Target
from worker.remote.windows import Headroom

# Measured on a rig: AES-128-GCM costs the client a third less than chacha20 per handshake, and
# the post-quantum exchange 0.16 ms, where dh-group-exchange costs 364 ms.
KEX = ["mlkem768x25519-sha256", "curve25519-sha256", "curve25519-sha256@libssh.org",
       "ecdh-sha2-nistp256", "ecdh-sha2-nistp384", "ecdh-sha2-nistp521",
       "diffie-hellman-group16-sha512", "diffie-hellman-group14-sha256"]  # fmt: skip
CIPHERS = ["aes128-gcm@openssh.com", "aes256-gcm@openssh.com", "chacha20-poly1305@openssh.com",
           "aes128-ctr", "aes256-ctr"]  # fmt: skip
KEEPALIVES_UNANSWERED = 3
CLOSE_SECONDS = 2.0
# sshd over its MaxSessions says the second; others say what suits them.
REFUSED = {
    asyncssh.OPEN_ADMINISTRATIVELY_PROHIBITED,
    asyncssh.OPEN_CONNECT_FAILED,
    asyncssh.OPEN_RESOURCE_SHORTAGE,
}
# How long a server may take to start a command.
ANSWER_SECONDS = 30.0
# From TCP's connection to the end of the login: sshd itself waits no longer (LoginGraceTime).
LOGIN_SECONDS = 120.0


@dataclass(frozen=True, slots=True)
class HostKey:
    """The key that a server proved to have, and the IP address where it did."""

    fingerprint: str
    public_line: str
    address: str

    @property
    def kind(self) -> str:
        return self.public_line.split(" ", 1)[0]

    @classmethod
    def of(cls, key: asyncssh.SSHKey, address: str) -> Self:
        return cls(key.get_fingerprint(), public_line(key), address)


class _Client(asyncssh.SSHClient):
    """Judges the host key; asyncssh asks before it authenticates. Under `login` it connects."""

    def __init__(self, check: HostKeyCheck, login: trio.CancelScope) -> None:
        self._check = check
        self._login = login
        self._certificate: SSHOpenSSHCertificate | None = None
        self.is_new = False
        self.refusal: HostKeyError | None = None
        self.lost = trio.Event()

    def connection_lost(self, exc: Exception | None) -> None:  # noqa: ARG002  asyncssh's signature
        self.lost.set()

    def judge(self, check: HostKeyCheck, key: asyncssh.SSHKey) -> bool:
        return check.judge(key, self._certificate)

    def connection_made(self, conn: asyncssh.SSHClientConnection) -> None:
        """Take certificates out of asyncssh's hands, which shows a client their authority alone
        and refuses the key with them; without this every certificate is refused."""
        self._login.deadline = trio.current_time() + LOGIN_SECONDS
        validate = conn.validate_server_host_key

        def validate_key(key_data: bytes) -> asyncssh.SSHKey:
            self._certificate = certificate_in(key_data)
            return validate(self._certificate.key.public_data if self._certificate else key_data)

        conn.validate_server_host_key = validate_key  # type: ignore[method-assign]  # on purpose
        shorten(conn)

    def validate_host_public_key(
        self,
        host: str,  # noqa: ARG002  asyncssh's signature
        addr: str,  # noqa: ARG002
        port: int,  # noqa: ARG002
        key: asyncssh.SSHKey,
    ) -> bool:
        try:
            self.is_new = self.judge(self._check, key)
        except HostKeyError as error:
            self.refusal = error
            return False
        return True


class Connection:
    """An authenticated connection; made by `open_connection`.

    `is_new` says that nothing was known of the server's key; `channels` is how many are open,
    and `lost` is set once it has gone.
    """

    def __init__(
        self, connection: asyncssh.SSHClientConnection, client: _Client, headroom: Headroom
    ) -> None:
        self._connection = connection
        self._client = client
        self._headroom = headroom
        self.is_new = client.is_new
        self.lost = client.lost
        self._open: set[Channel] = set()
        key = connection.get_server_host_key()
        if key is None:  # it takes another key exchange than those of KEX
            raise SshError("the server showed no host key")
        peer = connection.get_extra_info("peername")
        if peer is None:
            raise PassingConnectError("the server closed the connection after the login")
        self._key = key
        self.host_key = HostKey.of(key, str(peer[0]))

    @property
    def channels(self) -> int:
        return len(self._open)

    def judge(self, check: HostKeyCheck) -> bool:
        """Whether the server's key is a new one by now.

        Raises HostKeyError if it is not to be trusted any more.
        """
        return self._client.judge(check, self._key)

    async def exec(self, command: str) -> Channel:
        """Start `command` under the account's login shell; the channel is the caller's to close.

        Raises ConnectionLostError if the connection has gone, NoChannelError if it is there and
        gives no further channel.
        """
        channel = Channel(self._headroom, self._open.discard)
        self._open.add(channel)
        starting = trio_asyncio.current_loop.get().create_task(
            self._connection.create_session(
                lambda: channel,
                command,
                encoding=None,
                window=first_window(self._connection),
            )
        )
        done = trio.Event()
        starting.add_done_callback(lambda _: done.set())
        try:
            with trio.fail_after(ANSWER_SECONDS):
                await done.wait()
        except trio.TooSlowError as error:
            # Keepalives are answered by sshd itself, so they do not show a server that hangs.
            self._give_up(channel, starting)
            self._connection.abort()
            raise ConnectionLostError("the server does not answer") from error
        except trio.Cancelled:
            self._give_up(channel, starting)
            raise
        failure = starting.exception()
        if failure is None:
            return channel
        self._open.discard(channel)
        reason = f"no channel could be opened: {failure}"
        match failure:
            case asyncssh.ChannelOpenError(code=code) if code in REFUSED and not self.lost.is_set():
                raise NoChannelError(reason) from failure
            case _:  # whatever asyncssh stumbled over, as below
                raise ConnectionLostError(reason) from failure

    def _give_up(self, channel: Channel, starting: asyncio.Task[object]) -> None:
        """Others use the connection too, so it goes on to be opened, and is closed then.

        It may also be open by now: a cancellation is on its way for a moment.
        """
        channel.close()
        starting.add_done_callback(partial(self._abandoned, channel))

    def _abandoned(self, channel: Channel, starting: asyncio.Task[object]) -> None:
        if starting.cancelled() or starting.exception() is not None:
            self._open.discard(channel)

    async def close(self) -> None:
        """End the connection; one that is cancelled while it says goodbye is aborted."""
        try:
            self._connection.close()
            await aio_as_trio(self._connection.wait_closed)()
        finally:
            self._connection.abort()


@asynccontextmanager
async def open_connection(
    target: Target,
    credential: OpenedCredential,
    check: HostKeyCheck,
    *,
    keepalive_seconds: float,
    headroom: Headroom | None = None,
) -> AsyncIterator[Connection]:
    """Connect and authenticate; the user's ssh configuration and agent are left out of it.

    Raises ConnectError if no connection could be made, HostKeyError if the server is not the
    one expected, AuthenticationError if it refused the credential.
    """
    clients: list[_Client] = []
    login = trio.CancelScope()
    raw: asyncssh.SSHClientConnection | None = None

    def client() -> _Client:
        clients.append(_Client(check, login))
        return clients[-1]

    try:
        with login:
            raw = await aio_as_trio(asyncssh.connect)(
                target.host,
                target.port,
                username=target.user,
                client_factory=client,
                client_keys=[credential.key] if credential.key else None,
                password=credential.password.reveal() if credential.password else None,
                preferred_auth=(
                    ["publickey"] if credential.key else ["password", "keyboard-interactive"]
                ),
                known_hosts=([], [], []),  # nothing is known to asyncssh, so it asks the client
                server_host_key_algs=check.algorithms(),
                kex_algs=KEX,
                encryption_algs=CIPHERS,
                compression_algs=["none"],
                agent_path=None,
                config=None,
                gss_kex=False,
                gss_auth=False,
                x509_trusted_certs=None,
                login_timeout=0,  # its words are those of a script over its limit
                keepalive_interval=keepalive_seconds / KEEPALIVES_UNANSWERED,
                keepalive_count_max=KEEPALIVES_UNANSWERED,
                client_version="cronium-worker",
            )
    except Exception as error:  # nonsense on the wire comes as whatever asyncssh stumbled over
        refusal = clients[-1].refusal if clients else None
        raise refusal or translated(error, target, credential.doubt) from error
    if raw is None:
        raise PassingConnectError(
            f"{target.host}:{target.port} took the connection and let nobody in "
            f"within {LOGIN_SECONDS:g} s"
        )
    connection = Connection(raw, clients[-1], headroom or Headroom())
    try:
        yield connection
    finally:
        with trio.move_on_after(CLOSE_SECONDS, shield=True):
            await connection.close()


def translated(error: Exception, target: Target, doubt: str = "") -> SshError:
    """The error of a connection attempt in the worker's terms and an operator's words."""
    match error:
        case asyncssh.PermissionDenied():
            return AuthenticationError(f"{target} refused the credential{doubt}")
        case asyncssh.HostKeyNotVerifiable():
            return HostKeyError(f"the host key of {target} cannot be verified: {error}")
        case socket.gaierror(errno=socket.EAI_AGAIN):
            return PassingConnectError(f"the name {target.host!r} cannot be resolved just now")
        case socket.gaierror():
            return ConnectError(f"the name {target.host!r} cannot be resolved")
        case OSError(errno=errno.ECONNREFUSED):
            return PassingConnectError(f"{target.host}:{target.port} refused the connection")
        case asyncssh.ConnectionLost() | ConnectionResetError():
            return PassingConnectError(
                f"{target.host}:{target.port} closed the connection: {error}"
            )
        case OSError(errno=errno.ETIMEDOUT):
            # Not the system's own words: the app takes those for a script over its limit.
            return ConnectError(f"{target.host}:{target.port} does not answer")
        case OSError():
            reason = error.strerror or str(error)
            return ConnectError(f"{target.host}:{target.port} cannot be reached: {reason}")
        case asyncssh.Error():
            return ConnectError(f"no SSH session with {target}: {error}")
        case _:
            kind = type(error).__name__
            return ConnectError(f"no SSH session with {target}: it sent nonsense ({kind}: {error})")
