"""The processes that came from a local server's sessions, as Linux shows them in /proc."""

import os
import signal
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from pathlib import Path
from typing import NamedTuple

END_SECONDS = 3.0
LEAVE_SECONDS = 0.3
LOOK_EVERY_SECONDS = 0.01

_PROC = Path("/proc")


class Process(NamedTuple):
    pid: int
    command: str
    parent: int
    session: int


def live_processes() -> Iterator[Process]:
    """Every process that has not ended; none where there is no /proc."""
    for pid in _all_pids():
        # The second field is the command in parentheses, which may hold any character.
        head, _, tail = _read(pid, "stat").decode(errors="replace").rpartition(")")
        state, parent, _, session, *_ = tail.split() or ["Z", "0", "0", "0"]
        if state != "Z":
            yield Process(pid, head.partition("(")[2], int(parent), int(session))


def processes_with_home(*homes: Path) -> list[int]:
    """The processes whose HOME is one of `homes`, so far as they are ours to look into."""
    wanted = {f"HOME={home}".encode() for home in homes}
    return [pid for pid in _all_pids() if wanted & set(_read(pid, "environ").split(b"\0"))]


def let_leave(find: Callable[[], Sequence[int]]) -> None:
    """Until `find` gives nothing, for what goes by itself and tidies up; or `LEAVE_SECONDS`."""
    deadline = time.monotonic() + LEAVE_SECONDS
    while find() and time.monotonic() < deadline:
        time.sleep(LOOK_EVERY_SECONDS)


def end_processes(find: Callable[[], Sequence[int]]) -> None:
    """Kill what `find` gives until it gives nothing; gives up in silence after `END_SECONDS`."""
    deadline = time.monotonic() + END_SECONDS
    while (pids := find()) and time.monotonic() < deadline:
        for pid in pids:
            with suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        time.sleep(LOOK_EVERY_SECONDS)


def _all_pids() -> list[int]:
    return [int(path.name) for path in _PROC.glob("[0-9]*")]


def _read(pid: int, name: str) -> bytes:
    try:
        return (_PROC / str(pid) / name).read_bytes()
    except OSError:  # it ended, or is not ours to look into
        return b""
