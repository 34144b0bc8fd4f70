"""The demo's story: a queue, servers and a worker on this machine, and one job through them."""

import fcntl
import json
import os
import shlex
import shutil
import sys
from collections.abc import AsyncIterable, AsyncIterator, Iterator
from contextlib import AsyncExitStack, asynccontextmanager, contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, NoReturn

import trio
from rich.console import Console
from rich.table import Table
from rich.text import Text

from worker.clock import now_ms
from worker.demo.asyncssh_server import AsyncsshServer
from worker.demo.children import Child, open_child
from worker.demo.sshd import LocalServer, Sshd, our_account, running, unusable_reason
from worker.errors import WorkerError
from worker.log_forms import printable
from worker.queue_server.keys import open_keyring
from worker.queue_server.model import JobReport, Script, ScriptType, Server
from worker.queue_server.store import Store
from worker.signals import ending_signals

FAILED = 1
INTERRUPTED = 130

READY_SECONDS = 20.0
JOB_SECONDS = 60.0
LOOK_SECONDS = 0.05
# Cleanup comes after the result, and is over some milliseconds later.
CLEANUP_SECONDS = 2.0
MAX_OLD_JOBS = 1000

COLOURS = ("cyan", "yellow", "magenta", "green", "blue", "bright_cyan", "bright_magenta")

SCRIPT = """\
echo "hello from $CRONIUM_SERVER_NAME, process $$"
for step in 1 2 3; do
  sleep 0.4
  echo "step $step of 3"
done
case $CRONIUM_SERVER_NAME in
db-*)
  echo "the last backup is older than a day" >&2
  exit 7
  ;;
esac
echo "all well"
"""


class DemoError(WorkerError):
    """The demo cannot go on; the text says why."""


@dataclass(frozen=True, slots=True)
class Setting:
    """`directory` is all that a demo writes to, and keeps the servers and the worker's cache."""

    directory: Path
    size: int = 3
    keep: bool = False
    fresh: bool = False
    use_sshd: bool = True

    @property
    def database(self) -> Path:
        return self.directory / "queue.db"

    @property
    def names(self) -> tuple[str, ...]:
        """The last one is the one that fails."""
        return (*(f"web-{n}" for n in range(1, self.size)), "db-1")


async def play(setting: Setting, console: Console) -> int:
    """Show one job from queue to result; gives the exit code, 0 when all went as it should.

    At the end, also after a signal, nothing that was started is left.
    """
    code = INTERRUPTED
    with trio.open_signal_receiver(*ending_signals()) as signals:
        async with trio.open_nursery() as nursery:
            nursery.start_soon(_cancel_on_signal, signals, nursery.cancel_scope)
            try:
                async with _open_stage(setting, console) as stage:
                    report = await stage.run_job()
                    code = 0 if stage.show_result(report) else FAILED
                    if setting.keep:
                        stage.show_how_to_talk()
                        await stage.show_forever()
            except (WorkerError, OSError) as error:
                console.print(Text(f"demo: {_reason(error)}", "red"), soft_wrap=True)
                code = FAILED
            nursery.cancel_scope.cancel()
    return code


def _reason(error: WorkerError | OSError) -> str:
    if isinstance(error, OSError) and error.filename is not None:
        return f"{error.filename}: {error.strerror}"
    return str(error)


async def _cancel_on_signal(signals: AsyncIterable[int], scope: trio.CancelScope) -> None:
    async for _ in signals:
        scope.cancel()


