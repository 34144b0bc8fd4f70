"""Bytes and texts of any kind, where the outside comes in: a value, or the error that is named."""

import base64
import json
import struct
from collections.abc import Sequence
from itertools import pairwise
from typing import Any

from hypothesis import example, given, settings
from hypothesis import strategies as st

from tests.captures import new_path
from tests.contract_files import FOLDER, claimed_jobs
from tests.pure.test_plan import a_job, a_server
from worker.api.wire import BadJob, JobBody, decode_claim, decode_job, encode
from worker.dispatch.capture import Capture
from worker.dispatch.plan import MAX_EXECUTION_ID, Plan, plan_job
from worker.errors import ConnectError, JobError, ProtocolError, RunnerMissingError, SettingsError
from worker.remote.address import Address
from worker.remote.frames import (
    MAX_FRAME_BYTES,
    MAX_HEADER_BYTES,
    MAX_PREAMBLE_BYTES,
    Ended,
    Frame,
    FrameParser,
    Output,
    Superseded,
)
from worker.remote.given_keys import parse_given_keys
from worker.remote.host_certificate import certificate_in
from worker.remote.key_kinds import KINDS
from worker.remote.known_hosts import KnownHosts, KnownHostsFile
from worker.remote.payload import Payload, run_message
from worker.report import create_entry
from worker.settings import Settings
from worker.settings.environment import load, unknown_variables
from worker.settings.variables import VARIABLES
from worker.state.spool import MAGIC, Spool

many = settings(max_examples=200)

# Claims

RECORDED = [
    json.dumps({"jobs": claimed_jobs(path.stem)[:2]}).encode()
    for path in sorted(FOLDER.glob("*.json"))
    if claimed_jobs(path.stem)
]
# A value that may be any, nested deeper than can be followed.
DEEP = (
    json.dumps({"jobs": [a_job(execution={"variables": {"a": "DEEP"}})]})
    .replace('"DEEP"', "[" * 50_000 + "]" * 50_000)
    .encode()
)
HOSTILE = (
    "../../x", "..", ".", "$(touch pwned)", "`id`", "a'b", 'a"b', "a\nb", "a\r", "\0", "\x1b[2J",
    "-rf", "a b", "a;b", "*", "~", "\u202e", "\ud800", "x" * 300, "", "exec_1", "é", "日本",
)  # fmt: skip
json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.sampled_from(HOSTILE) | st.text(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(), inner, max_size=3),
    max_leaves=4,
)
splices = st.lists(
    st.tuples(
        st.integers(0, 10**6),
        st.integers(0, 40),
        st.sampled_from(
            [b"", b'"', b"\\", b"\\u0000", b"\\ud800", b"{", b"[" * 100_000, b"]", b"}", b",", b":",
             b"\xff", b"\0", b"\n", b"null", b"-1", b"1e999", b"9" * 400, b"true", b"NaN"]
        )
        | st.binary(max_size=8),
    ),
    min_size=1,
    max_size=3,
)  # fmt: skip


@many
@given(st.sampled_from(RECORDED), splices)
@example(DEEP, [])
def test_a_claim_with_bytes_changed_is_jobs_or_a_named_error(
    body: bytes, changes: list[tuple[int, int, bytes]]
) -> None:
    for place, length, new in changes:
        at = place % (len(body) + 1)
        body = body[:at] + new + body[at + length :]

    try:
        jobs = decode_claim(body)
    except ProtocolError as error:
        assert str(error).startswith("claim: ")  # noqa: PT017  it may be a claim still
        return
    for job in jobs:
        assert_fit_to_run(job)


def places(value: object, path: tuple[Any, ...] = ()) -> list[tuple[Any, ...]]:
    children: Sequence[tuple[Any, object]] = ()
    if isinstance(value, dict):
        children = list(value.items())
    elif isinstance(value, list):
        children = list(enumerate(value))
    return [path, *(each for key, child in children for each in places(child, (*path, key)))]


JOB = a_job(
    a_server("1", passphrase="x", password="y", hostKey=None),
    a_server("2"),
    execution={
        "environment": {"A": "x"},
        "environmentSealed": False,
        "timeout": 1,
        "inputData": {},
        "target": {"type": "server", "serverId": "1"},
        "script": {"type": "BASH", "content": "", "workingDirectory": ""},
    },
    metadata={"eventName": "x", "userId": 1, "triggeredBy": "x", "eventVersion": 1},
)
PLACES = places(JOB)[1:]


@settings(max_examples=500)
@given(st.sampled_from(PLACES), st.sampled_from(HOSTILE) | json_values)
@example(("metadata", "eventId"), "\0")
@example(("metadata", "servers", 0, "id"), "\0")
@example(("metadata", "servers", 0, "id"), "../../x")
@example(("metadata", "servers", 0, "name"), "a\nb")
@example(("execution", "environment", "A"), "x\0y")
@example(("execution", "script", "workingDirectory"), "a\nb")
def test_a_job_with_a_value_changed_is_a_plan_or_a_named_error(
    path: tuple[Any, ...], value: object
) -> None:
    job = json.loads(json.dumps(JOB))
    inside = job
    for key in path[:-1]:
        inside = inside[key]
    inside[path[-1]] = value

    (body,) = decode_claim(json.dumps({"jobs": [job]}).encode())

    assert_fit_to_run(body)


