"""Round trips and packets that asyncssh spends and need not: all that relies on its inside."""

import socket
from collections.abc import Awaitable
from functools import cache
from typing import TYPE_CHECKING

import asyncssh
import structlog
from asyncssh.logging import SSHLogger

from worker.remote.windows import LEAST_BYTES, PLAIN_BYTES

if TYPE_CHECKING:
    from asyncssh.packet import SSHPacket

log = structlog.get_logger()

# Those whose sources were read; the oldest is that of pyproject.toml.
OLDEST, TOO_NEW = (2, 24), (2, 25)
RELIED_ON = (
    "_auth",
    "_auth_methods",
    "_client_keys",
    "_keepalive_interval",
    "_keepalive_timer",
    "_keepalive_timer_callback",
    "_log_packet",
    "_loop",
    "_next_service",
    "_reset_keepalive_timer",
    "_transport",
    "data_received",
    "process_packet",
    "send_packet",
    "send_userauth_request",
)

# RFC 4250, section 4.1.2, and RFC 8308
MSG_IGNORE, MSG_SERVICE_ACCEPT, MSG_EXT_INFO, MSG_CHANNEL_WINDOW_ADJUST = 2, 6, 7, 93

QUICK_ACK: int | None = getattr(socket, "TCP_QUICKACK", None)  # Linux alone has it
# Answers in a dialogue are smaller, pieces of a stream larger.
SMALL_BYTES = 4096
# asyncssh copies all that it has not looked at, twice for each packet, which has 32 KiB at most.
PART_BYTES = 48 * 1024


class _Silent(SSHLogger):
    """asyncssh puts into words what it does before it asks whether anybody wants to hear that:
    5 % of a connection, for a log that is switched off."""

    def log(self, level: int, msg: object, *args: object, **kwargs: object) -> None: ...

    def packet(
        self, pktid: int | None, packet: bytes, msg: str, *args: object, **kwargs: object
    ) -> None: ...

    def get_child(self, child: str = "", context: str = "") -> SSHLogger:  # noqa: ARG002  asyncssh's signature
        return self


_SILENT = _Silent()


class ShortConnection(asyncssh.SSHClientConnection):
    """From TCP's first packet to a command's first output in 6 round trips, which else take 9."""

    logger = _SILENT
    _accept_is_due = False
    _heard_at = 0.0

    def process_packet(
        self, pkttype: int, pktid: int, packet: "SSHPacket"
    ) -> bool | Awaitable[None]:
        """Authenticate without waiting to hear that one may: one round trip less.

        RFC 4253, section 10, asks to wait only where the key exchange proves nothing. The
        extensions are a server's first words under its new keys and in one flight with them; they
        say which signatures of an RSA key it takes. One without them is waited for.
        """
        if pkttype == MSG_SERVICE_ACCEPT and self._accept_is_due:
            self._accept_is_due = False
            return True
        is_known = super().process_packet(pkttype, pktid, packet)
        if pkttype == MSG_EXT_INFO and (service := self._next_service) is not None:
            self._accept_is_due = True
            accept = type(packet)(len(service).to_bytes(4, "big") + service)
            super().process_packet(MSG_SERVICE_ACCEPT, pktid, accept)
        return is_known

    async def send_userauth_request(self, method: bytes, *args: bytes, **options: object) -> None:
        """Sign at once instead of asking whether the key would do: one round trip less.

        There is no other key to try, and a refusal counts the same either way.
        """
        sign = getattr(self._auth, "_send_signed_request", None)
        if method == b"publickey" and options.get("key") is None and sign is not None:
            await sign()
        else:
            await super().send_userauth_request(method, *args, **options)  # type: ignore[arg-type]

    def send_packet(self, pkttype: int, *args: bytes, **options: object) -> None:
        """Leave out the empty packet that asyncssh sends before each.

        It thwarts an attack on CBC ciphers (RFC 4251, section 9.3.1), of which we offer none.
        """
        if pkttype != MSG_IGNORE:
            super().send_packet(pkttype, *args, **options)  # type: ignore[arg-type]

    def data_received(self, data: bytes, datatype: asyncssh.DataType = None) -> None:
        """Acknowledge a small piece at once: 40 ms less for each exec on a new connection.

        sshd leaves Nagle's algorithm on, so its next small answer waits for our acknowledgement,
        which Linux holds back in what looks like a dialogue. It forgets the setting at will, so it
        is made each time, for 1 us.
        """
        for at in range(0, len(data), PART_BYTES):
            super().data_received(data[at : at + PART_BYTES], datatype)
            if self._transport is None:
                return  # it has ended over that, and what comes behind is not looked at
        if len(data) < SMALL_BYTES and QUICK_ACK is not None and self._transport is not None:
            self._transport.get_extra_info("socket").setsockopt(socket.IPPROTO_TCP, QUICK_ACK, 1)

    def _log_packet(self, *_: object) -> None: ...

    def _reset_keepalive_timer(self) -> None:
        """Only note that something came; the timer looks when it is due.

        asyncssh sets a new timer for every piece of data. trio-asyncio keeps each, cancelled or
        not, until its time: a pass of its loop and some hundred bytes for 10 s, a stream over.
        """
        self._heard_at = self._loop.time()

    def _keepalive_timer_callback(self) -> None:
        left = self._heard_at + self._keepalive_interval - self._loop.time()
        if left > 0:
            self._keepalive_timer = self._loop.call_later(left, self._keepalive_timer_callback)
        else:
            super()._keepalive_timer_callback()


