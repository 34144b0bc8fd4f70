"""Real runners under real shells, for the tests of the runner."""

import concurrent.futures
import contextlib
import hashlib
import os
import re
import select
import shutil
import signal
import subprocess
import time
import uuid
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TypedDict, TypeVar, Unpack

from tests.process.surroundings import Surroundings
from worker.demo.processes import all_pids, is_alive, read_of
from worker.remote.artifact import HELPERS, load_artifact
from worker.remote.payload import LAST_LINE

T = TypeVar("T")

SOURCE = Path(__file__).parents[2] / "worker" / "remote" / "runner.sh"
INSTALLER = SOURCE.with_name("install.sh")
ARTIFACT = load_artifact()
SHA256 = ARTIFACT.sha256
NAME = f"runner-{ARTIFACT.version}"
NONCE = "N0nce"
SHELLS = ("dash", "bash", "busybox", "mksh", "yash")
# A bound for what takes milliseconds: only a defect, or a machine at its limits, gets near it.
PATIENCE_SECONDS = 30.0
# A sweep is a dozen programs on each new server, and whoever is about sweeps has another time set.
NO_JANITOR = {"settle_s=3600": "settle_s=999999999"}


def wait_until(look: Callable[[], T], what: str) -> T:
    """The first true answer of `look`; fails once patience is over."""
    deadline = time.monotonic() + PATIENCE_SECONDS
    while not (answer := look()):
        assert time.monotonic() < deadline, f"waited too long until {what}"
        time.sleep(0.01)
    return answer


def payload(
    script: bytes,
    *,
    interpreter: str = "bash",
    environment: bytes = b"",
    stdin: bytes = b"{}",
    directory: bytes = b"",
    output_limit: int = 1 << 30,
) -> bytes:
    header = (
        f"cronium-payload 1\ninterpreter {interpreter}\noutput_limit {output_limit}\n"
        f"directory {len(directory)}\nenvironment {len(environment)}\n"
        f"script {len(script)}\ninput {len(stdin)}\n\n"
    )
    return header.encode() + directory + environment + script + stdin


def message(
    run_id: str, body: bytes, *, out: int = 0, err: int = 0, limit_seconds: int = 60
) -> bytes:
    """The standard input of `run`, with the payload as bytes."""
    digest = hashlib.sha256(body).hexdigest()
    return f"{run_id} {out} {err} {limit_seconds} {len(body)} {digest}\n".encode() + body


def line_message(
    run_id: str, body: bytes, *, out: int = 0, err: int = 0, limit_seconds: int = 60
) -> bytes:
    """The same with the payload as lines, after which the call may be sent another."""
    header, _, rest = body.partition(b"\n\n")
    lines = []
    sections = []
    for entry in header.split(b"\n")[1:]:
        name, _, value = entry.partition(b" ")
        if name in (b"directory", b"environment", b"script", b"input"):
            section, rest = rest[: int(value)], rest[int(value) :]
            if name == b"directory" and not section:
                continue
            sections.append(section)
            value = b"%d" % (section.count(b"\n") + 1)
        lines.append(name + b" " + value)
    text = b"\n".join((*lines, b"", *sections, LAST_LINE))
    count = text.count(b"\n")
    return f"{run_id} {out} {err} {limit_seconds} {count} lines\n".encode() + text


def is_short_and_plain(body: bytes) -> bool:
    return len(body) < 4096 and body.isascii() and b"\0" not in body


