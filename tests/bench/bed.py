"""A queue process, and worker processes on it."""

import json
import sqlite3
import time
from collections.abc import Iterator, Sequence
from contextlib import closing, contextmanager
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from signal import SIGTERM

from tests.bench import processes
from tests.bench.bench import CannotMeasureError
from tests.process.worker_process import Site, WorkerProcess, open_site
from worker.clock import now_ms
from worker.demo.sshd import LocalServer
from worker.queue_server.model import JobReport, Script, ScriptType

LOOK_SECONDS = 0.05
# No experiment has a job that takes longer, however slow the machine.
JOBS_SECONDS = 600.0
LEAVE_SECONDS = 30.0
# A worker that has used less processor time than this during a look has nothing left to do.
QUIET_SECONDS, QUIET_CPU_SECONDS = 0.4, 0.004
SETTLE_SECONDS = 60.0


@dataclass(frozen=True, slots=True)
class Done:
    """A job that has succeeded: what it was due at and reported at, in Unix milliseconds."""

    id: str
    due_at: int
    reported_at: int

    @property
    def wall_seconds(self) -> float:
        return (self.reported_at - self.due_at) / 1000


class Worker:
    """A worker process, and what it has cost."""

    def __init__(self, started: WorkerProcess) -> None:
        self._started = started

    @property
    def pid(self) -> int:
        return self._started.pid

    @property
    def cpu_seconds(self) -> float:
        return processes.cpu_seconds(self.pid)

    def settle(self) -> None:
        """Wait until it has done all that follows a job's end."""
        deadline = time.monotonic() + SETTLE_SECONDS
        before = self.cpu_seconds
        while time.monotonic() < deadline:
            time.sleep(QUIET_SECONDS)
            now = self.cpu_seconds
            if now - before < QUIET_CPU_SECONDS:
                return
            before = now
        raise CannotMeasureError(f"worker {self.pid} does not come to rest")

    def stop(self) -> None:
        self._started.process.send_signal(SIGTERM)
        try:
            self._started.process.wait(LEAVE_SECONDS)
        finally:
            if self._started.process.poll() is None:
                self._started.process.kill()

    def moments(self, event: str) -> dict[str, float]:
        """When its log has `event`, in Unix seconds, by job; of several the last."""
        return {
            line["job_id"]: datetime.fromisoformat(line["timestamp"]).timestamp()
            for line in self._started.events(event)
        }

    def following_seconds(self, jobs: Sequence[str]) -> dict[str, float]:
        """By job of one server, from when it is known to be ours to the run's last frame."""
        deadline = time.monotonic() + SETTLE_SECONDS
        # The log is written a moment after the API has heard of the job's end.
        while missing := set(jobs).difference(ended := self.moments("execution_ended")):
            if time.monotonic() > deadline:
                raise CannotMeasureError(f"the log does not tell of {missing}")
            time.sleep(LOOK_SECONDS)
        began = self.moments("job_started")
        return {job: ended[job] - began[job] for job in jobs}


class Bed:
    """Workers log at info to a file, each line that a script prints included unless told else."""

    def __init__(self, site: Site) -> None:
        self._site = site
        self._database = site.folder / "queue.db"

    @property
    def port(self) -> int:
        return self._site.port

    def add(self, servers: Sequence[LocalServer]) -> list[str]:
        return [self._site.add(server) for server in servers]

    def start_worker(self, state: str = "state", **environ: str) -> Worker:
        """`environ` without the `CRONIUM_` of the names."""
        told = {"SSH_MAX_CONNECTIONS": "2000", "DRAIN_TIMEOUT": "0", **environ}
        started = self._site.start_worker(state, **told)
        started.wait_for_event("worker_started")
        return Worker(started)

    def state(self, name: str = "state") -> Path:
        return self._site.folder / name

    def submit(self, script: str, names: Sequence[str], *, due_at: int | None = None) -> str:
        made = Script(ScriptType.BASH, script, timeout_seconds=int(JOBS_SECONDS))
        return self._site.store.submit_script("bench", made, names, now_ms(), scheduled_for=due_at)

    def run(self, script: str, names: Sequence[str]) -> Done:
        """One job, to its end."""
        job_id = self.submit(script, names)
        return self.finish()[job_id]

    def finish(self) -> dict[str, Done]:
        """All jobs so far, once the last has been reported.

        Raises CannotMeasureError if one has not succeeded.
        """
        deadline = time.monotonic() + JOBS_SECONDS
        # A look at the table alone: the store's own reads take the lock that the queue writes with.
        with closing(sqlite3.connect(f"file:{self._database}?mode=ro", uri=True)) as connection:
            unfinished = "SELECT count(*) FROM jobs WHERE reported_at IS NULL"
            while connection.execute(unfinished).fetchone()[0]:
                if time.monotonic() > deadline:
                    raise CannotMeasureError("a job does not end")
                time.sleep(LOOK_SECONDS)
            rows = connection.execute(
                "SELECT id, scheduled_for, reported_at, status FROM jobs"
            ).fetchall()
            failed = [
                result
                for (result,) in connection.execute(
                    "SELECT result FROM jobs WHERE json_extract(result, '$.exitCode') != 0"
                )
            ]
        if failed:
            raise CannotMeasureError(f"{len(failed)} jobs failed, such as: {_words(failed[-1])}")
        return {job: Done(job, due, reported) for job, due, reported, _ in rows}

    def report(self, job_id: str) -> JobReport:
        return self._site.store.report(job_id)


def _words(result: str) -> str:
    told = json.loads(result)
    message = told.get("metrics", {}).get("message", "")
    errors = {server["error"] for server in told.get("metrics", {}).get("servers", ())} - {None}
    return "; ".join([message, *sorted(errors)[:3]])


@contextmanager
def open_bed(folder: Path) -> Iterator[Bed]:
    """A queue that is ready; at the end no process of it is left."""
    with open_site(folder) as site:
        site.forks = False
        site.start_queue(lease="600s")
        yield Bed(site)
