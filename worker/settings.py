"""The configuration: read once from the environment into a frozen tree."""

import difflib
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path
from typing import Any, Generic, TypeVar

from worker import values
from worker.errors import SettingsError
from worker.sealing import SealingKey
from worker.secret import Secret

T = TypeVar("T")


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
    is_usable: Callable[[str], bool] = values.is_header_text

    def read(self) -> Secret:
        """The secret as it is now; the first value when its file cannot be read."""
        if self.file is None:
            return self.value
        try:
            text = self.file.read_text().strip()
        except (OSError, UnicodeDecodeError):
            return self.value
        # One that is just being written may be empty or cut.
        return Secret(text) if self.is_usable(text) else self.value


@dataclass(frozen=True, slots=True)
class ApiSettings:
    """The queue API; `authorities` are those that its certificate may be of, if not the public."""

    endpoint: str
    token: SecretSource
    authorities: Path | None = None


@dataclass(frozen=True, slots=True)
class RuntimeSettings:
    """The runtime API; `jwt_secret` signs the tokens that it takes, `authorities` as above."""

    url: str
    jwt_secret: SecretSource
    authorities: Path | None = None


@dataclass(frozen=True, slots=True)
class JobSettings:
    max_concurrent: int
    poll_batch_size: int
    drain_seconds: float
    drain_policy: DrainPolicy
    cancel_poll_seconds: float
    live_output_seconds: float
    exit_code_policy: ExitCodePolicy
    output_limit_bytes: int
    run_max_output_bytes: int
    mask_names: tuple[str, ...]
    history_bytes: int


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
    idle_seconds: float
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
    state_key: Secret | None
    encryption_key: SealingKey | None
    api: ApiSettings
    runtime: RuntimeSettings | None
    jobs: JobSettings
    phases: PhaseSettings
    ssh: SshSettings
    logs: LogSettings


@dataclass(frozen=True, slots=True)
class Variable(Generic[T]):
    """One environment variable.

    `parse` is one of `worker.values`; `default` is text, as a user would write it; None means
    that there is no default and `required` says whether that is a fault.
    """

    name: str
    meaning: str
    expected: str
    parse: Callable[[str], T]
    default: str | None = None
    required: bool = False
    secret: bool = False


