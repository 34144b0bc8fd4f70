"""What a worker is at just now, in a file for those who look from beside it."""

from collections.abc import Callable
from pathlib import Path
from typing import NoReturn

import msgspec
import structlog
import trio

from worker.errors import StateError
from worker.state.directory import STATUS

log = structlog.get_logger()

LOOK_SECONDS = 1.0


class ExecutionNow(msgspec.Struct, frozen=True):
    """`phase` is an outcome once the script's part is over; since when, in Unix milliseconds."""

    server: str
    phase: str
    since: int
    received_bytes: int


class JobNow(msgspec.Struct, frozen=True):
    job_id: str
    event_id: str
    since: int
    executions: tuple[ExecutionNow, ...]


class PoolNow(msgspec.Struct, frozen=True):
    """`waiting` is how many runs have to wait for the limit."""

    connections: int
    idle: int
    limit: int
    waiting: int


class WorkerNow(msgspec.Struct, frozen=True):
    """Points in time, such as since when the API answers or does not, are in Unix milliseconds."""

    version: str
    started_at: int
    is_draining: bool
    api_answers: bool
    api_since: int
    slots: int
    free_slots: int
    held_jobs: tuple[str, ...]
    jobs: tuple[JobNow, ...]
    pool: PoolNow


_decoder = msgspec.json.Decoder(WorkerNow)


async def show_forever(directory: Path, look: Callable[[], WorkerNow]) -> NoReturn:
    """Write what `look` sees, whenever that is something else, once a second at most."""
    shown: WorkerNow | None = None
    failed = False
    while True:
        seen = look()
        if seen != shown:
            try:
                await trio.to_thread.run_sync(_write, directory / STATUS, seen)
                shown, failed = seen, False
            except OSError as error:
                if not failed:
                    log.warning("status_file_failed", error=str(error))
                failed = True
        await trio.sleep(LOOK_SECONDS)


def read(directory: Path) -> WorkerNow | None:
    """What the worker that is, or was last, on `directory` was at; None if none ever was.

    Raises StateError if that cannot be read.
    """
    file = directory / STATUS
    try:
        return _decoder.decode(file.read_bytes())
    except FileNotFoundError:
        return None
    except (OSError, msgspec.MsgspecError) as error:
        raise StateError(f"{file} cannot be read: {error}") from error


def _write(file: Path, seen: WorkerNow) -> None:
    """At once for who reads it."""
    new = file.with_suffix(".new")
    new.write_bytes(msgspec.json.encode(seen))
    new.replace(file)
