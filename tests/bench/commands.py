"""Rows of commands that end at once, and of the container's probe."""

import json
import os
import re
import shutil
import sys
from pathlib import Path

from tests.bench.bench import Bench, Experiment
from tests.bench.processes import spend
from tests.bench.rows import Measured, Row, at_most, measured, unmeasured

ROOT = Path(__file__).parents[2]

VERSION_START = Row("version-start", "ms", "cronium-worker --version, wall", at_most(120), digits=0)
PROBE_CPU = Row("probe-cpu", "ms", "CPU of the container's health probe", at_most(20), digits=1)


def run(bench: Bench) -> list[Measured]:
    results = []
    if bench.wants(VERSION_START.name):
        results.append(_version_start(bench))
    if bench.wants(PROBE_CPU.name):
        results += _probe_cpu(bench)
    return results


def _version_start(bench: Bench) -> Measured:
    command = [*_program(), "--version"]
    spend(command)  # the first one reads from the disk and compiles
    rounds = bench.pick(4 * bench.rounds, 3)
    return measured(VERSION_START.name, (1000 * spend(command).wall_seconds for _ in range(rounds)))


def _program() -> list[str]:
    """The installed script, as a user calls it."""
    script = Path(sys.executable).with_name("cronium-worker")
    return [str(script)] if script.exists() else [sys.executable, "-m", "worker"]


def _probe_cpu(bench: Bench) -> list[Measured]:
    command = _probe()
    if command is None:
        return unmeasured([PROBE_CPU.name], "the Containerfile has no HEALTHCHECK")
    if shutil.which(command[0]) is None:
        return unmeasured([PROBE_CPU.name], f"there is no {command[0]} outside of the container")
    state = bench.room("probe")
    (state / "heartbeat").touch()
    environ = {**os.environ, "CRONIUM_STATE_DIR": str(state)}
    rounds = bench.pick(4 * bench.rounds, 3)
    spent = [spend(command, environ=environ) for _ in range(rounds)]
    if any(each.status for each in spent):
        return unmeasured([PROBE_CPU.name], f"the probe fails here: {spent[0].output.strip()}")
    return [measured(PROBE_CPU.name, (1000 * each.cpu_seconds for each in spent))]


def _probe() -> list[str] | None:
    """What the Containerfile has as its HEALTHCHECK, as the arguments of one program."""
    text = (ROOT / "Containerfile").read_text().replace("\\\n", " ")
    match = re.search(r"^HEALTHCHECK\b.*?\bCMD\s+(.*)$", text, re.MULTILINE)
    if match is None:
        return None
    if match[1].startswith("["):
        arguments: list[str] = json.loads(match[1])
        return arguments
    return ["/bin/sh", "-c", match[1]]


COMMANDS = Experiment("commands", (VERSION_START, PROBE_CPU), run)
