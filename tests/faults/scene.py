"""One job, a worker, and between them and their surroundings all that can fail."""

import sqlite3
from collections.abc import Callable, Iterator
from contextlib import ExitStack, closing, contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path

from tests.faults.api_proxy import ApiProxy
from tests.faults.background import open_background
from tests.faults.embedded_queue import serve_queue
from tests.faults.gate import Gate
from tests.faults.tcp_proxy import TcpProxy
from tests.live_files import files_of_runs
from tests.process.worker_process import Site, WorkerProcess, open_site, wait_for
from worker.demo.processes import live_processes
from worker.demo.sshd import Sshd, running
from worker.queue_server.model import JobReport

LINE = "·" * 100
FIRST_OUT = "".join(f"out {n} {LINE}\n" for n in range(1, 501))
FIRST_ERR = "".join(f"err {n} {LINE}\n" for n in range(1, 51))
SCRIPT = f"""\
echo x >>~/starts
until [ -e ~/begin ]; do sleep 0.02; done
seq -f 'err %g {LINE}' 1 50 >&2
seq -f 'out %g {LINE}' 1 500
until [ -e ~/end ]; do sleep 0.02; done
echo "the bad end of $CRONIUM_SERVER_NAME" >&2
for n in 1 2 3 4 5 6 7 8 9; do echo "end $n of $CRONIUM_SERVER_NAME"; sleep 0.02; done
"""
FAULTS = ("job_fault", "execution_fault", "asyncio_error")


def printed(server: str) -> tuple[str, str]:
    """All that the script prints there, on stdout and on stderr."""
    ends = "".join(f"end {n} of {server}\n" for n in range(1, 10))
    return FIRST_OUT + ends, f"{FIRST_ERR}the bad end of {server}\n"


@dataclass(slots=True)
class Scene:
    """The script waits for `begin`, prints, waits for `end` and prints the rest.

    One TCP proxy per server stands in `lines`, the API's in `api`; `gate` is before all servers.
    """

    folder: Path
    site: Site
    sshd: Sshd
    gate: Gate
    lines: tuple[TcpProxy, ...]
    api: ApiProxy
    environ: dict[str, str] = field(default_factory=dict)
    workers: list[WorkerProcess] = field(default_factory=list)
    _job_id: str | None = None

    @property
    def worker(self) -> WorkerProcess:
        """The one that was started last."""
        return self.workers[-1]

    @property
    def names(self) -> tuple[str, ...]:
        return tuple(server.name for server in self.sshd.servers)

    @property
    def homes(self) -> tuple[Path, ...]:
        return tuple(server.home for server in self.sshd.servers)

    @property
    def database(self) -> Path:
        return self.folder / "state" / "state.db"

    def start_worker(self) -> None:
        self.workers.append(self.site.start_worker(**self.environ))

    def kill_worker(self) -> None:
        self.worker.process.kill()
        self.worker.wait()

    def submit(self, *, begins: bool = True, ends: bool = True, padding: int = 0) -> None:
        for allowed in [self.begin] * begins + [self.end] * ends:
            allowed()
        self._job_id = self.site.submit(f"{SCRIPT}# {'.' * padding}\n", *self.names)

    def begin(self) -> None:
        for home in self.homes:
            (home / "begin").touch()

    def end(self) -> None:
        for home in self.homes:
            (home / "end").touch()

    def wait_started(self) -> None:
        wait_for(lambda: all(map(str.__len__, self.starts())), "the script's start")

    def starts(self) -> list[str]:
        """What the script has left on each server, one `x` per start."""
        files = [home / "starts" for home in self.homes]
        return [file.read_text().replace("\n", "") if file.exists() else "" for file in files]

    def is_reported(self) -> bool:
        return self.report().job.reported_at is not None

    def report(self) -> JobReport:
        assert self._job_id is not None
        return self.site.store.report(self._job_id)

    def cut(self) -> None:
        self._each_line(TcpProxy.cut)

    def stall(self) -> None:
        self._each_line(TcpProxy.stall)

    def heal(self) -> None:
        self._each_line(TcpProxy.heal)

    def connections(self) -> list[int]:
        """How many each server has had."""
        return [line.accepted for line in self.lines]

    def open_connections(self) -> list[int]:
        """The ports of the lines in use."""
        return [line.port for line in self.lines if line.open]

    def runs(self) -> list[Path]:
        """What the servers keep of runs, but for tombstones."""
        places = ("runs/*", "rooms/*/for.*")
        return [path for home in self.homes for each in places for path in _root(home).glob(each)]

    def tombstones(self) -> list[str]:
        return [path.name for home in self.homes for path in _root(home).glob("forgotten/*")]

    def half_deployed(self) -> list[Path]:
        return [path for home in self.homes for path in _root(home).glob(".new*")]

    def outbox(self) -> list[str]:
        """The kinds of what the worker still keeps to tell the API, parked entries included."""
        with closing(sqlite3.connect(self.database)) as connection:
            return [kind for (kind,) in connection.execute("SELECT kind FROM outbox")]

    def kept_of_runs(self) -> list[Path]:
        return files_of_runs(self.database.parent)

    def faults(self) -> list[str]:
        """What the workers have logged of defects of their own."""
        return [
            str(line) for worker in self.workers for name in FAULTS for line in worker.events(name)
        ]

    def sessions(self) -> list[int]:
        """The sshd of each connection that the server still takes for open."""
        return [process.pid for process in live_processes() if process.parent == self.sshd.pid]

    @contextmanager
    def state_locked(self) -> Iterator[None]:
        """Meanwhile the worker can write nothing into its state file."""
        with closing(sqlite3.connect(self.database, isolation_level=None)) as connection:
            connection.execute("BEGIN IMMEDIATE")
            yield
            connection.execute("ROLLBACK")

    def _each_line(self, do: Callable[[TcpProxy], None]) -> None:
        for line in self.lines:
            do(line)


@contextmanager
def open_scene(folder: Path, *, servers: int = 1) -> Iterator[Scene]:
    """The worker is to be started; at the end nothing of it or its servers is left."""
    with ExitStack() as stack:
        background = stack.enter_context(open_background())
        site = stack.enter_context(open_site(folder))
        gate = Gate(folder / "gate")
        addresses = {f"server-{n}": f"127.0.1.{n}" for n in range(1, servers + 1)}
        sshd = Sshd(folder / "sshd", addresses, login_shell=gate.shell)
        stack.enter_context(running(sshd))
        lines = tuple(TcpProxy(background, (s.host, s.port)) for s in sshd.servers)
        for server, line in zip(sshd.servers, lines, strict=True):
            site.add(replace(server, host="127.0.0.1", port=line.port))
        api = ApiProxy(background, serve_queue(background, folder / "queue.db"))
        site.port = api.port
        yield Scene(folder, site, sshd, gate, lines, api)


def _root(home: Path) -> Path:
    return home / ".cache" / "cronium"
