"""The configuration: read once from the environment into a frozen tree."""

import difflib
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path
from typing import Any, Generic, TypeVar
from urllib.parse import urlsplit

from worker.errors import SealedValueError, SettingsError
from worker.sealing import SealingKey
from worker.secret import Secret

T = TypeVar("T")

MIB = 1024 * 1024


class HostKeyPolicy(StrEnum):
    ACCEPT_NEW = "accept-new"
    STRICT = "strict"
    OFF = "off"


class ExitCodePolicy(StrEnum):
    SUM = "sum"
    PARTIAL100 = "partial100"


class DrainPolicy(StrEnum):
    HANDOVER = "handover"
    CANCEL = "cancel"


class LogFormat(StrEnum):
    AUTO = "auto"
    JSON = "json"
    CONSOLE = "console"


class LogLevel(StrEnum):
    DEBUG = "debug"
    INFO = "info"
    WARNING = "warning"
    ERROR = "error"


@dataclass(frozen=True, slots=True)
class SecretSource:
    """A secret and, if it was given as a file, where to read it again after a 401."""

    value: Secret
    file: Path | None = None

    def read(self) -> Secret:
        """The secret as it is now; the first value when its file cannot be read."""
        if self.file is None:
            return self.value
        try:
            text = self.file.read_text().strip()
        except (OSError, UnicodeDecodeError):
            return self.value
        # One that is just being written may be empty or cut.
        return Secret(text) if _is_header_text(text) else self.value


@dataclass(frozen=True, slots=True)
class ApiSettings:
    endpoint: str
    token: SecretSource


@dataclass(frozen=True, slots=True)
class JobSettings:
    max_concurrent: int
    poll_batch_size: int
    drain_seconds: float
    drain_policy: DrainPolicy
    cancel_poll_seconds: float
    exit_code_policy: ExitCodePolicy
    output_limit_bytes: int
    run_max_output_bytes: int


@dataclass(frozen=True, slots=True)
class PhaseSettings:
    setup_seconds: float
    cleanup_seconds: float
    max_execution_seconds: float


@dataclass(frozen=True, slots=True)
class SshSettings:
    host_keys: HostKeyPolicy
    known_hosts: Path | None
    keepalive_seconds: float
    max_connections: int
    runner_verify_after_seconds: float


@dataclass(frozen=True, slots=True)
class LogSettings:
    level: LogLevel
    format: LogFormat
    output: bool


@dataclass(frozen=True, slots=True)
class Settings:
    orchestrator_id: str | None
    state_dir: Path
    encryption_key: SealingKey | None
    api: ApiSettings
    jobs: JobSettings
    phases: PhaseSettings
    ssh: SshSettings
    logs: LogSettings


def _is_header_text(text: str) -> bool:
    return bool(re.fullmatch(r"[!-~]+", text))


class _Fault(Exception):  # noqa: N818  a text on its way into SettingsError, never seen outside
    """What is wrong with one value, without its name."""


@dataclass(frozen=True, slots=True)
class Variable(Generic[T]):
    """One environment variable.

    `parse` raises _Fault; `default` is text, as a user would write it; None means that there
    is no default and `required` says whether that is a fault.
    """

    name: str
    meaning: str
    expected: str
    parse: Callable[[str], T]
    default: str | None = None
    required: bool = False
    secret: bool = False


_UNITS = {"ms": 0.001, "s": 1.0, "m": 60.0, "h": 3600.0, "d": 86400.0}
_duration = re.compile(r"(?:[0-9]+(?:\.[0-9]+)?(?:ms|s|m|h|d))+\Z")
_duration_part = re.compile(r"([0-9]+(?:\.[0-9]+)?)(ms|s|m|h|d)")