API_ENDPOINT = Variable(
    "CRONIUM_API_ENDPOINT",
    "where the queue API is, with or without `/api/internal`",
    "a URL such as https://cronium.example.com",
    values.endpoint,
    required=True,
)
API_TOKEN = Variable(
    "CRONIUM_API_TOKEN",
    "bearer token of the queue API; read again from its file after a 401",
    "the token, or CRONIUM_API_TOKEN_FILE with the path of a file that holds it",
    values.token,
    required=True,
    secret=True,
)
API_CA = Variable(
    "CRONIUM_API_CA",
    "authorities that the certificates of the queue API and the runtime API may be of "
    "(default: the public ones)",
    "the path of a readable file of certificates in PEM",
    values.certificates,
)
ORCHESTRATOR_ID = Variable(
    "CRONIUM_ORCHESTRATOR_ID",
    "the worker's name; on the wire 8 hex digits kept in the state file follow it "
    "(default: the host's name)",
    "1 to 200 of A-Z a-z 0-9 . _ -",
    values.worker_name,
)
STATE_DIR = Variable(
    "CRONIUM_STATE_DIR",
    "directory of the state file; one worker each",
    "the path of a directory that can be written",
    values.file_path,
    default="~/.local/state/cronium-worker",
)
STATE_KEY = Variable(
    "CRONIUM_STATE_KEY",
    "the key under which the plans of jobs in flight lie in the state file "
    "(default: made at first start, in `seal.key` beside it)",
    "64 hexadecimal digits",
    values.hex_key,
    secret=True,
)
ENCRYPTION_KEY = Variable(
    "CRONIUM_ENCRYPTION_KEY",
    "the app's key for sealed credentials and environment values",
    "64 hexadecimal digits",
    values.sealing_key,
    secret=True,
)
RUNTIME_URL = Variable(
    "CRONIUM_RUNTIME_URL",
    "where the runtime API is, which answers what scripts ask for (default: the queue API's own "
    "routes do, without tool actions)",
    "a URL such as http://runtime:8081, and CRONIUM_JWT_SECRET with it",
    values.runtime_url,
)
JWT_SECRET = Variable(
    "CRONIUM_JWT_SECRET",
    "signs the tokens of the runtime API, one per execution; read again from its file after a 401",
    "the runtime API's own, of 32 characters or more (no fewer than 16), and CRONIUM_RUNTIME_URL "
    "with it",
    values.jwt_secret,
    secret=True,
)
JOBS_MAX_CONCURRENT = Variable(
    "CRONIUM_JOBS_MAX_CONCURRENT",
    "jobs run at once",
    "1 to 1000",
    values.whole(1, 1000),
    default="5",
)
JOBS_POLL_BATCH_SIZE = Variable(
    "CRONIUM_JOBS_POLL_BATCH_SIZE",
    "jobs claimed with one poll, at most as many as slots are free",
    "1 to 100",
    values.whole(1, 100),
    default="10",
)
SETUP_TIMEOUT = Variable(
    "CRONIUM_SETUP_TIMEOUT",
    "limit of the setup phase: connect, authenticate, deploy",
    "1s to 1h",
    values.seconds(1, 3600),
    default="300s",
)
CLEANUP_TIMEOUT = Variable(
    "CRONIUM_CLEANUP_TIMEOUT",
    "limit of the cleanup phase: forget the run, after the result was accepted",
    "1s to 1h",
    values.seconds(1, 3600),
    default="60s",
)
MAX_EXECUTION_TIMEOUT = Variable(
    "CRONIUM_MAX_EXECUTION_TIMEOUT",
    "upper bound of every job's own time limit",
    "1s to 30d",
    values.seconds(1, 30 * 86400),
    default="24h",
)
DRAIN_TIMEOUT = Variable(
    "CRONIUM_DRAIN_TIMEOUT",
    "how long running jobs may go on after SIGTERM",
    "0s to 1d",
    values.seconds(0, 86400),
    default="25s",
)
DRAIN_POLICY = Variable(
    "CRONIUM_DRAIN_POLICY",
    "what becomes of jobs that run longer than the drain: `handover` leaves their runs alone and "
    "gives them back to the queue, `cancel` ends them",
    "handover or cancel",
    values.choice(DrainPolicy),
    default="handover",
)
CANCEL_POLL = Variable(
    "CRONIUM_CANCEL_POLL",
    "how often a running job is read, to learn that it was cancelled or is another worker's",
    "1s to 10m",
    values.seconds(1, 600),
    default="10s",
)
LIVE_OUTPUT = Variable(
    "CRONIUM_LIVE_OUTPUT",
    "how often an execution's row is told what its script has printed so far; 0 for not at all",
    "0s to 1h",
    values.seconds(0, 3600),
    default="2s",
)
EXIT_CODE_POLICY = Variable(
    "CRONIUM_EXIT_CODE_POLICY",
    "`sum` of all servers' exit codes, or `partial100`: 100 + failed servers for a partial "
    "success, which newer apps read as PARTIAL (under `sum` they show SUCCESS below 100)",
    "sum or partial100",
    values.choice(ExitCodePolicy),
    default="sum",
)
OUTPUT_LIMIT = Variable(
    "CRONIUM_OUTPUT_LIMIT",
    "output reported per execution and stream: first and last half",
    # Two streams, each byte six times as long when escaped, under the 50 MB of the API's bodies.
    "1KiB to 4MiB",
    values.size(1024, 4 * values.MIB),
    default="1MiB",
)
RUN_MAX_OUTPUT = Variable(
    "CRONIUM_RUN_MAX_OUTPUT",
    "what one run may print before it is ended",
    "1MiB to 1024GiB",
    values.size(values.MIB, 1024 * 1024 * values.MIB),
    default="1GiB",
)
MASK_NAMES = Variable(
    "CRONIUM_MASK_NAMES",
    "whose environment entries' values are masked, beside credentials and what arrived sealed",
    "patterns of names such as *TOKEN*, with spaces between; case does not matter",
    values.name_patterns,
    default="*TOKEN* *SECRET* *PASSWORD* *PASSPHRASE* *PRIVATE_KEY* *API_KEY* *CREDENTIAL*",
)
HISTORY_OUTPUT = Variable(
    "CRONIUM_HISTORY_OUTPUT",
    "output of ended executions that `show` still has, over all jobs: the newest, and of each "
    "stream the first and last 8 KiB; counted once an hour, `0` keeps none",
    "0 to 64GiB",
    values.size(0, 64 * 1024 * values.MIB),
    default="256MiB",
)
SSH_HOST_KEYS = Variable(
    "CRONIUM_SSH_HOST_KEYS",
    "`accept-new` pins a server's key on first use, `strict` takes only what known_hosts has, "
    "`off` checks nothing",
    "accept-new, strict or off",
    values.choice(HostKeyPolicy),
    default="accept-new",
)
SSH_KNOWN_HOSTS = Variable(
    "CRONIUM_SSH_KNOWN_HOSTS",
    "host keys in OpenSSH's format, heeded by `accept-new` and `strict`; "
    "read again when it changes",
    "the path of a readable file",
    values.readable_file,
)
SSH_KEEPALIVE = Variable(
    "CRONIUM_SSH_KEEPALIVE",
    "a server silent for so long is taken for gone",
    "3s to 10m",
    values.seconds(3, 600),
    default="30s",
)
SSH_MAX_CONNECTIONS = Variable(
    "CRONIUM_SSH_MAX_CONNECTIONS",
    "SSH connections open at once, over all jobs",
    "1 to 10000",
    values.whole(1, 10000),
    default="500",
)
SSH_IDLE_TIMEOUT = Variable(
    "CRONIUM_SSH_IDLE_TIMEOUT",
    "an SSH connection that no job has used for so long is closed",
    "0s to 24h",
    values.seconds(0, 86400),
    default="5m",
)
RUNNER_VERIFY_AFTER = Variable(
    "CRONIUM_RUNNER_VERIFY_AFTER",
    "a deployed runner not verified for so long has its digest compared before it is used",
    "0s to 30d",
    values.seconds(0, 30 * 86400),
    default="1h",
)
LOGGING_LEVEL = Variable(
    "CRONIUM_LOGGING_LEVEL",
    "the least level that is logged",
    "debug, info, warning or error",
    values.choice(LogLevel),
    default="info",
)
LOGGING_FORMAT = Variable(
    "CRONIUM_LOGGING_FORMAT",
    "`auto` is `console` on a terminal and `json` elsewhere",
    "json, console or auto",
    values.choice(LogFormat),
    default="auto",
)
LOG_OUTPUT = Variable(
    "CRONIUM_LOG_OUTPUT",
    "whether each line a script prints is an event of the log",
    "on or off",
    values.switch,
    default="on",
)

