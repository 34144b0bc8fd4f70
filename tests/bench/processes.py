"""What the kernel says of a process."""

import re
import resource
import subprocess
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

KIB = 1024
# linux/posix-timers.h: all threads of a process, as the scheduler counts.
CPUCLOCK_SCHED = 2
ESTABLISHED = "01"
RESET_PEAK = "5"  # of /proc/PID/clear_refs


def cpu_seconds(pid: int) -> float:
    """Processor time of all its threads so far, ended ones included, to the nanosecond."""
    return time.clock_gettime(~pid << 3 | CPUCLOCK_SCHED)


def rss_bytes(pid: int) -> int:
    return _status_bytes(pid, "VmRSS")


def peak_rss_bytes(pid: int) -> int:
    """Since its start, or the last `reset_peak`."""
    return _status_bytes(pid, "VmHWM")


def reset_peak(pid: int) -> None:
    Path(f"/proc/{pid}/clear_refs").write_text(RESET_PEAK)


def connections(pid: int, port: int) -> int:
    """Established TCP connections that it has with `port` of any address."""
    inodes = set()
    for fd in Path(f"/proc/{pid}/fd").iterdir():
        try:
            link = str(fd.readlink())
        except FileNotFoundError:
            continue
        if match := re.fullmatch(r"socket:\[(\d+)]", link):
            inodes.add(match[1])
    count = 0
    for line in Path("/proc/net/tcp").read_text().splitlines()[1:]:
        _, _, remote, state, *rest = line.split()
        is_there = state == ESTABLISHED and int(remote.rpartition(":")[2], 16) == port
        count += is_there and rest[5] in inodes
    return count


@dataclass(frozen=True, slots=True)
class Spent:
    """What a command cost, its children included."""

    wall_seconds: float
    cpu_seconds: float
    output: str
    status: int


def spend(
    command: Sequence[str],
    *,
    environ: Mapping[str, str] | None = None,
    text: str = "",
    into_nothing: bool = False,
) -> Spent:
    """Run `command` to its end; `into_nothing` is for output that is too large to keep.

    Its children must have ended before it: what they cost counts only then.
    """
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    began = time.perf_counter()
    ended = subprocess.run(
        command,
        env=None if environ is None else dict(environ),
        input=text.encode(),
        stdout=subprocess.DEVNULL if into_nothing else subprocess.PIPE,
        stderr=subprocess.STDOUT,
        check=False,
    )
    wall = time.perf_counter() - began
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    cpu = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
    output = (ended.stdout or b"").decode(errors="replace")
    return Spent(wall, cpu, output, ended.returncode)


def _status_bytes(pid: int, name: str) -> int:
    for line in Path(f"/proc/{pid}/status").read_text().splitlines():
        if line.startswith(f"{name}:"):
            return int(line.split()[1]) * KIB
    raise ProcessLookupError(f"process {pid} has no {name}: it has ended")
