"""The routes of the queue API."""

import hmac
import re
import sqlite3
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass
from functools import partial
from sqlite3 import Connection
from typing import Any, TypeVar

import msgspec
import trio
from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect, Request
from starlette.responses import Response
from starlette.routing import Route
from starlette.types import ASGIApp, Receive, Scope, Send

from worker.clock import now_ms, rfc3339
from worker.database import Database
from worker.queue_server import bodies, executions, servers, variables
from worker.queue_server.arrivals import Arrivals
from worker.queue_server.exchange import MIB, RefusedError, holds_nul, json_answer, read_body
from worker.queue_server.keys import Keyring
from worker.queue_server.leases import Leases, NotClaimedError
from worker.queue_server.model import Claimant, Execution, Job, JobEnd, JobStatus
from worker.queue_server.rows import UnknownNameError
from worker.queue_server.transform import execution_row, job_row
from worker.secret import Secret

T = TypeVar("T")
Handler = Callable[[Request], Awaitable[Response]]

BASE = "/api/internal"
MAX_BODY_BYTES = 50 * MIB  # the app's own limit
MAX_WORKER_ID_CHARACTERS = 255
MAX_WAIT_SECONDS = 60
DEFAULT_BATCH_SIZE = 10
# What the app answers to all it did not foresee, with a 500: broken JSON, an id that is there.
UNFORESEEN = "Internal server error"

_prefer_wait = re.compile(r"(?:^|[,;\s])wait\s*=\s*\"?(\d{1,9})", re.IGNORECASE)


def queue_app(
    database: Database, keyring: Keyring, leases: Leases, arrivals: Arrivals, token: Secret
) -> ASGIApp:
    routes = _Routes(database, keyring, leases, arrivals)
    starlette = Starlette(
        routes=routes.table(),
        exception_handlers=dict.fromkeys(
            (
                HTTPException,
                RefusedError,
                UnknownNameError,
                NotClaimedError,
                msgspec.DecodeError,
                sqlite3.IntegrityError,
                ClientDisconnect,
            ),
            _error_answer,
        ),
    )
    starlette.router.redirect_slashes = False
    return _Guard(starlette, token)


@dataclass(frozen=True, slots=True)
class _Guard:
    """In front of every route: the token, and the app's redirect for a trailing slash."""

    app: ASGIApp
    token: Secret

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self.app(scope, receive, send)
        elif not self._is_authorized(scope):
            await _error(401, "Unauthorized")(scope, receive, send)
        elif scope["path"].endswith("/"):
            query = scope["query_string"].decode("latin-1")
            location = scope["path"].rstrip("/") + (f"?{query}" if query else "")
            await Response(status_code=308, headers={"Location": location})(scope, receive, send)
        else:
            await self.app(scope, receive, send)

    def _is_authorized(self, scope: Scope) -> bool:
        wanted = b"Bearer " + self.token.reveal().encode()
        given = next((value for name, value in scope["headers"] if name == b"authorization"), b"")
        return hmac.compare_digest(given, wanted)


