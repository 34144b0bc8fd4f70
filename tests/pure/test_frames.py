"""The runner's frames, however the connection cuts them."""

import contextlib
from collections.abc import Iterable, Sequence

import pytest
from hypothesis import given
from hypothesis import strategies as st

from worker.errors import ProtocolError, RunnerMissingError
from worker.remote.frames import (
    MAX_FRAME_BYTES,
    MAX_HEADER_BYTES,
    MAX_PREAMBLE_BYTES,
    Call,
    Ended,
    Forgot,
    Frame,
    FrameParser,
    Hello,
    KeepAlive,
    Output,
    Reason,
    Started,
    Stream,
    Superseded,
)

NONCE = "00c0ffee00c0ffee"
HELLO = b"\ncronium h 00c0ffee00c0ffee 1 0123456789ab\n"

numbers = st.integers(0, 10**12)
words = st.text("abcdefghijklmnopqrstuvwxyz0123456789._-", min_size=1, max_size=30)
going = st.one_of(
    st.builds(Output, st.sampled_from(Stream), st.binary(max_size=300)),
    st.builds(Call, words, st.binary(max_size=300)),
    st.builds(Started, st.sampled_from(("new", "attached", "ended")), numbers),
    st.just(KeepAlive()),
)
last = st.one_of(
    st.just(Superseded()),
    st.builds(Ended, st.integers(0, 255), st.sampled_from(Reason), numbers, numbers),
)
conversations = st.builds(lambda frames, end: [*frames, end], st.lists(going, max_size=12), last)


@st.composite
def pieces(draw: st.DrawFn, data: bytes) -> list[bytes]:
    cuts = sorted(draw(st.lists(st.integers(0, len(data)), max_size=8)))
    return [data[low:high] for low, high in zip([0, *cuts], [*cuts, len(data)], strict=True)]


@given(st.data(), conversations)
def test_frames_are_the_same_wherever_they_are_cut(
    data: st.DataObject, conversation: list[Frame]
) -> None:
    stream = HELLO + b"".join(map(written, conversation))

    frames = parsed(data.draw(pieces(stream)))

    assert outputs(frames) == outputs(conversation)
    assert frames[0] == Hello(1, "0123456789ab")
    assert others(frames[1:]) == others(conversation)


@given(conversations)
def test_frames_are_the_same_byte_by_byte(conversation: list[Frame]) -> None:
    stream = HELLO + b"".join(map(written, conversation))

    frames = parsed(stream[at : at + 1] for at in range(len(stream)))

    assert outputs(frames) == outputs(conversation)
    assert others(frames[1:]) == others(conversation)


@given(st.data(), st.binary(max_size=2000))
def test_what_start_up_files_print_is_skipped(data: st.DataObject, preamble: bytes) -> None:
    stream = preamble + HELLO + b"k\n"

    assert parsed(data.draw(pieces(stream))) == [Hello(1, "0123456789ab"), KeepAlive()]


@pytest.mark.parametrize("cut", [100, 4096, MAX_PREAMBLE_BYTES + 10, 10**6])
def test_64_kib_of_other_output_are_skipped_and_not_a_byte_more(cut: int) -> None:
    most = b"p" * MAX_PREAMBLE_BYTES

    assert parsed(cut_every(most + HELLO, cut)) == [Hello(1, "0123456789ab")]
    with pytest.raises(RunnerMissingError):
        parsed(cut_every(most + b"p" + HELLO, cut))


def test_endless_other_output_is_no_runner() -> None:
    with pytest.raises(RunnerMissingError):
        parsed([b"motd\n" * 1000] * 20)


def test_the_first_line_of_another_call_is_skipped() -> None:
    foreign = HELLO.replace(b"00c0ffee00c0ffee", b"deadbeefdeadbeef")

    assert parsed([foreign + b"o 5\nhello" + HELLO + b"k\n"]) == [
        Hello(1, "0123456789ab"),
        KeepAlive(),
    ]


def test_a_first_line_that_is_not_on_a_fresh_line_is_not_the_runner() -> None:
    assert parsed([b"echo: " + HELLO.lstrip() + b"k\n"]) == []


def test_output_is_handed_on_before_its_frame_is_whole() -> None:
    parser = FrameParser(NONCE)
    parser.feed(HELLO)

    early = parser.feed(b"o 10\nhal")
    late = parser.feed(b"f and e")

    assert early == [Output(Stream.STDOUT, b"hal")]
    assert outputs(late)[Stream.STDOUT] == b"f and e"


def test_what_a_shell_prints_after_the_last_frame_is_not_heard() -> None:
    bye = b"logout\n\x00" + b"x" * 1000

    frames = parsed([HELLO, b"x 0 exit 5 1\n" + bye, bye])

    assert frames[1:] == [Ended(0, Reason.EXIT, 5, 1)]


