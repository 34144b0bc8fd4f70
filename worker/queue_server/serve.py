"""The HTTP server of the embedded queue."""

import ipaddress
import logging
import os
import socket
import ssl
from collections.abc import Awaitable, Callable
from contextlib import ExitStack
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, cast

import hypercorn.config
import hypercorn.trio
import trio

from worker.errors import SettingsError
from worker.queue_server.app import queue_app
from worker.queue_server.arrivals import Arrivals
from worker.queue_server.file import open_database
from worker.queue_server.keys import Keyring
from worker.queue_server.leases import LEASE_SECONDS, Leases
from worker.queue_server.runtime import with_runtime
from worker.secret import Secret

# Longer than clients keep an idle connection (httpx: 5 s), so that they never send a request
# into a connection that is just being closed.
KEEP_ALIVE_SECONDS = 75.0
# What is being answered at the end; long polls are answered at once.
GRACE_SECONDS = 2.0
BACKLOG = 128


@dataclass(frozen=True, slots=True)
class Tls:
    certificate: Path
    key: Path


@dataclass(frozen=True, slots=True)
class ServeSettings:
    """`jwt_secret` verifies the tokens of the runtime API, which is off without it."""

    database: Path
    keyring: Keyring
    token: Secret
    host: str = "127.0.0.1"
    port: int = 8370
    lease_seconds: float = LEASE_SECONDS
    tls: Tls | None = None
    jwt_secret: Secret | None = None


def is_loopback(host: str) -> bool:
    """Whether nobody but this machine can reach a server bound to `host`."""
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"


async def serve(
    settings: ServeSettings, until: Callable[[], Awaitable[object]], ready: Callable[[str], None]
) -> None:
    """Serve until `until` returns; `ready` is given the address once it can be connected to.

    Raises OSError if the address cannot be used, SettingsError if the certificate cannot. The
    nurseries nest in the order in which things must end: requests, then what wakes them.
    """
    with ExitStack() as opened:
        listener = opened.enter_context(_listen(settings.host, settings.port))
        database = open_database(settings.database, settings.keyring)
        opened.callback(database.close)
        leases = Leases(database, settings.keyring, lease_seconds=settings.lease_seconds)
        arrivals = Arrivals(settings.database)
        opened.callback(arrivals.close)
        config = _config(settings, listener)
        stop = trio.Event()
        async with trio.open_nursery() as support:
            support.start_soon(arrivals.watch_forever)
            async with trio.open_nursery() as requests:
                app = with_runtime(
                    queue_app(database, settings.keyring, leases, arrivals, settings.token),
                    database,
                    settings.jwt_secret,
                )
                await requests.start(
                    # Starlette types the messages as mappings, hypercorn one by one.
                    partial(
                        hypercorn.trio.serve, cast(Any, app), config, shutdown_trigger=stop.wait
                    )
                )
                ready(_address(settings, listener))
                await until()
                stop.set()
                arrivals.end_polls()
            support.cancel_scope.cancel()


def _listen(host: str, port: int) -> socket.socket:
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    return socket.create_server((host, port), family=family, backlog=BACKLOG)


def _address(settings: ServeSettings, listener: socket.socket) -> str:
    scheme = "http" if settings.tls is None else "https"
    host = f"[{settings.host}]" if ":" in settings.host else settings.host
    return f"{scheme}://{host}:{listener.getsockname()[1]}"


def _config(settings: ServeSettings, listener: socket.socket) -> hypercorn.config.Config:
    config = hypercorn.config.Config()
    config.accesslog = None
    config.errorlog = logging.getLogger("cronium.queue")
    config.include_server_header = False
    config.keep_alive_timeout = KEEP_ALIVE_SECONDS
    config.keep_alive_max_requests = 1_000_000
    config.graceful_timeout = GRACE_SECONDS
    if settings.tls is not None:
        config.certfile = str(settings.tls.certificate)
        config.keyfile = str(settings.tls.key)
        config.alpn_protocols = ["http/1.1"]
        try:
            config.create_ssl_context()
        except ssl.SSLError as error:
            given = f"--tls-cert {settings.tls.certificate}, --tls-key {settings.tls.key}"
            fault = f"{given}: cannot be used ({error}); expected a certificate and its key in PEM"
            raise SettingsError((fault,)) from error
    # Bound by us, because out of hypercorn's nurseries a busy port would come as a group of
    # groups; a copy, because hypercorn closes what it is given.
    config.bind = [f"fd://{os.dup(listener.fileno())}"]
    return config
