"""The bodies of the queue API, as the Cronium app speaks it."""

from collections.abc import Sequence
from typing import Annotated, Any

import msgspec
from msgspec import UNSET, Meta, Raw, Struct, UnsetType

from worker.api import cut
from worker.errors import ProtocolError

# Ids that come from outside become parts of paths and of execution ids.
# A name of dots alone would be a step in a path.
ID_PATTERN = r"^(?!\.+\Z)[A-Za-z0-9._-]+\Z"
Id = Annotated[str, Meta(min_length=1, max_length=200, pattern=ID_PATTERN)]
# Nine digits at most: what an execution id has room for.
Attempts = Annotated[int, Meta(ge=0, le=999_999_999)]
MAX_TIMEOUT = 2**63 - 1
# It goes into a header.
CLAIM_PATTERN = r"^[A-Za-z0-9._~+/=-]{1,200}\Z"


class Body(Struct, frozen=True, kw_only=True, rename="camel", omit_defaults=True):
    """What every body shares: camelCase on the wire; unknown fields are ignored, so that the
    other side can add some first; a missing or ill-typed one is refused by name."""

    def __repr__(self) -> str:
        """Without the fields: some are credentials, all may hold them."""
        return f"<{type(self).__name__}>"


class ServerBody(Body, frozen=True, kw_only=True):
    """One entry of `metadata.servers`, or `target.serverDetails`.

    Credentials are plain, or sealed where the app could not open them itself. `host_key` is a
    public key's line or its fingerprint, or several of them, one to a line.
    """

    id: Annotated[str, Meta(min_length=1)] | int
    name: str = ""
    host: str = ""
    port: int = 22
    username: str = ""
    private_key: str | None = None
    passphrase: str | None = None
    password: str | None = None
    host_key: str | None = None


class TargetBody(Body, frozen=True, kw_only=True):
    """`server_details` is raw: a bad one fails that server's execution, not the job."""

    type: str = "server"
    server_id: str | int | None = None
    server_details: Raw | UnsetType = UNSET


class ScriptBody(Body, frozen=True, kw_only=True):
    type: str
    content: str
    working_directory: str = ""


class ExecutionBody(Body, frozen=True, kw_only=True):
    """`timeout` is nanoseconds in the app's current version and seconds in older ones.

    `environment_sealed` is the embedded queue's: false where it sends plain values.
    """

    environment: dict[str, str] = {}
    environment_sealed: bool | None = None
    timeout: (
        Annotated[int, Meta(gt=0, le=MAX_TIMEOUT)]
        | Annotated[float, Meta(gt=0, le=MAX_TIMEOUT)]
        | None
    ) = None
    input_data: Raw = Raw(b"{}")
    target: TargetBody
    script: ScriptBody


class MetadataBody(Body, frozen=True, kw_only=True):
    event_id: str | int | None = None
    event_name: str = ""
    user_id: str | int | None = None
    servers: tuple[Raw, ...] | None = None
    triggered_by: str | None = None
    event_version: int | None = None


class JobBody(Body, frozen=True, kw_only=True):
    """One element of `jobs` in the 200 body of GET `jobs/queue`.

    The embedded queue's are `claim_token`, with which what is said of the job counts as long as it
    is this claim that the job is under, and rows may come along; and `may_have_begun`, false where
    no worker has had the job before.
    """

    id: Id
    type: str
    attempts: Attempts = 0
    execution: ExecutionBody
    metadata: MetadataBody = MetadataBody()
    claim_token: Annotated[str, Meta(pattern=CLAIM_PATTERN)] | None = None
    may_have_begun: bool | None = None


class ClaimBody(Body, frozen=True, kw_only=True, omit_defaults=False):
    """The 200 body of GET `jobs/queue`; jobs are raw, so that a malformed one fails alone."""

    jobs: tuple[Raw, ...] = ()
    count: int = 0


class JobKeyBody(Body, frozen=True, kw_only=True):
    """As much of a job as is needed to fail one that cannot be decoded."""

    id: Id


class AcknowledgeBody(Body, frozen=True, kw_only=True):
    orchestrator_id: str
    timestamp: str


# A job that was cancelled may still be completed, as such.
FINAL_STATUSES = frozenset(("completed", "failed", "timeout"))


class JobRowBody(Body, frozen=True, kw_only=True):
    """`result` is null until the job was completed, `last_error` until it was given back."""

    id: str
    status: str
    result: Any = None
    last_error: Any = None


class OrphanBody(Body, frozen=True, kw_only=True):
    """An element of the bare array that GET `jobs/orphaned` answers; a raw row."""

    id: str


class JobAnswerBody(Body, frozen=True, kw_only=True):
    """The 200 body of the routes below `jobs/{id}/`; the row has more fields than are read."""

    success: bool = False
    job: JobRowBody


class RowBody(Body, frozen=True, kw_only=True):
    """An execution among `executions`, which a job's calls may have under a claim's token; `create`
    and `update` are what the routes of these names take."""

    id: str
    create: Raw | UnsetType = UNSET
    update: Raw | UnsetType = UNSET


class RowsBody(Body, frozen=True, kw_only=True):
    """POST `jobs/{id}/executions`."""

    executions: tuple[RowBody, ...]


class StatusBody(Body, frozen=True, kw_only=True):
    status: str
    timestamp: str
    details: dict[str, Any] | None = None
    executions: tuple[RowBody, ...] = ()


class CreateExecutionBody(Body, frozen=True, kw_only=True):
    job_id: str
    server_id: str | None = None
    server_name: str | None = None


