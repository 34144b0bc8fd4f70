"""The queue, the servers, the proxies between, and the workers' seats."""

import subprocess
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from signal import SIGTERM
from time import monotonic

from tests.chaos.agenda import LOOK_SECONDS, Agenda
from tests.chaos.queue_process import QueueProcess
from tests.chaos.schedule import Submission
from tests.chaos.seat import DRAINED, LEAVE_SECONDS, TRY_AGAIN, Seat
from tests.chaos.shapes import Shape, shape
from tests.faults.api_proxy import ApiProxy
from tests.faults.background import open_background
from tests.faults.tcp_proxy import TcpProxy
from tests.ports import reserved_port
from tests.process.worker_process import COMMAND, Site, open_site
from worker.clock import now_ms
from worker.demo.sshd import Sshd, running
from worker.queue_server import model
from worker.queue_server.model import JobReport, Script, ScriptType

# How many servers each sshd stands for.
SSHDS = (2, 1, 1)
SEATS = ("a", "b")
# Workers renew it every 15 s, so a call that fails may cost it.
LEASE_SECONDS = 20.0
ENVIRON = {
    "CANCEL_POLL": "2s",
    "DRAIN_TIMEOUT": "0",
    "LOGGING_LEVEL": "debug",
    "LOG_OUTPUT": "off",
    "OUTPUT_LIMIT": "4MiB",
    "SETUP_TIMEOUT": "60s",
    "SSH_KEEPALIVE": "3s",
}


@dataclass(frozen=True, slots=True)
class Station:
    """One server as the workers reach it."""

    name: str
    home: Path
    line: TcpProxy


@dataclass(frozen=True, slots=True)
class Job:
    id: str
    submission: Submission
    shape: Shape
    servers: tuple[str, ...]


@dataclass(slots=True)
class Stage:
    """`problems` is what has gone wrong beside the four facts."""

    site: Site
    agenda: Agenda
    queue: QueueProcess
    api: ApiProxy
    sshds: tuple[Sshd, ...]
    stations: tuple[Station, ...]
    seats: tuple[Seat, ...]
    say: Callable[[str], None]
    jobs: list[Job] = field(default_factory=list)
    cancelled: set[str] = field(default_factory=set)
    problems: list[str] = field(default_factory=list)
    _commands: list[subprocess.Popen[bytes]] = field(default_factory=list)

    @property
    def folder(self) -> Path:
        return self.site.folder

    @property
    def starts(self) -> Path:
        """Where each script leaves a line when it starts."""
        return self.folder / "starts"

    @property
    def lost_ids(self) -> set[str]:
        """The workers whose state was lost."""
        return {lost for seat in self.seats for lost in seat.lost_ids}

    def submit(self, submission: Submission) -> None:
        made = shape(submission.kind, submission.number, self.starts)
        names = tuple(self.stations[at].name for at in submission.servers)
        script = Script(ScriptType.BASH, made.script, timeout_seconds=made.limit_seconds)
        job_id = self.site.store.submit_script(submission.kind, script, names, now_ms())
        self.jobs.append(Job(job_id, submission, made, names))

    def unfinished(self) -> list[tuple[Job, model.Job]]:
        """With what the queue knows of each."""
        rows = {row.id: row for row in self.site.store.jobs(len(self.jobs))}
        return [
            (job, rows[job.id])
            for job in self.jobs
            if not JobReport(rows[job.id], (), "", "").is_over
        ]

    def start_command(self, *arguments: str) -> None:
        """`cronium-worker` with these arguments, which the run goes on beside."""
        with (self.folder / "commands.log").open("ab") as log:
            self._commands.append(
                subprocess.Popen(
                    [*COMMAND, *arguments],
                    env=self.site.environment("none", {}),
                    stdin=subprocess.DEVNULL,
                    stdout=log,
                    stderr=log,
                )
            )

    def drain(self, seat: Seat, pause: float) -> None:
        """Have the worker end in good order, and start the next one a pause later."""
        codes = (DRAINED, TRY_AGAIN) if seat.has_started() else (DRAINED, TRY_AGAIN, -SIGTERM)
        seat.is_up = False
        seat.signal(SIGTERM)
        deadline = monotonic() + LEAVE_SECONDS

        def look() -> None:
            if not seat.has_ended() and monotonic() < deadline:
                self.agenda.later(LOOK_SECONDS, look)
                return
            self.note_end(seat, codes)
            self.agenda.later(pause, seat.start)

        look()

    def note_end(self, seat: Seat, codes: tuple[int, ...]) -> None:
        if not seat.has_ended():
            self.problems.append(f"worker {seat.name} did not end on SIGTERM")
            seat.kill()
        elif (code := seat.worker.wait()) not in codes:
            self.problems.append(f"worker {seat.name} exited with {code} on SIGTERM")

    def look(self) -> None:
        """Notice what has ended without us."""
        for seat in self.seats:
            if seat.is_up and seat.has_ended():
                code = seat.worker.wait()
                self.problems.append(
                    f"worker {seat.name} ended by itself with {code}: {seat.worker.log_file}"
                )
                seat.start()
        if self.queue.has_ended():
            self.problems.append(f"the queue ended by itself: {self.folder / 'queue.log'}")
            self.queue.start()

    def forget_bodies(self) -> None:
        """What the proxy keeps of calls that were answered: megabytes each, in a long run."""
        for call in self.api.calls:
            if call.status is not None:
                call.body = call.answer = b""

    def heal(self) -> None:
        """All that was begun is ended, and nothing stands in the way any more."""
        if not self.agenda.finish(2 * LEAVE_SECONDS):
            self.problems.append("not all could be healed")
        self.api.heal()
        for station in self.stations:
            station.line.heal()
        self.queue.wait_serving()
        for command in self._commands:
            command.wait(LEAVE_SECONDS)

    def close(self) -> None:
        for seat in self.seats:
            seat.close()
        self.queue.kill()
        for command in self._commands:
            if command.poll() is None:
                command.kill()
                command.wait()


@contextmanager
def open_stage(folder: Path, say: Callable[[str], None]) -> Iterator[Stage]:
    """All is up, but for the workers; at the end nothing of it is left but files."""
    with ExitStack() as stack:
        background = stack.enter_context(open_background())
        site = stack.enter_context(open_site(folder))
        queue = QueueProcess(site, lease_seconds=LEASE_SECONDS)
        api = ApiProxy(background, queue.port)
        site.port = api.port
        sshds: list[Sshd] = []
        stations: list[Station] = []
        for number, size in enumerate(SSHDS, 1):
            first = len(stations) + 1
            addresses = {f"server-{n}": f"127.0.1.{n}" for n in range(first, first + size)}
            port = stack.enter_context(reserved_port())
            sshd = Sshd(folder / f"sshd-{number}", addresses, port=port)
            stack.enter_context(running(sshd))
            sshds.append(sshd)
            for server in sshd.servers:
                line = TcpProxy(background, (server.host, server.port))
                site.add(replace(server, host="127.0.0.1", port=line.port))
                stations.append(Station(server.name, server.home, line))
        seats = tuple(Seat(site, name, ENVIRON) for name in SEATS)
        stage = Stage(site, Agenda(), queue, api, tuple(sshds), tuple(stations), seats, say)
        stack.callback(stage.close)
        queue.start()
        queue.wait_serving()
        yield stage
