"""The environment variables that make the settings: their names, meanings, bounds and defaults."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Generic, TypeVar

from worker import values
from worker.settings import DrainPolicy, ExitCodePolicy, HostKeyPolicy, LogFormat, LogLevel

T = TypeVar("T")


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
