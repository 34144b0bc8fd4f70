"""Wall-clock time as it is written down; durations come from `trio.current_time`."""

import time
from datetime import UTC, datetime


def now_ms() -> int:
    """UTC epoch in milliseconds, the unit of every `_at` in the state file."""
    return time.time_ns() // 1_000_000


def rfc3339(at_ms: int) -> str:
    """`at_ms` as the API writes it, for example `2026-11-23T08:22:46.843Z`."""
    moment = datetime.fromtimestamp(at_ms / 1000, UTC)
    return moment.isoformat(timespec="milliseconds").replace("+00:00", "Z")
