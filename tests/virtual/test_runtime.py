"""How long, and how often, the APIs are asked on behalf of a script."""

import json
from collections import deque
from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass, field
from typing import Any

import httpx
import pytest
import trio
from msgspec import Raw
from trio.testing import MockClock

from worker.api.client import QueueClient
from worker.api.runtime import (
    FAULT_ATTEMPTS,
    MOST_AT_ONCE,
    PATIENCE_SECONDS,
    ExecutionRuntime,
    Runtimes,
)
from worker.api.tokens import Identity
from worker.api.transport import Http
from worker.errors import HelperCallError
from worker.secret import Secret
from worker.settings import ApiSettings, RuntimeSettings, SecretSource

SOMEBODY = Identity("job_1", "exec_job_1_1_0", "auth0|1", "12", 30)
SECRET = "a-secret-of-the-app-32-characters"  # noqa: S105  opens nothing

Answer = httpx.Response | Exception


def said(data: object, status: int = 200) -> httpx.Response:
    return httpx.Response(status, json={"success": True, "data": data})


def refused(status: int, message: str = "no") -> httpx.Response:
    return httpx.Response(status, json={"error": "in words", "message": message})


@dataclass
class Api:
    """Answers one request after another, and the last answer from then on."""

    answers: deque[Answer] = field(default_factory=lambda: deque([said(None)]))
    requests: list[httpx.Request] = field(default_factory=list)
    seconds: float = 0
    going: int = 0
    most_going: int = 0

    async def __call__(self, request: httpx.Request) -> httpx.Response:
        self.requests.append(request)
        self.going += 1
        self.most_going = max(self.most_going, self.going)
        try:
            await trio.sleep(self.seconds)
        finally:
            self.going -= 1
        answer = self.answers.popleft() if len(self.answers) > 1 else self.answers[0]
        if isinstance(answer, Exception):
            raise answer
        # A response is for one request.
        return httpx.Response(answer.status_code, content=answer.content, headers=answer.headers)

    def will(self, *answers: Answer) -> None:
        self.answers = deque(answers)

    @property
    def paths(self) -> list[tuple[str, str]]:
        return [(each.method, each.url.raw_path.decode()) for each in self.requests]


@dataclass(frozen=True)
class Rig:
    api: Api
    runtimes: Runtimes

    @property
    def runtime(self) -> ExecutionRuntime:
        return self.runtimes.of(SOMEBODY)


@pytest.fixture
async def by_runtime_api() -> AsyncIterator[Rig]:
    api = Api()
    url = "http://runtime:8081/base"
    settings = RuntimeSettings(url, SecretSource(Secret(SECRET)))
    async with httpx.MockTransport(api) as transport:
        http = Http(url, lambda: transport)
        yield Rig(api, Runtimes(_queue(http), http, settings))


@pytest.fixture
async def by_internal_routes() -> AsyncIterator[Rig]:
    api = Api()
    url = "http://app/api/internal/"
    async with httpx.MockTransport(api) as transport:
        yield Rig(api, Runtimes(_queue(Http(url, lambda: transport))))


def _queue(http: Http) -> QueueClient:
    settings = ApiSettings("http://app/api/internal", SecretSource(Secret("t0ken")))
    return QueueClient(http, settings, "worker-1")


@pytest.fixture(params=["runtime API", "internal routes"])
def rig(request: pytest.FixtureRequest, by_runtime_api: Rig, by_internal_routes: Rig) -> Rig:
    return by_runtime_api if request.param == "runtime API" else by_internal_routes


async def error_of(call: Callable[[], Any]) -> str:
    with pytest.raises(HelperCallError) as caught:
        await call()
    return str(caught.value)


def put(rig: Rig) -> Callable[[], Any]:
    return lambda: rig.runtime.set_variable("K", Raw(b'"v"'))


def got(rig: Rig) -> Callable[[], Any]:
    return lambda: rig.runtime.variable("K")


def sent_by(rig: Rig) -> Callable[[], Any]:
    return lambda: rig.runtime.execute_tool_action("email", "send", Raw(b"{}"))


