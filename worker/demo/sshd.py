"""Real OpenSSH servers on loopback, each with a directory of its own for all that it writes."""

import os
import pwd
import re
import shutil
import socket
import subprocess
import time
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path

import asyncssh

from worker.demo.processes import end_processes, let_leave, live_processes, processes_with_home
from worker.errors import WorkerError

READY_SECONDS = 10.0  # an sshd is ready in 30 ms; a loaded CI machine has needed 2 s
STOP_SECONDS = 3.0
LOOK_EVERY_SECONDS = 0.01
ADDRESSES_PER_SSHD = 16  # MAX_LISTEN_SOCKS in OpenSSH's sshd.c
PRIVSEP_DIRECTORY = Path("/run/sshd")  # compiled into Debian's sshd; it insists on it as root

DEFAULTS = {
    "AllowAgentForwarding": "no",
    "KbdInteractiveAuthentication": "no",
    "LogLevel": "ERROR",
    # The daemon's own 10:30:100 drops connections when a test opens many at once.
    "MaxStartups": "200:30:400",
    "PasswordAuthentication": "no",
    "PermitRootLogin": "yes",
    "PermitUserRC": "no",  # ~/.ssh/rc would be the account's own, whatever HOME says
    "PidFile": "none",
    "PrintLastLog": "no",
    "PrintMotd": "no",
    "StrictModes": "no",  # the directories above are not ours to judge
    "Subsystem": "sftp internal-sftp",
    "UseDNS": "no",
    "UsePAM": "no",
    "X11Forwarding": "no",
}


class SshdError(WorkerError):
    """No sshd can be run here; the text says why."""


@dataclass(frozen=True, slots=True)
class LocalServer:
    """What a client needs to know to log in; `home` is HOME of every session there."""

    name: str
    host: str
    port: int
    user: str
    private_key: str = field(repr=False)  # PEM in OpenSSH's own format
    host_key: str  # the line of a .pub file
    home: Path


