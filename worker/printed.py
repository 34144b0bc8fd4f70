"""What an execution prints: kept in its spools, and in the log line by line."""

import itertools
from collections.abc import Mapping

import structlog
import trio

from worker import logs
from worker.dispatch.capture import Capture
from worker.dispatch.output import LineCutter
from worker.remote.frames import Stream
from worker.remote.runner import Offsets

log = structlog.get_logger()

# Between two looks at everything else: a script may print a million lines a second.
LINES_AT_ONCE = 500
# Between two tries to write where there was no room.
FULL_SECONDS = 2.0


class Orders:
    """Numbers the lines of a job's servers as they come; the streams are reported apart."""

    def __init__(self) -> None:
        self._counts = {stream: itertools.count() for stream in Stream}

    def next(self, stream: Stream) -> int:
        return next(self._counts[stream])


class Printed:
    """`orders` is the whole job's."""

    def __init__(
        self, captures: Mapping[Stream, Capture], orders: Orders, *, into_log: bool
    ) -> None:
        self.captures = captures
        self._orders = orders
        self._into_log = into_log
        self._cutters = {stream: LineCutter() for stream in Stream}
        self._is_full = False

    @property
    def has_begun(self) -> bool:
        """Whether the run is known to have started, perhaps to an earlier worker."""
        return self.captures[Stream.STDOUT].exists

    @property
    def offsets(self) -> Offsets:
        """How much of each stream is here."""
        return Offsets(*(self.captures[stream].received for stream in Stream))

    def take_up(self) -> None:
        """Go on from what an earlier worker has left."""
        for stream, capture in self.captures.items():
            if capture.exists:
                self._cutters[stream] = LineCutter(capture.take_up(self._orders.next(stream)))

    def begin(self) -> None:
        """Mark that the run has started; where there is no room for that, it is not marked."""
        try:
            self.captures[Stream.STDOUT].write(b"")
        except OSError as error:
            log.warning("spool_unwritable", error=error.strerror)

    async def take_in(self, stream: Stream, data: bytes) -> None:
        """Keep the next bytes of a stream; while there is no room for them, wait."""
        capture = self.captures[stream]
        end = capture.received + len(data)
        while True:
            # What is not taken in is kept by the server.
            if self._keep(capture, data[len(data) - (end - capture.received) :]):
                break
            await trio.sleep(FULL_SECONDS)
        await self._hand_on(stream, self._cutters[stream].feed(data))

    async def end(self) -> None:
        """Nothing more is printed."""
        for stream, cutter in self._cutters.items():
            await self._hand_on(stream, cutter.flush())
        self.close()

    def close(self) -> None:
        for capture in self.captures.values():
            capture.close()

    def _keep(self, capture: Capture, data: bytes) -> bool:
        """Whether there was room for all of it.

        Written on the loop: into the system's memory, which takes less than a thread would.
        """
        try:
            capture.write(data)
        except OSError as error:
            if not self._is_full:
                log.warning("spool_unwritable", error=error.strerror)
            self._is_full = True
            return False
        if self._is_full:
            log.info("spool_writable_again")
            self._is_full = False
        return True

    async def _hand_on(self, stream: Stream, lines: bytes) -> None:
        if not lines:
            return
        self.captures[stream].note(self._orders.next(stream), len(lines))
        if self._into_log:
            texts = lines.removesuffix(b"\n").split(b"\n")
            for at in range(0, len(texts), LINES_AT_ONCE):
                logs.log_output(stream, texts[at : at + LINES_AT_ONCE])
                await trio.lowlevel.checkpoint()
