"""Programs started for as long as a block lasts."""

import subprocess
import sys
from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import asynccontextmanager
from pathlib import Path
from typing import cast

import trio

from worker.errors import WorkerError

STOP_SECONDS = 5.0
KILL_SECONDS = 1.0
TAIL_BYTES = 2000


class ChildEndedError(WorkerError):
    """A program that the demo needs has ended."""


class Child:
    """A running `cronium-worker` command, of which stdout is read and stderr kept in a file."""

    def __init__(self, name: str, stdout: trio.abc.ReceiveStream, log: Path) -> None:
        self._name = name
        self._stdout = stdout
        self._log = log
        self._read = b""

    async def next_line(self) -> str:
        """The next line of its stdout; nothing is lost when this is cancelled.

        Raises ChildEndedError, with the last that it wrote on stderr, if there is no more.
        """
        while b"\n" not in self._read:
            more = await self._stdout.receive_some()
            if not more:
                raise ChildEndedError(f"the {self._name} has ended; its last words:\n{self.tail()}")
            self._read += more
        line, _, self._read = self._read.partition(b"\n")
        return line.decode(errors="replace")

    def tail(self) -> str:
        return self._log.read_bytes()[-TAIL_BYTES:].decode(errors="replace").strip()


@asynccontextmanager
async def open_child(
    name: str, arguments: Sequence[str], environment: Mapping[str, str], directory: Path
) -> AsyncIterator[Child]:
    """Run `cronium-worker` with `arguments`; `directory` gets its stderr as `name`.log.

    At the end it is told to terminate, and killed if it has not ended after `STOP_SECONDS`.
    """
    log = directory / f"{name}.log"
    with log.open("wb") as stderr:
        process = await trio.lowlevel.open_process(
            [sys.executable, "-P", "-m", "worker", *arguments],  # -P: not ./worker
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=stderr,
            env=environment,
            start_new_session=True,  # a Ctrl-C at the terminal is for us: we end things in order
        )
    stdout = cast("trio.abc.ReceiveStream", process.stdout)  # it is there, as we asked for it
    try:
        yield Child(name, stdout, log)
    finally:
        with trio.move_on_after(STOP_SECONDS, shield=True):
            process.terminate()
            await process.wait()
        with trio.move_on_after(KILL_SECONDS, shield=True):
            process.kill()
            await process.wait()
            await stdout.aclose()
