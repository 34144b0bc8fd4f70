"""What an execution prints: its secrets masked, kept in its spools, and logged line by line."""

import itertools
from collections.abc import Awaitable, Callable, Mapping

import structlog
import trio

from worker import logs
from worker.dispatch.capture import Capture
from worker.dispatch.output import LineCutter
from worker.masking import MAX_ADDED, ExecutionMasker, Masked, MaskingStream
from worker.remote.attachment import Offsets
from worker.remote.frames import Stream
from worker.state.history import KeptOutput

log = structlog.get_logger()

# Masked and written at once: with what masking had held back it must fit one write of a spool.
PIECE_BYTES = 128 * 1024
# Logged before other tasks have a turn: a script may print a million lines a second.
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
    """`masker` is the execution's, and `keep_masks` keeps what its script adds to that;
    `orders` is the whole job's. `show` is handed whole lines, as they come."""

    def __init__(
        self,
        captures: Mapping[Stream, Capture],
        masker: ExecutionMasker,
        keep_masks: Callable[[], Awaitable[None]],
        orders: Orders,
        *,
        into_log: bool,
        show: Callable[[Stream, bytes], None] | None = None,
    ) -> None:
        self.captures = captures
        self._masker = masker
        self._keep_masks = keep_masks
        self._kept_masks = masker.added
        self._orders = orders
        self._into_log = into_log
        self._show = show
        self._masking = {stream: MaskingStream(masker, add=masker.add) for stream in Stream}
        self._cutters = {stream: LineCutter() for stream in Stream}
        self._unwritten: dict[Stream, Masked] = {}
        self._is_full = False

    @property
    def has_spool(self) -> bool:
        """Whether an earlier worker has received something of the run."""
        return any(capture.exists for capture in self.captures.values())

    @property
    def offsets(self) -> Offsets:
        """How much of each stream is here, counted as the server does."""
        captures = self.captures
        return Offsets(captures[Stream.STDOUT].source, captures[Stream.STDERR].source)

    def take_up(self) -> None:
        """Go on from what an earlier worker has left."""
        for stream, capture in self.captures.items():
            if capture.exists:
                self._masking[stream] = MaskingStream(
                    self._masker,
                    add=self._masker.add,
                    offset=capture.source,
                    begins_line=capture.begins_line,
                )
                self._cutters[stream] = LineCutter(capture.take_up(self._orders.next(stream)))

    async def take_in(self, stream: Stream, data: bytes) -> None:
        """Keep the next bytes of a stream; while there is no room for them, wait."""
        for at in range(0, len(data), PIECE_BYTES):
            masked = self._masking[stream].feed(data[at : at + PIECE_BYTES])
            # From here on a cancel may come.
            self._unwritten[stream] = masked
            await self._note_masks()
            while not self._write(stream):  # noqa: ASYNC110  no event tells of room on a disk
                await trio.sleep(FULL_SECONDS)  # what is not taken in is kept by the server
            await self._hand_on(stream, self._cutters[stream].feed(masked.data))

    async def end(self) -> None:
        """Nothing more is printed."""
        for stream, masking in self._masking.items():
            masked = masking.flush()
            await self._note_masks()
            # A cancel may have come while there was no room.
            before = self._unwritten.get(stream)
            data = masked.data if before is None else before.data + masked.data
            self._unwritten[stream] = Masked(data, masked.consumed)
            if data:
                while not self._write(stream):  # noqa: ASYNC110  as above
                    await trio.sleep(FULL_SECONDS)
                await self._hand_on(stream, self._cutters[stream].feed(data))
            await self._hand_on(stream, self._cutters[stream].flush())
        if self._masker.refused:
            log.warning("masks_refused", count=self._masker.refused, limit=MAX_ADDED)
        self.close()

    def kept(self, limit: int) -> KeptOutput | None:
        """The first and last half of each stream under `limit`; None where nothing was printed,
        or nothing is to be kept."""
        if not limit:
            return None
        stdout, stderr = (
            b"".join(block for _, block in self.captures[stream].blocks(limit))
            for stream in (Stream.STDOUT, Stream.STDERR)
        )
        return KeptOutput(stdout, stderr) if stdout or stderr else None

    async def _note_masks(self) -> None:
        """Keep new masks before the output that they mask: whoever resumes must mask the same."""
        if self._masker.added != self._kept_masks:
            added = self._masker.added
            await self._keep_masks()
            self._kept_masks = added

    def close(self) -> None:
        for capture in self.captures.values():
            capture.close()

    def _write(self, stream: Stream) -> bool:
        """Whether there was room for all that is to be written.

        Written on the loop: into the system's memory, which takes less than a thread would.
        """
        masked = self._unwritten[stream]
        try:
            self.captures[stream].write(masked.data, source=masked.consumed)
        except OSError as error:
            if not self._is_full:
                log.warning("spool_unwritable", error=error.strerror)
            self._is_full = True
            return False
        del self._unwritten[stream]
        if self._is_full:
            log.info("spool_writable_again")
            self._is_full = False
        return True

    async def _hand_on(self, stream: Stream, lines: bytes) -> None:
        if not lines:
            return
        self.captures[stream].note(self._orders.next(stream), len(lines))
        if self._show is not None:
            self._show(stream, lines)
        if self._into_log:
            texts = lines.removesuffix(b"\n").split(b"\n")
            for at in range(0, len(texts), LINES_AT_ONCE):
                logs.log_output(stream, texts[at : at + LINES_AT_ONCE])
                await trio.lowlevel.checkpoint()
