"""What one run is given: script, environment, input; as a message for the runner's stdin."""

import hashlib
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import StrEnum

_variable_name = re.compile(r"[A-Za-z_][A-Za-z0-9_]*\Z")
# Shells refuse to set these, and end the run's start with an error of their own.
READ_ONLY_NAMES = frozenset(
    ("BASHOPTS", "BASH_VERSINFO", "EUID", "GROUPS", "PPID", "SHELLOPTS", "UID", "_")
)

# More costs the runner's shell, which reads byte by byte, more than the processes that it saves.
MOST_LINES_BYTES = 4096
# It tells that all have come, and that the run is to start.
LAST_LINE = b"cronium-end\n"
# What every shell reads as it is, whatever its locale.
_plain = re.compile(rb"[\t\n -~]*\Z")


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

    def encode_lines(self) -> bytes | None:
        """The same as lines that a shell reads by itself, without `LAST_LINE`; None if it is not
        short and plain."""
        sections = {
            "directory": self.directory.encode(),
            "environment": export_lines(self.environment),
            "script": self.script,
            "input": self.input,
        }
        if not self.directory:
            del sections["directory"]
        if sum(map(len, sections.values())) > MOST_LINES_BYTES:
            return None
        if not all(_plain.match(section) for section in sections.values()):
            return None
        header = [f"interpreter {self.interpreter}", f"output_limit {self.output_limit_bytes}"]
        header += [f"{name} {section.count(10) + 1}" for name, section in sections.items()]
        return b"\n".join(("\n".join(header).encode(), b"", *sections.values(), b""))


@dataclass(frozen=True, slots=True)
class RunMessage:
    """What starts a run, but not before its `rest` comes. Its end is that of the stream, unless it
    `is_lines`."""

    head: bytes = field(repr=False)
    rest: bytes = field(repr=False)
    is_lines: bool

    @property
    def data(self) -> bytes:
        return self.head + self.rest


def variable_fault(name: str, value: str) -> str | None:
    """Why a POSIX shell could not export it."""
    if not _variable_name.match(name):
        return (
            f"{name!r} is not a variable name; "
            "expected letters, digits and _, not beginning with a digit"
        )
    if name in READ_ONLY_NAMES:
        return f"{name} is read-only in a shell"
    if "\0" in value:
        return f"the value of {name} holds a NUL"
    return None


def directory_fault(directory: str) -> str | None:
    """Why a shell's line could not have it."""
    return "holds a NUL or a line break" if "\0" in directory or "\n" in directory else None


def export_lines(environment: Mapping[str, str]) -> bytes:
    """`environment` as POSIX shell, to be sourced; values are quoted, names were checked."""
    return "".join(
        "export {}='{}'\n".format(name, value.replace("'", "'\\''"))
        for name, value in environment.items()
    ).encode(errors="surrogateescape")


def run_message(execution_id: str, limit_seconds: int, payload: Payload) -> RunMessage:
    """For a run of which nothing was received yet."""
    if (lines := payload.encode_lines()) is not None:
        header = f"{execution_id} 0 0 {limit_seconds} {lines.count(10) + 1} lines\n"
        return RunMessage(header.encode() + lines, LAST_LINE, is_lines=True)
    body = payload.encode()
    digest = hashlib.sha256(body).hexdigest()
    header = f"{execution_id} 0 0 {limit_seconds} {len(body)} {digest}\n"
    return RunMessage(header.encode(), body, is_lines=False)
