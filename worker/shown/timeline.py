"""The phases of a job's executions, drawn to scale."""

from collections.abc import Sequence
from dataclasses import dataclass

WAITING, SETUP, EXECUTION = "·", "░", "█"


@dataclass(frozen=True, slots=True)
class Span:
    """One execution: UTC epoch ms and milliseconds; the phases end where the execution does.

    What is left before them was spent waiting.
    """

    started_at: int
    ended_at: int
    setup_ms: int
    execution_ms: int


def timeline(spans: Sequence[Span], width: int) -> list[str]:
    """One bar for each span, all on one scale; none is wider than `width` characters."""
    if not spans:
        return []
    origin = min(span.started_at for span in spans)
    total = max(1, max(span.ended_at for span in spans) - origin)
    return [_bar(span, origin, width / total, width) for span in spans]


def _bar(span: Span, origin: int, scale: float, width: int) -> str:
    end = max(span.started_at, span.ended_at)
    began = max(span.started_at, end - span.execution_ms)
    connecting = max(span.started_at, began - span.setup_ms)
    at = [round((moment - origin) * scale) for moment in (span.started_at, connecting, began, end)]
    start, setup, execution, stop = at
    bar = (
        " " * start
        + WAITING * (setup - start)
        + SETUP * (execution - setup)
        + EXECUTION * (stop - execution)
    )
    # A moment is seen, too.
    if stop == start and width:
        mark = EXECUTION if span.execution_ms else SETUP
        bar = " " * min(start, width - 1) + mark
    return bar


def duration(ms: int) -> str:
    """`340 ms`, `12.3 s`, `4 m 05 s`, `2 h 03 m`."""
    if ms < 1000:
        return f"{ms} ms"
    if ms < 60_000:
        return f"{ms / 1000:.1f} s" if ms < 59_950 else "1 m 00 s"
    seconds = round(ms / 1000)
    if seconds < 3600:
        return f"{seconds // 60} m {seconds % 60:02} s"
    return f"{seconds // 3600} h {seconds % 3600 // 60:02} m"