class Stage:
    """A queue, servers and a worker that are running."""

    def __init__(self, setting: Setting, console: Console, store: Store, worker: Child) -> None:
        self._setting = setting
        self._console = console
        self._store = store
        self._worker = worker
        self._colours = dict(zip(setting.names, COLOURS * setting.size, strict=False))
        self._cleanup_ms: dict[str, int] = {}

    async def run_job(self) -> JobReport:
        """Submit the job and show what it prints until it is over.

        Raises DemoError if that takes over `JOB_SECONDS`, ChildEndedError if the worker ends.
        """
        script = Script(type=ScriptType.BASH, content=SCRIPT, timeout_seconds=30)
        submit = partial(self._store.submit_script, "demo", script, self._setting.names, now_ms())
        job_id = await self._store.database.run(submit)
        self._say(f"{job_id} runs on {', '.join(self._setting.names)}\n")
        try:
            with trio.fail_after(JOB_SECONDS):
                while not (report := await self._report(job_id)).job.status.is_final:
                    await self._show_all()
                # The worker logs a line before it reports the end of the job.
                await self._show_all()
        except trio.TooSlowError:
            raise DemoError(
                f"{job_id} is not over after {JOB_SECONDS:.0f} s; the worker's last words:\n"
                f"{self._worker.tail()}"
            ) from None
        with trio.move_on_after(CLEANUP_SECONDS):
            await trio.lowlevel.checkpoint()
            while len(self._cleanup_ms) < self._setting.size:
                await self._show_next()
        return report

    async def show_forever(self) -> NoReturn:
        while True:
            await self._show_next()

    def show_result(self, report: JobReport) -> bool:
        """Print what became of the job; whether that is what should have."""
        metrics = (report.job.result or {}).get("metrics") or {}
        servers = metrics.get("servers") or []
        self._console.print()
        self._console.print(self._table(servers))
        for server in servers:
            if server.get("error"):
                self._say(f"{server['name']}: {printable(server['error'])}")
        deployed, cached = (
            sum(server.get("runner") == word for server in servers)
            for word in ("deployed", "cached")
        )
        self._say(report.message, "bold")
        self._say(f"runner cache: {deployed} deployed, {cached} cached", "bold")
        size = self._setting.size
        expected = f"{'PARTIAL SUCCESS' if size > 1 else 'FAILURE'}: {size - 1} of {size} servers"
        expected += " succeeded (failed: db-1 exit 7)"
        if report.message != expected:
            self._say(f"demo: this should read: {expected}", "red")
        if deployed + cached != size:
            self._say(f"demo: this should be {size} in all", "red")
        return report.message == expected and deployed + cached == size

    def show_how_to_talk(self) -> None:
        program = shlex.quote(str(Path(sys.executable).with_name("cronium-worker")))
        database = shlex.quote(str(self._setting.database))
        servers = " ".join(f"--server {name}" for name in self._setting.names[:2])
        self._say(
            f"""
All of it goes on until Ctrl-C. From another terminal:

  export CRONIUM_QUEUE_DB={database}
  echo uptime | {program} queue submit --script /dev/stdin {servers} --wait
  {program} queue jobs
"""
        )

    async def _report(self, job_id: str) -> JobReport:
        return await self._store.database.run(partial(self._store.report, job_id))

    async def _show_all(self) -> None:
        """Show the events of the worker's log until there is none for `LOOK_SECONDS`."""
        while await self._show_next():
            pass

    async def _show_next(self) -> bool:
        """Show the next event of the worker's log; False if none comes for `LOOK_SECONDS`."""
        with trio.move_on_after(LOOK_SECONDS):
            self._show_event(json.loads(await self._worker.next_line()))
            return True
        return False

    def _show_event(self, event: dict[str, Any]) -> None:
        server = event.get("server", "")
        if event["event"] == "script_output":
            line = Text.assemble(
                (f"[{server}] ", self._colours.get(server, "")),
                (printable(event["text"]), "red" if event["stream"] == "stderr" else ""),
            )
            self._console.print(line, soft_wrap=True)
        elif event["event"] == "cleanup_ended":
            self._cleanup_ms[server] = event["cleanup_ms"]
        elif event["level"] in ("warning", "error", "critical"):
            self._say(f"worker: {json.dumps(event)}", "red")

    def _table(self, servers: list[dict[str, Any]]) -> Table:
        table = Table("server", "outcome", header_style="bold")
        for name in ("exit code", "setup", "execution", "cleanup"):
            table.add_column(name, justify="right")
        table.add_column("runner")
        for column in table.columns:
            column.overflow = "fold"  # an outcome that is cut is of no use
        for server in servers:
            name = server["name"]
            times = (
                server["setupMs"],
                server["executionMs"],
                server.get("cleanupMs") or self._cleanup_ms.get(name),
            )
            table.add_row(
                Text(name, self._colours.get(name, "")),
                Text(server["outcome"], "green" if server["outcome"] == "success" else "red"),
                str(server["exitCode"]),
                *("" if ms is None else f"{ms} ms" for ms in times),
                server.get("runner") or "",
            )
        return table

    def _say(self, text: str, style: str = "") -> None:
        self._console.print(Text(text, style), soft_wrap=True)