def parse_duration(text: str) -> float:
    """Seconds from `30s`, `5m`, `1h30m`, `1.5h` or a bare number of seconds.

    Raises ValueError if `text` is none of these.
    """
    if re.fullmatch(r"[0-9]+(\.[0-9]+)?", text):
        return float(text)
    if not _duration.match(text):
        raise ValueError(text)
    return sum(float(count) * _UNITS[unit] for count, unit in _duration_part.findall(text))


def _seconds(low: float, high: float) -> Callable[[str], float]:
    def parse(text: str) -> float:
        try:
            seconds = parse_duration(text)
        except ValueError:
            raise _Fault("is not a duration") from None
        if not low <= seconds <= high:
            raise _Fault("is out of bounds")
        return seconds

    return parse


def _whole(low: int, high: int) -> Callable[[str], int]:
    def parse(text: str) -> int:
        if not re.fullmatch(r"-?[0-9]{1,18}", text):
            raise _Fault("is not a whole number")
        if not low <= int(text) <= high:
            raise _Fault("is out of bounds")
        return int(text)

    return parse


_SIZES = {"": 1, "B": 1, "KIB": 1024, "MIB": MIB, "GIB": 1024 * MIB}


def _size(low: int, high: int) -> Callable[[str], int]:
    def parse(text: str) -> int:
        match = re.fullmatch(r"([0-9]{1,18})\s*([A-Za-z]*)", text)
        if not match or match[2].upper() not in _SIZES:
            raise _Fault("is not a size")
        size = int(match[1]) * _SIZES[match[2].upper()]
        if not low <= size <= high:
            raise _Fault("is out of bounds")
        return size

    return parse


def _choice(kind: type[StrEnum]) -> Callable[[str], Any]:
    def parse(text: str) -> StrEnum:
        try:
            return kind(text.lower())
        except ValueError:
            raise _Fault("is not one of them") from None

    return parse


def _switch(text: str) -> bool:
    if text.lower() not in ("on", "off"):
        raise _Fault("is neither on nor off")
    return text.lower() == "on"


def _endpoint(text: str) -> str:
    try:
        parts = urlsplit(text)
        host, _ = parts.hostname, parts.port
    except ValueError:
        raise _Fault("is not a URL") from None
    if parts.scheme not in ("http", "https") or not host or not _is_header_text(text):
        raise _Fault("is not an http(s) URL")
    if parts.username or parts.password:
        raise _Fault("holds a user name or password; give the token as CRONIUM_API_TOKEN")
    if parts.query or parts.fragment:
        raise _Fault("has more than a path behind the host")
    return text.rstrip("/").removesuffix("/api/internal") + "/api/internal"


def _worker_name(text: str) -> str:
    # 9 characters are kept for the suffix that tells replicas apart, of the API's 255.
    if not re.fullmatch(r"[A-Za-z0-9._-]{1,200}", text):
        raise _Fault("is not a plain name")
    return text


def _token(text: str) -> Secret:
    if not _is_header_text(text):
        raise _Fault("holds spaces or characters outside ASCII")
    return Secret(text)


def _path(text: str) -> Path:
    try:
        return Path(text).expanduser()
    except RuntimeError:  # an account made up for a container
        raise _Fault("is below a home directory, and there is none") from None


def _readable_file(text: str) -> Path:
    path = _path(text)
    try:
        path.open("rb").close()
    except OSError as error:
        raise _Fault(f"cannot be read ({error.strerror})") from None
    return path


def _sealing_key(text: str) -> SealingKey:
    try:
        return SealingKey(Secret(text))
    except SealedValueError:
        raise _Fault("is not that") from None