async def test_the_runtime_api_is_asked_as_the_contract_has_it(
    autojump_clock: MockClock, by_runtime_api: Rig
) -> None:
    api, runtime = by_runtime_api.api, by_runtime_api.runtime
    api.will(
        said({"key": "K", "value": '{"a":1}'}), said(None), httpx.Response(200, json={}), said([1])
    )

    assert await runtime.variable("K") == Raw(b'{"a":1}')
    await runtime.set_variable("K", Raw(b'{"a":1}'))
    await runtime.set_variable("K", Raw(b"1.10"))
    assert await runtime.execute_tool_action("email", "send", Raw(b'{"to":1}')) == Raw(b"[1]")

    assert api.paths == [
        ("GET", "/base/executions/exec_job_1_1_0/variables/K"),
        ("PUT", "/base/executions/exec_job_1_1_0/variables/K"),
        ("PUT", "/base/executions/exec_job_1_1_0/variables/K"),
        ("POST", "/base/tool-actions/execute"),
    ]
    assert [json.loads(each.content or b"null") for each in api.requests] == [
        None,
        {"value": {"a": 1}},
        {"value": "1.10"},
        {"tool": "email", "action": "send", "config": {"to": 1}},
    ]
    tokens = {each.headers["Authorization"] for each in api.requests}
    assert len(tokens) == 1
    assert tokens.pop().startswith("Bearer ey")


async def test_the_internal_routes_are_asked_as_recorded(
    autojump_clock: MockClock, by_internal_routes: Rig
) -> None:
    api, runtime = by_internal_routes.api, by_internal_routes.runtime
    api.will(httpx.Response(200, json={"key": "K", "value": "v", "updatedAt": "…"}))

    assert await runtime.variable("K") == Raw(b'"v"')
    await runtime.set_variable("K", Raw(b'"v"'))

    assert api.paths == [
        ("GET", "/api/internal/variables/auth0%7C1/K"),
        ("PUT", "/api/internal/variables/auth0%7C1/K"),
    ]
    assert json.loads(api.requests[1].content) == {"value": "v"}
    assert api.requests[0].headers["Authorization"] == "Bearer t0ken"


async def test_tools_need_the_runtime_api(
    autojump_clock: MockClock, by_internal_routes: Rig
) -> None:
    assert "CRONIUM_RUNTIME_URL" in await error_of(sent_by(by_internal_routes))

    assert by_internal_routes.api.requests == []


@pytest.mark.parametrize("user_id", ["", ".", "..", "a/../b", "a/b", "a%2fb", "a?b", "a b", "a\n"])
async def test_a_job_of_nobody_has_no_variables(
    autojump_clock: MockClock, by_internal_routes: Rig, user_id: str
) -> None:
    runtime = by_internal_routes.runtimes.of(Identity("job_1", "exec_1", user_id, "12", 30))

    assert "user" in await error_of(lambda: runtime.variable("K"))
    assert "user" in await error_of(lambda: runtime.set_variable("K", Raw(b"1")))
    assert by_internal_routes.api.requests == []


async def test_a_variable_that_is_not_there_is_an_error_that_says_so(
    autojump_clock: MockClock, rig: Rig
) -> None:
    rig.api.will(refused(404, "Variable not found"))

    assert (await error_of(got(rig))).startswith("there is no variable K (")

    assert len(rig.api.requests) == 1


async def test_a_variable_without_a_value_is_not_there(
    autojump_clock: MockClock, by_runtime_api: Rig
) -> None:
    for data in (None, {"key": "K"}, {"key": "K", "value": None}):
        by_runtime_api.api.will(said(data))
        assert await error_of(got(by_runtime_api)) == "there is no variable K"


@pytest.mark.parametrize("content", [b"", b"<html>", b'{"success":true,"data":7}', b"[]", b"\xff"])
async def test_an_answer_without_sense_is_an_error(
    autojump_clock: MockClock, by_runtime_api: Rig, content: bytes
) -> None:
    by_runtime_api.api.will(httpx.Response(200, content=content))

    assert await error_of(got(by_runtime_api))

    assert len(by_runtime_api.api.requests) == 1


@pytest.mark.parametrize("status", [400, 403, 409, 413, 422])
async def test_a_refusal_is_final_and_has_the_apis_words(
    autojump_clock: MockClock, rig: Rig, status: int
) -> None:
    rig.api.will(refused(status, "execution ID mismatch"))

    for call in (got(rig), put(rig)):
        error = await error_of(call)
        assert f"{status}: execution ID mismatch" in error

    assert len(rig.api.requests) == 2


async def test_an_answer_that_says_it_failed_is_a_refusal(
    autojump_clock: MockClock, by_runtime_api: Rig
) -> None:
    by_runtime_api.api.will(httpx.Response(200, json={"success": False, "error": "locked"}))

    assert "locked" in await error_of(put(by_runtime_api))


PASSING: list[Answer] = [
    httpx.ConnectError("refused"),
    httpx.ReadTimeout("late"),
    httpx.RemoteProtocolError("gone"),
    httpx.Response(502),
    refused(503),
    refused(429),
    httpx.Response(404, text="no such route"),
]


