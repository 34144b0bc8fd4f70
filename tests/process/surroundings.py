"""What a machine looks like to a runner: mounts that only it sees, and cgroups to start in.

Nothing outside of a namespace may change: a `mount -o remount` without `bind` in one would, for the
options of /proc and of cgroup2 belong to the file system and not to the mount.
"""

import contextlib
import os
import shlex
import shutil
import subprocess
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

# An account is not needed: to the kernel and to the runner it is a number.
SOMEBODY = 12345
HIERARCHIES = (Path("/sys/fs/cgroup"), Path("/sys/fs/cgroup/unified"))
HIDDEN_CGROUPS = "mount -t tmpfs none /sys/fs/cgroup"
HIDDEN_PROCESSES = "mount -t proc -o hidepid=2 proc /proc"
NO_UPTIME = "mount --bind /dev/null /proc/uptime"
# Everywhere a runner might put its files, and nothing else that it needs.
SMALL_DISK = """
mount -t tmpfs -o size=600k,nr_inodes=200 none /mnt
mkdir -m 1777 /mnt/tmp
mount --bind /mnt/tmp /tmp
mount --bind /mnt/tmp /var/tmp
"""


ROOT = ("--reuid=0", "--clear-groups")


@dataclass(frozen=True)
class Surroundings:
    """`enter` comes before a command; `outside` is where its file system is seen by us."""

    enter: tuple[str, ...] = ()
    outside: str = ""


@contextlib.contextmanager
def mounts(setup: str) -> Iterator[Surroundings]:
    """A mount namespace that `setup` has changed; it lasts no longer than we do."""
    _need_root()
    if "hidepid" in setup and _kernel() < (5, 8):
        pytest.skip("before Linux 5.8 hidepid is one for all mounts of /proc")
    command = ["unshare", "--mount", "--propagation", "private", "sh", "-c"]
    with _holding([*command, f"set -e\n{setup}\necho ready\nexec cat"]) as pid:
        yield Surroundings(("nsenter", f"--mount=/proc/{pid}/ns/mnt", "--"), f"/proc/{pid}/root")


@contextlib.contextmanager
def container(cgroup: Path, setup: str) -> Iterator[Surroundings]:
    """Namespaces of pids, cgroups and mounts, whose root cgroup is `cgroup`."""
    _need_root()
    # The namespace of cgroups begins where its maker is, so the maker goes there first.
    inner = shlex.quote(f"set -e\nmount -t proc proc /proc\n{setup}\necho ready\nexec cat")
    outer = (
        f'echo 0 >"{cgroup}/cgroup.procs" && '
        f"exec unshare --cgroup --mount --propagation private --pid --fork sh -c {inner}"
    )
    with _holding(["sh", "-c", outer]) as pid:
        # unshare itself stays outside of the pids.
        child = Path(f"/proc/{pid}/task/{pid}/children").read_text().split()[0]
        ns = f"/proc/{child}/ns"
        enter = ("nsenter", f"--mount={ns}/mnt", f"--pid={ns}/pid", f"--cgroup={ns}/cgroup", "--")
        yield Surroundings((*within(cgroup).enter, *enter), f"/proc/{child}/root")


@contextlib.contextmanager
def cgroup_of_ours(owner: int | None = None) -> Iterator[Path]:
    """A cgroup for servers to start in; whatever is left in it is ended with it."""
    _need_root()
    top = next((path for path in HIERARCHIES if (path / "cgroup.controllers").exists()), None)
    if top is None:
        pytest.skip("no cgroup v2 at one of its usual places")
    lines = Path("/proc/self/cgroup").read_text().splitlines()
    ours = next(line.removeprefix("0::") for line in lines if line.startswith("0::"))
    cgroup = top / ours.strip("/") / f"test-{os.getpid()}-{time.monotonic_ns()}"
    try:
        cgroup.mkdir()
    except OSError as error:
        pytest.skip(f"no cgroup can be made: {error}")
    try:
        entry = subprocess.run(
            [*within(cgroup).enter, "true"], capture_output=True, text=True, check=False
        )
        if entry.returncode:
            pytest.skip(f"a cgroup cannot be entered: {entry.stderr}")
        if owner is not None:
            for path in (cgroup, cgroup / "cgroup.procs", cgroup / "cgroup.threads"):
                os.chown(path, owner, owner)
        yield cgroup
    finally:
        _remove(cgroup)


def rootmaker(directory: Path) -> Path:
    """A program by which somebody starts, as root, what they cannot signal: their arguments."""
    _need_root()
    program = directory / "rootmaker"
    program.write_bytes(Path(shutil.which("setpriv") or "/usr/bin/setpriv").read_bytes())
    os.chown(program, 0, SOMEBODY)
    program.chmod(0o4750)
    ids = f"--reuid={SOMEBODY}", f"--regid={SOMEBODY}", "--clear-groups"
    tried = subprocess.run(
        ["setpriv", *ids, str(program), *ROOT, "true"], capture_output=True, text=True, check=False
    )
    if tried.returncode:
        pytest.skip(f"no set-user-ID program works here: {tried.stderr}")
    return program


def within(cgroup: Path) -> Surroundings:
    return Surroundings(("sh", "-c", 'echo 0 >"$0/cgroup.procs" && exec "$@"', str(cgroup)))


def _need_root() -> None:
    if os.getuid() != 0:
        pytest.skip("only root can make namespaces and cgroups that are all its own")


def _kernel() -> tuple[int, int]:
    major, minor, *_ = os.uname().release.split(".")
    return int(major), int(minor)


@contextlib.contextmanager
def _holding(command: list[str]) -> Iterator[int]:
    """`command` says "ready" and then waits for the end of its input, which is also our own."""
    with subprocess.Popen(
        command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE
    ) as holder:
        assert holder.stdin is not None
        assert holder.stdout is not None
        assert holder.stderr is not None
        try:
            if holder.stdout.readline() != b"ready\n":
                pytest.skip(f"no namespace like that here: {holder.stderr.read().decode()}")
            yield holder.pid
        finally:
            holder.stdin.close()


def _remove(cgroup: Path) -> None:
    with contextlib.suppress(OSError):
        (cgroup / "cgroup.kill").write_text("1")
    deadline = time.monotonic() + 30
    while cgroup.exists():
        for path in sorted(cgroup.rglob("cgroup.procs"), reverse=True):
            with contextlib.suppress(OSError):
                path.parent.rmdir()
        if time.monotonic() > deadline:
            pytest.fail(f"{cgroup} is still in use")
        time.sleep(0.01)
