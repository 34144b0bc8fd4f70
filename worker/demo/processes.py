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
READ_BYTES = 64 * 1024


class Process(NamedTuple):
    pid: int
    command: str
    parent: int
    session: int


def live_processes() -> Iterator[Process]:
    """Every process that has not ended; none where there is no /proc."""
    for pid in all_pids():
        command, state, parent, _, session, *_ = _stat(pid)
        if state not in "ZX":
            yield Process(pid, command, int(parent), int(session))


def is_alive(pid: int) -> bool:
    """Whether it is there and has not ended."""
    return _stat(pid)[1] not in "ZX"


def processes_with_home(*homes: Path) -> list[int]:
    """The processes whose HOME is one of `homes`, so far as they are ours to look into."""
    wanted = {f"HOME={home}".encode() for home in homes}
    return [pid for pid in all_pids() if wanted & set(read_of(pid, "environ").split(b"\0"))]


def let_leave(find: Callable[[], Sequence[int]]) -> None:
    """Until `find` gives nothing, for what goes by itself and tidies up; or `LEAVE_SECONDS`."""
    deadline = time.monotonic() + LEAVE_SECONDS
    while (pids := find()) and time.monotonic() < deadline:
        # To find them is to look at everything.
        while any(map(is_alive, pids)) and time.monotonic() < deadline:
            time.sleep(LOOK_EVERY_SECONDS)


def end_processes(find: Callable[[], Sequence[int]]) -> None:
    """Kill what `find` gives until it gives nothing; gives up in silence after `END_SECONDS`."""
    deadline = time.monotonic() + END_SECONDS
    while (pids := find()) and time.monotonic() < deadline:
        for pid in pids:
            with suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        time.sleep(LOOK_EVERY_SECONDS)


def _stat(pid: int) -> list[str]:
    """The command, the state, the parent, the group, the session and more."""
    # The second field is the command in parentheses, which may hold any character.
    head, _, tail = read_of(pid, "stat").decode(errors="replace").rpartition(")")
    return [head.partition("(")[2], *(tail.split() or ["X", "0", "0", "0"])]


def all_pids() -> list[int]:
    # Here and below without pathlib, which takes four times as long: each look is at all there are.
    try:
        return [int(name) for name in os.listdir("/proc") if name.isdigit()]  # noqa: PTH208
    except FileNotFoundError:
        return []


def read_of(pid: int, name: str) -> bytes:
    """That file of the process; nothing if it ended, or is not ours to look into."""
    try:
        file = os.open(f"/proc/{pid}/{name}", os.O_RDONLY)
    except OSError:
        return b""
    try:
        return b"".join(iter(lambda: os.read(file, READ_BYTES), b""))
    except OSError:
        return b""
    finally:
        os.close(file)