class UpdateExecutionBody(Body, frozen=True, kw_only=True):
    """PUT `executions/{id}/update`, in the quiet form unless `completed_at` is given.

    Times are RFC 3339, durations milliseconds.
    """

    status: str
    started_at: str | None = None
    completed_at: str | None = None
    exit_code: int | None = None
    output: str | None = None
    error: str | None = None
    metadata: dict[str, Any] | None = None
    setup_started_at: str | None = None
    setup_completed_at: str | None = None
    execution_started_at: str | None = None
    execution_completed_at: str | None = None
    cleanup_started_at: str | None = None
    cleanup_completed_at: str | None = None
    setup_duration: int | None = None
    execution_duration: int | None = None
    cleanup_duration: int | None = None
    total_duration: int | None = None
    execution_metadata: dict[str, Any] | None = None


class OutputBody(Body, frozen=True, kw_only=True, omit_defaults=False):
    stdout: str = ""
    stderr: str = ""


class CompleteBody(Body, frozen=True, kw_only=True):
    """POST `jobs/{id}/complete`: `status` is completed, failed, timeout or cancelled."""

    status: str
    exit_code: int
    output: OutputBody
    metrics: dict[str, Any] = {}
    script_output: Any = UNSET
    condition: bool | UnsetType = UNSET
    timestamp: str


class FailBody(Body, frozen=True, kw_only=True):
    error: str
    exit_code: int | None = None
    timestamp: str


class ReleaseBody(Body, frozen=True, kw_only=True):
    message: str = ""


class CapacityBody(Body, frozen=True, kw_only=True, omit_defaults=False):
    max_jobs: int
    current_jobs: int
    available_slots: int


class HeartbeatBody(Body, frozen=True, kw_only=True, omit_defaults=False):
    orchestrator_id: str
    timestamp: str
    running_jobs: tuple[str, ...]
    capacity: CapacityBody


class HealthBody(Body, frozen=True, kw_only=True, omit_defaults=False):
    """POST `orchestrator/health`."""

    orchestrator_id: str
    status: str
    timestamp: str
    metrics: dict[str, int]


class MetricsBody(Body, frozen=True, kw_only=True, omit_defaults=False):
    """POST `orchestrator/metrics`; what was counted since the last of them."""

    orchestrator_id: str
    timestamp: str
    metrics: dict[str, int]
    period: str = "minute"


class HeartbeatAnswerBody(Body, frozen=True, kw_only=True):
    """`cancelled_jobs` is the embedded queue's; the app leaves it out."""

    success: bool = True
    cancelled_jobs: tuple[str, ...] = ()


class ErrorBody(Body, frozen=True, kw_only=True):
    """What a refusal says; `message` is the runtime API's."""

    error: str = ""
    message: Any = None


class VariableBody(Body, frozen=True, kw_only=True, omit_defaults=False):
    """A script's variable, where it is read and where it is put; the app keeps a text."""

    value: Raw = Raw(b"null")


class RuntimeAnswerBody(Body, frozen=True, kw_only=True):
    """Every 200 body of the runtime API."""

    success: bool = True
    data: Raw = Raw(b"null")


class ToolActionBody(Body, frozen=True, kw_only=True):
    """POST `tool-actions/execute` of the runtime API."""

    tool: str
    action: str
    config: Raw


class BadJob(Struct, frozen=True):
    """A job that could not be decoded: its id if it has a usable one, the field at fault, and its
    type as far as it can be read."""

    id: str | None
    fault: str
    type: str = ""


# msgspec lets two pass as they are: text that is not UTF-8, and nesting too deep to follow.
UNDECODABLE = (msgspec.DecodeError, UnicodeDecodeError, RecursionError)

_claim = msgspec.json.Decoder(ClaimBody)
_job = msgspec.json.Decoder(JobBody)
_job_key = msgspec.json.Decoder(JobKeyBody)
_fields = msgspec.json.Decoder(dict[str, Raw])
_encoder = msgspec.json.Encoder()


def decode_claim(body: bytes) -> tuple[JobBody | BadJob, ...]:
    """The jobs of one claim, in the queue's order.

    Raises ProtocolError, naming the field, if `body` is not a claim at all.
    """
    try:
        claim = _claim.decode(body)
    except UNDECODABLE as error:
        return _decode_one_by_one(body, error)
    return tuple(map(_decode_job, claim.jobs))


def _decode_one_by_one(body: bytes, fault: Exception) -> tuple[JobBody | BadJob, ...]:
    """A claim that holds what msgspec does not read, such as half of a surrogate pair, which the
    app's language can write: the job that it stands in is at fault, not the others."""
    try:
        jobs = tuple(cut.elements(cut.member(body, "jobs") or b""))
    except ValueError:
        raise ProtocolError(f"claim: {fault}") from fault
    return tuple(map(_decode_job, jobs))


def decode_job(body: bytes) -> JobBody:
    """One job as `encode` made it.

    Raises ProtocolError, naming the field, if it is none.
    """
    try:
        return _job.decode(body)
    except UNDECODABLE as error:
        raise ProtocolError(f"job: {error}") from error


def _decode_job(raw: bytes | Raw) -> JobBody | BadJob:
    try:
        return _job.decode(raw)
    except UNDECODABLE as error:
        fault = f"job: {error}"
    try:
        found, kind = (cut.member(bytes(raw), name) for name in ("id", "type"))
        job_id = _job_key.decode(b'{"id":%s}' % found).id if found else None
        return BadJob(job_id, fault, (kind or b"").strip(b'"').decode(errors="replace"))
    except (*UNDECODABLE, ValueError):
        return BadJob(None, fault)


def encode(body: Body) -> bytes:
    return _encoder.encode(body)


def with_rows(body: bytes, rows: Sequence[RowBody]) -> bytes:
    """What ends a job, with `rows` as its `executions`."""
    if not rows:
        return body
    fields = _fields.decode(body)
    return _encoder.encode({**fields, "executions": rows})
