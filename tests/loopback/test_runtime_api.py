"""Scripts' variables over real HTTP: a runtime API that verifies tokens, and the queue's routes."""

import json
import logging
import os
import socket
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, closing
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any, cast

import hypercorn.config
import hypercorn.trio
import jwt
import pytest
import trio
from msgspec import Raw
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route

from tests.ports import reserved_port
from tests.queue_rig import TOKEN, running_queue
from worker.api.client import QueueClient, open_client
from worker.api.runtime import ExecutionRuntime, open_runtimes
from worker.api.tokens import Identity
from worker.errors import HelperCallError
from worker.secret import Secret
from worker.settings import ApiSettings, RuntimeSettings, SecretSource
from worker.values import is_jwt_secret

SOMEBODY = Identity("job_1", "exec_job_1_1_0", "user-1", "12", 30)
SECRET = "a-secret-of-the-app-32-characters"  # noqa: S105  opens nothing


@dataclass
class RuntimeServer:
    """The contract's runtime API over a dictionary; values are kept as texts, as by the app."""

    secret: str = SECRET
    kept: dict[str, str] = field(default_factory=dict)
    claims: list[dict[str, Any]] = field(default_factory=list)
    refused: int = 0

    def app(self) -> Starlette:
        return Starlette(
            routes=[
                Route("/executions/{id}/variables/{key}", self.variable, methods=["GET", "PUT"]),
                Route("/tool-actions/execute", self.tool_action, methods=["POST"]),
            ]
        )

    async def variable(self, request: Request) -> Response:
        if (refusal := self._refusal(request)) is not None:
            return refusal
        key = request.path_params["key"]
        if request.method == "PUT":
            value = (await request.json())["value"]
            self.kept[key] = value if isinstance(value, str) else json.dumps(value)
            return JSONResponse({"success": True})
        if key not in self.kept:
            return _refused(404, "Variable not found")
        return JSONResponse({"success": True, "data": {"key": key, "value": self.kept[key]}})

    async def tool_action(self, request: Request) -> Response:
        if (refusal := self._refusal(request)) is not None:
            return refusal
        return JSONResponse({"success": True, "data": await request.json()})

    def _refusal(self, request: Request) -> Response | None:
        scheme, _, token = request.headers["Authorization"].partition(" ")
        assert scheme == "Bearer"
        required = ["exp", "nbf", "iat", "iss", "sub"]
        try:
            claims = jwt.decode(
                token,
                self.secret,
                algorithms=["HS256"],
                issuer="cronium-orchestrator",
                options={"require": required},
            )
        except jwt.InvalidTokenError:
            self.refused += 1
            return _refused(401, "invalid or expired token")
        self.claims.append(claims)
        if request.path_params.get("id", claims["executionId"]) != claims["executionId"]:
            return _refused(403, "execution ID mismatch")
        return None


def _refused(status: int, message: str) -> Response:
    return JSONResponse({"error": "in words", "message": message}, status)


@asynccontextmanager
async def serving(server: RuntimeServer, port: int = 0) -> AsyncIterator[str]:
    """The server's URL, for as long as it answers."""
    config = hypercorn.config.Config()
    config.accesslog, config.errorlog = None, logging.getLogger("tests.runtime")
    config.graceful_timeout = 0.1
    stop = trio.Event()
    with closing(socket.create_server(("127.0.0.1", port))) as listener:
        config.bind = [f"fd://{os.dup(listener.fileno())}"]
        async with trio.open_nursery() as nursery:
            serve = partial(
                hypercorn.trio.serve, cast(Any, server.app()), config, shutdown_trigger=stop.wait
            )
            await nursery.start(serve)
            yield f"http://127.0.0.1:{listener.getsockname()[1]}"
            stop.set()


@asynccontextmanager
async def asking(
    url: str, source: SecretSource | None = None, identity: Identity = SOMEBODY
) -> AsyncIterator[ExecutionRuntime]:
    settings = RuntimeSettings(url, source or SecretSource(Secret(SECRET)))
    async with open_runtimes(settings, cast("QueueClient", None)) as runtimes:
        yield runtimes.of(identity)