VARIABLES: tuple[Variable[Any], ...] = (
    API_ENDPOINT,
    API_TOKEN,
    API_CA,
    ORCHESTRATOR_ID,
    STATE_DIR,
    STATE_KEY,
    ENCRYPTION_KEY,
    RUNTIME_URL,
    JWT_SECRET,
    JOBS_MAX_CONCURRENT,
    JOBS_POLL_BATCH_SIZE,
    SETUP_TIMEOUT,
    CLEANUP_TIMEOUT,
    MAX_EXECUTION_TIMEOUT,
    DRAIN_TIMEOUT,
    DRAIN_POLICY,
    CANCEL_POLL,
    LIVE_OUTPUT,
    EXIT_CODE_POLICY,
    OUTPUT_LIMIT,
    RUN_MAX_OUTPUT,
    MASK_NAMES,
    HISTORY_OUTPUT,
    SSH_HOST_KEYS,
    SSH_KNOWN_HOSTS,
    SSH_KEEPALIVE,
    SSH_MAX_CONNECTIONS,
    SSH_IDLE_TIMEOUT,
    RUNNER_VERIFY_AFTER,
    LOGGING_LEVEL,
    LOGGING_FORMAT,
    LOG_OUTPUT,
)

# Read by other commands of this program, so not unknown to it.
OTHER_COMMANDS = ("CRONIUM_QUEUE_DB", "CRONIUM_EXEC_DIR")

_PREFIX = "CRONIUM_"


class _Reader:
    """Reads variables one after another and collects every fault."""

    def __init__(self, environ: Mapping[str, str]) -> None:
        self._environ = environ
        self.faults: list[str] = []

    def secret_file(self, variable: Variable[Any]) -> Path | None:
        path = self._environ.get(variable.name + "_FILE", "").strip()
        if not path:
            return None
        try:
            return Path(path).expanduser()
        except RuntimeError:  # below a home that nobody has: no such file, then
            return Path(path)

    def read(self, variable: Variable[T]) -> T | None:
        """The value; None if there is none, or if it is at fault."""
        text = self.text(variable)
        if text is None:
            return None
        try:
            return variable.parse(text)
        except values.ValueFault as fault:
            # A URL may hold a password before its @.
            shown = "its value" if variable.secret or "@" in text else repr(text)
            self.faults.append(f"{variable.name}: {shown} {fault}; expected {variable.expected}")
            return None

    def is_given(self, variable: Variable[Any]) -> bool:
        """Whether there is anything, be it at fault."""
        given = self._environ.get(variable.name, "").strip()
        return bool(given or (variable.secret and self.secret_file(variable)))

    def together(self, one: Variable[Any], other: Variable[Any]) -> None:
        """Two that make no sense alone."""
        if self.is_given(one) != self.is_given(other):
            given, missing = (one, other) if self.is_given(one) else (other, one)
            self.faults.append(
                f"{missing.name}: not set, but {given.name} is; expected both or neither"
            )

    def text(self, variable: Variable[Any]) -> str | None:
        """What it was given, or its file holds; its default otherwise."""
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


