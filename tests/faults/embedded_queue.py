"""The embedded queue, served over real HTTP from a thread of the tests."""

from pathlib import Path

import trio

from tests.faults.background import Background
from tests.process.worker_process import TOKEN
from worker.queue_server.keys import open_keyring
from worker.queue_server.serve import ServeSettings, serve
from worker.secret import Secret


def serve_queue(background: Background, database: Path) -> int:
    """Its port; it is served for as long as the background lasts."""
    settings = ServeSettings(database, open_keyring(database, {}), Secret(TOKEN), port=0)
    address: str = background.start(_serve, settings)
    return int(address.rpartition(":")[2])


async def _serve(settings: ServeSettings, task_status: trio.TaskStatus[str]) -> None:
    await serve(settings, trio.sleep_forever, lambda address: task_status.started(address))
