"""Which lines of a worker's log are wanted, and how a line is read."""

import re
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any

import msgspec

LEVELS = ("debug", "info", "warning", "error")
# Worse than an error is logged as one of these.
_RANKS = {**{name: rank for rank, name in enumerate(LEVELS)}, "critical": len(LEVELS)}


@dataclass(frozen=True, slots=True)
class Line:
    """`prefix` is what a container runtime or a log collector put in front."""

    prefix: str
    event: dict[str, Any]


def read_line(text: str) -> Line | None:
    """None if it is no event of a worker's."""
    prefix, brace, rest = text.partition("{")
    try:
        event = msgspec.json.decode((brace + rest).encode(errors="replace"), type=dict[str, Any])
    except msgspec.DecodeError:
        return None
    named = (event.get("timestamp"), event.get("level"), event.get("event"))
    if not all(isinstance(each, str) for each in named):
        return None
    return Line(prefix, event)


@dataclass(frozen=True, slots=True)
class Wanted:
    """`server` is a name or an id, `since` UTC epoch ms; `pattern` may be in any value."""

    job_id: str | None = None
    server: str | None = None
    level: str = LEVELS[0]
    since: int | None = None
    pattern: re.Pattern[str] | None = None

    @property
    def is_all(self) -> bool:
        return self == Wanted()

    def takes(self, event: Mapping[str, Any]) -> bool:
        if self.job_id is not None and event.get("job_id") != self.job_id:
            return False
        if self.server is not None and self.server not in (
            event.get("server"),
            event.get("server_id"),
        ):
            return False
        if _RANKS.get(event["level"], 0) < _RANKS[self.level]:
            return False
        if self.since is not None and _epoch_ms(event["timestamp"]) < self.since:
            return False
        return self.pattern is None or any(
            self.pattern.search(str(value)) for value in event.values()
        )


def _epoch_ms(timestamp: str) -> float:
    """Of one that cannot be read, the beginning of time."""
    try:
        moment = datetime.fromisoformat(timestamp)
    except ValueError:
        return 0
    return moment.replace(tzinfo=moment.tzinfo or UTC).timestamp() * 1000