@pytest.mark.parametrize("length", [256, 257])
def test_a_header_may_have_256_bytes(length: int) -> None:
    header = b"c " + b"i" * (length - 4) + b" 0"
    parser = FrameParser(NONCE)
    parser.feed(HELLO)
    assert len(header) == length

    if length <= MAX_HEADER_BYTES:
        assert parser.feed(header + b"\n") == [Call("i" * (length - 4), b"")]
    else:
        with pytest.raises(ProtocolError):
            parser.feed(header + b"\n")


def test_a_header_without_an_end_is_refused_at_257_bytes() -> None:
    parser = FrameParser(NONCE)
    parser.feed(HELLO + b"z" * 256)

    with pytest.raises(ProtocolError):
        parser.feed(b"z")


def test_a_frame_may_have_1_mib() -> None:
    body = b"\0" * MAX_FRAME_BYTES

    frames = parsed([HELLO + b"o 1048576\n" + body + b"k\n"])

    assert outputs(frames)[Stream.STDOUT] == body
    assert frames[-1] == KeepAlive()


@pytest.mark.parametrize(
    "header",
    [
        b"o 1048577",
        b"c id 1048577",
        b"o 9223372036854775808",
        b"o " + b"9" * 200,
        b"o -1",
        b"o +1",
        b"o 1_0",
        b"o 0x10",
        b"o  1",
        b"o",
        b"o ",
        b"o 1 2",
        b"o \xd9\xa3",
        b"c id",
        b"c \xff 0",
        b"r new",
        b"r sleeping 1",
        b"x 0 exit 1",
        b"x 0 bored 1 1",
        b"x 0 \xff 1 1",
        b"x -1 exit 1 1",
        b"k 1",
        b"t 1",
        b"",
        b"\0",
        b"hello",
        b"k\r",
    ],
)
def test_what_is_no_frame_is_refused(header: bytes) -> None:
    parser = FrameParser(NONCE)
    parser.feed(HELLO)

    with pytest.raises(ProtocolError):
        parser.feed(header + b"\n")


@given(st.lists(st.binary(max_size=200), max_size=10))
def test_any_bytes_are_frames_or_a_named_error(garbage: list[bytes]) -> None:
    parser = FrameParser(NONCE)
    parser.feed(HELLO)

    with contextlib.suppress(ProtocolError):
        for piece in garbage:
            parser.feed(piece)


header_words = st.lists(
    st.sampled_from(
        [b"o", b"e", b"c", b"r", b"x", b"k", b"t", b"cronium", b"h", b"0", b"3", b"99999999999999",
         b"exit", b"new", b"-1", b"\xff", b""]
    ),
    min_size=1,
    max_size=6,
)  # fmt: skip


@given(st.lists(header_words, max_size=10))
def test_any_words_are_frames_or_a_named_error(headers: list[list[bytes]]) -> None:
    stream = b"".join(b" ".join(header) + b"\n" for header in headers)

    with contextlib.suppress(ProtocolError):
        assert parsed([HELLO + stream])[0] == Hello(1, "0123456789ab")


def written(frame: Frame) -> bytes:
    match frame:
        case Output(stream, data):
            kind = b"o" if stream is Stream.STDOUT else b"e"
            return b"%b %d\n" % (kind, len(data)) + data
        case Call(call_id, request):
            return b"c %b %d\n" % (call_id.encode(), len(request)) + request
        case Started(state, elapsed_ms):
            return f"r {state} {elapsed_ms}\n".encode()
        case Forgot(status):
            return b"f %d\n" % status
        case KeepAlive():
            return b"k\n"
        case Superseded():
            return b"t\n"
        case Ended(code, reason, wall_ms, cpu_ms):
            return f"x {code} {reason} {wall_ms} {cpu_ms}\n".encode()
        case Hello(protocol, artifact):
            return f"\ncronium h {NONCE} {protocol} {artifact}\n".encode()


def parsed(pieces: Iterable[bytes]) -> list[Frame]:
    parser = FrameParser(NONCE)
    return [frame for piece in pieces for frame in parser.feed(piece)]


def cut_every(data: bytes, size: int) -> list[bytes]:
    return [data[at : at + size] for at in range(0, len(data), size)]


def outputs(frames: Sequence[Frame]) -> dict[Stream, bytes]:
    return {
        stream: b"".join(f.data for f in frames if isinstance(f, Output) and f.stream is stream)
        for stream in Stream
    }


def others(frames: Sequence[Frame]) -> list[Frame]:
    return [frame for frame in frames if not isinstance(frame, Output)]
