"""What scripts ask for and the job does not hold: from the runtime API, or from the queue's."""

import random
import re
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from functools import partial
from http import HTTPStatus
from typing import Protocol, TypeVar

import httpx
import msgspec
import trio

from worker.api import variables, wire
from worker.api.client import QueueClient
from worker.api.tokens import ExecutionToken, Identity
from worker.api.transport import Api, ApiCall, Http, check, decode, open_http, segment, send
from worker.errors import (
    HelperCallError,
    ProtocolError,
    QueueRefusedError,
    QueueUnavailableError,
    RuntimeRefusedError,
    RuntimeUnavailableError,
)
from worker.secret import Secret
from worker.settings import RuntimeSettings, SecretSource

T = TypeVar("T")

CALL_SECONDS = 30.0
# A tool is another service, behind the app.
TOOL_SECONDS = 60.0
# A script can wait, but for an answer.
PATIENCE_SECONDS = 60.0
FIRST_PAUSE_SECONDS = 0.2
MOST_PAUSE_SECONDS = 5.0
# The runtime API says 500 also of what will never be otherwise, after tries of its own.
FAULT_ATTEMPTS = 3
# Scripts at once at the APIs, over all jobs; httpx has 100 connections for each API, and the
# worker's own calls to the queue must not wait for them.
MOST_AT_ONCE = 32

# What may never be otherwise: a token that is not taken, or a fault in the API itself.
_FAULTS = frozenset((401, 500, 501))
# A tool action that is answered so, or never left, has not happened.
_NOT_DONE = frozenset((429, 503))
_NEVER_SENT = (httpx.ConnectError, httpx.ConnectTimeout, httpx.PoolTimeout)

# Servers decode a slash before they look for the route. Dots alone would be a step in the path.
_usable_user = re.compile(r"(?!\.+\Z)[A-Za-z0-9._~@|:+=-]{1,255}\Z")

NULL = msgspec.Raw(b"null")

RUNTIME_API = Api("the runtime API", RuntimeUnavailableError, RuntimeRefusedError)

_answer = msgspec.json.Decoder(wire.RuntimeAnswerBody)
_error = msgspec.json.Decoder(wire.ErrorBody)
_variable = msgspec.json.Decoder(wire.VariableBody)

UnavailableError = QueueUnavailableError | RuntimeUnavailableError


class VariableStore(Protocol):
    """Raises UnavailableError if asking again may help, else a refusal or ProtocolError."""

    async def variable(self, key: str) -> msgspec.Raw: ...
    async def put_variable(self, key: str, value: msgspec.Raw) -> None: ...


class ExecutionRuntime:
    """What one execution may ask for; keys are checked before they come here.

    Every method raises HelperCallError if it cannot be had within a minute.
    """

    def __init__(
        self, store: VariableStore, tools: "RuntimeApi | None", limiter: trio.CapacityLimiter
    ) -> None:
        self._store = store
        self._tools = tools
        self._limiter = limiter

    async def variable(self, key: str) -> msgspec.Raw:
        try:
            raw = await self._ask(partial(self._store.variable, key), _may_pass)
        except (QueueRefusedError, RuntimeRefusedError) as error:
            if error.status != HTTPStatus.NOT_FOUND:
                raise HelperCallError(str(error)) from error
            raise HelperCallError(f"there is no variable {key} ({error})") from error
        value = _translated(lambda: variables.read(raw))
        if value is None:
            raise HelperCallError(f"there is no variable {key}")
        return value

    async def set_variable(self, key: str, value: msgspec.Raw) -> None:
        put = partial(self._store.put_variable, key, variables.sent(value))
        try:
            await self._ask(put, _may_pass)
        except (QueueRefusedError, RuntimeRefusedError) as error:
            raise HelperCallError(str(error)) from error

    async def execute_tool_action(self, tool: str, action: str, config: msgspec.Raw) -> msgspec.Raw:
        if self._tools is None:
            raise HelperCallError(
                "tool actions need the runtime API, and this worker has no CRONIUM_RUNTIME_URL"
            )
        try:
            return await self._ask(
                partial(self._tools.execute_tool_action, tool, action, config), _has_not_happened
            )
        except RuntimeRefusedError as error:
            raise HelperCallError(str(error)) from error

    async def _ask(
        self, call: Callable[[], Awaitable[T]], may_ask_again: Callable[[UnavailableError], bool]
    ) -> T:
        """With full jitter, for as long as asking again may help and the patience lasts."""
        failures = [f"no answer within {PATIENCE_SECONDS:g} s"]
        with trio.move_on_after(PATIENCE_SECONDS):
            return await self._keep_asking(call, may_ask_again, failures)
        raise HelperCallError(failures[-1])

    async def _keep_asking(
        self,
        call: Callable[[], Awaitable[T]],
        may_ask_again: Callable[[UnavailableError], bool],
        failures: list[str],
    ) -> T:
        pause, faults = FIRST_PAUSE_SECONDS, 0
        while True:
            try:
                async with self._limiter:
                    return await call()
            except (QueueUnavailableError, RuntimeUnavailableError) as error:
                failures.append(str(error))
                faults += error.status in _FAULTS
                if not may_ask_again(error) or faults == FAULT_ATTEMPTS:
                    raise HelperCallError(str(error)) from error
            except ProtocolError as error:
                raise HelperCallError(str(error)) from error
            await trio.sleep(random.uniform(0, pause))  # noqa: S311  jitter, not a secret
            pause = min(pause * 2, MOST_PAUSE_SECONDS)


