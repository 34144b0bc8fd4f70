"""What the runner says in one call, and who hears it."""

import secrets
from collections import deque
from dataclasses import dataclass

import trio

from worker.errors import (
    ConnectionLostError,
    ProtocolError,
    RunnerMissingError,
    RunRefusedError,
)
from worker.remote.channel import Channel
from worker.remote.frames import Ended, Forgot, Frame, FrameParser, Hello

# The runner's own exit statuses (sysexits.h where there is one).
DIFFERS_STATUS = 65
NO_SUCH_RUN_STATUS = 66
# Whatever else it ends with is somebody else's doing, such as a signal.
REFUSALS = range(64, 79)

# Three of the runner's signs of life, which come every 10 s. A connection that is gone shows by
# its keepalives before that; this is for a runner that hangs.
SILENCE_SECONDS = 35.0


def new_nonce() -> str:
    """What tells a call's greeting from all that start-up files may print."""
    return secrets.token_hex(8)


@dataclass(frozen=True, slots=True)
class Offsets:
    """How many bytes of each stream are here already."""

    stdout: int = 0
    stderr: int = 0


class Incoming:
    """The frames of one call of the runner, which serves one run after the other.

    Between two runs it answers what it was asked to forget. The task that asked and the one that
    begins the next run may both be reading: the answers come in the order of the questions.
    """

    def __init__(self, channel: Channel, nonce: str) -> None:
        self._channel = channel
        self._parser = FrameParser(nonce)
        self._said_hello = False
        self._frames: deque[Frame] = deque()
        self._asked: deque[Question] = deque()
        self._turn = trio.Lock()
        self.is_busy = False

    def begin(self, *, serves_more: bool) -> None:
        """What comes from here on is of a run, after which there may be another."""
        self.is_busy = True
        self._parser.serves_more = serves_more

    async def next(self) -> Frame:
        """The next frame of the run.

        Raises RunnerMissingError if no usable runner answered, RunRefusedError if it ended
        without a last frame of its own will, ConnectionLostError if the connection has gone
        or not one of the runner's signs of life came for too long.
        """
        if not self._asked:
            return self._heard(await self._receive())
        async with self._turn:
            while self._asked:
                self._take_answer(await self._receive())
        return self._heard(await self._receive())

    def ask(self) -> "Question":
        """Note that something was just asked to be forgotten."""
        question = Question()
        self._asked.append(question)
        return question

    async def answer(self, question: "Question") -> int:
        """The status of what was asked to be forgotten.

        Raises what `next` does, and ProtocolError if something else comes.
        """
        async with self._turn:
            while question.status is None:
                self._take_answer(await self._receive())
        return question.status

    def _take_answer(self, frame: Frame) -> None:
        if isinstance(frame, Hello):
            return  # of a call that has had no run yet
        if not isinstance(frame, Forgot):
            raise ProtocolError("the runner did not say what became of the forgotten runs")
        self._asked.popleft().status = frame.status

    def _heard(self, frame: Frame) -> Frame:
        match frame:
            case Forgot():
                raise ProtocolError("the runner forgot what nobody asked it to")
            case Ended():
                self.is_busy = not self._parser.serves_more
            case _:
                pass
        return frame

    async def _receive(self) -> Frame:
        if self._frames:  # a flood of them must not hold up everything else
            await trio.lowlevel.checkpoint()
        while not self._frames:
            data = b""
            with trio.move_on_after(SILENCE_SECONDS) as silence:
                data = await self._channel.receive()
            if silence.cancelled_caught:
                raise ConnectionLostError(f"nothing was heard for {SILENCE_SECONDS:g} s")
            if not data:
                raise self._ended()
            self._frames.extend(self._parser.feed(data))
            if self._frames:
                self._said_hello = True  # no frame comes before it
        return self._frames.popleft()

    def _ended(self) -> Exception:
        status, reason = self._channel.exit_status, self._channel.stderr
        if status == DIFFERS_STATUS:
            return RunnerMissingError("the runner on the server is not the one deployed")
        if not self._said_hello:
            return RunnerMissingError(f"no runner answered (exit status {status}): {reason}"[:500])
        if status in REFUSALS:
            return RunRefusedError(status, reason or "no reason given")
        return ConnectionLostError("the runner stopped speaking before the run's end")

    def close(self) -> None:
        self._channel.close()


class Question:
    """What is to be forgotten: `status` is what became of it, once that is known."""

    status: int | None = None


class Attachment:
    """A run as it is followed over one call."""

    def __init__(self, incoming: Incoming) -> None:
        self._incoming = incoming

    async def receive(self) -> Frame:
        """The next frame; there is one after another until the run's last.

        Raises as `Incoming.next` does.
        """
        return await self._incoming.next()

    def close(self) -> None:
        """Detach; the run goes on."""
        self._incoming.close()
