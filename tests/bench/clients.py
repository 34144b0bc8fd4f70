"""Other programs that run a command on many servers."""

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from tests.bench.bench import CannotMeasureError
from tests.bench.fleet import Fleet
from tests.bench.processes import Spent, spend
from worker.demo.sshd import LocalServer

COMMAND = "echo hi; exit 0"
ANSWER = "hi"
XARGS_AT_ONCE = 50
# What `--with-peers` installs: distributions, and the file that says one is there.
PEERS = {
    "ansible": ("ansible-core", "bin/ansible"),
    "clush": ("ClusterShell", "bin/clush"),
    "parallel-ssh": ("parallel-ssh", "lib/python*/site-packages/pssh"),
    "pyinfra": ("pyinfra", "bin/pyinfra"),
}


@dataclass(frozen=True, slots=True)
class Client:
    """`run` is given servers, and a folder to write to, and raises CannotMeasureError if not
    every one of them has answered."""

    name: str
    run: Callable[[Sequence[LocalServer], Path], Spent]


def xargs_ssh(fleet: Fleet) -> Client:
    """OpenSSH's own client, some processes at once."""

    def run(servers: Sequence[LocalServer], folder: Path) -> Spent:
        ssh = f"ssh -F {fleet.ssh_config} {{}} '{COMMAND}'"
        return _checked(
            spend(
                ["xargs", "-P", str(XARGS_AT_ONCE), "-I{}", "sh", "-c", ssh],
                text=_lines(servers),
            ),
            len(servers),
        )

    if not (shutil.which("xargs") and shutil.which("ssh")):
        raise CannotMeasureError("there is no xargs or no ssh")
    return Client("xargs ssh", run)


def installed_peers(fleet: Fleet, scratch: Path) -> list[Client]:
    """Those that `install_peers` has put into `scratch`."""
    makers = {
        "ansible": _ansible,
        "clush": _clush,
        "parallel-ssh": _parallel_ssh,
        "pyinfra": _pyinfra,
    }
    return [
        makers[name](fleet, scratch) for name, (_, mark) in PEERS.items() if any(scratch.glob(mark))
    ]


def install_peers(scratch: Path, say: Callable[[str], None]) -> None:
    """Put what can be had into a virtual environment at `scratch`; what cannot is told."""
    python = scratch / "bin" / "python"
    if not python.exists():
        subprocess.run([sys.executable, "-m", "venv", str(scratch)], check=True)
    for name, (distribution, mark) in PEERS.items():
        if any(scratch.glob(mark)):
            continue
        ended = subprocess.run(
            [
                str(python),
                "-m",
                "pip",
                "install",
                "-q",
                "--disable-pip-version-check",
                distribution,
            ],
            check=False,
            capture_output=True,
            text=True,
        )
        if ended.returncode:
            say(f"{name} cannot be installed: {ended.stderr.strip().splitlines()[-1:]}")


def _ansible(fleet: Fleet, scratch: Path) -> Client:
    def run(servers: Sequence[LocalServer], folder: Path) -> Spent:
        inventory = folder / "ansible-hosts"
        inventory.write_text(_lines(servers))
        config = folder / "ansible.cfg"
        config.write_text(
            "[defaults]\nhost_key_checking=True\ninterpreter_python=/usr/bin/python3\n"
            "[ssh_connection]\npipelining=True\n"
            # No master stays behind: what it costs would not be counted.
            f"ssh_args=-F {fleet.ssh_config} -o ControlMaster=no\n"
        )
        environ = {
            **os.environ,
            "ANSIBLE_CONFIG": str(config),
            "ANSIBLE_LOCAL_TEMP": str(folder / "ansible-tmp"),
            "ANSIBLE_NOCOLOR": "1",
            "LC_ALL": "C.UTF-8",
        }
        command = [
            *(str(scratch / "bin" / "ansible"), "all", "-i", str(inventory)),
            *("-f", str(len(servers)), "-m", "raw", "-a", COMMAND),
        ]
        return _checked(spend(command, environ=environ), len(servers))

    return Client("ansible raw", run)


def _clush(fleet: Fleet, scratch: Path) -> Client:
    def run(servers: Sequence[LocalServer], folder: Path) -> Spent:
        command = [
            *(str(scratch / "bin" / "clush"), "-N", "-S", "-q", "-f", str(len(servers))),
            *("-o", f"-F {fleet.ssh_config}", "-w", ",".join(server.host for server in servers)),
            COMMAND,
        ]
        return _checked(spend(command), len(servers))

    return Client("clush", run)


def _parallel_ssh(fleet: Fleet, scratch: Path) -> Client:
    program = f"""
import json, sys
from pssh.clients import ParallelSSHClient
from pssh.config import HostConfig
servers = json.load(sys.stdin)
client = ParallelSSHClient(
    [each[0] for each in servers], pool_size=len(servers), allow_agent=False,
    host_config=[HostConfig(port=each[1], user=each[2], private_key=each[3]) for each in servers],
)
for output in client.run_command({COMMAND!r}):
    print("\\n".join(output.stdout))
"""

    def run(servers: Sequence[LocalServer], folder: Path) -> Spent:
        told = [
            (each.host, each.port, each.user, str(each.home.parents[1] / "client_key"))
            for each in servers
        ]
        command = [str(scratch / "bin" / "python"), "-c", program]
        return _checked(spend(command, text=json.dumps(told)), len(servers))

    return Client("parallel-ssh", run)


def _pyinfra(fleet: Fleet, scratch: Path) -> Client:
    def run(servers: Sequence[LocalServer], folder: Path) -> Spent:
        hosts = [
            (
                each.host,
                {
                    "ssh_user": each.user,
                    "ssh_port": each.port,
                    "ssh_key": str(each.home.parents[1] / "client_key"),
                    "ssh_known_hosts_file": str(fleet.ssh_config.with_name("known_hosts")),
                    "ssh_allow_agent": False,
                    "ssh_look_for_keys": False,
                    "ssh_config_file": "/dev/null",
                },
            )
            for each in servers
        ]
        inventory = folder / "pyinfra_hosts.py"
        inventory.write_text(f"bench = {hosts!r}\n")
        command = [
            *(str(scratch / "bin" / "pyinfra"), "-y", "-v", str(inventory)),
            *("exec", "--", COMMAND),
        ]
        return _checked(spend(command, environ={**os.environ, "HOME": str(folder)}), len(servers))

    return Client("pyinfra", run)


def _lines(servers: Sequence[LocalServer]) -> str:
    return "".join(f"{server.host}\n" for server in servers)


def _checked(spent: Spent, servers: int) -> Spent:
    """Every server must have answered, on a line that may have a heading."""
    answers = sum(
        line.split()[-1:] == [ANSWER] and COMMAND not in line for line in spent.output.splitlines()
    )
    if answers != servers:
        raise CannotMeasureError(f"{answers} of {servers} answered: {spent.output.strip()[-200:]}")
    return spent
