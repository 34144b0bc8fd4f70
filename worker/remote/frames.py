"""What the runner says: frames on the stdout of `run` and `attach`."""

import re
from dataclasses import dataclass
from enum import StrEnum

from worker.errors import ProtocolError, RunnerMissingError

# Shell start-up files may print before the runner does, and may print anything.
MAX_PREAMBLE_BYTES = 64 * 1024
MAX_HEADER_BYTES = 256
MAX_FRAME_BYTES = 1024 * 1024
MAX_EXIT_CODE = 255

# It stands on a command line and in the name of a file.
_call_id = re.compile(r"[A-Za-z0-9._-]{1,64}\Z")


class Stream(StrEnum):
    STDOUT = "stdout"
    STDERR = "stderr"


class Reason(StrEnum):
    """Why a run ended, as the runner recorded it."""

    EXIT = "exit"
    SIGNAL = "signal"
    TIMEOUT = "timeout"
    CANCEL = "cancel"
    OUTPUT_LIMIT = "output_limit"
    LOST = "lost"
    FORGOTTEN = "forgotten"


@dataclass(frozen=True, slots=True)
class Hello:
    """Frame `h`: the runner is there."""

    protocol: int
    artifact: str


@dataclass(frozen=True, slots=True)
class Started:
    """Frame `r`: `state` is new, attached or ended."""

    state: str
    elapsed_ms: int


@dataclass(frozen=True, slots=True)
class Output:
    """Frames `o` and `e`, or a part of one: the next bytes of a stream."""

    stream: Stream
    data: bytes


@dataclass(frozen=True, slots=True)
class Call:
    """Frame `c`: a helper call."""

    id: str
    request: bytes

    @property
    def can_be_answered(self) -> bool:
        """Whether its id is one that a helper makes; no other may reach a command line."""
        return bool(_call_id.match(self.id))


@dataclass(frozen=True, slots=True)
class Forgot:
    """Frame `f`: what was to be forgotten is, if `status` is 0; between two runs of one call."""

    status: int


@dataclass(frozen=True, slots=True)
class KeepAlive:
    """Frame `k`: nothing to say for 10 s."""


@dataclass(frozen=True, slots=True)
class Superseded:
    """Frame `t`, the last: another attacher has taken over."""


@dataclass(frozen=True, slots=True)
class Ended:
    """Frame `x`, the last: the run is over."""

    code: int
    reason: Reason
    wall_ms: int
    cpu_ms: int


Frame = Hello | Started | Output | Call | Forgot | KeepAlive | Superseded | Ended


class FrameParser:
    """Turns the bytes of one `run` or `attach` into frames; `feed` may cut anywhere.

    Output is handed on as it arrives, so that what was received before a lost connection
    counts, byte for byte. After a run's last frame nothing counts any more, unless the call
    `serves_more` runs.
    """

    def __init__(self, nonce: str) -> None:
        self._hello = b"\ncronium h " + nonce.encode() + b" "
        self._buffer = bytearray()
        self.serves_more = False
        self._said_hello = False
        self._ended = False
        self._stream = Stream.STDOUT
        self._missing = 0

    def feed(self, data: bytes) -> list[Frame]:
        """The frames that `data` completes.

        Raises RunnerMissingError if 64 KiB go by without the runner's first line, and
        ProtocolError if a frame is not one of the protocol's.
        """
        frames: list[Frame] = []
        if self._missing and data:  # then nothing is buffered, and most of a stream is this
            frames.append(Output(self._stream, data[: self._missing]))
            self._missing, data = max(0, self._missing - len(data)), data[self._missing :]
        self._buffer += data
        while (frame := self._next()) is not None:
            frames.append(frame)
        return frames

    def _next(self) -> Frame | None:
        if self._ended:
            # The shell may say goodbye, as it may say anything before the first frame.
            self._buffer.clear()
            return None
        if not self._said_hello and not self._skip_preamble():
            return None
        end = self._buffer.find(b"\n", 0, MAX_HEADER_BYTES + 1)
        if end < 0:
            if len(self._buffer) > MAX_HEADER_BYTES:
                raise ProtocolError("the runner sent a frame header over 256 bytes")
            return None
        words = bytes(self._buffer[:end]).split(b" ")
        if words[0] == b"c" and len(words) == 3:
            return self._take_call(words, end)
        del self._buffer[: end + 1]
        return self._frame(words)

    def _skip_preamble(self) -> bool:
        # The runner begins on a fresh line, so its first line has a newline before it.
        most = MAX_PREAMBLE_BYTES + len(self._hello)  # wherever the stream was cut
        at = self._buffer.find(self._hello, 0, most)
        if at < 0:
            if len(self._buffer) >= most:
                raise RunnerMissingError(
                    "64 KiB of other output instead of the runner's first line"
                )
            return False
        del self._buffer[: at + 1]
        self._said_hello = True
        return True

    def _take_output(self) -> Output | None:
        if not self._buffer:
            return None
        data = bytes(memoryview(self._buffer)[: self._missing])
        del self._buffer[: len(data)]
        self._missing -= len(data)
        return Output(self._stream, data)

    def _take_call(self, words: list[bytes], end: int) -> Call | None:
        length = _length(words[2])
        if len(self._buffer) < end + 1 + length:
            return None
        request = bytes(self._buffer[end + 1 : end + 1 + length])
        del self._buffer[: end + 1 + length]
        return Call(_word(words[1]), request)

    def _frame(self, words: list[bytes]) -> Frame | None:
        match words:
            case [b"o" | b"e" as kind, length]:
                self._stream = Stream.STDOUT if kind == b"o" else Stream.STDERR
                self._missing = _length(length)
                return self._take_output() if self._missing else Output(self._stream, b"")
            case [b"k"]:
                return KeepAlive()
            case [b"cronium", b"h", _, protocol, artifact]:
                return Hello(_number(protocol), _word(artifact))
            case [b"r", (b"new" | b"attached" | b"ended") as state, elapsed]:
                return Started(state.decode(), _number(elapsed))
            case [b"t"]:
                self._ended = True
                return Superseded()
            case [b"f", status]:
                return Forgot(_exit_code(status))
            case [b"x", code, reason, wall_ms, cpu_ms]:
                self._ended = not self.serves_more
                try:
                    known = Reason(_word(reason))
                except ValueError:
                    raise ProtocolError(f"the runner gave an unknown reason {reason!r}") from None
                return Ended(_exit_code(code), known, _number(wall_ms), _number(cpu_ms))
            case _:
                raise ProtocolError(f"the runner sent an unknown frame {b' '.join(words)[:64]!r}")


def _number(word: bytes) -> int:
    if not word.isdigit() or len(word) > 15:
        raise ProtocolError(f"the runner sent {word[:32]!r} where a number belongs")
    return int(word)


def _exit_code(word: bytes) -> int:
    code = _number(word)
    if code > MAX_EXIT_CODE:
        raise ProtocolError(f"the runner gave {code} as an exit code")
    return code


def _length(word: bytes) -> int:
    length = _number(word)
    if length > MAX_FRAME_BYTES:
        raise ProtocolError(f"the runner announced a frame of {length} bytes, over 1 MiB")
    return length


def _word(word: bytes) -> str:
    try:
        return word.decode("ascii")
    except UnicodeDecodeError:
        raise ProtocolError(f"the runner sent {word[:32]!r} where a word belongs") from None
