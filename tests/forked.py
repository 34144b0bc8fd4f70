"""`cronium-worker` as processes forked from one that has imported it.

To import it takes most of a second of a processor, and tests start hundreds.
"""

import multiprocessing
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping, Sequence
from multiprocessing.connection import Connection
from typing import IO

from worker.cli import COMMANDS, main
from worker.cli.queue import COMMANDS as QUEUE_COMMANDS

_forker = multiprocessing.get_context("forkserver")
_forker.set_forkserver_preload(
    [*COMMANDS.values(), *QUEUE_COMMANDS.values(), "asyncssh", "httpcore", "worker.service"]
)


class Forked:
    """A process with the arguments and the environment given; used as `subprocess.Popen` is."""

    def __init__(
        self,
        arguments: Sequence[str],
        environ: Mapping[str, str],
        *,
        stdout: IO[bytes],
        stderr: IO[bytes] | None = None,
    ) -> None:
        files = stdout.fileno(), (2 if stderr is None else stderr.fileno())
        # What multiprocessing can hand to a process that is not a child of ours.
        ends = [Connection(os.dup(file)) for file in files]
        self._process = _forker.Process(
            target=_be, args=(list(arguments), dict(environ), *ends), daemon=True
        )
        self._process.start()
        for end in ends:
            end.close()
        assert self._process.pid is not None
        self.pid = self._process.pid

    @property
    def returncode(self) -> int | None:
        return self._process.exitcode

    def poll(self) -> int | None:
        return self.returncode

    def wait(self, timeout: float) -> int:
        self._process.join(timeout)
        if self.returncode is None:
            raise subprocess.TimeoutExpired("cronium-worker", timeout)
        return self.returncode

    def send_signal(self, number: int) -> None:
        if self.returncode is None:
            os.kill(self.pid, number)

    def terminate(self) -> None:
        self._process.terminate()

    def kill(self) -> None:
        self._process.kill()


def run_forked(
    arguments: Sequence[str], environ: Mapping[str, str], timeout: float = 60
) -> subprocess.CompletedProcess[str]:
    """The command with what it has printed."""
    with tempfile.TemporaryFile() as out, tempfile.TemporaryFile() as err:
        process = Forked(arguments, environ, stdout=out, stderr=err)
        try:
            code = process.wait(timeout)
        finally:
            process.kill()
        texts = [_read(file) for file in (out, err)]
    return subprocess.CompletedProcess(list(arguments), code, *texts)


def _read(file: IO[bytes]) -> str:
    file.seek(0)
    return file.read().decode()


def _be(
    arguments: list[str], environ: dict[str, str], stdout: Connection, stderr: Connection
) -> None:
    """Become the command, in the new process."""
    os.dup2(stdout.fileno(), 1)
    os.dup2(stderr.fileno(), 2)
    stdout.close()
    stderr.close()
    os.environ.clear()
    os.environ.update(environ)
    time.tzset()
    sys.argv = ["cronium-worker", *arguments]
    main()