class _Routes:
    """Each handler makes one transaction, in one hop to the database's thread."""

    def __init__(
        self, database: Database, keyring: Keyring, leases: Leases, arrivals: Arrivals
    ) -> None:
        self._database = database
        self._keyring = keyring
        self._leases = leases
        self._arrivals = arrivals

    def table(self) -> list[Route]:
        entries: list[tuple[str, str, Handler]] = [
            ("GET", "/jobs/queue", self.claim),
            ("GET", "/jobs/orphaned", self.orphaned),
            ("POST", "/jobs/{id}/acknowledge", self.acknowledge),
            ("PUT", "/jobs/{id}/status", self.status),
            ("POST", "/jobs/{id}/executions", self.put_executions),
            ("POST", "/jobs/{id}/complete", self.complete),
            ("POST", "/jobs/{id}/fail", self.fail),
            ("POST", "/jobs/{id}/release", self.release),
            ("POST", "/executions/{id}/create", self.create_execution),
            ("PUT", "/executions/{id}/update", self.update_execution),
            ("GET", "/executions/{id}/context", self.context),
            ("POST", "/executions/{id}/output", self.script_output),
            ("POST", "/executions/{id}/condition", self.condition),
            ("GET", "/variables/{user}/{key}", self.variable),
            ("PUT", "/variables/{user}/{key}", self.put_variable),
            ("GET", "/servers/{id}/credentials", self.credentials),
            ("GET", "/orchestrator/health", self.health),
            ("POST", "/orchestrator/health", self.report_health),
            ("POST", "/orchestrator/heartbeat", self.heartbeat),
            ("POST", "/orchestrator/metrics", self.metrics),
        ]
        routes = [Route(BASE + path, handler, methods=[verb]) for verb, path, handler in entries]
        for route in routes:
            if route.path.endswith("/jobs/queue") and route.methods:
                # Starlette adds HEAD to GET: here that would claim jobs and show them to nobody.
                route.methods.discard("HEAD")
        return routes

    # Jobs

    async def claim(self, request: Request) -> Response:
        worker_id = _worker_id(request)
        limit = _batch_size(request.query_params.get("batchSize"))
        types = request.query_params.get("jobTypes")
        claim = partial(
            self._leases.claim, worker_id, limit=limit, types=types.split(",") if types else None
        )
        wait_seconds = _preferred_wait(request) if limit else None
        if wait_seconds is None:
            return _claimed(await self._run(claim))
        headers = {"Preference-Applied": f"wait={wait_seconds}"}
        jobs: tuple[Any, ...] = ()
        async with trio.open_nursery() as nursery:
            gone = trio.Event()
            nursery.start_soon(_watch_for_disconnect, request, gone, nursery.cancel_scope)
            with trio.move_on_after(wait_seconds), self._arrivals.polling():
                jobs = await self._claim_when_there_is(claim)
            nursery.cancel_scope.cancel()
        if gone.is_set() and jobs:
            # It left while the claim was being made: do not have the next one wait for the lease.
            await self._run(partial(self._leases.give_back, [job["id"] for job in jobs], worker_id))
            self._arrivals.notify()
        return _claimed(jobs, headers)

    async def _claim_when_there_is(self, claim: Callable[..., tuple[Any, ...]]) -> tuple[Any, ...]:
        while True:
            arrival = self._arrivals.next()
            jobs = await self._run(claim)
            if jobs or self._arrivals.closing:
                return jobs
            await arrival.wait()

    async def orphaned(self, request: Request) -> Response:
        worker_id = request.query_params.get("orchestratorId")
        if not worker_id:
            raise RefusedError(400, "orchestratorId parameter required")
        jobs = await self._database.run(partial(self._leases.orphaned, worker_id))
        return json_answer([job_row(job) for job in jobs])

    async def acknowledge(self, request: Request) -> Response:
        body = await _body(request, bodies.Named)
        worker_id = _named(body.orchestrator_id)
        read = partial(self._leases.acknowledge, request.path_params["id"], worker_id)
        return _job_answer(await self._database.run(read))

    async def status(self, request: Request) -> Response:
        body = await _body(request, bodies.Status)
        claimant = _claimant(request)
        if not body.status:
            raise RefusedError(400, "Status required")
        details = body.details or bodies.StatusDetails()
        if body.status == JobStatus.RUNNING:
            job_id, rows = request.path_params["id"], body.executions
            start = partial(self._leases.start, job_id, claimant, rows=rows)
            return _job_answer(await self._run(start))
        if body.status in {JobStatus.COMPLETED, JobStatus.FAILED}:
            end = bodies.Complete(
                status=body.status, exit_code=details.exit_code, output=details.message
            )
            return await self._end(request, end.to_end(), body)
        raise RefusedError(400, "Invalid status transition")

    async def put_executions(self, request: Request) -> Response:
        body = await _body(request, bodies.Executions)
        job_id, claimant = request.path_params["id"], _claimant(request)
        await self._run(partial(self._leases.put_rows, job_id, claimant, rows=body.executions))
        return json_answer({"success": True})

    async def complete(self, request: Request) -> Response:
        body = await _body(request, bodies.Complete)
        return await self._end(request, body.to_end(), body)

    async def fail(self, request: Request) -> Response:
        body = await _body(request, bodies.Fail)
        if not body.error:
            raise RefusedError(400, "Error message required")
        return await self._end(request, body.to_end(), body)

    async def _end(self, request: Request, end: JobEnd, body: bodies.Executions) -> Response:
        job_id, claimant = request.path_params["id"], _claimant(request)
        call = partial(self._leases.end, job_id, claimant, end, rows=body.executions)
        return _job_answer(await self._run(call))

    async def release(self, request: Request) -> Response:
        body = await _body(request, bodies.Release)
        worker_id = _worker_id(request)
        call = partial(self._leases.release, request.path_params["id"], worker_id, body.message)
        job = await self._run(call)
        self._arrivals.notify()
        return _job_answer(job)

    # Executions

    async def create_execution(self, request: Request) -> Response:
        body = await _body(request, bodies.CreateExecution)
        if not body.job_id:
            raise RefusedError(400, "Job ID required")
        execution_id = request.path_params["id"]
        row = await self._write(lambda tx, now: executions.create(tx, execution_id, body, now))
        return _execution_answer(row)

    async def update_execution(self, request: Request) -> Response:
        body = await _body(request, bodies.UpdateExecution)
        execution_id = request.path_params["id"]
        row = await self._write(lambda tx, now: executions.update(tx, execution_id, body, now))
        return _execution_answer(row)

    async def context(self, request: Request) -> Response:
        execution_id = request.path_params["id"]
        return json_answer(await self._read(lambda tx: executions.context(tx, execution_id)))

    async def script_output(self, request: Request) -> Response:
        body = await _body(request, bodies.ScriptOutput)
        execution_id, timestamp = request.path_params["id"], body.timestamp or rfc3339(now_ms())
        await self._write(
            lambda tx, now: executions.add_output(tx, execution_id, body.output, timestamp, now)
        )
        return json_answer({"success": True})

    async def condition(self, request: Request) -> Response:
        body = await _body(request, bodies.Condition)
        execution_id = request.path_params["id"]
        await self._write(
            lambda tx, now: executions.add_condition(tx, execution_id, body.condition, now)
        )
        return json_answer({"success": True})

    # Variables and credentials

    async def variable(self, request: Request) -> Response:
        user_id, key = request.path_params["user"], request.path_params["key"]
        value, put_at = await self._read(lambda tx: variables.read(tx, user_id, key))
        return json_answer({"key": key, "value": value, "updatedAt": rfc3339(put_at)})

    async def put_variable(self, request: Request) -> Response:
        body = await _body(request, bodies.Variable)
        user_id, key = request.path_params["user"], request.path_params["key"]
        value = bodies.as_json_text(body.value)
        await self._write(lambda tx, now: variables.put(tx, user_id, key, value, now))
        return json_answer({"success": True})

    async def credentials(self, request: Request) -> Response:
        """Host, port, user and key; the app never gives a password here."""
        _worker_id(request)
        if not re.fullmatch(r"\d{1,18}", request.path_params["id"], re.ASCII):
            raise RefusedError(500, UNFORESEEN)
        server_id = int(request.path_params["id"])
        server = await self._read(lambda tx: servers.load(tx, self._keyring, server_id))
        credentials = {"host": server.host, "port": server.port, "username": server.username}
        if server.private_key is not None:
            credentials["privateKey"] = server.private_key
        return json_answer({"credentials": credentials})

    # Orchestrators

    async def health(self, _request: Request) -> Response:
        now = rfc3339(now_ms())
        return json_answer({"status": "healthy", "timestamp": now, "database": "connected"})

    async def report_health(self, request: Request) -> Response:
        _named((await _body(request, bodies.Named)).orchestrator_id)
        return json_answer({"success": True})

    async def metrics(self, request: Request) -> Response:
        body = await _body(request, bodies.Named)
        _named(body.orchestrator_id)
        if not body.metrics:
            raise RefusedError(400, "Metrics required")
        return json_answer({"success": True})

    async def heartbeat(self, request: Request) -> Response:
        body = await _body(request, bodies.Heartbeat)
        worker_id = _named(body.orchestrator_id)
        cancelled = await self._run(partial(self._leases.heartbeat, worker_id, body.running_jobs))
        now = rfc3339(now_ms())
        return json_answer({"success": True, "timestamp": now, "cancelledJobs": cancelled})

    async def _run(self, call: Callable[..., T]) -> T:
        """Off the event loop, with the time at which it is let in."""
        return await self._database.run(lambda: call(now=now_ms()))

    async def _write(self, work: Callable[[Connection, int], T]) -> T:
        """Off the event loop, in a transaction; `work` gets the time at which it is let in."""
        return await self._run(lambda now: self._in_transaction(lambda tx: work(tx, now)))

    async def _read(self, work: Callable[[Connection], T]) -> T:
        """Off the event loop, in a transaction."""
        return await self._database.run(partial(self._in_transaction, work))

    def _in_transaction(self, work: Callable[[Connection], T]) -> T:
        with self._database.transaction() as tx:
            return work(tx)


