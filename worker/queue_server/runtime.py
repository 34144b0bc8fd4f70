"""The routes of the runtime API: what scripts ask for, by way of their worker."""

import re
from collections.abc import Awaitable, Callable
from functools import partial
from http import HTTPStatus
from typing import Any, TypeVar

import msgspec
from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect, Request
from starlette.responses import Response
from starlette.routing import Route
from starlette.types import ASGIApp, Receive, Scope, Send

from worker.api.wire import UNDECODABLE
from worker.clock import now_ms, rfc3339
from worker.database import Database
from worker.queue_server import bodies
from worker.queue_server.exchange import MIB, RefusedError, holds_nul, json_answer, read_body
from worker.queue_server.granted import Granted, NotGrantedError
from worker.queue_server.rows import UnknownNameError
from worker.queue_server.tokens import Claims, TokenError, verify
from worker.secret import Secret

T = TypeVar("T")
Handler = Callable[[Request], Awaitable[Response]]

# What one helper call can carry is 1 MiB, and JSON in JSON takes more.
MAX_BODY_BYTES = 4 * MIB
OFF = "this queue has no runtime API: it was started without CRONIUM_JWT_SECRET"

_prefixes = ("/executions/", "/tool-actions/")
_key = re.compile(r"(?!\.{1,2}\Z)[A-Za-z0-9_.-]{1,128}\Z")


def with_runtime(queue: ASGIApp, database: Database, secret: Secret | None) -> ASGIApp:
    """`queue`, and the runtime API beside its base; without a `secret` an answer that says so."""
    runtime = _unavailable if secret is None else runtime_app(database, secret)

    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        is_runtime = scope["type"] == "http" and scope["path"].startswith(_prefixes)
        await (runtime if is_runtime else queue)(scope, receive, send)

    return app


async def _unavailable(scope: Scope, receive: Receive, send: Send) -> None:
    # Not a 404: that would read as a variable that is not there.
    await _error(503, OFF)(scope, receive, send)


def runtime_app(database: Database, secret: Secret) -> ASGIApp:
    starlette = Starlette(
        routes=_Routes(database, secret).table(),
        exception_handlers=dict.fromkeys(
            (
                HTTPException,
                RefusedError,
                TokenError,
                NotGrantedError,
                UnknownNameError,
                ClientDisconnect,
                *UNDECODABLE,
            ),
            _error_answer,
        ),
    )
    starlette.router.redirect_slashes = False
    return starlette


class _Routes:
    """Each handler verifies the token first, and makes one call of the database's thread."""

    def __init__(self, database: Database, secret: Secret) -> None:
        self._database = database
        self._granted = Granted(database)
        self._secret = secret

    def table(self) -> list[Route]:
        entries: list[tuple[str, str, Handler]] = [
            ("GET", "/executions/{id}/input", self.input),
            ("GET", "/executions/{id}/context", self.context),
            ("POST", "/executions/{id}/output", self.output),
            ("POST", "/executions/{id}/condition", self.condition),
            # A path, for a key with a slash in it to be refused as a key.
            ("GET", "/executions/{id}/variables/{key:path}", self.variable),
            ("PUT", "/executions/{id}/variables/{key:path}", self.put_variable),
            ("POST", "/tool-actions/execute", self.tool_action),
        ]
        return [Route(path, handler, methods=[verb]) for verb, path, handler in entries]

    async def input(self, request: Request) -> Response:
        claims = self._claims(request)
        return _data(await self._database.run(partial(self._granted.input, claims)))

    async def context(self, request: Request) -> Response:
        claims = self._claims(request)
        return _data(await self._database.run(partial(self._granted.context, claims)))

    async def output(self, request: Request) -> Response:
        claims = self._claims(request)
        body = await _body(request, bodies.ScriptData)
        return await self._put(partial(self._granted.add_output, claims, body.data))

    async def condition(self, request: Request) -> Response:
        claims = self._claims(request)
        body = await _body(request, bodies.Condition)
        return await self._put(partial(self._granted.add_condition, claims, body.condition))

    async def variable(self, request: Request) -> Response:
        claims, key = self._claims(request), _checked_key(request)
        value, put_at = await self._database.run(partial(self._granted.variable, claims, key))
        return _data({"key": key, "value": value, "updatedAt": rfc3339(put_at)})

    async def put_variable(self, request: Request) -> Response:
        claims, key = self._claims(request), _checked_key(request)
        value = bodies.as_json_text((await _body(request, bodies.Variable)).value)
        return await self._put(partial(self._granted.put_variable, claims, key, value))

    async def tool_action(self, request: Request) -> Response:
        self._claims(request)
        raise RefusedError(501, "the embedded queue has no tools")

    def _claims(self, request: Request) -> Claims:
        """Raises TokenError; RefusedError if the URL is not of its execution."""
        scheme, _, token = request.headers.get("Authorization", "").partition(" ")
        if scheme != "Bearer" or not token:
            raise TokenError("there is no bearer token")
        claims = verify(token, self._secret)
        if request.path_params.get("id", claims.execution_id) != claims.execution_id:
            raise RefusedError(403, "the token is another execution's")
        if not request.scope["path"].isprintable():
            # Starlette's routes let a line break at the end pass, and drop it.
            raise RefusedError(400, "path: holds a control character")
        return claims

    async def _put(self, call: Callable[..., None]) -> Response:
        await self._database.run(lambda: call(now=now_ms()))
        return _data(None)


def _checked_key(request: Request) -> str:
    key: str = request.path_params["key"]
    if not _key.match(key):
        raise RefusedError(
            400, "key: expected 1 to 128 of A-Z a-z 0-9 _ . -, and neither `.` nor `..`"
        )
    return key


async def _body(request: Request, kind: type[T]) -> T:
    """Raises RefusedError, or one of UNDECODABLE that names the field."""
    raw = await read_body(request, max_bytes=MAX_BODY_BYTES)
    if holds_nul(raw):
        raise RefusedError(400, "body: a text holds a NUL")
    return msgspec.json.decode(raw, type=kind)


def _data(value: Any) -> Response:  # noqa: ANN401 any JSON
    return json_answer({"success": True, "data": value})


def _error(status: int, message: str) -> Response:
    headers = {"WWW-Authenticate": "Bearer"} if status == HTTPStatus.UNAUTHORIZED else None
    body = {"error": HTTPStatus(status).phrase, "message": message}
    return json_answer(body, status=status, headers=headers)


def _error_answer(request: Request, error: Exception) -> Response:
    match error:
        case TokenError():
            return _error(401, str(error))
        case NotGrantedError():
            return _error(403, str(error))
        case UnknownNameError():
            return _error(404, error.answer)
        case RefusedError():
            return _error(error.status, str(error))
        case HTTPException():
            return _error(error.status_code, f"there is no {request.method} {request.url.path}")
        case _:
            return _error(400, f"body: {error}")