API_ENDPOINT = Variable(
    "CRONIUM_API_ENDPOINT",
    "where the queue API is, with or without `/api/internal`",
    "a URL such as https://cronium.example.com",
    _endpoint,
    required=True,
)
API_TOKEN = Variable(
    "CRONIUM_API_TOKEN",
    "bearer token of the queue API; read again from its file after a 401",
    "the token, or CRONIUM_API_TOKEN_FILE with the path of a file that holds it",
    _token,
    required=True,
    secret=True,
)
ORCHESTRATOR_ID = Variable(
    "CRONIUM_ORCHESTRATOR_ID",
    "the worker's name; on the wire 8 hex digits kept in the state file follow it "
    "(default: the host's name)",
    "1 to 200 of A-Z a-z 0-9 . _ -",
    _worker_name,
)
STATE_DIR = Variable(
    "CRONIUM_STATE_DIR",
    "directory of the state file; one worker each",
    "the path of a directory that can be written",
    _path,
    default="~/.local/state/cronium-worker",
)
ENCRYPTION_KEY = Variable(
    "CRONIUM_ENCRYPTION_KEY",
    "the app's key for sealed credentials and environment values",
    "64 hexadecimal digits",
    _sealing_key,
    secret=True,
)
JOBS_MAX_CONCURRENT = Variable(
    "CRONIUM_JOBS_MAX_CONCURRENT", "jobs run at once", "1 to 1000", _whole(1, 1000), default="5"
)
JOBS_POLL_BATCH_SIZE = Variable(
    "CRONIUM_JOBS_POLL_BATCH_SIZE",
    "jobs claimed with one poll, at most as many as slots are free",
    "1 to 100",
    _whole(1, 100),
    default="10",
)
SETUP_TIMEOUT = Variable(
    "CRONIUM_SETUP_TIMEOUT",
    "limit of the setup phase: connect, authenticate, deploy",
    "1s to 1h",
    _seconds(1, 3600),
    default="300s",
)
CLEANUP_TIMEOUT = Variable(
    "CRONIUM_CLEANUP_TIMEOUT",
    "limit of the cleanup phase: forget the run, after the result was accepted",
    "1s to 1h",
    _seconds(1, 3600),
    default="60s",
)
MAX_EXECUTION_TIMEOUT = Variable(
    "CRONIUM_MAX_EXECUTION_TIMEOUT",
    "upper bound of every job's own time limit",
    "1s to 30d",
    _seconds(1, 30 * 86400),
    default="24h",
)
DRAIN_TIMEOUT = Variable(
    "CRONIUM_DRAIN_TIMEOUT",
    "how long running jobs may go on after SIGTERM",
    "0s to 1d",
    _seconds(0, 86400),
    default="25s",
)
DRAIN_POLICY = Variable(
    "CRONIUM_DRAIN_POLICY",
    "what becomes of jobs that run longer than the drain: `handover` leaves their runs alone and "
    "gives them back to the queue, `cancel` ends them",
    "handover or cancel",
    _choice(DrainPolicy),
    default="handover",
)
CANCEL_POLL = Variable(
    "CRONIUM_CANCEL_POLL",
    "how often a running job is read, to learn that it was cancelled or is another worker's",
    "1s to 10m",
    _seconds(1, 600),
    default="10s",
)
EXIT_CODE_POLICY = Variable(
    "CRONIUM_EXIT_CODE_POLICY",
    "`sum` of all servers' exit codes, or `partial100`: 100 + failed servers for a partial "
    "success, which newer apps read as PARTIAL (under `sum` they show SUCCESS below 100)",
    "sum or partial100",
    _choice(ExitCodePolicy),
    default="sum",
)
OUTPUT_LIMIT = Variable(
    "CRONIUM_OUTPUT_LIMIT",
    "output reported per execution and stream: first and last half",
    # Two streams, each byte six times as long when escaped, under the 50 MB of the API's bodies.
    "1KiB to 4MiB",
    _size(1024, 4 * MIB),
    default="1MiB",
)
RUN_MAX_OUTPUT = Variable(
    "CRONIUM_RUN_MAX_OUTPUT",
    "what one run may print before it is ended",
    "1MiB to 1024GiB",
    _size(MIB, 1024 * 1024 * MIB),
    default="1GiB",
)
SSH_HOST_KEYS = Variable(
    "CRONIUM_SSH_HOST_KEYS",
    "`accept-new` pins a server's key on first use, `strict` takes only what known_hosts has, "
    "`off` checks nothing",
    "accept-new, strict or off",
    _choice(HostKeyPolicy),
    default="accept-new",
)
SSH_KNOWN_HOSTS = Variable(
    "CRONIUM_SSH_KNOWN_HOSTS",
    "host keys in OpenSSH's format, read by `accept-new` and `strict`",
    "the path of a readable file",
    _readable_file,
)
SSH_KEEPALIVE = Variable(
    "CRONIUM_SSH_KEEPALIVE",
    "a server silent for so long is taken for gone",
    "3s to 10m",
    _seconds(3, 600),
    default="30s",
)
SSH_MAX_CONNECTIONS = Variable(
    "CRONIUM_SSH_MAX_CONNECTIONS",
    "SSH connections open at once, over all jobs",
    "1 to 10000",
    _whole(1, 10000),
    default="500",
)
RUNNER_VERIFY_AFTER = Variable(
    "CRONIUM_RUNNER_VERIFY_AFTER",
    "a deployed runner not verified for so long has its digest compared before it is used",
    "0s to 30d",
    _seconds(0, 30 * 86400),
    default="1h",
)
LOGGING_LEVEL = Variable(
    "CRONIUM_LOGGING_LEVEL",
    "the least level that is logged",
    "debug, info, warning or error",
    _choice(LogLevel),
    default="info",
)
LOGGING_FORMAT = Variable(
    "CRONIUM_LOGGING_FORMAT",
    "`auto` is `console` on a terminal and `json` elsewhere",
    "json, console or auto",
    _choice(LogFormat),
    default="auto",
)
LOG_OUTPUT = Variable(
    "CRONIUM_LOG_OUTPUT",
    "whether each line a script prints is an event of the log",
    "on or off",
    _switch,
    default="on",
)

