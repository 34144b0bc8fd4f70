"""From a claimed job to what is to be done: servers, payload, limits."""

import hashlib
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from fnmatch import fnmatchcase
from itertools import chain

import msgspec

from worker.api.wire import UNDECODABLE, JobBody, ScriptBody, ServerBody
from worker.errors import JobError, SealedValueError
from worker.remote.address import is_host, is_user
from worker.remote.given_keys import parse_given_keys
from worker.remote.payload import Interpreter, directory_fault, variable_fault
from worker.remote.target import Credential, Target
from worker.sealing import SealingKey, may_be_sealed
from worker.secret import Secret

DEFAULT_LIMIT_SECONDS = 3600
# The app sends nanoseconds, its older versions seconds; nothing runs for three years.
NANOSECONDS_ABOVE = 10**8
# What the app's table of executions takes.
MAX_EXECUTION_ID = 100

_INTERPRETERS = {
    "BASH": Interpreter.BASH,
    "SH": Interpreter.BASH,
    "SHELL": Interpreter.BASH,
    "PYTHON": Interpreter.PYTHON,
    "NODEJS": Interpreter.NODE,
    "NODE": Interpreter.NODE,
    "NODE_JS": Interpreter.NODE,
}

NULL = msgspec.Raw(b"null")

_plain_id = re.compile(r"[A-Za-z0-9.-]+\Z")


@dataclass(frozen=True, slots=True)
class Server:
    """One target of the job. `fault` says why the entry cannot be used; else there is a target."""

    id: str
    name: str
    target: Target | None
    fault: str | None = None


@dataclass(frozen=True, slots=True)
class PlannedExecution:
    id: str
    server: Server


@dataclass(frozen=True, slots=True)
class Plan:
    """What is to be done for one job; one server or many, the same."""

    job_id: str
    event_id: str
    executions: tuple[PlannedExecution, ...]
    interpreter: Interpreter
    script: bytes = field(repr=False)
    environment: Mapping[str, str] = field(repr=False)
    input: bytes = field(repr=False)
    directory: str
    limit_seconds: int
    attempts: int = 0
    # What is not to be shown of all this, as far as it was not sealed, or has been opened.
    secrets: frozenset[Secret] = frozenset()
    # As far as the claim says.
    user_id: str = ""
    event_name: str = ""
    event_version: int | None = None
    triggered_by: str | None = None

    def environment_of(self, execution: PlannedExecution) -> dict[str, str]:
        """The job's entries and what tells the script where it runs; the latter win."""
        return {
            **self.environment,
            "CRONIUM_JOB_ID": self.job_id,
            "CRONIUM_EXECUTION_ID": execution.id,
            "CRONIUM_EVENT_ID": self.event_id,
            "CRONIUM_SERVER_ID": execution.server.id,
            "CRONIUM_SERVER_NAME": execution.server.name,
        }


def plan_job(
    job: JobBody,
    *,
    sealing_key: SealingKey | None,
    max_execution_seconds: float,
    mask_names: tuple[str, ...] = (),
) -> Plan:
    """Raises JobError, naming the field, if nothing of `job` could be run.

    Entries of the environment whose names match one of `mask_names` are secrets.
    """
    if job.type.lower() != "ssh":
        raise JobError(f"type: {job.type!r} is not run by this worker; expected ssh")
    environment = _environment(job, sealing_key)
    script, metadata = job.execution.script, job.metadata
    servers = _servers(job)
    return Plan(
        job_id=job.id,
        event_id=_event_id(metadata.event_id),
        executions=tuple(
            PlannedExecution(execution_id(job.id, server.id, job.attempts), server)
            for server in servers
        ),
        interpreter=_interpreter(script),
        script=script.content.encode(errors="surrogatepass"),
        environment=environment,
        input=bytes(job.execution.input_data),
        directory=_directory(script.working_directory),
        limit_seconds=_limit(job.execution.timeout, max_execution_seconds),
        attempts=job.attempts,
        secrets=frozenset(
            (
                *chain.from_iterable(map(_secrets, servers)),
                *_environment_secrets(job.execution.environment, environment, mask_names),
            )
        ),
        user_id="" if metadata.user_id is None else str(metadata.user_id),
        event_name=metadata.event_name,
        event_version=metadata.event_version,
        triggered_by=metadata.triggered_by,
    )


def execution_id(job_id: str, server_id: str, attempts: int) -> str:
    """A function of the job alone, so that two workers give the same run the same name.

    Shortened by a digest where it would not fit, or where the server's id has characters
    that may not stand in a path.
    """
    plain = f"exec_{job_id}_{server_id}_{attempts}"
    # An underscore in it could make two jobs share a name.
    if len(plain) <= MAX_EXECUTION_ID and _plain_id.match(server_id):
        return plain
    digest = hashlib.sha256(plain.encode()).hexdigest()[:24]
    return f"exec_{job_id[: MAX_EXECUTION_ID - 40]}_{digest}_{attempts}"


def _event_id(given: str | int | None) -> str:
    if isinstance(given, str) and "\0" in given:
        raise JobError("metadata.eventId: holds a NUL")
    return "" if given is None else str(given)


def _limit(timeout: float | None, max_seconds: float) -> int:
    if timeout is None:
        timeout = DEFAULT_LIMIT_SECONDS
    seconds = timeout / 10**9 if timeout > NANOSECONDS_ABOVE else timeout
    # The runner counts whole seconds, and a limit of 0 would be none.
    return max(1, round(min(seconds, max_seconds)))


