"""What waits on a server for the runs of a call."""

import os
import signal
import time
from pathlib import Path

from tests.process.runner_rig import Server, wait_until
from worker.demo.processes import is_alive


def ready(server: Server) -> tuple[int, int]:
    """The supervisor and the process it has ready."""

    def look() -> tuple[int, int] | None:
        found = sorted(server.supervisors())
        time.sleep(0.05)  # a program that it starts looks like it for a moment
        if sorted(server.supervisors()) != found:
            return None
        parents, children = family(found)
        waiting = [pid for pid in children if pid not in tickers(server)]
        return (parents[0], waiting[0]) if len(parents) == len(waiting) == 1 else None

    pair = wait_until(look, "a process is ready")
    assert pair is not None
    return pair


def family(found: list[int]) -> tuple[list[int], list[int]]:
    """The supervisors, and their children without what those just start."""
    above = {pid: parent(pid) for pid in found}
    tops = [pid for pid in found if above[pid] not in found]
    return tops, [pid for pid in found if above[pid] in tops]


def tickers(server: Server) -> list[int]:
    """What ticks; of all that waits, only what becomes a script has the end of its pipe."""
    _, children = family(server.supervisors())
    return [pid for pid in children if not Path(f"/proc/{pid}/fd/5").exists()]


def ticker(server: Server) -> int:
    """The one that stays: a program that is just started looks like it for a moment."""

    def look() -> int | None:
        found = tickers(server)
        time.sleep(0.05)
        return found[0] if len(found) == 1 and tickers(server) == found else None

    pid = wait_until(look, "it ticks")
    assert pid is not None
    return pid


def parent(pid: int) -> int:
    """0 for what is gone."""
    try:
        return int(Path(f"/proc/{pid}/stat").read_text().rpartition(") ")[2].split()[1])
    except OSError:
        return 0


def kill(pid: int) -> None:
    os.kill(pid, signal.SIGKILL)
    wait_until(lambda: not is_alive(pid), "it is gone")
