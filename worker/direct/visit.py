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
from worker.remote.session import Remote, ServerSession
from worker.remote.target import Credential, Target
from worker.settings import Settings

T = TypeVar("T")

# Connect, deploy where that is needed, and a call of the runner's, which may take 30 s.
VISIT_SECONDS = 90.0
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
    target, credentials = _access(settings, server, credential)

    async def work(remote: Remote) -> T:
        session = ServerSession(remote, server.name, target, credentials, job_id="")
        try:
            return await _again_where_missing(session, do)
        finally:
            session.close()

    return await _reached(settings, database, server, work)


async def connect(
    settings: Settings,
    database: Database,
    server: NamedServer,
    credential: Credential,
    do: Callable[[Connection], Awaitable[T]],
) -> T:
    """What `do` gives back with a connection; raises as `visit` does."""
    target, credentials = _access(settings, server, credential)

    async def work(remote: Remote) -> T:
        opened = partial(credentials.opened, credential)
        pooled = await remote.pool.place(target, opened, job_id="")
        try:
            return await do(await remote.pool.connection(pooled))
        finally:
            remote.pool.leave(pooled)

    return await _reached(settings, database, server, work)


def _access(
    settings: Settings, server: NamedServer, credential: Credential
) -> tuple[Target, Credentials]:
    return target_of(server, credential), Credentials(settings.encryption_key, lambda _: None)


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
    server: NamedServer,
    work: Callable[[Remote], Awaitable[T]],
) -> T:
    async with open_remote(settings.ssh, database) as remote:
        outcome = await _outcome(server, partial(work, remote))
    if isinstance(outcome, WorkerError):
        raise outcome
    return outcome


async def _outcome(server: NamedServer, work: Callable[[], Awaitable[T]]) -> T | WorkerError:
    """As a value, for no group of exceptions to be made of it."""
    try:
        with trio.fail_after(VISIT_SECONDS):
            return await work()
    except WorkerError as error:
        return error
    except trio.TooSlowError:
        return ConnectError(f"{server} does not answer")