def _interpreter(script: ScriptBody) -> Interpreter:
    try:
        return _INTERPRETERS[script.type.upper()]
    except KeyError:
        raise JobError(
            f"execution.script.type: {script.type[:100]!r} is unknown; "
            "expected BASH, PYTHON or NODEJS"
        ) from None


def _directory(directory: str) -> str:
    if fault := directory_fault(directory):
        raise JobError(f"execution.script.workingDirectory: {fault}")
    return directory


def _environment(job: JobBody, sealing_key: SealingKey | None) -> dict[str, str]:
    environment = job.execution.environment
    if job.execution.environment_sealed is not False:
        environment = {
            name: _opened(name, value, sealing_key) for name, value in environment.items()
        }
    for name, value in environment.items():
        if fault := variable_fault(name, value):
            raise JobError(f"execution.environment: {fault}")
    return environment


def _environment_secrets(
    given: Mapping[str, str], environment: Mapping[str, str], mask_names: tuple[str, ...]
) -> Iterator[Secret]:
    """What arrived sealed, and what its name calls a secret."""
    for name, value in environment.items():
        was_sealed = value != given[name]
        if was_sealed or any(fnmatchcase(name.upper(), pattern) for pattern in mask_names):
            yield Secret(value)


def _secrets(server: Server) -> Iterator[Secret]:
    if server.target is not None:
        credential = server.target.credential
        for secret in (credential.private_key, credential.passphrase, credential.password):
            if secret is not None:
                yield secret


def _opened(name: str, value: str, sealing_key: SealingKey | None) -> str:
    """The app seals every value; one that cannot be its sealed form is plain."""
    # Digests and other plain hex have the alphabet of base64, ciphertext never is all hex.
    if not may_be_sealed(value) or re.fullmatch(r"[0-9a-fA-F]+", value):
        return value
    if sealing_key is None:
        raise JobError(
            f"execution.environment.{name}: arrived sealed and CRONIUM_ENCRYPTION_KEY is not set"
        )
    try:
        return sealing_key.open(value)
    except SealedValueError as error:
        raise JobError(f"execution.environment.{name}: {error}") from error


def _servers(job: JobBody) -> tuple[Server, ...]:
    """The list wins over the target; a server listed twice is one."""
    target = job.execution.target
    if job.metadata.servers:
        entries = [_server(raw, index) for index, raw in enumerate(job.metadata.servers)]
    elif isinstance(target.server_details, msgspec.Raw) and target.server_details != NULL:
        entries = [_server(target.server_details, 0)]
    elif target.server_id is not None:
        missing = _plain(str(target.server_id))
        fault = "the claim has no details of this server"
        entries = [Server(missing, f"server-{missing}", None, fault)]
    else:
        raise JobError("execution.target: names no server")
    servers: dict[str, Server] = {}
    for server in entries:
        servers.setdefault(server.id, server)
    return tuple(servers.values())


class _ServerKey(msgspec.Struct, frozen=True):
    """As much of a server's entry as names it, where the rest cannot be decoded."""

    id: str | int | None = None
    name: str | None = None


_server_body = msgspec.json.Decoder(ServerBody)
_server_key = msgspec.json.Decoder(_ServerKey)


def _server(raw: msgspec.Raw, index: int) -> Server:
    """The entry as it can be used, or with its fault: it is counted, never skipped."""
    try:
        body = _server_body.decode(raw)
    except UNDECODABLE as error:
        key = _key_of(raw)
        server_id = f"entry-{index}" if key.id in (None, "") else _plain(str(key.id))
        return Server(server_id, _name(key.name or server_id), None, f"server entry: {error}")
    server_id = _plain(str(body.id))
    name = _name(body.name or body.host or server_id)
    fault = _fault(body)
    if fault:
        return Server(server_id, name, None, f"server entry: {fault}")
    try:
        host_keys = parse_given_keys(body.host_key) if body.host_key else ()
    except ValueError as error:
        return Server(server_id, name, None, f"server entry: hostKey: {error}")
    credential = Credential(
        private_key=Secret(body.private_key) if body.private_key else None,
        passphrase=Secret(body.passphrase) if body.passphrase else None,
        password=Secret(body.password) if body.password else None,
    )
    target = Target(body.host, body.port, body.username, credential, host_keys)
    return Server(server_id, name, target)


def _key_of(raw: msgspec.Raw) -> _ServerKey:
    try:
        return _server_key.decode(raw)
    except UNDECODABLE:
        return _ServerKey()


def _plain(server_id: str) -> str:
    return server_id.replace("\0", "?")


def _fault(body: ServerBody) -> str | None:
    if isinstance(body.id, str) and "\0" in body.id:
        return "id: holds a NUL"
    if not is_host(body.host):
        return f"host: {body.host!r} is not a host"
    if not 1 <= body.port <= 65535:
        return f"port: {body.port} is not between 1 and 65535"
    if not is_user(body.username):
        return f"username: {body.username!r} is not a user name"
    if not body.private_key and not body.password:
        return "it has neither a private key nor a password"
    return None


def _name(name: str) -> str:
    """Fit for a line's prefix: one line, nothing that moves a cursor."""
    return "".join(char if char.isprintable() else "?" for char in name)[:100]