def shorten(connection: asyncssh.SSHClientConnection) -> None:
    """Take the short ways on a connection on which nothing was sent yet.

    With an asyncssh that is not known it stays as it is, which the log says once.
    """
    if reason := reason_against(connection):
        _say_once(reason)
        return
    connection.__class__ = ShortConnection
    if connection._client_keys:  # noqa: SLF001  what this module is for
        # Without the question which methods there are ("none"): one round trip less. A password
        # can go two ways; the answer says which, and a wrong one counts as a failed login.
        connection._auth_methods = [b"publickey"]  # noqa: SLF001


def first_window(connection: asyncssh.SSHClientConnection) -> int:
    """What a channel of it begins with, in bytes."""
    return LEAST_BYTES if isinstance(connection, ShortConnection) else PLAIN_BYTES


def take_over_window(chan: asyncssh.SSHClientChannel[bytes]) -> bool:
    """From now on the server may send what `grant` grants; False if asyncssh sees to it itself.

    asyncssh grants anew what has come in, not what was taken, and so buffers without
    end for a session that pauses: 250 MB of 300 printed to one that takes 60 MB/s. And it grants
    half a window at a time, which over a long line is half the speed.
    """
    if not isinstance(chan.get_connection(), ShortConnection):
        return False
    if not (hasattr(chan, "_init_recv_window") and hasattr(chan, "_recv_window")):
        _say_once("channels have other windows")
        return False
    chan._init_recv_window = 0  # noqa: SLF001  it grants when less than half of this is left
    return True


def grant(chan: asyncssh.SSHClientChannel[bytes], count: int) -> None:
    chan._recv_window += count  # noqa: SLF001
    chan.send_packet(MSG_CHANNEL_WINDOW_ADJUST, count.to_bytes(4, "big"))


def reason_against(connection: asyncssh.SSHClientConnection) -> str:
    """Why this asyncssh may not be what `ShortConnection` was written for; empty if it is."""
    version = tuple(int(each) for each in asyncssh.__version__.split(".")[:2])
    if not OLDEST <= version < TOO_NEW:
        return f"asyncssh {asyncssh.__version__} is not known"
    gone = [name for name in RELIED_ON if not hasattr(connection, name)]
    return f"asyncssh {asyncssh.__version__} has no {', '.join(gone)}" if gone else ""


@cache
def _say_once(reason: str) -> None:
    log.info("ssh_shortcuts_off", reason=reason)
