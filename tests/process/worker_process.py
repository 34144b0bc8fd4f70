"""`cronium-worker run` and the embedded queue as processes of their own."""

import json
import os
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO, Any, TypeAlias, TypeVar

from tests.forked import Forked, run_forked
from tests.ports import reserved_port
from worker.clock import now_ms
from worker.demo.sshd import LocalServer
from worker.queue_server.keys import open_keyring
from worker.queue_server.model import JobReport, Script, ScriptType, Server
from worker.queue_server.store import Store

TOKEN = "t0ken-of-the-api-6b1f"  # noqa: S105  opens nothing
DEADLINE_SECONDS = 60.0
COMMAND = (sys.executable, "-m", "worker")

Process: TypeAlias = Forked | subprocess.Popen[bytes]
T = TypeVar("T")


def wait_for(condition: Callable[[], T], what: str) -> T:
    """What `condition` says once that is true."""
    deadline = time.monotonic() + DEADLINE_SECONDS
    while not (found := condition()):
        assert time.monotonic() < deadline, f"waited in vain for {what}"
        time.sleep(0.02)
    return found


@dataclass(slots=True)
class WorkerProcess:
    process: Process
    log_file: Path

    @property
    def pid(self) -> int:
        return self.process.pid

    def log(self) -> list[dict[str, Any]]:
        lines = self.log_file.read_bytes().split(b"\n")
        return [json.loads(line) for line in lines[:-1]]  # the last may be half written

    def events(self, name: str) -> list[dict[str, Any]]:
        *lines, _ = self.log_file.read_bytes().split(b"\n")
        # Decoded are only these: it is asked for while something is waited for.
        return [json.loads(line) for line in lines if f'"event":"{name}"'.encode() in line]

    def wait_for_event(self, name: str) -> None:
        wait_for(lambda: self.events(name), f"{name} in the worker's log")

    def wait(self) -> int:
        return self.process.wait(DEADLINE_SECONDS)


@dataclass(slots=True)
class Site:
    """A folder with a queue and the workers that a test starts, all with these variables.

    With `forks` off, they are what an operator starts, to the last page of memory.
    """

    folder: Path
    port: int
    environ: Mapping[str, str] = field(default_factory=dict)
    forks: bool = True
    _queue: Process | None = None
    _count: int = 0
    _processes: list[Process] = field(default_factory=list)
    store: Store = field(init=False)

    def __post_init__(self) -> None:
        database = self.folder / "queue.db"
        self.store = Store.open(database, open_keyring(database, self.environ))

    def start_queue(self, *, lease: str = "60s") -> None:
        command = ["queue", "serve", "--db", str(self.folder / "queue.db"), "--lease", lease]
        reading, writing = os.pipe()
        with (
            (self.folder / "queue.err").open("ab") as err,
            os.fdopen(writing, "wb") as out,
        ):
            self._queue = self._start(
                [*command, "--port", str(self.port)],
                {**_bare_environment(), "CRONIUM_API_TOKEN": TOKEN, **self.environ},
                out,
                err,
            )
        with os.fdopen(reading, "rb") as said:
            said.readline()  # that it is ready

    def stop_queue(self) -> None:
        assert self._queue is not None
        self._queue.terminate()
        self._queue.wait(DEADLINE_SECONDS)

    def start_worker(self, state: str = "state", **environ: str) -> WorkerProcess:
        """A worker that logs to a file; `environ` without the `CRONIUM_` of the names."""
        self._count += 1
        log_file = self.folder / f"worker-{self._count}.log"
        with log_file.open("wb") as log:
            process = self._start(["run"], self.environment(state, environ), log)
        return WorkerProcess(process, log_file)

    def command(self, *arguments: str) -> subprocess.CompletedProcess[str]:
        """`cronium-worker` with these arguments and a worker's settings."""
        return run_forked(arguments, self.environment("state", {}), DEADLINE_SECONDS)

    def environment(self, state: str, environ: Mapping[str, str]) -> dict[str, str]:
        return {
            **_bare_environment(),
            "CRONIUM_API_ENDPOINT": f"http://127.0.0.1:{self.port}",
            "CRONIUM_API_TOKEN": TOKEN,
            "CRONIUM_STATE_DIR": str(self.folder / state),
            "CRONIUM_LOGGING_FORMAT": "json",
            **self.environ,
            **{f"CRONIUM_{name}": value for name, value in environ.items()},
        }

    def add(self, server: LocalServer) -> str:
        entry = Server(
            0, server.name, server.host, server.port, server.user, private_key=server.private_key
        )
        self.store.put_server(entry, now_ms())
        return server.name

    def submit(
        self, content: str, *names: str, environment: Mapping[str, str] | None = None
    ) -> str:
        script = Script(
            ScriptType.BASH, content, environment=dict(environment or {}), timeout_seconds=60
        )
        return self.store.submit_script("test", script, names, now_ms())

    def status(self, job_id: str) -> str:
        return self.store.report(job_id).job.status

    def finished(self, job_id: str) -> JobReport:
        wait_for(lambda: self.store.report(job_id).job.reported_at is not None, "the job's end")
        return self.store.report(job_id)

    def close(self) -> None:
        for process in self._processes:
            if process.poll() is None:
                process.kill()
            process.wait(DEADLINE_SECONDS)
        self.store.close()

    def _start(
        self,
        arguments: Sequence[str],
        environ: Mapping[str, str],
        stdout: IO[bytes],
        stderr: IO[bytes] | None = None,
    ) -> Process:
        process = (
            Forked(arguments, environ, stdout=stdout, stderr=stderr)
            if self.forks
            else subprocess.Popen([*COMMAND, *arguments], env=environ, stdout=stdout, stderr=stderr)
        )
        self._processes.append(process)
        return process


@contextmanager
def open_site(folder: Path, **environ: str) -> Iterator[Site]:
    with reserved_port() as port:
        site = Site(folder, port, environ)
        try:
            yield site
        finally:
            site.close()


def _bare_environment() -> dict[str, str]:
    return {name: value for name, value in os.environ.items() if not name.startswith("CRONIUM_")}
