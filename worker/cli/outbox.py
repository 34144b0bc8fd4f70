"""`cronium-worker outbox`: what the API has not heard yet, or would not hear."""

from collections.abc import Iterator
from contextlib import contextmanager

import click

from worker.cli.exits import EXIT_FAILED, fail
from worker.cli.printing import print_json, print_table
from worker.cli.state import opened_state
from worker.clock import now_ms, rfc3339
from worker.state.outbox import Outbox, WaitingEntry


@click.group()
def outbox() -> None:
    """What is still to be told to the API, and what it refused for good ("parked").

    From CRONIUM_STATE_DIR; a worker may be running on it, and heeds a change within 15 s.

    \b
    Examples:
      cronium-worker outbox list
      cronium-worker outbox retry 17
    """


@outbox.command("list")
@click.option("--parked", is_flag=True, help="Only what was given up.")
@click.option("--json", "as_json", is_flag=True, help="Print a JSON array.")
def list_command(parked: bool, as_json: bool) -> None:
    """List the entries in the order in which they came, with why one was parked.

    \b
    Example:
      cronium-worker outbox list --parked --json
    """
    with _outbox() as kept:
        entries = [each for each in kept.all() if each.parked is not None or not parked]
    if as_json:
        print_json([_row(each) for each in entries])
        return
    print_table(
        ("entry", "job", "kind", "bytes", "since", "attempts", "next", "parked"),
        [
            (
                str(each.id),
                each.job_id,
                each.kind,
                str(each.size_bytes),
                rfc3339(each.created_at),
                str(each.attempts),
                "" if each.parked is not None else rfc3339(each.due_at),
                each.parked or "",
            )
            for each in entries
        ],
    )


@outbox.command("retry")
@click.argument(
    "entries", nargs=-1, required=True, type=click.IntRange(1, 2**63 - 1), metavar="ENTRY..."
)
def retry(entries: tuple[int, ...]) -> None:
    """Have entries tried once more, now that what was in the way is mended.

    \b
    Example:
      cronium-worker outbox retry 17 18
    """
    with _outbox() as kept:
        missing = [each for each in entries if not kept.retry(each, now=now_ms())]
    _tell_missing(missing)


@outbox.command("drop")
@click.argument(
    "entries", nargs=-1, required=True, type=click.IntRange(1, 2**63 - 1), metavar="ENTRY..."
)
@click.option("--yes", is_flag=True, help="Do not ask; for scripts.")
def drop(entries: tuple[int, ...], yes: bool) -> None:
    """Never tell the API of entries: of a job's end, the only account of it may be lost.

    \b
    Example:
      cronium-worker outbox drop 17
    """
    if not yes:
        click.confirm(f"Drop {len(entries)} of what the API has not heard?", abort=True, err=True)
    with _outbox() as kept:
        missing = [each for each in entries if not kept.drop(each)]
    _tell_missing(missing)


@contextmanager
def _outbox() -> Iterator[Outbox]:
    with opened_state() as database:
        yield Outbox(database)


def _tell_missing(missing: list[int]) -> None:
    if missing:
        fail("\n".join(f"there is no entry {each}" for each in missing), EXIT_FAILED)


def _row(entry: WaitingEntry) -> dict[str, object]:
    return {
        "entry": entry.id,
        "job_id": entry.job_id,
        "kind": entry.kind,
        "subject": entry.subject,
        "bytes": entry.size_bytes,
        "attempts": entry.attempts,
        "created_at": rfc3339(entry.created_at),
        "due_at": rfc3339(entry.due_at),
        "parked": entry.parked,
    }