VARIABLES: tuple[Variable[Any], ...] = (
    API_ENDPOINT,
    API_TOKEN,
    ORCHESTRATOR_ID,
    STATE_DIR,
    ENCRYPTION_KEY,
    JOBS_MAX_CONCURRENT,
    JOBS_POLL_BATCH_SIZE,
    SETUP_TIMEOUT,
    CLEANUP_TIMEOUT,
    MAX_EXECUTION_TIMEOUT,
    DRAIN_TIMEOUT,
    DRAIN_POLICY,
    CANCEL_POLL,
    EXIT_CODE_POLICY,
    OUTPUT_LIMIT,
    RUN_MAX_OUTPUT,
    SSH_HOST_KEYS,
    SSH_KNOWN_HOSTS,
    SSH_KEEPALIVE,
    SSH_MAX_CONNECTIONS,
    RUNNER_VERIFY_AFTER,
    LOGGING_LEVEL,
    LOGGING_FORMAT,
    LOG_OUTPUT,
)

# Read by other commands of this program, so not unknown to it.
OTHER_COMMANDS = ("CRONIUM_QUEUE_DB",)


class _Reader:
    """Reads variables one after another and collects every fault."""

    def __init__(self, environ: Mapping[str, str]) -> None:
        self._environ = environ
        self.faults: list[str] = []

    def secret_file(self, variable: Variable[Any]) -> Path | None:
        path = self._environ.get(variable.name + "_FILE", "").strip()
        return Path(path).expanduser() if path else None

    def read(self, variable: Variable[T]) -> T | None:
        """The value; None if there is none, or if it is at fault."""
        text = self._text(variable)
        if text is None:
            return None
        try:
            return variable.parse(text)
        except _Fault as fault:
            # A URL may hold a password before its @.
            shown = "its value" if variable.secret or "@" in text else repr(text)
            self.faults.append(f"{variable.name}: {shown} {fault}; expected {variable.expected}")
            return None

    def _text(self, variable: Variable[Any]) -> str | None:
        text = self._environ.get(variable.name, "").strip()
        file = self.secret_file(variable) if variable.secret else None
        if file and text:
            self.faults.append(
                f"{variable.name}: given twice, also as {variable.name}_FILE; expected one of them"
            )
            return None
        if file:
            try:
                text = file.read_text().strip()
            except (OSError, UnicodeDecodeError) as error:
                self.faults.append(
                    f"{variable.name}_FILE: {str(file)!r} cannot be read ({error}); "
                    "expected the path of a readable file"
                )
                return None
            if not text:
                self.faults.append(
                    f"{variable.name}_FILE: {str(file)!r} is empty; expected {variable.expected}"
                )
                return None
        if text:
            return text
        if variable.required:
            self.faults.append(f"{variable.name}: not set; expected {variable.expected}")
        return variable.default


