"""One exec on an SSH connection, as a Trio-flavoured byte stream."""

from collections import deque
from collections.abc import Callable

import asyncssh
import trio

from worker.errors import ConnectionLostError
from worker.remote.shortcuts import grant, take_over_window
from worker.remote.windows import Headroom, Window

# Where asyncssh sees to the window itself, it is told to pause while more than this waits here.
PAUSE_BYTES = 1024 * 1024
# Given to the Trio side at once: every second byte may be a frame, and parsing holds up the loop.
PIECE_BYTES = 64 * 1024
# What of stderr is worth keeping: the runner's one-line reasons.
MAX_STDERR_BYTES = 4096


class Channel(asyncssh.SSHClientSession[bytes]):
    """Filled by asyncssh's callbacks, emptied by one Trio task.

    The callbacks run inside Trio's own thread (trio-asyncio), so plain state and events do;
    nothing crosses between the loops per read.
    """

    def __init__(self, headroom: Headroom, on_closed: Callable[["Channel"], None]) -> None:
        self._on_closed = on_closed
        self._window = Window(headroom)
        self._grants = False
        self._chan: asyncssh.SSHClientChannel[bytes] | None = None
        self._received: deque[bytes] = deque()
        self._received_bytes = 0
        self._paused = False
        self._closed = False
        self._is_given_up = False
        self._lost: Exception | None = None
        self._readable = trio.Event()
        self._writable = trio.Event()
        self._writable.set()
        self._stderr = bytearray()

    # asyncssh calls these.

    def connection_made(self, chan: asyncssh.SSHClientChannel[bytes]) -> None:
        self._chan = chan
        self._grants = take_over_window(chan)
        if self._is_given_up:
            chan.close()

    def data_received(self, data: bytes, datatype: asyncssh.DataType) -> None:
        if datatype is not None:
            self._stderr += data[: MAX_STDERR_BYTES - len(self._stderr)]
            self._grant(len(data))
            return
        self._received.append(data)
        self._received_bytes += len(data)
        if self._received_bytes > PAUSE_BYTES and not self._paused and not self._grants:
            self._paused = True
            self._channel.pause_reading()
        self._readable.set()

    def eof_received(self) -> bool:
        return True  # the exit status is still to come; the channel's close is the end

    def connection_lost(self, exc: Exception | None) -> None:
        self._closed = True
        self._lost = exc
        self._window.close()
        self._on_closed(self)
        self._readable.set()
        self._writable.set()

    def pause_writing(self) -> None:
        self._writable = trio.Event()

    def resume_writing(self) -> None:
        self._writable.set()

    # The Trio side.

    @property
    def is_closed(self) -> bool:
        """Whether the other side has closed it, be there more to receive or not."""
        return self._closed

    async def wait_closed(self) -> None:
        """Until the other side knows it closed; what comes until then is dropped."""
        while not self._closed:
            self._received.clear()
            await self._news()

    async def send_all(self, data: bytes) -> None:
        """Raises ConnectionLostError if the channel has gone."""
        view = memoryview(data)
        while view:
            await self._writable.wait()
            try:
                self._channel.write(bytes(view[:65536]))
            except OSError as error:  # asyncssh raises BrokenPipeError on a closed channel
                raise ConnectionLostError("the connection was lost while sending") from error
            view = view[65536:]

    def send_soon(self, data: bytes) -> None:
        """Without a wait for room: only what is small.

        Raises ConnectionLostError if the channel has gone.
        """
        try:
            self._channel.write(data)
        except OSError as error:
            raise ConnectionLostError("the connection was lost while sending") from error

    def send_eof(self) -> None:
        """Raises ConnectionLostError if the channel has gone."""
        try:
            self._channel.write_eof()
        except OSError as error:
            raise ConnectionLostError("the connection was lost while sending") from error

    async def receive(self) -> bytes:
        """What has come on stdout since, at least one byte; empty at the end.

        Raises ConnectionLostError if the connection ended before the channel did, or the channel
        was given up.
        """
        if self._received:  # else it waits anyhow
            await trio.lowlevel.checkpoint()
        while not self._received:
            if self._lost is not None:
                raise ConnectionLostError(f"the connection was lost: {self._lost}") from self._lost
            if self._closed:
                return b""
            if self._is_given_up:  # the server may take its time to close it
                raise ConnectionLostError("the channel was given up")
            await self._news()
        taken = [self._received.popleft()]
        size = len(taken[0])
        while self._received and size + len(self._received[0]) <= PIECE_BYTES:
            taken.append(self._received.popleft())
            size += len(taken[-1])
        self._received_bytes -= size
        self._grant(size)
        if self._paused and self._received_bytes <= PAUSE_BYTES // 2:
            self._resume()
        return b"".join(taken)

    async def _news(self) -> None:
        if self._readable.is_set():  # else another waits for it
            self._readable = trio.Event()
        await self._readable.wait()

    def _grant(self, taken: int) -> None:
        """Let the server send more, as `taken` bytes were taken."""
        if self._grants and not self._closed:
            is_drained = not self._received
            now = trio.current_time()
            if granted := self._window.grant_after(taken, now, is_drained=is_drained):
                grant(self._channel, granted)

    def _resume(self) -> None:
        # All that asyncssh holds comes at once. Paused amid that, it would have granted a window
        # for what it holds still, and hold ever more.
        self._channel.resume_reading()
        self._paused = self._received_bytes > PAUSE_BYTES
        if self._paused:
            self._channel.pause_reading()

    @property
    def stderr(self) -> str:
        """The beginning of what came on stderr, in one line."""
        return " ".join(self._stderr.decode(errors="replace").split())

    @property
    def exit_status(self) -> int | None:
        """None until `receive` has come to the end, and when the server did not say."""
        return self._channel.get_exit_status()

    def close(self) -> None:
        """Give it up; one that is not open yet is closed when it is."""
        self._is_given_up = True
        self._readable.set()
        if self._chan is not None:
            self._chan.close()

    @property
    def _channel(self) -> asyncssh.SSHClientChannel[bytes]:
        if self._chan is None:
            raise ConnectionLostError("the channel was never opened")
        return self._chan
