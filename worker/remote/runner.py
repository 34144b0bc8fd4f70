"""The runner on a server: deploy it, attach to runs, signal, list and forget them."""

import re
from collections.abc import Iterable
from contextlib import closing
from dataclasses import dataclass

import trio

from worker.errors import (
    ConnectionLostError,
    DeployError,
    ProtocolError,
    RunnerMissingError,
    RunRefusedError,
)
from worker.remote.artifact import Artifact
from worker.remote.attachment import (
    NO_SUCH_RUN_STATUS,
    Attachment,
    Incoming,
    Offsets,
    new_nonce,
)
from worker.remote.channel import Channel
from worker.remote.connection import Connection
from worker.remote.frames import MAX_PREAMBLE_BYTES

# `signal` waits for the grace of 5 s and as long again for processes that die slowly.
CALL_SECONDS = 30.0
# An answer may be as large as a job's input, and a line slow.
SLOWEST_BYTES_PER_SECOND = 50_000

LAST_WORDS_SECONDS = 2.0

# Some 20,000 runs: a line each, an id of 100 characters.
MAX_LIST_BYTES = 2 * 1024 * 1024
_listed = re.compile(
    r"([A-Za-z0-9._-]{1,255}) (running|ended|lost) ([0-9]{1,15}) ([0-9]{1,18}) ([0-9]{1,18})"
)

# The path stands unquoted on a command line that any login shell may read.
_usable_path = re.compile(r"/[A-Za-z0-9._/-]+\Z")


async def deploy(connection: Connection, artifact: Artifact) -> str:
    """Put the runner on the server, if it is not there yet; its path.

    Raises DeployError, with the server's reason, if it could not be put there whole.
    """
    nonce = new_nonce()
    with closing(await connection.exec("sh")) as channel:
        failure = None
        try:
            await channel.send_all(artifact.install_script(nonce))
            channel.send_eof()
        except ConnectionLostError as error:
            failure = error
        if failure is not None:
            # A shell that is not one (nologin, a forced command) closes without reading; what it
            # said may be still to come.
            said = b""
            with trio.move_on_after(LAST_WORDS_SECONDS):
                said = await read_answer(channel)
            words = channel.stderr or _words(said)
            raise DeployError(f"the server's shell ended at once: {words}"[:500]) from failure
        answer = await read_answer(channel)
    match = re.search(rb"\ncronium ([df]) %b ([^\n]*)\n" % nonce.encode(), b"\n" + answer)
    if match is None:
        words = channel.stderr or _words(answer)
        raise DeployError(f"the server's shell did not run the installer: {words}"[:500])
    told = match[2].decode(errors="replace")
    if match[1] == b"f":
        raise DeployError(told)
    if not _usable_path.match(told):
        raise DeployError(f"the installer named an unusable path {told!r}")
    return told


async def attach(
    connection: Connection,
    path: str,
    execution_id: str,
    offsets: Offsets,
) -> Attachment:
    """Attach to a run that was started, from `offsets` on."""
    nonce = new_nonce()
    arguments = f"{execution_id} {offsets.stdout} {offsets.stderr}"
    channel = await connection.exec(f"sh {path} attach {nonce} {arguments}")
    try:
        channel.send_eof()
    except ConnectionLostError:
        channel.close()
        raise
    return Attachment(Incoming(channel, nonce))


async def signal(connection: Connection, path: str, execution_id: str, reason: str) -> None:
    """End the run; nothing of it is left when this returns. `reason` is cancel or timeout.

    Raises RunnerMissingError if no usable runner answered.
    """
    await _call(connection, path, "signal", execution_id, reason, fine=(0, NO_SUCH_RUN_STATUS))


async def answer(
    connection: Connection, path: str, execution_id: str, call_id: str, answer: bytes
) -> None:
    """Hand a helper call its answer, if its script still waits for one.

    Raises RunnerMissingError if no usable runner answered.
    """
    await _call(
        connection,
        path,
        "answer",
        execution_id,
        call_id,
        str(len(answer)),
        message=answer,
        fine=(0, NO_SUCH_RUN_STATUS),
    )


async def forget(connection: Connection, path: str, execution_ids: Iterable[str]) -> None:
    """Remove runs that have ended; idempotent. One that never was will not start any more.

    Raises RunRefusedError if one of them still goes on, RunnerMissingError if no usable runner
    answered.
    """
    await _call(connection, path, "forget", *execution_ids, fine=(0,))


@dataclass(frozen=True, slots=True)
class RunOnServer:
    """One line of `list`; `state` is running, ended or lost."""

    execution_id: str
    state: str
    age_seconds: int
    stdout_bytes: int
    stderr_bytes: int


async def list_runs(connection: Connection, path: str) -> tuple[RunOnServer, ...]:
    """The runs of the account there, whoever started them.

    Raises RunnerMissingError if no usable runner answered, ProtocolError if it answered otherwise
    than it should.
    """
    answer = await _call(connection, path, "list", fine=(0,), most_bytes=MAX_LIST_BYTES)
    return tuple(_run_on_server(line) for line in answer.decode(errors="replace").splitlines())


def _run_on_server(line: str) -> RunOnServer:
    match = _listed.fullmatch(line)
    if match is None:
        raise ProtocolError(f"the runner listed {line[:200]!r}, which is no run")
    execution_id, state, *numbers = match.groups()
    return RunOnServer(execution_id, state, *map(int, numbers))


async def verify(connection: Connection, path: str, sha256: str) -> None:
    """Raises RunnerMissingError if the runner at `path` is not there, or not the one meant."""
    # A run that is told nothing ends without a word.
    await _call(connection, path, "run", sha256, fine=(0,))


async def _call(
    connection: Connection,
    path: str,
    verb: str,
    *arguments: str,
    message: bytes = b"",
    fine: tuple[int, ...],
    most_bytes: int = MAX_PREAMBLE_BYTES,
) -> bytes:
    """What the runner said after its greeting."""
    nonce = new_nonce()
    try:
        command = f"sh {path} {verb} {nonce} {' '.join(arguments)}"
        with closing(await connection.exec(command)) as channel:
            with trio.fail_after(CALL_SECONDS + len(message) / SLOWEST_BYTES_PER_SECOND):
                await channel.send_all(message)
                channel.send_eof()
                answer = await read_answer(channel, most_bytes)
    except trio.TooSlowError as error:
        raise ConnectionLostError("the runner does not answer") from error
    status = channel.exit_status
    _, greeting, said = (b"\n" + answer).partition(b"\ncronium h %b " % nonce.encode())
    if not greeting:
        raise RunnerMissingError(f"no runner answered (exit status {status}): {channel.stderr}")
    if status not in fine:
        raise RunRefusedError(status, channel.stderr or "no reason given")
    return said.partition(b"\n")[2]


async def read_answer(channel: Channel, most_bytes: int = MAX_PREAMBLE_BYTES) -> bytes:
    """The last `most_bytes` that the command prints; start-up files may print any number before."""
    answer = b""
    while data := await channel.receive():
        answer = (answer + data)[-most_bytes:]
    return answer


def _words(said: bytes) -> str:
    """In one line."""
    return " ".join(said.decode(errors="replace").split())
