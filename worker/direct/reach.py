"""The way to servers for a command: a pool of connections, and the deployed runners."""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from worker.database import Database
from worker.remote.artifact import load_artifact
from worker.remote.connector import Connector
from worker.remote.deployments import Deployments
from worker.remote.loop import open_loop
from worker.remote.pool import open_pool
from worker.remote.session import Remote
from worker.settings import SshSettings


@asynccontextmanager
async def open_remote(settings: SshSettings, database: Database) -> AsyncIterator[Remote]:
    """`database` has the host keys and the runner cache."""
    async with (
        open_loop(),
        open_pool(Connector(settings, database), settings) as pool,
    ):
        seconds = settings.runner_verify_after_seconds
        yield Remote(pool, Deployments(database, load_artifact(), verify_after_seconds=seconds))