class Sshd:
    """One sshd process that stands for one server per address.

    Servers of one machine and account differ by HOME, which sshd sets per address. A directory
    that was used before keeps its keys, its homes and, while it is free, its port.
    """

    def __init__(
        self,
        directory: Path,
        addresses: Mapping[str, str],
        *,
        user: str | None = None,
        port: int | None = None,
        login_shell: str | None = None,
        options: Mapping[str, str] | None = None,
    ) -> None:
        """Take the servers from `addresses` (name to address); write keys and homes.

        `user` is another account than ours, for which we must be root and `directory` within its
        reach. `login_shell` stands in for the account's own; `options` go before `DEFAULTS`.
        """
        self._user = user or our_account()
        self._directory = directory
        self._addresses = dict(addresses)
        self._wanted_port = port
        self._login_shell = login_shell
        self._options = dict(options or {})
        self._process: subprocess.Popen[bytes] | None = None
        self.servers: tuple[LocalServer, ...] = ()
        directory.mkdir(parents=True, exist_ok=True)
        keep_key(directory / "client_key")
        keep_key(directory / "host_key")
        for name in self._addresses:
            home = self._home(name)
            home.mkdir(parents=True, exist_ok=True)
            if user is not None:
                shutil.chown(home, user)

    @property
    def server(self) -> LocalServer:
        """The one server of an sshd that stands for one."""
        (server,) = self.servers
        return server

    @property
    def pid(self) -> int:
        """The process that accepts connections."""
        if self._process is None:
            raise SshdError("this sshd is not running")
        return self._process.pid

    def start(self) -> None:
        """Accept connections; the same port as before a `stop`. Returns when all addresses do.

        Raises SshdError if there is no sshd, or none that could let the user in.
        """
        deadline = time.monotonic() + READY_SECONDS
        kept = self.servers[0].port if self.servers else self._wanted_port
        while True:
            # Another program may take a free port before sshd does: then the next one is tried.
            port = kept or self._free_port()
            if self._listens(port, deadline):
                break
            if kept or time.monotonic() > deadline:
                raise SshdError(f"sshd did not start on port {port}: {self.log().strip()}")
        (self._directory / "port").write_text(f"{port}\n")
        self.servers = tuple(
            LocalServer(
                name=name,
                host=address,
                port=port,
                user=self._user,
                private_key=(self._directory / "client_key").read_text(),
                host_key=(self._directory / "host_key.pub").read_text().strip(),
                home=self._home(name),
            )
            for name, address in self._addresses.items()
        )

    def stop(self) -> None:
        """Accept no more connections; those that are open go on, as when a service restarts."""
        if self._process is None:
            return
        self._process.terminate()
        try:
            self._process.wait(STOP_SECONDS)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()
        self._process = None

    def restart(self) -> None:
        """Stop and start on the same port; open connections and runs go on."""
        self.stop()
        self.start()

    def kill_sessions(self) -> int:
        """Kill the sshd of every open connection; what runs in them is left alone.

        Gives the number of connections. Call it while sshd accepts: a connection that outlived
        `stop` is no longer its child.
        """
        # The sshd of a connection leads a session, and its unprivileged half stays in it; what
        # the user runs gets sessions of its own.
        leaders = {process.pid for process in live_processes() if process.parent == self.pid}
        if not leaders:  # each look is at all processes that there are
            return 0
        end_processes(
            lambda: [
                process.pid
                for process in live_processes()
                if {process.pid, process.session} & leaders
                and process.command.startswith("sshd")  # sshd-session since 9.8
            ]
        )
        return len(leaders)

    def processes(self) -> list[int]:
        """The processes that came from sessions of these servers, detached ones included."""
        return processes_with_home(*(self._home(name) for name in self._addresses))

    def close(self) -> None:
        """Stop, end every open connection and every process that came from one."""
        if self._process is not None:
            self.kill_sessions()
            self.stop()
            let_leave(self.processes)
        end_processes(self.processes)

    def log(self) -> str:
        """What sshd wrote since its last start."""
        return (self._directory / "sshd.log").read_text(errors="replace")

    def _home(self, name: str) -> Path:
        return self._directory / "home" / name

    def _free_port(self) -> int:
        kept = self._directory / "port"
        with suppress(FileNotFoundError):
            if port_is_free(port := int(kept.read_text())):
                kept.unlink()  # tried once: whoever asks again wants another
                return port
        return free_port()

    def _listens(self, port: int, deadline: float) -> bool:
        command = self._command(port)
        with (self._directory / "sshd.log").open("wb") as log:
            self._process = subprocess.Popen(  # noqa: S603  our own program and arguments
                command,
                stdin=subprocess.DEVNULL,
                stdout=subprocess.DEVNULL,
                stderr=log,
                start_new_session=True,  # a Ctrl-C at the terminal is for the caller
            )
        waiting = list(self._addresses.values())
        while waiting and self._process.poll() is None and time.monotonic() < deadline:
            if _answers(waiting[0], port):
                waiting.pop(0)
            else:
                time.sleep(LOOK_EVERY_SECONDS)
        # sshd goes on when only some of its addresses are taken: another program answers there.
        if waiting or "Bind to port" in self.log():
            self.stop()
            return False
        return True

    def _command(self, port: int) -> list[str]:
        if reason := unusable_reason(self._user):
            raise SshdError(reason)
        program = ready_sshd()
        config = self._directory / "sshd_config"
        config.write_text(self._config(port, _version(program)))
        return [program, "-D", "-e", "-f", str(config)]

    def _config(self, port: int, version: tuple[int, int]) -> str:
        given = {key.lower() for key in self._options}
        defaults = {key: value for key, value in DEFAULTS.items() if key.lower() not in given}
        if version >= (9, 8):  # refused logins would lock out all of loopback
            defaults["PerSourcePenalties"] = "no"
        lines = [f"Port {port}"]
        lines += [f"ListenAddress {address}" for address in self._addresses.values()]
        lines += [f'HostKey "{self._directory / "host_key"}"']
        keys = str(self._directory / "client_key.pub").replace("%", "%%")
        lines += [f'AuthorizedKeysFile "{keys}"']
        lines += [f"{key} {value}" for key, value in (self._options | defaults).items()]
        if self._login_shell is not None:
            # Word for word what sshd itself does with the account's shell.
            lines += [f'ForceCommand exec {self._login_shell} -c "$SSH_ORIGINAL_COMMAND"']
        for name, address in self._addresses.items():
            lines += [f"Match LocalAddress {address}", f'  SetEnv "HOME={self._home(name)}"']
        return "\n".join(lines) + "\n"


@contextmanager
def running(sshd: Sshd) -> Iterator[Sshd]:
    """Start `sshd`; at the end nothing of it or its sessions is left."""
    try:
        sshd.start()
        yield sshd
    finally:
        sshd.close()