class RuntimeApi:
    """The runtime API, asked on behalf of one execution."""

    def __init__(self, http: Http, identity: Identity, secret: SecretSource) -> None:
        self._http = http
        self._path = f"executions/{segment(identity.execution_id)}"
        self._token = ExecutionToken(identity, secret)

    async def variable(self, key: str) -> msgspec.Raw:
        data = await self._call("GET", self._variable(key))
        if data == NULL:
            return data
        try:
            return _variable.decode(data).value
        except wire.UNDECODABLE as error:
            raise ProtocolError(f"the runtime API's variable: {error}") from error

    async def put_variable(self, key: str, value: msgspec.Raw) -> None:
        await self._call("PUT", self._variable(key), wire.VariableBody(value=value))

    async def execute_tool_action(self, tool: str, action: str, config: msgspec.Raw) -> msgspec.Raw:
        body = wire.ToolActionBody(tool=tool, action=action, config=config)
        return await self._call("POST", "tool-actions/execute", body, seconds=TOOL_SECONDS)

    def _variable(self, key: str) -> str:
        return f"{self._path}/variables/{segment(key)}"

    async def _call(
        self,
        method: str,
        path: str,
        body: wire.Body | None = None,
        *,
        seconds: float = CALL_SECONDS,
    ) -> msgspec.Raw:
        content = None if body is None else wire.encode(body)
        response = await self._send(method, path, content, self._token.current(), seconds)
        if response.status_code == HTTPStatus.UNAUTHORIZED:
            # Also the answer to a token that has become too old for a long script.
            response = await self._send(method, path, content, self._token.renewed(), seconds)
        answer = decode(_answer, check(RUNTIME_API, response))
        if not answer.success:
            said = decode(_error, response)
            raise RuntimeRefusedError(response.status_code, str(said.message or said.error))
        return answer.data

    async def _send(
        self, method: str, path: str, content: bytes | None, token: Secret, seconds: float
    ) -> httpx.Response:
        headers = {"Authorization": f"Bearer {token.reveal()}"}
        return await send(
            self._http, RUNTIME_API, method, path, content, headers=headers, seconds=seconds
        )


class InternalRoutes:
    """The queue API's own variables, where there is no runtime API."""

    def __init__(self, queue: QueueClient, identity: Identity) -> None:
        self._queue = queue
        self._user_id = identity.user_id

    async def variable(self, key: str) -> msgspec.Raw:
        return await self._queue.variable(self._user(), key)

    async def put_variable(self, key: str, value: msgspec.Raw) -> None:
        await self._queue.put_variable(self._user(), key, value)

    def _user(self) -> str:
        if not self._user_id:
            raise HelperCallError("the job names no user, and variables are a user's")
        if not _usable_user.match(self._user_id):
            raise HelperCallError("the id of the job's user is none that can stand in a URL")
        return self._user_id


class Runtimes:
    """`http` and `settings` are the runtime API's."""

    def __init__(
        self,
        queue: QueueClient,
        http: Http | None = None,
        settings: RuntimeSettings | None = None,
    ) -> None:
        self._queue = queue
        self._http = http
        self._settings = settings
        self._limiter = trio.CapacityLimiter(MOST_AT_ONCE)

    def of(self, identity: Identity) -> ExecutionRuntime:
        if self._http is None or self._settings is None:
            return ExecutionRuntime(InternalRoutes(self._queue, identity), None, self._limiter)
        api = RuntimeApi(self._http, identity, self._settings.jwt_secret)
        return ExecutionRuntime(api, api, self._limiter)


@asynccontextmanager
async def open_runtimes(
    settings: RuntimeSettings | None,
    queue: QueueClient,
    heard: Callable[[ApiCall], None] | None = None,
) -> AsyncIterator[Runtimes]:
    """`heard` is told of each call to the runtime API."""
    if settings is None:
        yield Runtimes(queue)
        return
    async with open_http(settings.url, settings.authorities, heard) as http:
        yield Runtimes(queue, http, settings)


def _may_pass(_error: UnavailableError) -> bool:
    return True


def _has_not_happened(error: UnavailableError) -> bool:
    return isinstance(error.__cause__, _NEVER_SENT) or error.status in _NOT_DONE


def _translated(read: Callable[[], T]) -> T:
    try:
        return read()
    except ProtocolError as error:
        raise HelperCallError(str(error)) from error
