"""The queue API over HTTP."""

from collections.abc import AsyncIterator, Callable, Iterable, Mapping, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass
from http import HTTPStatus
from types import MappingProxyType

import httpx
import msgspec

from worker.api import wire
from worker.api.transport import Api, ApiCall, Http, check, decode, open_http, segment, send
from worker.clock import now_ms, rfc3339
from worker.errors import QueueRefusedError, QueueUnavailableError
from worker.settings import ApiSettings

# Output over about 100 kB makes the app's call take 3 s longer; a slow database more.
CALL_SECONDS = 30.0
# Less than the pause between two: one that hangs must not cost the lease.
HEARTBEAT_SECONDS = 10.0
# RFC 7240 preference: how long the queue may hold a poll that has nothing to give.
WAIT_SECONDS = 25

NO_HEADERS: Mapping[str, str] = MappingProxyType({})

QUEUE_API = Api("the queue API", QueueUnavailableError, QueueRefusedError)

_job_answer = msgspec.json.Decoder(wire.JobAnswerBody)
_heartbeat_answer = msgspec.json.Decoder(wire.HeartbeatAnswerBody)
_orphans = msgspec.json.Decoder(tuple[wire.OrphanBody, ...])
# A page that something on the way shows in the API's place is no answer of it.
_said = msgspec.json.Decoder(dict[str, msgspec.Raw])
_variable = msgspec.json.Decoder(wire.VariableBody)


@dataclass(frozen=True, slots=True)
class Claim:
    """`waited` says that the queue holds polls, so there is no need to pause between them."""

    jobs: tuple[wire.JobBody | wire.BadJob, ...]
    waited: bool