def given_secret(environ: Mapping[str, str], variable: Variable[Any]) -> Secret | None:
    """The text of one variable, or of the file that its `_FILE` names; None where neither is set.

    Raises SettingsError where that cannot be read, or both are set.
    """
    reader = _Reader(environ)
    text = reader.text(variable) if reader.is_given(variable) else None
    if reader.faults:
        raise SettingsError(tuple(reader.faults))
    return None if text is None else Secret(text)


def secrets_of(settings: Settings) -> frozenset[Secret]:
    """Those of the worker's own that can be told again, and so must be masked."""
    found = {settings.api.token.value, settings.state_key}
    if settings.runtime is not None:
        found.add(settings.runtime.jwt_secret.value)
    return frozenset(secret for secret in found if secret is not None)


def load(environ: Mapping[str, str], *, has_queue: bool = True) -> Settings:
    """Those of a worker, or of a command that `has_queue` not: it needs neither endpoint nor token.

    Raises SettingsError, with all faults at once.
    """
    reader = _Reader(environ)
    read = reader.read
    token = read(API_TOKEN) if has_queue else None
    reader.together(RUNTIME_URL, JWT_SECRET)
    runtime_url, jwt_secret = read(RUNTIME_URL), read(JWT_SECRET)
    authorities = read(API_CA)
    parsed: dict[str, Any] = {
        "orchestrator_id": read(ORCHESTRATOR_ID),
        "state_dir": read(STATE_DIR),
        "state_key": read(STATE_KEY),
        "encryption_key": read(ENCRYPTION_KEY),
        "api": {
            "endpoint": read(API_ENDPOINT) if has_queue else "",
            "token": SecretSource(token or Secret(""), reader.secret_file(API_TOKEN)),
            "authorities": authorities,
        },
        "jobs": {
            "max_concurrent": read(JOBS_MAX_CONCURRENT),
            "poll_batch_size": read(JOBS_POLL_BATCH_SIZE),
            "drain_seconds": read(DRAIN_TIMEOUT),
            "drain_policy": read(DRAIN_POLICY),
            "cancel_poll_seconds": read(CANCEL_POLL),
            "live_output_seconds": read(LIVE_OUTPUT),
            "exit_code_policy": read(EXIT_CODE_POLICY),
            "output_limit_bytes": read(OUTPUT_LIMIT),
            "run_max_output_bytes": read(RUN_MAX_OUTPUT),
            "mask_names": read(MASK_NAMES),
            "history_bytes": read(HISTORY_OUTPUT),
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
            "idle_seconds": read(SSH_IDLE_TIMEOUT),
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
        orchestrator_id=parsed["orchestrator_id"],
        state_dir=parsed["state_dir"],
        state_key=parsed["state_key"],
        encryption_key=parsed["encryption_key"],
        api=ApiSettings(**parsed["api"]),
        runtime=(
            RuntimeSettings(
                runtime_url,
                SecretSource(jwt_secret, reader.secret_file(JWT_SECRET), values.is_jwt_secret),
                authorities,
            )
            if runtime_url and jwt_secret
            else None
        ),
        jobs=JobSettings(**parsed["jobs"]),
        phases=PhaseSettings(**parsed["phases"]),
        ssh=SshSettings(**parsed["ssh"]),
        logs=LogSettings(**parsed["logs"]),
    )


def given(environ: Mapping[str, str], variable: Variable[T]) -> T | None:
    """The value of one variable; None if there is none, or if it is at fault."""
    return _Reader(environ).read(variable)


def load_state_dir(environ: Mapping[str, str]) -> Path:
    """For commands that need no more than that. Raises SettingsError."""
    reader = _Reader(environ)
    directory = reader.read(STATE_DIR)
    if directory is None:
        raise SettingsError(tuple(reader.faults))
    return directory


def unknown_variables(environ: Mapping[str, str]) -> tuple[str, ...]:
    """A warning for each `CRONIUM_*` variable that nobody reads, with the nearest name."""
    known = {variable.name for variable in VARIABLES} | set(OTHER_COMMANDS)
    known |= {f"{variable.name}_FILE" for variable in VARIABLES if variable.secret}
    # What all have in common makes none the nearer.
    own = [name.removeprefix(_PREFIX) for name in known]
    warnings = []
    for name in sorted(environ):
        if name.startswith(_PREFIX) and name not in known:
            near = difflib.get_close_matches(name.removeprefix(_PREFIX), own, n=1)
            hint = f"; did you mean {_PREFIX}{near[0]}?" if near else ""
            warnings.append(f"{name} is not a setting of this program{hint}")
    return tuple(warnings)
