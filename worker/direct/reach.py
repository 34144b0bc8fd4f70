"""The way to servers for a command: a pool of connections, and the deployed runners."""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import structlog
import trio_asyncio

from worker.database import Database
from worker.remote.artifact import load_artifact
from worker.remote.connector import Connector
from worker.remote.deployments import Deployments
from worker.remote.pool import open_pool
from worker.remote.session import Remote
from worker.settings import SshSettings

log = structlog.get_logger()


@asynccontextmanager
async def open_remote(settings: SshSettings, database: Database) -> AsyncIterator[Remote]:
    """`database` has the host keys and the runner cache."""
    async with (
        trio_asyncio.open_loop() as loop,
        open_pool(Connector(settings, database), settings) as pool,
    ):
        # trio-asyncio would end the command for what asyncio only reports.
        loop.set_exception_handler(_log_stray)
        seconds = settings.runner_verify_after_seconds
        yield Remote(pool, Deployments(database, load_artifact(), verify_after_seconds=seconds))


def _log_stray(_loop: object, context: dict[str, object]) -> None:
    log.error("asyncio_error", error=repr(context.get("exception") or context.get("message")))