class QueueClient:
    """Every method raises QueueUnavailableError if asking again may help, QueueRefusedError if
    not, ProtocolError if the answer makes no sense.

    `claim` is the token of the claim under which the job is ours: with it, QueueRefusedError with
    403 says that it is not any more, and nothing has changed. A job that was claimed anew for this
    very worker, which may not have heard of it, is still ours.
    """

    def __init__(self, http: Http, settings: ApiSettings, worker_id: str) -> None:
        self._http = http
        self._source = settings.token
        self._token = settings.token.value
        self._worker_id = worker_id

    async def claim(self, count: int) -> Claim:
        response = await self._call(
            "GET",
            f"jobs/queue?batchSize={count}&jobTypes=SCRIPT",
            headers={"Prefer": f"wait={WAIT_SECONDS}"},
            seconds=CALL_SECONDS + WAIT_SECONDS,
        )
        waited = "wait" in response.headers.get("Preference-Applied", "")
        return Claim(wire.decode_claim(response.content), waited)

    async def read_job(self, job_id: str) -> wire.JobRowBody:
        """The job as it stands, if it is ours: QueueRefusedError with 403 says that it is not.

        The app's acknowledge changes nothing, so it is also the way to read a job.
        """
        body = wire.AcknowledgeBody(orchestrator_id=self._worker_id, timestamp=rfc3339(now_ms()))
        response = await self._call("POST", f"jobs/{segment(job_id)}/acknowledge", body)
        return decode(_job_answer, response, is_deep=True).job

    async def orphaned(self) -> tuple[str, ...]:
        """The jobs claimed or running under this worker's id, 100 at most."""
        response = await self._call("GET", f"jobs/orphaned?orchestratorId={self._worker_id}")
        # A row has what its job was made of, and so has that of a job.
        return tuple(row.id for row in decode(_orphans, response, is_deep=True))

    async def look(self) -> str | None:
        """Ask for what changes nothing; the answer's Date (RFC 9110), where it has one."""
        response = await self._call("GET", f"jobs/orphaned?orchestratorId={self._worker_id}")
        date: str | None = response.headers.get("Date")
        return date

    async def report_running(
        self, job_id: str, *, claim: str | None = None, rows: Iterable[wire.RowBody] = ()
    ) -> wire.JobRowBody:
        """The job after it: under a `claim`, one that was cancelled or is over stays so."""
        body = wire.StatusBody(
            status="running", timestamp=rfc3339(now_ms()), executions=tuple(rows)
        )
        response = await self._call("PUT", f"jobs/{segment(job_id)}/status", body, claim=claim)
        return decode(_job_answer, response, is_deep=True).job

    async def create_execution(self, execution_id: str, body: bytes) -> None:
        await self._tell("POST", f"executions/{segment(execution_id)}/create", body)

    async def update_execution(self, execution_id: str, body: bytes) -> None:
        await self._tell("PUT", f"executions/{segment(execution_id)}/update", body)

    async def put_rows(self, job_id: str, rows: Sequence[wire.RowBody], *, claim: str) -> None:
        """Create and update a job's executions, all or none; what is created already stays."""
        body = wire.RowsBody(executions=tuple(rows))
        await self._tell("POST", f"jobs/{segment(job_id)}/executions", body, claim=claim)

    async def complete(self, job_id: str, body: bytes, *, claim: str | None = None) -> None:
        await self._tell("POST", f"jobs/{segment(job_id)}/complete", body, claim=claim)

    async def fail(self, job_id: str, body: bytes, *, claim: str | None = None) -> None:
        await self._tell("POST", f"jobs/{segment(job_id)}/fail", body, claim=claim)

    async def release(self, job_id: str, body: bytes) -> None:
        await self._tell("POST", f"jobs/{segment(job_id)}/release", body)

    async def heartbeat(
        self, running_jobs: tuple[str, ...], capacity: wire.CapacityBody
    ) -> tuple[str, ...]:
        """The jobs among ours that were cancelled, where the queue says so."""
        body = wire.HeartbeatBody(
            orchestrator_id=self._worker_id,
            timestamp=rfc3339(now_ms()),
            running_jobs=running_jobs,
            capacity=capacity,
        )
        response = await self._call(
            "POST", "orchestrator/heartbeat", body, seconds=HEARTBEAT_SECONDS
        )
        return decode(_heartbeat_answer, response).cancelled_jobs

    async def report_health(self, status: str, gauges: dict[str, int]) -> None:
        body = wire.HealthBody(
            orchestrator_id=self._worker_id,
            status=status,
            timestamp=rfc3339(now_ms()),
            metrics=gauges,
        )
        await self._call("POST", "orchestrator/health", body, seconds=HEARTBEAT_SECONDS)

    async def report_metrics(self, counts: dict[str, int]) -> None:
        body = wire.MetricsBody(
            orchestrator_id=self._worker_id, timestamp=rfc3339(now_ms()), metrics=counts
        )
        await self._call("POST", "orchestrator/metrics", body, seconds=HEARTBEAT_SECONDS)

    async def variable(self, user_id: str, key: str) -> msgspec.Raw:
        """A script's variable as JSON; QueueRefusedError with 404 where there is none."""
        return decode(_variable, await self._call("GET", _variable_path(user_id, key))).value

    async def put_variable(self, user_id: str, key: str, value: msgspec.Raw) -> None:
        await self._call("PUT", _variable_path(user_id, key), wire.VariableBody(value=value))

    async def _tell(
        self, method: str, path: str, body: wire.Body | bytes, *, claim: str | None = None
    ) -> None:
        """Nothing is to be learned from the answer but that the API has heard."""
        decode(_said, await self._call(method, path, body, claim=claim), is_deep=True)

    async def _call(
        self,
        method: str,
        path: str,
        body: wire.Body | bytes | None = None,
        *,
        headers: Mapping[str, str] = NO_HEADERS,
        claim: str | None = None,
        seconds: float = CALL_SECONDS,
    ) -> httpx.Response:
        content = wire.encode(body) if isinstance(body, wire.Body) else body
        response = await self._send_authorized(method, path, content, headers, claim, seconds)
        if claim is not None and response.status_code == HTTPStatus.FORBIDDEN:
            # Then it is our id that says whose the job is.
            response = await self._send_authorized(method, path, content, headers, None, seconds)
        return check(QUEUE_API, response)

    async def _send_authorized(
        self,
        method: str,
        path: str,
        content: bytes | None,
        headers: Mapping[str, str],
        claim: str | None,
        seconds: float,
    ) -> httpx.Response:
        """The answer; where the API's own token is refused, it is read again first."""
        if claim is not None:
            headers = {**headers, "X-Claim-Token": claim}
        used = self._token
        response = await self._send(method, path, content, headers, seconds)
        if response.status_code == HTTPStatus.UNAUTHORIZED:
            self._token = self._source.read()
            if self._token != used:
                response = await self._send(method, path, content, headers, seconds)
        return response

    async def _send(
        self,
        method: str,
        path: str,
        content: bytes | None,
        headers: Mapping[str, str],
        seconds: float,
    ) -> httpx.Response:
        headers = {
            "Authorization": f"Bearer {self._token.reveal()}",
            "X-Orchestrator-ID": self._worker_id,
            **headers,
        }
        return await send(
            self._http, QUEUE_API, method, path, content, headers=headers, seconds=seconds
        )


@asynccontextmanager
async def open_client(
    settings: ApiSettings, worker_id: str, heard: Callable[[ApiCall], None] | None = None
) -> AsyncIterator[QueueClient]:
    """`heard` is told of each call."""
    async with open_http(settings.endpoint, settings.authorities, heard) as http:
        yield QueueClient(http, settings, worker_id)


def _variable_path(user_id: str, key: str) -> str:
    return f"variables/{segment(user_id)}/{segment(key)}"