@pytest.mark.parametrize("passing", PASSING, ids=repr)
async def test_what_passes_is_waited_for(
    autojump_clock: MockClock, rig: Rig, passing: Answer
) -> None:
    rig.api.will(*[passing] * 5, said({"key": "K", "value": "v"}))
    if rig.runtime._tools is None:
        rig.api.will(*[passing] * 5, httpx.Response(200, json={"key": "K", "value": "v"}))

    assert await rig.runtime.variable("K") == Raw(b'"v"')

    assert len(rig.api.requests) == 6


@pytest.mark.parametrize("passing", PASSING, ids=repr)
async def test_what_does_not_pass_within_a_minute_is_an_error(
    autojump_clock: MockClock, rig: Rig, passing: Answer
) -> None:
    rig.api.will(passing)
    began = trio.current_time()

    assert " API " in await error_of(put(rig))

    assert trio.current_time() - began == pytest.approx(PATIENCE_SECONDS)
    assert len(rig.api.requests) > PATIENCE_SECONDS / 5


async def test_an_api_that_hangs_is_an_error_after_a_minute(
    autojump_clock: MockClock, rig: Rig
) -> None:
    rig.api.seconds = 10**6
    began = trio.current_time()

    assert await error_of(got(rig)) == "no answer within 60 s"

    assert trio.current_time() - began == pytest.approx(PATIENCE_SECONDS)


@pytest.mark.parametrize("status", [500, 501])
async def test_a_fault_of_the_api_is_asked_for_a_few_times(
    autojump_clock: MockClock, rig: Rig, status: int
) -> None:
    rig.api.will(refused(status, "failed to get variable"))
    began = trio.current_time()

    assert "failed to get variable" in await error_of(got(rig))

    assert len(rig.api.requests) == FAULT_ATTEMPTS
    assert trio.current_time() - began < 5


async def test_a_token_that_is_not_taken_is_made_anew_at_once(
    autojump_clock: MockClock, by_runtime_api: Rig
) -> None:
    by_runtime_api.api.will(refused(401), said(None))
    began = trio.current_time()

    await put(by_runtime_api)()

    assert len(by_runtime_api.api.requests) == 2
    assert trio.current_time() == began


async def test_a_token_that_is_never_taken_is_an_error(autojump_clock: MockClock, rig: Rig) -> None:
    rig.api.will(refused(401, "invalid or expired token"))
    began = trio.current_time()

    assert "401: invalid or expired token" in await error_of(got(rig))

    assert trio.current_time() - began < 5


@pytest.mark.parametrize(
    "answer",
    [
        httpx.ReadTimeout("late"),
        httpx.ReadError("reset"),
        refused(500),
        refused(502, "tool action failed: no such channel"),
        httpx.Response(504),
    ],
    ids=repr,
)
async def test_a_tool_action_that_may_have_happened_is_not_tried_again(
    autojump_clock: MockClock, by_runtime_api: Rig, answer: Answer
) -> None:
    by_runtime_api.api.will(answer, said(None))

    assert "the runtime API" in await error_of(sent_by(by_runtime_api))

    assert len(by_runtime_api.api.requests) == 1


@pytest.mark.parametrize(
    "answer",
    [httpx.ConnectError("refused"), httpx.ConnectTimeout("late"), refused(503), refused(429)],
    ids=repr,
)
async def test_a_tool_action_that_has_not_happened_is_tried_again(
    autojump_clock: MockClock, by_runtime_api: Rig, answer: Answer
) -> None:
    by_runtime_api.api.will(answer, answer, said("sent"))

    assert await sent_by(by_runtime_api)() == Raw(b'"sent"')

    assert len(by_runtime_api.api.requests) == 3


async def test_scripts_leave_connections_for_the_workers_own_calls(
    autojump_clock: MockClock, rig: Rig
) -> None:
    rig.api.seconds = 1
    async with trio.open_nursery() as nursery:
        for _ in range(100):
            nursery.start_soon(put(rig))

    assert rig.api.most_going == MOST_AT_ONCE < 100


async def test_nothing_that_is_said_holds_the_token_or_the_secret(
    autojump_clock: MockClock, by_runtime_api: Rig
) -> None:
    by_runtime_api.api.will(httpx.ConnectError("refused"))

    with pytest.raises(HelperCallError) as caught:
        await put(by_runtime_api)()

    error: BaseException | None = caught.value
    while error is not None:
        assert SECRET not in repr(error)
        assert "ey" not in str(error)
        error = error.__context__