def assert_fit_to_run(job: JobBody | BadJob) -> None:
    """Up to what is sent: to the API, on a command line, and as a payload."""
    if isinstance(job, BadJob):
        assert job.fault
        return
    assert decode_job(encode(job)) == job
    try:
        plan = plan_job(job, sealing_key=None, max_execution_seconds=86400)
    except JobError as error:
        assert str(error)  # noqa: PT017  it may be a plan
        return
    for execution in plan.executions:
        assert execution.server.name.isprintable()
        assert set(execution.id) <= SAFE
        assert len(execution.id) <= MAX_EXECUTION_ID
        assert not execution.id.startswith((".", "-"))
        create_entry(plan, execution)
        assert all("\0" not in value for value in plan.environment_of(execution).values())
        assert not {"\0", "\n"} & set(plan.directory)
        payload = payload_of(plan, number=plan.executions.index(execution))
        message = run_message(execution.id, plan.limit_seconds, payload)
        header, _, body = message.data.partition(b"\n")
        assert header.count(b" ") == 5
        if message.is_lines:
            assert body.isascii()
            assert body.count(b"\n") == int(header.split()[4])


SAFE = set("ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789._-")


def payload_of(plan: Plan, *, number: int) -> Payload:
    return Payload(
        interpreter=plan.interpreter,
        script=plan.script,
        environment=plan.environment_of(plan.executions[number]),
        directory=plan.directory,
        input=plan.input,
        output_limit_bytes=1,
    )


# Frames

NONCE = "00c0ffee00c0ffee"
HELLO = b"\ncronium h 00c0ffee00c0ffee 1 0123456789ab\n"
scraps = st.sampled_from(
    [b"o 3\nabc", b"e 0\n", b"o 5\nab", b"c id 2\n{}", b"c id 9\n", b"k\n", b"r new 0\n",
     b"x 0 exit 1 1\n", b"t\n", b"o 9223372036854775808\n", b"o -1\n", b"o 007\n1234567",
     b"o 1048576\n", b"o 1048577\n", b"c id 1048576\n", b"\0\n", b"\n", b"x 256 exit 1 1\n", b"o ",
     b"z" * 256, b"r new " + b"1" * 30 + b"\n", HELLO, b"\xff\n", b"y" * 3000]
) | st.binary(max_size=20)  # fmt: skip
streams = st.lists(scraps, max_size=12).map(b"".join)
cuts = st.lists(st.integers(0, 4000), max_size=6).map(sorted)


def parsed(pieces: Sequence[bytes]) -> tuple[list[Frame], str | None]:
    """The frames, outputs put together, up to the fault that ends them."""
    parser, frames = FrameParser(NONCE), list[Frame]()
    try:
        for piece in pieces:
            frames += parser.feed(piece)
            most = MAX_FRAME_BYTES + MAX_HEADER_BYTES if parser._said_hello else 2 * len(HELLO)
            assert len(parser._buffer) <= MAX_PREAMBLE_BYTES + most
    except (ProtocolError, RunnerMissingError) as error:
        return joined(frames), str(error)
    return joined(frames), None


def joined(frames: Sequence[Frame]) -> list[Frame]:
    whole: list[Frame] = []
    for frame in frames:
        if isinstance(frame, Output):
            if not frame.data:
                continue
            if whole and isinstance(whole[-1], Output) and whole[-1].stream is frame.stream:
                frame = Output(frame.stream, whole.pop().data + frame.data)  # type: ignore[union-attr]  # it is one
        whole.append(frame)
    return whole


@many
@given(st.sampled_from([b"", b"motd\n" * 3, b"m" * 64 * 1024]), streams, cuts)
@example(b"", b"o 5\nab", [2, 3])
@example(b"", b"x 0 exit 1 1\nk\n", [])
@example(b"", b"t\nk\n", [])
def test_any_stream_says_the_same_wherever_it_is_cut(
    before: bytes, stream: bytes, at: list[int]
) -> None:
    whole = before + HELLO + stream
    bounds = [0, *(len(before) + place for place in at), len(whole)]
    pieces = [whole[low:high] for low, high in pairwise(bounds)]

    frames, fault = parsed([piece for piece in pieces if piece])
    again, fault_again = parsed([whole[at : at + 1] for at in range(len(before), len(whole))])

    assert not any(isinstance(frame, Ended | Superseded) for frame in frames[:-1])
    assert fault == fault_again
    if fault is None:  # with one, what came before it in the same piece goes with it
        assert frames == again


# Settings

