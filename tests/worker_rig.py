"""A whole worker in this process: the real service against the real embedded queue."""

from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path

import trio

from tests.queue_rig import TOKEN, QueueRig, running_queue
from worker.clock import now_ms
from worker.database import Database
from worker.demo.sshd import LocalServer
from worker.flight import Flight
from worker.queue_server.model import JobReport, Script, ScriptType, Server
from worker.service import Service, open_service
from worker.settings.environment import load
from worker.state.directory import open_state
from worker.state.identity import worker_id

POLL_SECONDS = 0.02


@dataclass(frozen=True, slots=True)
class WorkerRig:
    queue: QueueRig
    database: Database
    service: Service
    drain: trio.Event

    def flight(self, job_id: str) -> Flight | None:
        """The job as this worker has it in flight, if it does."""
        return self.service._jobs._flights.get(job_id)

    def add(self, *servers: LocalServer) -> list[str]:
        """Make `servers` known to the queue; their names."""
        for server in servers:
            self.add_entry(
                server.name,
                host=server.host,
                port=server.port,
                username=server.user,
                private_key=server.private_key,
            )
        return [server.name for server in servers]

    def add_entry(
        self,
        name: str,
        *,
        host: str = "127.0.0.1",
        port: int = 22,
        username: str = "deploy",
        private_key: str | None = None,
        passphrase: str | None = None,
        password: str | None = None,
    ) -> None:
        entry = Server(0, name, host, port, username, private_key, passphrase, password)
        self.queue.store.put_server(entry, now_ms())

    def submit(
        self,
        content: str,
        names: Sequence[str],
        *,
        kind: ScriptType = ScriptType.BASH,
        environment: Mapping[str, str] | None = None,
        input_data: object = None,
        directory: str = "",
        timeout_seconds: int = 60,
        at: int | None = None,
    ) -> str:
        script = Script(
            kind, content, directory, dict(environment or {}), input_data or {}, timeout_seconds
        )
        return self.queue.store.submit_script("test", script, names, now_ms(), scheduled_for=at)

    async def finished(self, job_id: str) -> JobReport:
        """The job once the worker has reported it."""
        while True:
            report = self.queue.store.report(job_id)
            if report.job.reported_at is not None:
                return report
            await trio.sleep(POLL_SECONDS)

    async def until(self, job_id: str, status: str) -> None:
        while self.queue.status(job_id) != status:
            await trio.sleep(POLL_SECONDS)

    async def run(self, content: str, names: Sequence[str], **options: object) -> JobReport:
        return await self.finished(self.submit(content, names, **options))  # type: ignore[arg-type]  # options are those of submit

    def rows(self, statement: str) -> list[tuple[object, ...]]:
        """What the worker's own state file holds."""
        with self.database.transaction() as tx:
            return tx.execute(statement).fetchall()


async def until(holds: Callable[[], object], seconds: float = 15) -> None:
    with trio.fail_after(seconds):
        await trio.lowlevel.checkpoint()
        while not holds():
            await trio.sleep(0.02)


async def until_exists(path: Path) -> None:
    while not path.exists():
        await trio.sleep(POLL_SECONDS)


def drop_connections(rig: WorkerRig) -> None:
    for every in rig.service._pool._pooled.values():
        for pooled in every:
            assert pooled._connection is not None
            pooled._connection._connection.abort()


async def until_idle(rig: WorkerRig) -> None:
    """Until the worker has no job in flight, cleanup included."""
    while rig.service._jobs.ids:
        await trio.sleep(POLL_SECONDS)


def outcomes(report: JobReport) -> dict[str, tuple[str, int]]:
    """Outcome and exit code by server's name."""
    assert report.job.result is not None
    return {
        entry["name"]: (entry["outcome"], entry["exitCode"])
        for entry in report.job.result["metrics"]["servers"]
    }


def entry_of(report: JobReport, name: str) -> dict[str, object]:
    """One server's entry in the job's metrics."""
    assert report.job.result is not None
    servers: list[dict[str, object]] = report.job.result["metrics"]["servers"]
    return next(entry for entry in servers if entry["name"] == name)


@asynccontextmanager
async def running_worker(
    folder: Path, environ: Mapping[str, str] | None = None, *, lease_seconds: float = 60
) -> AsyncIterator[WorkerRig]:
    """A queue and a worker on it; both are gone at the end."""
    async with (
        running_queue(folder, lease_seconds=lease_seconds, environ=dict(environ or {})) as queue,
        worker_on(queue, folder / "state", environ) as rig,
    ):
        yield rig


@asynccontextmanager
async def worker_on(
    queue: QueueRig, state: Path, environ: Mapping[str, str] | None = None
) -> AsyncIterator[WorkerRig]:
    """A worker with its state in `state`; drained at the end."""
    loaded = load(
        {
            "CRONIUM_API_ENDPOINT": queue.address,
            "CRONIUM_API_TOKEN": TOKEN,
            "CRONIUM_STATE_DIR": str(state),
            "CRONIUM_DRAIN_TIMEOUT": "0",
            **(environ or {}),
        }
    )
    with open_state(state) as database:
        async with (
            open_service(loaded, database, worker_id(database, None)) as service,
            trio.open_nursery() as nursery,
        ):
            drain = trio.Event()
            nursery.start_soon(service.run, drain)
            yield WorkerRig(queue, database, service, drain)
            drain.set()
