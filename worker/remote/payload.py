"""What one run is given: script, environment, input; as bytes for the runner's stdin."""

import hashlib
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import StrEnum

from worker.errors import JobError

_variable_name = re.compile(r"[A-Za-z_][A-Za-z0-9_]*\Z")
# Shells refuse to set these, and end the run's start with an error of their own.
READ_ONLY_NAMES = frozenset(
    ("BASHOPTS", "BASH_VERSINFO", "EUID", "GROUPS", "PPID", "SHELLOPTS", "UID", "_")
)


class Interpreter(StrEnum):
    BASH = "bash"
    PYTHON = "python3"
    NODE = "node"


@dataclass(frozen=True, slots=True)
class Payload:
    """`input` is JSON; an empty `directory` means the run's own."""

    interpreter: Interpreter
    script: bytes = field(repr=False)
    environment: Mapping[str, str] = field(repr=False)
    directory: str
    input: bytes = field(repr=False)
    output_limit_bytes: int

    def encode(self) -> bytes:
        environment = export_lines(self.environment)
        directory = self.directory.encode()
        header = (
            "cronium-payload 1\n"
            f"interpreter {self.interpreter}\n"
            f"output_limit {self.output_limit_bytes}\n"
            f"directory {len(directory)}\n"
            f"environment {len(environment)}\n"
            f"script {len(self.script)}\n"
            f"input {len(self.input)}\n"
            "\n"
        )
        return b"".join((header.encode(), directory, environment, self.script, self.input))


def check_environment(environment: Mapping[str, str]) -> None:
    """Raises JobError, naming the entry, if a POSIX shell could not export `environment`."""
    for name, value in environment.items():
        if not _variable_name.match(name):
            raise JobError(
                f"execution.environment: {name!r} is not a variable name; "
                "expected letters, digits and _, not beginning with a digit"
            )
        if name in READ_ONLY_NAMES:
            raise JobError(f"execution.environment: {name} is read-only in a shell")
        if "\0" in value:
            raise JobError(f"execution.environment: the value of {name} holds a NUL")


def export_lines(environment: Mapping[str, str]) -> bytes:
    """`environment` as POSIX shell, to be sourced; values are quoted, names were checked."""
    return "".join(
        "export {}='{}'\n".format(name, value.replace("'", "'\\''"))
        for name, value in environment.items()
    ).encode(errors="surrogateescape")


def run_header(
    execution_id: str, stdout: int, stderr: int, limit_seconds: int, payload: bytes
) -> bytes:
    """The line that comes before `payload` on the stdin of `run`."""
    digest = hashlib.sha256(payload).hexdigest()
    fields = (execution_id, stdout, stderr, limit_seconds, len(payload), digest)
    return " ".join(map(str, fields)).encode() + b"\n"