NAMES = [variable.name for variable in VARIABLES]
NAMES += [f"{variable.name}_FILE" for variable in VARIABLES if variable.secret]
# What a process can be given: no NUL, and bytes that are not UTF-8 as halves of surrogate pairs.
given_texts = st.text(st.characters(exclude_characters="\0", max_codepoint=0x2FF)) | st.binary(
    max_size=40
).map(lambda raw: raw.replace(b"\0", b"").decode(errors="surrogateescape"))
odd_texts = given_texts | st.sampled_from(
    ["~", "~nobody-of-that-name", "~nobody-of-that-name/x", "/", ".", "/dev/null", "x" * 5000,
     "http://[", "http://h:99999", "http://h/%zz", "1e9", "9" * 5000, "-0", "0s", "1d1d", "[!",
     "٣", "inf", "nan", "0x10", "on\n", "SUM", "a,b", "f00d" * 16, "\udcff" * 40]
)  # fmt: skip
LEAST = {"CRONIUM_API_ENDPOINT": "http://h", "CRONIUM_API_TOKEN": "t"}


@many
@given(st.dictionaries(st.sampled_from(NAMES), odd_texts, max_size=6), st.booleans())
@example({"CRONIUM_JWT_SECRET_FILE": "~nobody-of-that-name/x"}, True)
def test_any_environment_is_settings_or_faults_that_name_their_variables(
    environ: dict[str, str], with_least: bool
) -> None:
    environ = (LEAST if with_least else {}) | environ
    unknown_variables(environ)
    try:
        assert isinstance(load(environ), Settings)
    except SettingsError as error:
        named = {fault.split(":")[0] for fault in error.faults}
        assert named
        assert named <= set(NAMES)
        assert str(error).encode()  # noqa: PT017  or settings; whoever shows it can


# Host keys

kinds = st.sampled_from([*KINDS, "ssh-dss", "ssh-ed448", "ssh-rsa-cert-v01@openssh.com", "x", ""])
fields = st.lists(
    st.sampled_from([b"", b"\0", b"\x03", b"\xff", b"\x80" * 9, b"nistp256", b"\x04" + b"\1" * 64,
                     b"\x01\0\x01", b"\x7f" * 128])
    | st.binary(max_size=40),
    max_size=5,
)  # fmt: skip


def a_blob(kind: str, parts: list[bytes]) -> bytes:
    return b"".join(struct.pack(">I", len(each)) + each for each in (kind.encode(), *parts))


blobs = st.builds(a_blob, kinds, fields)
NEGATIVE = a_blob("ssh-rsa", [b"\xff", b"\xff"])


@many
@given(blobs, st.integers(0, 300))
@example(NEGATIVE, 300)
def test_any_key_in_an_entry_is_a_key_or_a_refusal(blob: bytes, length: int) -> None:
    line = f"ssh-rsa {base64.b64encode(blob[:length]).decode()}"
    certificate_in(blob[:length])
    for each in (line, line.replace("ssh-rsa", "ssh-ed25519")):
        try:
            assert parse_given_keys(each)
        except ValueError as error:
            assert str(error).startswith("line 1: ")  # noqa: PT017  or it is one


names = st.lists(
    st.sampled_from(["web", "[web]:2222", "*", "!web", "[", "]", "[web]:", "|1|", "|1|AAAA|AAAA",
                     "|1|AAAA", "?", "[!a]*", "10.0.0.0/8", "10.0.0.0/99", "::1", ",", "-", "\\"])
    | st.text(max_size=4),
    max_size=3,
).map(",".join)  # fmt: skip
lines = st.builds(
    lambda *words: " ".join(words),
    st.sampled_from(["", "@revoked", "@cert-authority", "@", "@x", "#"]),
    names,
    kinds,
    blobs.map(lambda blob: base64.b64encode(blob).decode()) | st.text(max_size=6),
)


@many
@given(st.lists(lines, max_size=3).map("\n".join))
@example(f"web ssh-rsa {base64.b64encode(NEGATIVE).decode()}")
@example("web 0\0")  # it begins as a certificate in DER does
def test_any_text_is_known_hosts_or_names_the_line(text: str) -> None:
    try:
        known = KnownHosts(text)
    except ValueError as error:
        assert str(error).startswith("line ")  # noqa: PT017  or it can be read
        return
    for address in (Address("web", 2222), Address("web"), Address("::1"), Address("[", 1)):
        known.listed(address)


@many
@given(st.binary(max_size=60))
def test_any_file_is_known_hosts_or_nobody_is_trusted(content: bytes) -> None:
    path = new_path()
    path.write_bytes(content)
    try:
        KnownHostsFile(path).read()
    except ConnectError as error:
        assert "CRONIUM_SSH_KNOWN_HOSTS" in str(error)  # noqa: PT017  or it can be read


# Spools

numbers = st.sampled_from([0, 1, 100, 2**62, 2**63 - 1, 2**63, 2**64 - 1])


@given(numbers, numbers, numbers)
@example(2**64 - 1, 2**64 - 1, 2**64 - 1)
def test_a_spool_whose_header_is_damaged_is_begun_anew(
    limit: int, received: int, source: int
) -> None:
    path = new_path()
    path.write_bytes(struct.pack("<8sQQQ", MAGIC, limit, received, source) + b"x" * 100)

    capture = Capture(Spool(path, 1000), 1000)
    capture.take_up(0)
    capture.write(b"abc")
    capture.close()

    assert len(capture.content()) < 2000
