"""One worker's place: its state directory, and the processes that come and go on it."""

import shutil
import signal
import sqlite3
import subprocess
from contextlib import closing
from pathlib import Path

from tests.live_files import files_of_runs
from tests.process.worker_process import COMMAND, Site, WorkerProcess

# A drain of no length: giving the jobs back, the cleanups' haste, two flushes of 10 s.
LEAVE_SECONDS = 60.0
# Where it was drained, and where the API had not heard all of it yet.
DRAINED, TRY_AGAIN = 0, 75
DEFECTS = ("job_fault", "execution_fault", "asyncio_error")


class Seat:
    """`is_up` is whether a worker is there to be struck."""

    def __init__(self, site: Site, name: str, environ: dict[str, str]) -> None:
        self.name = name
        self.state = site.folder / f"state-{name}"
        # The ids of the workers whose state was lost.
        self.lost_ids: list[str] = []
        self._environment = site.environment(
            self.state.name, {**environ, "ORCHESTRATOR_ID": f"chaos-{name}"}
        )
        self._folder = site.folder
        self._workers: list[WorkerProcess] = []
        self.is_up = False

    @property
    def worker(self) -> WorkerProcess:
        return self._workers[-1]

    @property
    def worker_id(self) -> str | None:
        """As the queue knows the worker, if it has come to have an id."""
        try:
            for (suffix,) in self.rows("SELECT suffix FROM identity"):
                return f"chaos-{self.name}-{suffix}"
        except sqlite3.OperationalError:  # it has not made its tables yet
            pass
        return None

    def start(self) -> None:
        base = self._folder / f"worker-{self.name}-{len(self._workers) + 1}"
        log_file = base.with_suffix(".log")
        with log_file.open("wb") as log, base.with_suffix(".err").open("wb") as err:
            process = subprocess.Popen(
                [*COMMAND, "run"],
                env=self._environment,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=err,
                start_new_session=True,  # a Ctrl-C at the terminal is for us
            )
        self._workers.append(WorkerProcess(process, log_file))
        self.is_up = True

    def signal(self, number: signal.Signals) -> None:
        self.worker.process.send_signal(number)

    def kill(self) -> None:
        self.is_up = False
        self.worker.process.kill()
        self.worker.wait()

    def has_started(self) -> bool:
        """Whether the worker has come to obey signals."""
        return bool(self.worker.events("worker_started"))

    def has_ended(self) -> bool:
        return self.worker.process.poll() is not None

    def lose_state(self) -> str | None:
        """The id that the worker had, if it had come to have one."""
        lost_id = self.worker_id
        if lost_id is not None:
            self.lost_ids.append(lost_id)
        shutil.rmtree(self.state, ignore_errors=True)
        return lost_id

    def rows(self, statement: str) -> list[tuple[str, ...]]:
        """What the state file has; nothing where there is none."""
        database = self.state / "state.db"
        if not database.exists():
            return []
        with closing(sqlite3.connect(database)) as connection:
            return connection.execute(statement).fetchall()

    def kept_of_runs(self) -> list[Path]:
        return files_of_runs(self.state)

    def defects(self) -> list[str]:
        """What its workers have logged of defects of their own."""
        return [
            f"{worker.log_file.name}: {line}"
            for worker in self._workers
            for line in worker.log()
            if line["event"] in DEFECTS
        ]

    def close(self) -> None:
        if self._workers and not self.has_ended():
            self.kill()
