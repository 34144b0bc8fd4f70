"""What the queue was told of a job, held against what its script printed."""

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from tests.chaos.shapes import Shape
from worker.dispatch.result import Outcome
from worker.queue_server.model import JobReport
from worker.remote.frames import Stream
from worker.report import STDERR_HEADING

# As the stage sets it; what a `complete` has room for is never less of what our scripts print.
LIMIT_BYTES = 4 * 1024 * 1024
LEFT_OUT = re.compile(r"\n\[cronium\] \.\.\. (\d+) bytes left out \.\.\.\n")


@dataclass(frozen=True, slots=True)
class Difference:
    """`lost_bytes` counts from the first that differs on, and is at least 1."""

    what: str
    lost_bytes: int


@dataclass(frozen=True, slots=True)
class Told:
    """One execution's end, as its job's `complete` tells it."""

    server: str
    execution_id: str
    outcome: Outcome
    exit_code: int
    error: str | None


def told_of(report: JobReport) -> list[Told]:
    """Nothing for a job that ended without its results being known."""
    return [
        Told(
            entry["name"],
            entry["executionId"],
            Outcome(entry["outcome"]),
            entry["exitCode"],
            entry["error"],
        )
        for entry in _metrics(report).get("servers", ())
    ]


def differences(report: JobReport, shape: Shape, *, was_cancelled: bool) -> Iterator[Difference]:
    """All that was told and is not so."""
    rows = {row.id: row for row in report.executions}
    ends = told_of(report)
    if not ends and not was_cancelled:
        yield Difference(f"it ended without results: {report.message}", 1)
    for told in ends:
        is_whole = told.outcome is shape.outcome
        if is_whole and told.exit_code != shape.exit_code:
            yield Difference(f"{told.server}: its exit code is {told.exit_code}", 1)
        if not is_whole and not _may_be(told.outcome, was_cancelled=was_cancelled):
            yield Difference(f"{told.server}: its outcome is {told.outcome}: {told.error}", 1)
        out = _said_by(told.server, report.stdout, shape.out)
        err = _said_by(told.server, _without_errors(report, ends), shape.err)
        yield from _compare(f"{told.server}:", shape, [out, err], is_whole)
        row = rows.get(told.execution_id)
        if row is not None and row.exit_code is not None:
            out, _, err = (row.output or "").partition(STDERR_HEADING)
            yield from _compare(f"{told.server}: the row's", shape, [out, err], is_whole)


def untold_rows(report: JobReport) -> int:
    """Rows are best effort: how many of the job's do not have their end."""
    ended = {row.id for row in report.executions if row.exit_code is not None}
    return sum(told.execution_id not in ended for told in told_of(report))


def reported(printed: bytes) -> str:
    """What is to be told of a stream, written down anew: its ends, and only what the API takes."""
    if len(printed) > LIMIT_BYTES:
        half = LIMIT_BYTES // 2
        left_out = b"\n[cronium] ... %d bytes left out ...\n" % (len(printed) - LIMIT_BYTES)
        printed = printed[:half] + left_out + printed[-half:]
    return printed.decode(errors="replace").replace("\0", "")


def _compare(where: str, shape: Shape, said: Sequence[str], is_whole: bool) -> Iterator[Difference]:
    for stream, printed, text in zip(Stream, (shape.out, shape.err), said, strict=True):
        wanted = reported(printed)
        # Of a run that was cut short nobody knows how far it had come.
        if text == wanted or (not is_whole and _is_beginning(text, printed)):
            continue
        at = next(
            (n for n, (one, other) in enumerate(zip(wanted, text, strict=False)) if one != other),
            min(len(wanted), len(text)),
        )
        yield Difference(
            f"{where} {stream} has {len(text)} for {len(wanted)} characters; "
            f"from {at} on: {text[at : at + 60]!r} instead of {wanted[at : at + 60]!r}",
            max(1, len(wanted[at:].encode())),
        )


def _is_beginning(said: str, printed: bytes) -> bool:
    if left_out := LEFT_OUT.search(said):
        printed = printed[: LIMIT_BYTES + int(left_out[1])]
    else:
        printed = printed[:LIMIT_BYTES]
    # The cut may be within a line, and within a character.
    return reported(printed).startswith(said.removesuffix("\n").rstrip("\ufffd"))


def _may_be(outcome: Outcome, *, was_cancelled: bool) -> bool:
    """Whether an execution of ours may come to that, when something has prevented its own end."""
    honest = {Outcome.LOST, Outcome.UNREACHABLE, Outcome.NOT_DEPLOYED}
    return outcome in honest or (was_cancelled and outcome is Outcome.CANCELLED)


def _said_by(server: str, told: str, printed: bytes) -> str:
    """Its lines without their prefix, and without the end of the last that `complete` adds."""
    prefix = f"[{server}] "
    # Not splitlines, which knows more ends of lines than there are.
    lines = [line for line in told.split("\n") if line.startswith(prefix)]
    said = "\n".join(line.removeprefix(prefix) for line in lines)
    return f"{said}\n" if lines and printed.endswith(b"\n") else said


def _without_errors(report: JobReport, ends: list[Told]) -> str:
    """The job's stderr without what the worker says itself before it."""
    errors = "".join(f"[{told.server}] [cronium] {told.error}\n" for told in ends if told.error)
    return report.stderr.removeprefix(f"[cronium] {_metrics(report).get('message')}\n{errors}")


def _metrics(report: JobReport) -> dict[str, Any]:
    metrics = (report.job.result or {}).get("metrics")
    return metrics if isinstance(metrics, dict) else {}
