"""`cronium-worker orphans`: jobs claimed under a worker's id."""

import json
import os
import re
from functools import partial
from pathlib import Path

import click

from worker.api.client import QueueClient, open_client
from worker.cli.exits import EXIT_CONFIGURATION, EXIT_TRY_AGAIN, EXIT_UNAVAILABLE, fail
from worker.cli.running import run
from worker.cli.state import warn_of_unknown_variables
from worker.errors import (
    ProtocolError,
    QueueError,
    QueueRefusedError,
    SettingsError,
    StateError,
    StateLockedError,
)
from worker.report import release_entry
from worker.settings import Settings, environment
from worker.state.directory import DATABASE, open_state
from worker.state.identity import worker_id
from worker.state.outbox import Outbox


def _checked_id(_ctx: click.Context, _param: click.Parameter, value: str | None) -> str | None:
    if value is not None and not re.fullmatch(r"[A-Za-z0-9._-]{1,255}", value):
        raise click.BadParameter("expected 1 to 255 of A-Z a-z 0-9 . _ -")
    return value


@click.command
@click.option(
    "--of",
    "of_id",
    metavar="ID",
    callback=_checked_id,
    help="The id of a worker whose state is lost, `worker_id` in its log.",
)
@click.option("--release", is_flag=True, help="Give the jobs back to the queue.")
@click.option("--json", "as_json", is_flag=True, help="Print a JSON array.")
def orphans(of_id: str | None, release: bool, as_json: bool) -> None:
    """List jobs claimed under this worker's id, or another's, and give them back.

    A worker that starts does so for its own id by itself; this is for one whose state is lost.
    Its scripts run on, and the worker that claims a job next attaches to them. Be sure that no
    worker of that id is running: its jobs would be taken away from it.

    \b
    Example:
      cronium-worker orphans --of web-pool-1a2b3c4d --release
    """
    warn_of_unknown_variables()
    try:
        loaded = environment.load(os.environ)
        if of_id is not None:
            ids = run(partial(_orphans, loaded, of_id, release, ()))
        else:
            _expect_state(loaded.state_dir)
            # Under the lock: what a running worker has claimed is not orphaned.
            with open_state(loaded.state_dir) as database:
                own = worker_id(database, loaded.orchestrator_id)
                # What waits in the outbox is said by the next start, not given away.
                kept = Outbox(database).known_jobs()
                ids = run(partial(_orphans, loaded, own, release, kept))
    except SettingsError as error:
        fail(str(error), EXIT_CONFIGURATION)
    except StateLockedError as error:
        fail(f"{error}; a running worker gives back its orphans itself", EXIT_TRY_AGAIN)
    except StateError as error:
        fail(str(error), EXIT_CONFIGURATION)
    except (QueueError, ProtocolError) as error:
        fail(str(error), EXIT_UNAVAILABLE)
    if as_json:
        click.echo(json.dumps(ids))
    else:
        for job_id in ids:
            click.echo(job_id)
    click.echo(f"{len(ids)} {'released' if release else 'claimed'}", err=True)


def _expect_state(directory: Path) -> None:
    """To open it would make it, and an id that nothing was ever claimed under.

    Raises StateError if there is none, or it cannot be looked for.
    """
    try:
        (directory / DATABASE).stat()
    except FileNotFoundError:
        raise StateError(
            f"CRONIUM_STATE_DIR {directory}: there is no {DATABASE}, so no worker was started on "
            "it; name one whose state is lost with --of"
        ) from None
    except OSError as error:
        raise StateError(f"CRONIUM_STATE_DIR {directory}: {error.strerror}") from error


async def _orphans(
    loaded: Settings, of_id: str, release: bool, kept: tuple[str, ...]
) -> tuple[str, ...]:
    """The jobs found, without those `kept`; all of them given back then, if asked."""
    async with open_client(loaded.api, of_id) as client:
        found: list[str] = []
        refused: set[str] = set()
        while True:
            seen = {*found, *refused, *kept}
            ids = [job_id for job_id in await client.orphaned() if job_id not in seen]
            found += ids
            if not release or not ids:
                return tuple(found)
            for job_id in ids:
                try:
                    await _release(client, job_id)
                except QueueRefusedError as error:  # it has changed hands meanwhile
                    click.echo(f"cronium-worker: {job_id}: {error}", err=True)
                    found.remove(job_id)
                    refused.add(job_id)


async def _release(client: QueueClient, job_id: str) -> None:
    # Read first: it may have ended meanwhile, and a release would queue it once more.
    job = await client.read_job(job_id)
    if job.status in ("claimed", "running"):
        entry = release_entry(job_id, "released by an operator")
        await client.release(job_id, entry.body)
