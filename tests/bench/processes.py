"""What the kernel says of a process."""

import os
import re
import resource
import subprocess
import threading
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from signal import SIGCONT, SIGSTOP

KIB = 1024
# linux/posix-timers.h: all threads of a process, as the scheduler counts.
CPUCLOCK_SCHED = 2
ESTABLISHED = "01"
RESET_PEAK = "5"  # of /proc/PID/clear_refs
# What a held process may use at once: short against what it waits for, long against a look at it.
HELD_SECONDS, HELD_LOOK_SECONDS = 0.004, 0.001


def cpu_seconds(pid: int) -> float:
    """Processor time of all its threads so far, ended ones included, to the nanosecond."""
    return time.clock_gettime(~pid << 3 | CPUCLOCK_SCHED)


@contextmanager
def held(pids: Sequence[int], share: float) -> Iterator[None]:
    """Have each process use no more than `share` of a processor, by stopping it in between."""
    is_over = threading.Event()
    holders = [threading.Thread(target=_hold, args=(pid, share, is_over)) for pid in pids]
    for holder in holders:
        holder.start()
    try:
        yield
    finally:
        is_over.set()
        for holder in holders:
            holder.join()


def _hold(pid: int, share: float, is_over: threading.Event) -> None:
    left, is_stopped = HELD_SECONDS, False
    looked, used = time.monotonic(), cpu_seconds(pid)
    try:
        while not is_over.wait(HELD_LOOK_SECONDS):
            before, looked = looked, time.monotonic()
            used_before, used = used, cpu_seconds(pid)
            # What it did not use while it was idle is not saved for later.
            left = min(HELD_SECONDS, left + share * (looked - before)) - (used - used_before)
            if is_stopped != (left < 0):
                is_stopped = not is_stopped
                os.kill(pid, SIGSTOP if is_stopped else SIGCONT)
        os.kill(pid, SIGCONT)
    except OSError:
        return  # it has ended


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
