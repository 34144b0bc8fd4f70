"""A look at one server: what lies there, and its runner."""

from collections.abc import Awaitable, Callable
from functools import partial
from typing import TypeVar

import trio

from worker.database import Database
from worker.direct.reach import open_remote
from worker.direct.servers import NamedServer
from worker.errors import ConnectError, RunnerMissingError, WorkerError
from worker.remote.connection import Connection
from worker.remote.credentials import Credentials
from worker.remote.runner import CALL_SECONDS
from worker.remote.session import Remote, ServerSession
from worker.remote.target import Credential, Target
from worker.settings import Settings

T = TypeVar("T")

# A runner that is gone is deployed on the way.
ATTEMPTS = 2


def target_of(server: NamedServer, credential: Credential) -> Target:
    return Target(server.address.host, server.address.port, server.user, credential)


async def visit(
    settings: Settings,
    database: Database,
    server: NamedServer,
    credential: Credential,
    do: Callable[[ServerSession], Awaitable[T]],
) -> T:
    """What `do` gives back, with a way to the runner there.

    Raises WorkerError with the reason if there is none, ConnectError if trying again may help.
    """
    target = target_of(server, credential)
    credentials = Credentials(settings.encryption_key, lambda _: None)

    async def work(remote: Remote, _: Connection) -> T:
        session = ServerSession(remote, server.name, target, credentials, job_id="")
        try:
            return await _again_where_missing(session, do)
        finally:
            session.close()

    return await _reached(settings, database, target, work)


async def connect(
    settings: Settings,
    database: Database,
    server: NamedServer,
    credential: Credential,
    do: Callable[[Connection], Awaitable[T]],
) -> T:
    """What `do` gives back with a connection; raises as `visit` does."""

    async def work(_: Remote, connection: Connection) -> T:
        return await do(connection)

    return await _reached(settings, database, target_of(server, credential), work)


async def _again_where_missing(
    session: ServerSession, do: Callable[[ServerSession], Awaitable[T]]
) -> T:
    for _ in range(ATTEMPTS - 1):
        try:
            return await do(session)
        except RunnerMissingError:
            continue
    return await do(session)


async def _reached(
    settings: Settings,
    database: Database,
    target: Target,
    work: Callable[[Remote, Connection], Awaitable[T]],
) -> T:
    async with open_remote(settings.ssh, database) as remote:
        outcome = await _outcome(settings, remote, target, work)
    if isinstance(outcome, WorkerError):
        raise outcome
    return outcome


async def _outcome(
    settings: Settings,
    remote: Remote,
    target: Target,
    work: Callable[[Remote, Connection], Awaitable[T]],
) -> T | WorkerError:
    """As a value, for no group of exceptions to be made of it."""
    credentials = Credentials(settings.encryption_key, lambda _: None)
    opened = partial(credentials.opened, target.credential)
    seconds = settings.phases.setup_seconds
    try:
        # A call of the runner's is no setup, but may take its time, too.
        with trio.fail_after(seconds + CALL_SECONDS):
            pooled = await remote.pool.place(target, opened, job_id="")
            try:
                with trio.fail_after(seconds):
                    connection = await remote.pool.connection(pooled)
                return await work(remote, connection)
            finally:
                remote.pool.leave(pooled)
    except WorkerError as error:
        return error
    except trio.TooSlowError:
        return ConnectError(f"over its limit of {seconds:g} s (CRONIUM_SETUP_TIMEOUT)")
