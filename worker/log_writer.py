"""Writes log lines without ever holding up who logs."""

import threading
from collections import deque
from collections.abc import Callable
from typing import BinaryIO

# What may wait for a slow reader; what scripts print is dropped first, then everything.
MAX_OUTPUT_BYTES = 8 * 1024 * 1024
MAX_BYTES = 9 * 1024 * 1024


class LogWriter:
    """A thread of its own, since a pipe that nobody reads blocks whoever writes to it, and a
    worker that waits for its log sends no heartbeat and obeys no signal.

    `notice` makes the line that tells how many others were left out. A stream that fails (a full
    disk, a reader that is gone) costs the lines that it failed for.
    """

    def __init__(self, stream: BinaryIO, notice: Callable[[int], bytes]) -> None:
        self._stream = stream
        self._notice = notice
        self._lines: deque[bytes] = deque()
        self._bytes = 0
        self._dropped = 0
        self._changed = threading.Condition()
        self._closing = False
        self._thread = threading.Thread(target=self._write_forever, name="log", daemon=True)
        self._thread.start()

    def write(self, lines: bytes) -> None:
        """Whole lines, ends included."""
        self._put(lines, 1, MAX_BYTES)

    def write_output(self, lines: bytes, count: int) -> None:
        """`count` whole lines of what scripts print."""
        self._put(lines, count, MAX_OUTPUT_BYTES)

    def flush(self) -> None:
        """Nothing: structlog asks after each line, and waiting is what this is here to avoid."""

    def close(self, seconds: float = 2.0) -> None:
        """Write what is waiting, for at most so long."""
        with self._changed:
            self._closing = True
            self._changed.notify()
        self._thread.join(seconds)

    def _put(self, lines: bytes, count: int, limit: int) -> None:
        with self._changed:
            if self._bytes + len(lines) > limit:
                self._dropped += count
                return
            if self._dropped:
                lines = self._notice(self._dropped) + lines
                self._dropped = 0
            self._lines.append(lines)
            self._bytes += len(lines)
            if len(self._lines) == 1:  # else it is awake: to wake it costs more than a line does
                self._changed.notify()

    def _write_forever(self) -> None:
        while True:
            with self._changed:
                while not self._lines:
                    if self._closing:
                        return
                    self._changed.wait()
                waiting = b"".join(self._lines)
                self._lines.clear()
            try:
                self._stream.write(waiting)
                self._stream.flush()
            except (OSError, ValueError):
                pass  # there is nobody left to tell
            with self._changed:
                self._bytes -= len(waiting)