def _worker_id(request: Request) -> str:
    worker_id = _named(request.headers.get("X-Orchestrator-ID", ""))
    if len(worker_id) > MAX_WORKER_ID_CHARACTERS:
        raise RefusedError(500, UNFORESEEN)
    return worker_id


def _claimant(request: Request) -> Claimant:
    return Claimant(_worker_id(request), request.headers.get("X-Claim-Token"))


def _named(worker_id: str) -> str:
    if not worker_id:
        raise RefusedError(400, "Orchestrator ID required")
    return worker_id


def _batch_size(text: str | None) -> int:
    """As the app's parseInt has it (s13): negative, and so everything, if it is no number."""
    if text is None:
        return DEFAULT_BATCH_SIZE
    number = re.match(r"\s*([+-]?\d{1,9})", text)
    return int(number[1]) if number else -1


def _preferred_wait(request: Request) -> int | None:
    """The seconds of `Prefer: wait=N`, if that was asked for."""
    preference = _prefer_wait.search(request.headers.get("Prefer", ""))
    return min(int(preference[1]), MAX_WAIT_SECONDS) if preference else None


async def _watch_for_disconnect(request: Request, gone: trio.Event, poll: trio.CancelScope) -> None:
    while (await request.receive())["type"] != "http.disconnect":
        pass
    gone.set()
    poll.cancel()


