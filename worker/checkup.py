"""The whole set-up looked through: each finding says what to do where it is not as it should be."""

import shutil
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime
from enum import StrEnum
from pathlib import Path

import trio

from worker.api.client import open_client
from worker.errors import (
    ConnectError,
    EarlierStateError,
    ProtocolError,
    QueueError,
    QueueUnavailableError,
    SettingsError,
    StateError,
)
from worker.file_limit import connections_within, raise_file_limit
from worker.remote.known_hosts import KnownHostsFile
from worker.settings import HostKeyPolicy, Settings, SshSettings, environment
from worker.state.directory import DATABASE, holder, open_beside

MIB = 1024 * 1024
# The outbox, and the output of what runs.
LITTLE_BYTES, TOO_LITTLE_BYTES = 1024 * MIB, 64 * MIB
# Date has whole seconds, and the answer takes its time. Tokens are for minutes.
CLOCK_OFF_SECONDS, CLOCK_WRONG_SECONDS = 5.0, 60.0
API_SECONDS = 20.0
NOBODY = "cronium-worker-check"


class Verdict(StrEnum):
    PASSED = "passed"
    WARNED = "warned"
    FAILED = "failed"


@dataclass(frozen=True, slots=True)
class Finding:
    """`advice` says what to do; `seconds` is how long a step took, where that is of interest."""

    verdict: Verdict
    subject: str
    told: str
    advice: str = ""
    seconds: float | None = None


Say = Callable[[Finding], None]


def passed(subject: str, told: str) -> Finding:
    return Finding(Verdict.PASSED, subject, told)


def warned(subject: str, told: str, advice: str) -> Finding:
    return Finding(Verdict.WARNED, subject, told, advice)


def failed(subject: str, told: str, advice: str) -> Finding:
    return Finding(Verdict.FAILED, subject, told, advice)


def look_at_settings(environ: Mapping[str, str], say: Say) -> Settings | None:
    """The settings; None, and a finding for each fault, where there are some."""
    for warning in environment.unknown_variables(environ):
        say(warned("settings", warning, "remove or correct it"))
    try:
        loaded = environment.load(environ)
    except SettingsError as error:
        for fault in error.faults:
            say(failed("settings", fault, "see `cronium-worker run --help`"))
        return None
    say(passed("settings", f"for {loaded.api.endpoint}"))
    if loaded.encryption_key is None:
        told = "CRONIUM_ENCRYPTION_KEY is not set: sealed credentials cannot be opened"
        say(warned("encryption key", told, "set it to the app's, if that seals them"))
    else:
        say(passed("encryption key", "of the right shape"))
    return loaded


def look_at_machine(loaded: Settings, say: Say) -> None:
    for finding in (
        *_state(loaded.state_dir),
        *_known_hosts(loaded.ssh),
        _files(raise_file_limit(), loaded.ssh.max_connections),
    ):
        say(finding)


def _state(directory: Path) -> Iterator[Finding]:
    subject = "state directory"
    try:
        place = _nearest(directory)
        with tempfile.TemporaryFile(dir=place) as file:
            file.write(b"room")
        free = shutil.disk_usage(place).free
    except OSError as error:
        advice = "make it writable for this user, or set CRONIUM_STATE_DIR"
        yield failed(subject, f"{directory}: {error.strerror}", advice)
        return
    made = "" if place == directory else ", which a worker will make"
    told = f"{directory}{made}, {free // MIB} MiB free"
    advice = "make room: what the API has not heard yet waits there"
    if free < TOO_LITTLE_BYTES:
        yield failed(subject, told, advice)
    elif free < LITTLE_BYTES:
        yield warned(subject, told, advice)
    else:
        yield passed(subject, told)
    pid = holder(directory)
    is_begun = (directory / DATABASE).exists()
    begun = "used before" if is_begun else "new"
    yield passed("state lock", f"a worker runs on it (pid {pid})" if pid else f"free, {begun}")
    if is_begun:
        yield _state_file(directory)


def _state_file(directory: Path) -> Finding:
    subject = "state file"
    try:
        with open_beside(directory):
            return passed(subject, "of this release")
    except StateError as error:
        if isinstance(error.__cause__, EarlierStateError):
            return passed(subject, "of an earlier release; a worker will migrate it")
        advice = "set CRONIUM_STATE_DIR to another directory: the worker does not start with it"
        return failed(subject, str(error), advice)


def _nearest(directory: Path) -> Path:
    """Itself, or else what is there of the way to it: in that it is to be made.

    Raises OSError if there can be no such way.
    """
    try:
        directory.stat()
    except FileNotFoundError:
        return _nearest(directory.parent)
    return directory


def _known_hosts(ssh: SshSettings) -> Iterator[Finding]:
    subject = "known_hosts"
    if ssh.known_hosts is None:
        if ssh.host_keys is HostKeyPolicy.STRICT:
            told = "none, and CRONIUM_SSH_HOST_KEYS=strict: only keys in servers' entries count"
            yield warned(subject, told, "set CRONIUM_SSH_KNOWN_HOSTS")
        return
    try:
        KnownHostsFile(ssh.known_hosts).read()
    except ConnectError as error:
        yield failed(subject, str(error), "mend that line: the worker does not start with it")
    else:
        yield passed(subject, f"{ssh.known_hosts} can be read")
    if ssh.host_keys is HostKeyPolicy.OFF:
        yield warned(subject, "CRONIUM_SSH_HOST_KEYS=off: any server is trusted", "use accept-new")


def _files(files: int, wanted: int) -> Finding:
    possible = connections_within(files, wanted)
    told = f"{files} files, enough for {possible} connections"
    if possible == wanted:
        return passed("file limit", told)
    advice = f"raise the hard limit (ulimit -n) for CRONIUM_SSH_MAX_CONNECTIONS={wanted}"
    return warned("file limit", told, advice)


async def look_at_api(loaded: Settings, say: Say) -> None:
    """Whether the API answers and takes the token; nothing is claimed by that."""
    subject = "queue API"
    began = trio.current_time()
    try:
        with trio.fail_after(API_SECONDS):
            async with open_client(loaded.api, NOBODY) as client:
                date = await client.look()
    except QueueUnavailableError as error:
        if error.status == 401:
            say(failed("API token", str(error), "set CRONIUM_API_TOKEN to the app's internal key"))
        else:
            say(failed(subject, str(error), "see CRONIUM_API_ENDPOINT, and whether the app runs"))
    except (QueueError, ProtocolError) as error:
        say(failed(subject, str(error), "see whether CRONIUM_API_ENDPOINT is Cronium's app"))
    except trio.TooSlowError:
        say(failed(subject, f"no answer within {API_SECONDS:g} s", "see whether the app is well"))
    else:
        seconds = trio.current_time() - began
        told = f"{loaded.api.endpoint} answers and takes the token"
        say(Finding(Verdict.PASSED, subject, told, seconds=seconds))
        say(clock(date, time.time()))


def clock(date: str | None, now: float) -> Finding:
    """This machine's clock against the API's `date`; `now` is in Unix seconds."""
    try:
        theirs = parsedate_to_datetime(date or "")
    except ValueError:
        return warned("clock", "the API's answers have no Date", "compare the clocks by hand")
    off = abs(datetime.fromtimestamp(now, UTC).timestamp() - theirs.timestamp())
    told = f"{off:.0f} s from the API's"
    if off > CLOCK_WRONG_SECONDS:
        return failed("clock", told, "set both by NTP: tokens are refused, and times are wrong")
    if off > CLOCK_OFF_SECONDS:
        return warned("clock", told, "set both by NTP")
    return passed("clock", told)