async def error_of(runtime: ExecutionRuntime, key: str = "K") -> str:
    with pytest.raises(HelperCallError) as caught:
        await runtime.variable(key)
    return str(caught.value)


async def test_a_variable_is_put_and_read_with_the_executions_token() -> None:
    server = RuntimeServer()
    with trio.fail_after(5):
        async with serving(server) as url, asking(url) as runtime:
            await runtime.set_variable("K.1-a_b", Raw(b'{"a": "b"}'))
            value = await runtime.variable("K.1-a_b")
            missing = await error_of(runtime, "NONE")

    assert json.loads(bytes(value)) == {"a": "b"}
    assert missing.startswith("there is no variable NONE (")
    names = ("jobId", "executionId", "userId", "eventId", "iss", "sub")
    assert {tuple(claims[name] for name in names) for claims in server.claims} == {
        ("job_1", "exec_job_1_1_0", "user-1", "12", "cronium-orchestrator", "job_1")
    }


async def test_a_tool_action_is_asked_for_and_answered() -> None:
    with trio.fail_after(5):
        async with serving(RuntimeServer()) as url, asking(url) as runtime:
            answer = await runtime.execute_tool_action("email", "send", Raw(b'{"to":["a"]}'))

    assert json.loads(bytes(answer)) == {"tool": "email", "action": "send", "config": {"to": ["a"]}}


async def test_a_secret_that_was_changed_is_read_again(tmp_path: Path) -> None:
    file = tmp_path / "secret"
    file.write_text(SECRET)
    server = RuntimeServer(secret="another-secret-of-32-characters-!")
    source = SecretSource(Secret(SECRET), file, is_jwt_secret)
    with trio.fail_after(5):
        async with serving(server) as url, asking(url, source) as runtime:
            file.write_text(server.secret)
            await runtime.set_variable("K", Raw(b"1"))
            await runtime.set_variable("L", Raw(b"1"))

    assert (server.refused, sorted(server.kept)) == (1, ["K", "L"])


async def test_a_secret_that_is_not_the_apis_is_the_scripts_error() -> None:
    server = RuntimeServer(secret="another-secret-of-32-characters-!")
    with trio.fail_after(10):
        async with serving(server) as url, asking(url) as runtime:
            error = await error_of(runtime)

    assert "401: invalid or expired token" in error


async def test_an_api_that_comes_up_late_is_waited_for() -> None:
    server = RuntimeServer(kept={"K": "v"})
    values = []

    async def read(runtime: ExecutionRuntime) -> None:
        values.append(await runtime.variable("K"))

    with trio.fail_after(60), reserved_port() as port:
        async with asking(f"http://127.0.0.1:{port}") as runtime, trio.open_nursery() as nursery:
            nursery.start_soon(read, runtime)
            await trio.sleep(0.5)
            async with serving(server, port):
                while not values:
                    await trio.sleep(0.02)

    assert values == [Raw(b'"v"')]


async def test_without_a_runtime_api_the_queues_own_variables_are_used(tmp_path: Path) -> None:
    with trio.fail_after(10):
        async with running_queue(tmp_path) as queue:
            settings = ApiSettings(queue.address + "/api/internal", SecretSource(Secret(TOKEN)))
            async with (
                open_client(settings, "worker-1") as client,
                open_runtimes(None, client) as runtimes,
            ):
                mine = runtimes.of(SOMEBODY)
                other = runtimes.of(Identity("job_2", "exec_2", "auth0|2", "13", 30))
                await mine.set_variable("K", Raw(b'{"a":1}'))
                await other.set_variable("K", Raw(b'"theirs"'))

                values = await mine.variable("K"), await other.variable("K")
                missing = await error_of(mine, "NONE")

    assert values == (Raw(b'{"a":1}'), Raw(b'"theirs"'))
    assert missing == (
        "there is no variable NONE (the queue API refused with 404: Variable not found)"
    )