@asynccontextmanager
async def _open_stage(setting: Setting, console: Console) -> AsyncIterator[Stage]:
    """Start everything; the worker ends first, then the servers, then the queue."""
    async with AsyncExitStack() as stack:
        stack.enter_context(_prepared(setting.directory, fresh=setting.fresh))
        store = Store.open(setting.database, open_keyring(setting.database, {}))
        stack.callback(store.close)
        await store.database.run(partial(_cancel_old_jobs, store))
        # Ours are left out: they would change what is shown.
        environment = {k: v for k, v in os.environ.items() if not k.startswith("CRONIUM_")}

        arguments = ("queue", "serve", "--db", str(setting.database), "--port", "0")
        queue = await stack.enter_async_context(
            open_child("queue", arguments, environment, setting.directory)
        )
        address = await _address_of(queue)
        console.print(Text(f"queue at {address}"), soft_wrap=True)

        for sshd in _servers(setting, console):
            # Starting one blocks for some 50 ms: nothing else runs in this process yet.
            server = stack.enter_context(running(sshd)).server
            await store.database.run(partial(_add_server, store, server))
            where = f"{server.user}@{server.host}:{server.port}"
            console.print(Text(f"server {server.name} at {where}"), soft_wrap=True)

        environment |= {
            "CRONIUM_API_ENDPOINT": address,
            "CRONIUM_API_TOKEN_FILE": f"{setting.database}.token",
            "CRONIUM_DRAIN_TIMEOUT": "1s",
            "CRONIUM_LOGGING_FORMAT": "json",
            "CRONIUM_LOGGING_LEVEL": "debug",  # tells how long the cleanup took
            "CRONIUM_ORCHESTRATOR_ID": "demo",
            "CRONIUM_STATE_DIR": str(setting.directory / "worker"),
            "LOGNAME": our_account(),  # asyncssh wants a name, also of a uid that has none
        }
        worker = await stack.enter_async_context(
            open_child("worker", ("run",), environment, setting.directory)
        )
        yield Stage(setting, console, store, worker)


@contextmanager
def _prepared(directory: Path, *, fresh: bool) -> Iterator[None]:
    """Make `directory`, and keep other demos out of it; `fresh` empties it first.

    Raises DemoError if it is in use, or is not a demo's.
    """
    directory.mkdir(mode=0o700, parents=True, exist_ok=True)
    mark = directory / "demo.lock"
    if not mark.exists() and any(directory.iterdir()):
        raise DemoError(f"{directory} has files of others in it")
    with mark.open("w") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise DemoError(f"another demo is running in {directory}") from None
        if fresh:
            for path in directory.iterdir():
                if path.is_dir():
                    shutil.rmtree(path)
                elif path != mark:
                    path.unlink()
        yield


def _servers(setting: Setting, console: Console) -> Iterator[Sshd]:
    kind, reason = Sshd, unusable_reason() if setting.use_sshd else "as was asked for"
    if reason:
        kind = AsyncsshServer
        console.print(Text(f"no sshd, but a small SSH server in Python: {reason}"), soft_wrap=True)
    for name in setting.names:
        yield kind(setting.directory / "servers" / name, {name: "127.0.0.1"})


def _cancel_old_jobs(store: Store) -> None:
    """What an interrupted demo left behind must not be run in front of this one's job."""
    for job in store.jobs(MAX_OLD_JOBS):
        if not job.status.is_final:
            store.cancel(job.id, now_ms())


def _add_server(store: Store, server: LocalServer) -> int:
    return store.put_server(
        Server(
            id=0,
            name=server.name,
            host=server.host,
            port=server.port,
            username=server.user,
            private_key=server.private_key,
        ),
        now_ms(),
    )


async def _address_of(queue: Child) -> str:
    with trio.move_on_after(READY_SECONDS):
        while True:
            before, ready, address = (await queue.next_line()).partition("queue ready at ")
            if ready and not before:
                return address
    raise DemoError(f"the queue is not ready after {READY_SECONDS:.0f} s:\n{queue.tail()}")
