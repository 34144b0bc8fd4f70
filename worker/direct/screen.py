"""What a terminal shows of a script that runs: lines as they come, and how far it is."""

import os
from collections import Counter
from collections.abc import Callable
from contextlib import suppress
from typing import BinaryIO

from worker.dispatch.result import Outcome
from worker.log_forms import printable
from worker.remote.frames import Stream

CLEAR = b"\r\x1b[K"


def progress(servers: int, running: int, outcomes: Counter[Outcome]) -> str:
    """`50 servers: 12 done, 3 running, 1 failed, 1 unreachable`."""
    done, unreachable = outcomes[Outcome.SUCCESS], outcomes[Outcome.UNREACHABLE]
    failed = outcomes.total() - done - unreachable
    return (
        f"{servers} servers: {done} done, {running} running, {failed} failed, "
        f"{unreachable} unreachable"
    )


class Screen:
    """Lines go to `out`, those of stderr to `err`, which has the progress where it is a terminal.

    `nobody_reads` is called once, when either cannot be written any more.
    """

    def __init__(
        self,
        servers: int,
        out: BinaryIO,
        err: BinaryIO,
        *,
        shows_lines: bool,
        nobody_reads: Callable[[], None],
    ) -> None:
        self._servers = servers
        self._streams = {Stream.STDOUT: out, Stream.STDERR: err}
        self._err = err
        self._shows_lines = shows_lines
        self._shows_progress = err.isatty()
        self._nobody_reads = nobody_reads
        self._is_over = False
        self._running: set[str] = set()
        self._outcomes: Counter[Outcome] = Counter()

    def begun(self, name: str) -> None:
        self._running.add(name)
        self._progress()

    def ended(self, name: str, outcome: Outcome) -> None:
        self._running.discard(name)
        self._outcomes[outcome] += 1
        self._progress()

    def lines(self, name: str, stream: Stream, lines: bytes) -> None:
        """Whole lines, or the last that has no end; harmless where a terminal shows them."""
        if not self._shows_lines:
            return
        target = self._streams[stream]
        prefix = f"[{name}] ".encode(errors="replace")
        texts = lines.removesuffix(b"\n").split(b"\n")
        if target.isatty():
            texts = [
                printable(text.decode(errors="replace").removesuffix("\r")).encode()
                for text in texts
            ]
        if self._shows_progress:
            self._write(self._err, CLEAR)
        self._write(target, b"".join(prefix + text + b"\n" for text in texts))
        self._progress()

    def close(self) -> None:
        """Take the progress away: what follows is the result."""
        if self._shows_progress:
            self._write(self._err, CLEAR)

    def _progress(self) -> None:
        if self._shows_progress:
            line = progress(self._servers, len(self._running), self._outcomes)
            self._write(self._err, CLEAR + line.encode())

    def _write(self, target: BinaryIO, data: bytes) -> None:
        if self._is_over:
            return
        try:
            target.write(data)
            target.flush()
        except OSError as error:  # the pipe's reader, the terminal or the room is gone
            self._is_over = True
            if not isinstance(error, BrokenPipeError) and target is not self._err:
                with suppress(OSError):
                    self._err.write(f"the output: {error.strerror}; the runs are ended\n".encode())
                    self._err.flush()
            # What waits in the buffer would fail once more at the program's end.
            os.dup2(os.open(os.devnull, os.O_WRONLY), target.fileno())
            self._nobody_reads()