@contextmanager
def open_sshd(
    directory: Path,
    name: str = "server",
    *,
    host: str = "127.0.0.1",
    port: int | None = None,
    user: str | None = None,
    login_shell: str | None = None,
    options: Mapping[str, str] | None = None,
) -> Iterator[Sshd]:
    """One server, as `Sshd` describes it; at the end nothing of it or its sessions is left."""
    sshd = Sshd(
        directory, {name: host}, user=user, port=port, login_shell=login_shell, options=options
    )
    with running(sshd):
        yield sshd


@contextmanager
def open_fleet(
    directory: Path, size: int, *, options: Mapping[str, str] | None = None
) -> Iterator[tuple[LocalServer, ...]]:
    """`size` servers, at most 250, at 127.0.1.1 and on, sixteen to one sshd process."""
    numbers = range(1, size + 1)
    with ExitStack() as stack:
        servers: list[LocalServer] = []
        for first in numbers[::ADDRESSES_PER_SSHD]:
            addresses = {
                f"server-{n}": f"127.0.1.{n}" for n in numbers[first - 1 :][:ADDRESSES_PER_SSHD]
            }
            sshd = Sshd(directory / f"sshd-{first}", addresses, options=options)
            servers += stack.enter_context(running(sshd)).servers
        yield tuple(servers)


def unusable_reason(user: str | None = None) -> str | None:
    """Why no sshd of ours could let `user` (default: us) in by key; None if it can."""
    if not _find_sshd():
        return "sshd is not installed"
    try:
        account = pwd.getpwnam(user) if user else pwd.getpwuid(os.getuid())
    except KeyError:
        return f"there is no account for {user or f'uid {os.getuid()}'}"
    if account.pw_uid != os.getuid() and os.getuid() != 0:
        return f"only root can run an sshd for another account ({account.pw_name})"
    if not os.access(account.pw_shell, os.X_OK) or account.pw_shell.endswith(("nologin", "false")):
        return f"{account.pw_name} has no login shell ({account.pw_shell})"
    if os.getuid() == 0 and _password_field(account.pw_name).startswith("!"):
        return (
            f"the account {account.pw_name} is locked, and without PAM sshd lets no locked account "
            f"in, not even by key; `usermod -p '*' {account.pw_name}` unlocks it without a password"
        )
    return None


def ready_sshd() -> str:
    """The path of sshd, which may be started now; empty where there is none."""
    program = _find_sshd()
    if program and os.getuid() == 0:
        # Without systemd nothing has made it since the package was installed.
        PRIVSEP_DIRECTORY.mkdir(mode=0o755, exist_ok=True)
    return program


def our_account() -> str:
    """The name of the account that we run under; its number where it has no name."""
    try:
        return pwd.getpwuid(os.getuid()).pw_name
    except KeyError:
        return str(os.getuid())


def keep_key(path: Path) -> None:
    """Make a key pair at `path` and `path`.pub unless there is one."""
    if not path.exists():
        key = asyncssh.generate_private_key("ssh-ed25519")
        key.write_public_key(path.with_name(path.name + ".pub"))
        path.touch(mode=0o600)
        key.write_private_key(path)


def free_port() -> int:
    """A port that no address of this machine uses at the moment."""
    with socket.socket() as probe:
        probe.bind(("", 0))
        port: int = probe.getsockname()[1]
        return port


def port_is_free(port: int) -> bool:
    with socket.socket() as probe:
        # Connections of a server that ended lately do not count, as they do not for sshd.
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind(("", port))
        except OSError:
            return False
        return True


def _find_sshd() -> str:
    # sshd insists on its absolute path, and /usr/sbin is rarely on the PATH of a plain user.
    return shutil.which("sshd") or shutil.which("/usr/sbin/sshd") or ""


def _version(program: str) -> tuple[int, int]:
    # Before 9.2 there was no -V, but the complaint about it names the version too.
    said = subprocess.run([program, "-V"], capture_output=True, text=True, check=False)  # noqa: S603  found above
    match = re.search(r"OpenSSH_(\d+)\.(\d+)", said.stdout + said.stderr)
    return (int(match[1]), int(match[2])) if match else (0, 0)


def _password_field(user: str) -> str:
    # The module spwd, which read this file, is gone in Python 3.13.
    for line in Path("/etc/shadow").read_text().splitlines():
        name, password, *_ = line.split(":")
        if name == user:
            return password
    return ""


def _answers(address: str, port: int) -> bool:
    try:
        with socket.create_connection((address, port), timeout=1) as connection:
            return connection.recv(4) == b"SSH-"
    except OSError:
        return False