@dataclass
class Call:
    """One exec of the runner: its frames, read as they come."""

    process: "subprocess.Popen[bytes]"
    out: bytes = b""
    err: bytes = b""
    heads: list[str] = field(default_factory=list)
    calls: list[tuple[str, bytes]] = field(default_factory=list)
    _pending: bytes = b""

    def send(self, data: bytes) -> None:
        assert self.process.stdin is not None
        with contextlib.suppress(BrokenPipeError):
            self.process.stdin.write(data)
            self.process.stdin.flush()

    def send_eof(self) -> None:
        assert self.process.stdin is not None
        with contextlib.suppress(BrokenPipeError):
            self.process.stdin.close()

    def _more(self) -> bool:
        assert self.process.stdout is not None
        ready, _, _ = select.select([self.process.stdout], [], [], PATIENCE_SECONDS)
        assert ready, f"the runner is silent after {self.heads}"
        data = os.read(self.process.stdout.fileno(), 1 << 20)
        self._pending += data
        return data != b""

    def _line(self) -> str | None:
        while b"\n" not in self._pending:
            if not self._more():
                assert self._pending == b"", self._pending[:300]
                return None
        line, _, self._pending = self._pending.partition(b"\n")
        return line.decode()

    def next_frame(self) -> str | None:
        """The header of the next frame, its bytes taken in; None at the end."""
        head = self._line()
        if head is None:
            return None
        if head[:2] in ("o ", "e ", "c "):
            count = int(head.split()[-1])
            assert 0 < count <= 1 << 20
            while len(self._pending) < count:
                assert self._more(), f"cut off inside {head}"
            data, self._pending = self._pending[:count], self._pending[count:]
            if head[0] == "o":
                self.out += data
            elif head[0] == "e":
                self.err += data
            else:
                self.calls.append((head.split()[1], data))
        self.heads.append(head)
        return head

    def read_until(self, enough: Callable[["Call"], bool]) -> None:
        # Signs of life would keep a defect alive for ever.
        deadline = time.monotonic() + PATIENCE_SECONDS
        while not enough(self):
            assert time.monotonic() < deadline, f"waited too long, with {self.heads[-3:]}"
            assert self.next_frame() is not None, f"ended early: {self.heads}"

    def read_until_started(self) -> None:
        self.read_until(lambda call: any(head.startswith("r ") for head in call.heads))

    def follow(self) -> bytes:
        """Reads to the next end of a run; what that printed."""
        printed, ended = len(self.out), self._ends()
        self.read_until(lambda call: call._ends() > ended)
        return self.out[printed:]

    def run(self, run_id: str, script: bytes, environment: bytes = b"") -> bytes:
        """What it prints, over this call."""
        self.send(line_message(run_id, payload(script, environment=environment)))
        return self.follow()

    def _ends(self) -> int:
        return sum(head.startswith("x ") for head in self.heads)

    def finish(self) -> int:
        """Reads to the end of the frames; the exit status."""
        self.send_eof()
        deadline = time.monotonic() + PATIENCE_SECONDS
        while self.next_frame() is not None:
            assert time.monotonic() < deadline, f"no end after {self.heads[-3:]}"
        return self._reap()

    def kill(self) -> None:
        self.process.kill()
        self._reap()

    def _reap(self) -> int:
        self.send_eof()
        status = self.process.wait(PATIENCE_SECONDS)
        assert self.process.stdout is not None
        assert self.process.stderr is not None
        self.process.stdout.close()
        self.complaint = self.process.stderr.read().decode()
        self.process.stderr.close()
        return status

    complaint: str = ""

    @property
    def state(self) -> str:
        """What the `r` frame says."""
        return next(head for head in self.heads if head.startswith("r ")).split()[1]

    @property
    def end(self) -> tuple[int, str]:
        """Code and reason of the `x` frame, which is the last."""
        frame = re.fullmatch(r"x ([0-9]+) ([a-z_]+) [0-9]+ [0-9]+", self.heads[-1])
        assert frame, self.heads
        code, reason = frame.groups()
        return int(code), reason


class Options(TypedDict, total=False):
    """`edits` are made to the runner: what is to be another text in it. Payloads that could be
    sent as lines are, unless `sends_lines` is false."""

    busybox_userland: bool
    sends_lines: bool
    grace_ms: int
    edits: Mapping[str, str]
    surroundings: Surroundings
    user: int