def load(environ: Mapping[str, str]) -> Settings:
    """Raises SettingsError, with all faults at once."""
    reader = _Reader(environ)
    read = reader.read
    token = read(API_TOKEN)
    values: dict[str, Any] = {
        "orchestrator_id": read(ORCHESTRATOR_ID),
        "state_dir": read(STATE_DIR),
        "encryption_key": read(ENCRYPTION_KEY),
        "api": {
            "endpoint": read(API_ENDPOINT),
            "token": SecretSource(token or Secret(""), reader.secret_file(API_TOKEN)),
        },
        "jobs": {
            "max_concurrent": read(JOBS_MAX_CONCURRENT),
            "poll_batch_size": read(JOBS_POLL_BATCH_SIZE),
            "drain_seconds": read(DRAIN_TIMEOUT),
            "drain_policy": read(DRAIN_POLICY),
            "cancel_poll_seconds": read(CANCEL_POLL),
            "exit_code_policy": read(EXIT_CODE_POLICY),
            "output_limit_bytes": read(OUTPUT_LIMIT),
            "run_max_output_bytes": read(RUN_MAX_OUTPUT),
        },
        "phases": {
            "setup_seconds": read(SETUP_TIMEOUT),
            "cleanup_seconds": read(CLEANUP_TIMEOUT),
            "max_execution_seconds": read(MAX_EXECUTION_TIMEOUT),
        },
        "ssh": {
            "host_keys": read(SSH_HOST_KEYS),
            "known_hosts": read(SSH_KNOWN_HOSTS),
            "keepalive_seconds": read(SSH_KEEPALIVE),
            "max_connections": read(SSH_MAX_CONNECTIONS),
            "runner_verify_after_seconds": read(RUNNER_VERIFY_AFTER),
        },
        "logs": {
            "level": read(LOGGING_LEVEL),
            "format": read(LOGGING_FORMAT),
            "output": read(LOG_OUTPUT),
        },
    }
    if reader.faults:
        raise SettingsError(tuple(reader.faults))
    return Settings(
        orchestrator_id=values["orchestrator_id"],
        state_dir=values["state_dir"],
        encryption_key=values["encryption_key"],
        api=ApiSettings(**values["api"]),
        jobs=JobSettings(**values["jobs"]),
        phases=PhaseSettings(**values["phases"]),
        ssh=SshSettings(**values["ssh"]),
        logs=LogSettings(**values["logs"]),
    )


def unknown_variables(environ: Mapping[str, str]) -> tuple[str, ...]:
    """A warning for each `CRONIUM_*` variable that nobody reads, with the nearest name."""
    known = {variable.name for variable in VARIABLES} | set(OTHER_COMMANDS)
    known |= {f"{variable.name}_FILE" for variable in VARIABLES if variable.secret}
    warnings = []
    for name in sorted(environ):
        if name.startswith("CRONIUM_") and name not in known:
            near = difflib.get_close_matches(name, known, n=1)
            hint = f"; did you mean {near[0]}?" if near else ""
            warnings.append(f"{name} is not a setting of this program{hint}")
    return tuple(warnings)
