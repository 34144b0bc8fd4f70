"""The embedded queue, served in this process over real HTTP."""

import json
import ssl
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx
import trio

from worker.clock import now_ms
from worker.queue_server.keys import open_keyring
from worker.queue_server.model import Priority, Script, ScriptType, Server
from worker.queue_server.serve import ServeSettings, Tls, serve
from worker.queue_server.store import Store
from worker.secret import Secret

# Trusts nobody: to read who is trusted takes 30 ms of a processor.
NO_TLS = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)

TOKEN = "t0ken"  # noqa: S105  opens nothing


@dataclass(frozen=True, slots=True)
class QueueRig:
    """`store` is a second connection, as a command in another process has one."""

    address: str
    database: Path
    store: Store

    def client(self, worker_id: str = "worker-1", **options: Any) -> httpx.AsyncClient:  # noqa: ANN401 httpx's own
        return httpx.AsyncClient(
            base_url=self.address + "/api/internal",
            headers={"Authorization": f"Bearer {TOKEN}", "X-Orchestrator-ID": worker_id},
            timeout=20,
            **{"verify": NO_TLS, **options},
        )

    def submit(
        self, *, at: int | None = None, priority: Priority = Priority.NORMAL, servers: int = 1
    ) -> str:
        names = [f"web-{number + 1}" for number in range(servers)]
        for name in names:
            self.store.put_server(
                Server(0, name, "127.0.0.1", 22, "deploy", private_key="KEY"), now_ms()
            )
        script = Script(ScriptType.BASH, "echo hello", environment={"GREETING": "hello"})
        return self.store.submit_script(
            "hello.sh", script, names, now_ms(), scheduled_for=at, priority=priority
        )

    def status(self, job_id: str) -> str:
        return self.store.report(job_id).job.status


@asynccontextmanager
async def running_queue(
    folder: Path,
    *,
    lease_seconds: float = 60,
    environ: dict[str, str] | None = None,
    tls: Tls | None = None,
    jwt_secret: Secret | None = None,
) -> AsyncIterator[QueueRig]:
    database = folder / "queue.db"
    keyring = open_keyring(database, environ or {})
    settings = ServeSettings(
        database,
        keyring,
        Secret(TOKEN),
        port=0,
        lease_seconds=lease_seconds,
        tls=tls,
        jwt_secret=jwt_secret,
    )
    stop = trio.Event()
    async with trio.open_nursery() as nursery:
        address: str = await nursery.start(_serve, settings, stop)
        store = Store.open(database, keyring)
        try:
            yield QueueRig(address, database, store)
        finally:
            store.close()
            stop.set()


async def _serve(
    settings: ServeSettings, stop: trio.Event, task_status: trio.TaskStatus[str]
) -> None:
    await serve(settings, stop.wait, lambda address: task_status.started(address))


async def claim(
    client: httpx.AsyncClient, *, batch: int = 10, wait: int | None = None
) -> list[dict[str, Any]]:
    headers = {} if wait is None else {"Prefer": f"wait={wait}"}
    answer = await client.get("/jobs/queue", params={"batchSize": batch}, headers=headers)
    assert answer.status_code == 200, answer.text
    jobs: list[dict[str, Any]] = json.loads(answer.content)["jobs"]
    return jobs