class Server:
    """An account whose `sh` is the shell under test.

    `place` is a path in its surroundings; `home` and what is below it are paths as we see them.
    """

    def __init__(self, place: Path, shell: str, **options: Unpack[Options]) -> None:
        self.shell = shell
        self._surroundings = options.get("surroundings", Surroundings())
        self._user = options.get("user")
        self._sends_lines = options.get("sends_lines", True)
        place = Path(f"{self._surroundings.outside}{place}")
        self.home = place / "home"
        self.bin = place / "bin"
        self.home.mkdir(parents=True)
        self.bin.mkdir()
        self.path = f"{self.inside(self.bin)}:/usr/local/bin:/usr/bin:/bin"
        if options.get("busybox_userland"):
            subprocess.run(["busybox", "--install", "-s", str(self.bin)], check=True)
            bash = shutil.which("bash")
            assert bash is not None
            (self.bin / "bash").symlink_to(bash)
            self.path = self.inside(self.bin)
        else:
            program = shutil.which(shell)
            assert program is not None, f"{shell} is not installed"
            (self.bin / "sh").symlink_to(program)
        self.root = self.home / ".cache" / "cronium"
        self.root.mkdir(parents=True)
        self.root.chmod(0o700)
        self.runner = self.root / NAME
        source = ARTIFACT.content.decode()
        grace = {"grace_ms=5000": f"grace_ms={options.get('grace_ms', 5000)}"}
        for old, new in {**NO_JANITOR, **grace, **options.get("edits", {})}.items():
            assert old in source
            source = source.replace(old, new)
        self.runner.write_text(source)
        # As the runner unpacks them, for the time that takes.
        self.helpers = self.root / f"helpers-{ARTIFACT.version}"
        for name in HELPERS:
            path = self.helpers / name
            path.parent.mkdir(0o700, parents=True, exist_ok=True)
            path.write_bytes((SOURCE.parent / "helpers" / name).read_bytes())
            path.chmod(0o600)
        for path in (self.helpers, self.helpers / "node_modules"):
            path.chmod(0o700)
        if self._user is not None:
            for path in (self.home, *self.home.rglob("*")):
                os.chown(path, self._user, self._user)
        self._calls: list[Call] = []

    def inside(self, path: Path) -> str:
        return str(path).removeprefix(self._surroundings.outside)

    def environment(self) -> dict[str, str]:
        return {"HOME": self.inside(self.home), "PATH": self.path}

    def call(
        self,
        *arguments: str,
        environment: dict[str, str] | None = None,
        runner: Path | None = None,
        new_session: bool = False,
    ) -> Call:
        verb, *rest = arguments
        enter = self._surroundings.enter
        if self._user is not None:
            ids = f"--reuid={self._user}", f"--regid={self._user}", "--clear-groups"
            enter = (*enter, "setpriv", *ids)
        shell, program = self.inside(self.bin / "sh"), self.inside(runner or self.runner)
        process = subprocess.Popen(
            [*enter, shell, program, verb, NONCE, *rest],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            env=self.environment() if environment is None else environment,
            start_new_session=new_session,
        )
        call = Call(process)
        self._calls.append(call)
        return call

    def start(self, run_id: str, body: bytes, *, limit_seconds: int = 60) -> Call:
        """`run`, up to the frame which says that it was started."""
        call = self.call("run")
        call.send(self.message(run_id, body, limit_seconds=limit_seconds))
        call.send_eof()
        call.read_until_started()
        return call

    def message(self, run_id: str, body: bytes, *, limit_seconds: int) -> bytes:
        """As the worker would send it."""
        as_lines = self._sends_lines and is_short_and_plain(body)
        return (line_message if as_lines else message)(run_id, body, limit_seconds=limit_seconds)

    def stage(self, call: Call, run_id: str, script: bytes) -> None:
        """All but the last line of a payload, and until that has been taken in."""
        call.send(line_message(run_id, payload(script)).removesuffix(LAST_LINE))
        wait_until(self._has_one_that_is_staged, "it has been taken in")

    def run(self, run_id: str, body: bytes, *, limit_seconds: int = 60) -> Call:
        """`run`, up to the end of the script."""
        call = self.call("run")
        call.send(self.message(run_id, body, limit_seconds=limit_seconds))
        call.finish()
        return call

    def ask(self, *arguments: str) -> tuple[int, Call]:
        call = self.call(*arguments)
        return call.finish(), call

    def claim(self, run_id: str) -> Path:
        return self.root / "runs" / run_id

    def directory(self, run_id: str) -> Path:
        """Its room, also where it is not claimed yet; its claim's path where there is none."""
        claim = self.claim(run_id)
        if claim.is_file() and (name := claim.read_text().strip()):
            return self.root / "rooms" / name
        for owner in self.root.glob(f"rooms/*/for.{run_id}"):
            return owner.parent
        return claim

    def owner(self, run_id: str) -> Path:
        """What says who starts it, in its room."""
        return self.directory(run_id) / f"for.{run_id}"

    def rooms(self) -> list[Path]:
        return list(self.root.glob("rooms/*"))

    def _has_one_that_is_staged(self) -> bool:
        return any(
            (room / "in/input").exists() and not any(room.glob("for.*")) for room in self.rooms()
        )

    def has_ended(self, run_id: str) -> bool:
        return any(self.directory(run_id).glob("exit.*"))

    def supervisor(self, run_id: str) -> int:
        return int(self.owner(run_id).read_text().split(".")[0])

    def script(self, run_id: str) -> int:
        return int((self.directory(run_id) / "script").read_text().split()[0])

    def wait_for_the_janitor(self, run_id: str) -> None:
        """Until all is done that comes after the end of a run."""
        supervisor = self.supervisor(run_id)
        wait_until(lambda: not is_alive(supervisor), "the supervisor is gone")

    def end_everything(self) -> None:
        for call in self._calls:
            if call.process.returncode is None:
                call.kill()
        running = [
            claim.name for claim in self.root.glob("runs/*") if not self.has_ended(claim.name)
        ]
        enders = [self.call("signal", run_id, "cancel") for run_id in running]
        for ender in enders:
            ender.finish()
        # They write until their end, where whoever made the place will delete it.
        while found := self.supervisors():
            wait_until(lambda: not any(map(is_alive, found)), "all supervisors are gone")
        # What tests have left running on purpose, or made unknown, is gone by now.
        for record in self.root.glob("rooms/*/cgroup"):
            with contextlib.suppress(OSError):
                Path(record.read_text().strip()).rmdir()

    def payloads(self, run_id: str) -> list[str]:
        """What is there of all that came with the run."""
        # By a walk, as glob trips over what goes meanwhile.
        files = (
            Path(folder, name)
            for folder, _, names in os.walk(self.directory(run_id))
            for name in names
        )
        return [path.name for path in files if path.parent.name == "in" and _has_content(path)]

    def supervisors(self) -> list[int]:
        """With what they have ready, and what their sweeps start."""
        verbs, root = {b"+supervise", b"+sweep"}, self.inside(self.root).encode()
        lines = {pid: _words(pid, "cmdline") for pid in all_pids()}
        return [
            pid
            for pid, words in lines.items()
            if words & verbs and any(root in word for word in words)
        ]


