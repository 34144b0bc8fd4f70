"""`cronium-worker status`: what the worker on a state directory is at."""

import json
import os
import time
from collections import Counter
from dataclasses import asdict, dataclass
from pathlib import Path

import click
import msgspec
from rich.console import Console, Group, RenderableType
from rich.live import Live
from rich.table import Table
from rich.text import Text

from worker.cli.exits import EXIT_CONFIGURATION, fail
from worker.cli.state import warn_of_unknown_variables
from worker.clock import now_ms
from worker.errors import SettingsError, StateError
from worker.settings.environment import load_state_dir
from worker.snapshot import ExecutionNow, JobNow, WorkerNow, read
from worker.state.directory import holder, open_beside
from worker.state.outbox import Outbox
from worker.state.runner_cache import RunnerCache

LOOK_SECONDS = 1.0
# Of a job's servers, those that take longest are of interest.
MOST_SERVERS = 10


@dataclass(frozen=True, slots=True)
class Kept:
    """What the state file has; the oldest entry's time is in Unix milliseconds."""

    outbox: int
    oldest_at: int | None
    parked: int
    runners: int


@dataclass(frozen=True, slots=True)
class Status:
    """`pid` is that of the worker that runs there, if one does; only then is `now` of now."""

    pid: str | None
    now: WorkerNow | None
    kept: Kept


def look(directory: Path) -> Status:
    """Raises StateError if there is no state, or it cannot be read."""
    with open_beside(directory) as database:
        outbox = Outbox(database)
        count, oldest_at = outbox.waiting()
        kept = Kept(count, oldest_at, len(outbox.parked()), RunnerCache(database).count())
    return Status(holder(directory), read(directory), kept)


@click.command
@click.option("--watch", is_flag=True, help="Draw it anew every second, until Ctrl-C.")
@click.option("--json", "as_json", is_flag=True, help="Print a JSON object.")
def status(watch: bool, as_json: bool) -> None:
    """Show what the worker on CRONIUM_STATE_DIR is at: its jobs, its outbox, its connections.

    From files alone, so it works beside a running worker, from a second shell in its container.

    \b
    Examples:
      cronium-worker status --watch
      cronium-worker status --json | jq .now.jobs
    """
    if watch and as_json:
        raise click.UsageError("--watch draws for people; it goes without --json")
    console = Console(markup=False, highlight=False)
    warn_of_unknown_variables()
    try:
        directory = load_state_dir(os.environ)
        if as_json:
            click.echo(json.dumps(_as_json(look(directory))))
        elif watch:
            _watch(directory, console)
        else:
            console.print(_drawn(look(directory), now_ms()))
    except (SettingsError, StateError) as error:
        fail(str(error), EXIT_CONFIGURATION)


def _watch(directory: Path, console: Console) -> None:
    try:
        with Live(console=console, auto_refresh=False) as live:
            while True:
                live.update(_drawn(look(directory), now_ms()), refresh=True)
                time.sleep(LOOK_SECONDS)
    except KeyboardInterrupt:
        return


def _as_json(found: Status) -> dict[str, object]:
    now = None if found.now is None else msgspec.to_builtins(found.now)
    return {"pid": found.pid, "now": now, "kept": asdict(found.kept)}


def _drawn(found: Status, at: int) -> RenderableType:
    """`at` is in Unix milliseconds."""
    kept = found.kept
    oldest = "" if kept.oldest_at is None else f", the oldest for {_age(at, kept.oldest_at)}"
    lines = [
        f"outbox       {kept.outbox} to be told{oldest}; {kept.parked} parked",
        f"runners      {kept.runners} known",
    ]
    now = found.now
    if found.pid is None or now is None:
        return Text("\n".join(["worker       none runs on this state", *lines]))
    answers = "answers" if now.api_answers else "does not answer"
    pool = now.pool
    waiting = f", {pool.waiting} runs wait for one" if pool.waiting else ""
    draining = ", draining" if now.is_draining else ""
    lines = [
        f"worker       pid {found.pid}, {now.version}, up {_age(at, now.started_at)}{draining}",
        f"API          {answers}, for {_age(at, now.api_since)}",
        f"slots        {now.slots - now.free_slots} of {now.slots} taken",
        f"connections  {pool.connections} of {pool.limit}, {pool.idle} idle{waiting}",
        *lines,
    ]
    return Group(Text("\n".join(lines)), *(_job(job, at) for job in now.jobs))


def _job(job: JobNow, at: int) -> RenderableType:
    counts = Counter(each.phase for each in job.executions)
    told = ", ".join(f"{count} {phase}" for phase, count in counts.most_common())
    table = Table("server", "phase", "for", "bytes", box=None, padding=(0, 2, 0, 2))
    shown = sorted(job.executions, key=_interest)[:MOST_SERVERS]
    for each in shown:
        row = (each.server, each.phase, _age(at, each.since), f"{each.received_bytes:,}")
        table.add_row(*map(Text, row))
    more = len(job.executions) - len(shown)
    rest = [Text(f"  and {more} more")] if more else []
    heading = Text(f"\n{job.job_id} (event {job.event_id}), {_age(at, job.since)}: {told}")
    return Group(heading, table, *rest)


def _interest(execution: ExecutionNow) -> tuple[bool, int]:
    """What still goes on first, the longest before all."""
    return execution.phase not in ("setup", "execution"), execution.since


def _age(at: int, since: int) -> str:
    seconds = max(0, at - since) // 1000
    minutes, seconds = divmod(seconds, 60)
    hours, minutes = divmod(minutes, 60)
    if hours:
        return f"{hours} h {minutes:02} m"
    return f"{minutes} m {seconds:02} s" if minutes else f"{seconds} s"