async def _body(request: Request, kind: type[T]) -> T:
    """Raises RefusedError if it is too long, msgspec.DecodeError if it is not what it must be."""
    raw = await read_body(request, max_bytes=MAX_BODY_BYTES)
    # PostgreSQL cannot keep a NUL; that the app answers 500 is what its clients must avoid.
    if holds_nul(raw):
        raise RefusedError(500, UNFORESEEN)
    return msgspec.json.decode(raw, type=kind)


def _error(status: int, message: str) -> Response:
    return json_answer({"error": message}, status=status)


def _claimed(jobs: Sequence[Any], headers: dict[str, str] | None = None) -> Response:
    return json_answer({"jobs": jobs, "count": len(jobs)}, headers=headers)


def _job_answer(job: Job) -> Response:
    return json_answer({"success": True, "job": job_row(job)})


def _execution_answer(execution: Execution) -> Response:
    return json_answer({"success": True, "execution": execution_row(execution)})


def _error_answer(request: Request, error: Exception) -> Response:
    match error:
        case HTTPException(status_code=404):
            body = {
                "error": "Not Found",
                "message": f"API endpoint '{request.url.path}' does not exist",
                "statusCode": 404,
                "timestamp": rfc3339(now_ms()),
            }
            return json_answer(body, status=404)
        case HTTPException():
            return Response(status_code=error.status_code)
        case RefusedError():
            return _error(error.status, str(error))
        case UnknownNameError():
            return _error(404, error.answer)
        case NotClaimedError():
            return _error(403, str(error))
        case msgspec.DecodeError():
            return json_answer({"error": UNFORESEEN, "details": str(error)}, status=500)
        case _:
            return _error(500, UNFORESEEN)