def use_up_the_files(server: Server) -> Path:
    """All that its file system may have; the directory of those that it has now."""
    directory = server.home / "files"
    directory.mkdir()
    with contextlib.suppress(OSError):
        for number in range(10_000):
            (directory / str(number)).touch()
    return directory


def new_id() -> str:
    return f"exec_{uuid.uuid4().hex}_1"


def kill_if_alive(pid: int) -> None:
    with contextlib.suppress(ProcessLookupError):
        os.kill(pid, signal.SIGKILL)
    # Under load that takes a while, in which it passes for alive.
    wait_until(lambda: not is_alive(pid), "it is gone")


def carriers(run_id: str) -> list[int]:
    """The living processes whose environment names this run."""
    cookie = f"CRONIUM_EXECUTION_ID={run_id}".encode()
    return [pid for pid in all_pids() if cookie in _words(pid, "environ")]


def _has_content(path: Path) -> bool:
    with contextlib.suppress(FileNotFoundError):
        return path.lstat().st_size > 0
    return False


def _words(pid: int, file: str) -> set[bytes]:
    return set(read_of(pid, file).split(b"\0"))


@contextlib.contextmanager
def serving(place: Path, shell: str, **options: Unpack[Options]) -> Iterator[Server]:
    server = Server(place, shell, **options)
    try:
        yield server
    finally:
        server.end_everything()


def in_every_shell(
    place: Path, check: Callable[[Server], None], **options: Unpack[Options]
) -> None:
    """Runs `check` on a server of each shell, side by side: for what has to wait."""

    def check_one(shell: str) -> None:
        with serving(place / shell, shell, **options) as server:
            check(server)

    with concurrent.futures.ThreadPoolExecutor(len(SHELLS)) as pool:
        for done in [pool.submit(check_one, shell) for shell in SHELLS]:
            done.result()
