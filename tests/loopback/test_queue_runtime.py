"""The embedded queue's runtime API over real HTTP: who is let in, and to what."""

import json
import sqlite3
from base64 import urlsafe_b64encode
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager, closing
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, cast

import httpx
import jwt
import pytest
import trio
from cryptography.hazmat.primitives.asymmetric import rsa
from msgspec import Raw

from tests.queue_rig import TOKEN, QueueRig, claim, running_queue
from worker.api.client import QueueClient
from worker.api.runtime import ExecutionRuntime, open_runtimes
from worker.api.tokens import Identity, sign
from worker.clock import now_ms
from worker.errors import HelperCallError
from worker.queue_server.runtime import MAX_BODY_BYTES
from worker.secret import Secret
from worker.settings import RuntimeSettings, SecretSource

# Long enough for every algorithm that is tried.
SECRET = "a-secret-of-the-app" * 4
OTHER_SECRET = "another-secret" * 5


@dataclass(frozen=True, slots=True)
class Script:
    """One execution of a claimed job, and what it may be asked with."""

    queue: QueueRig
    identity: Identity

    @property
    def token(self) -> str:
        return token_of(self.identity)

    def client(self, token: str | None = None) -> httpx.AsyncClient:
        """Asks at the execution's own address."""
        return httpx.AsyncClient(
            base_url=f"{self.queue.address}/executions/{self.identity.execution_id}",
            headers={"Authorization": f"Bearer {token or self.token}"},
            timeout=20,
        )

    @asynccontextmanager
    async def runtime(self) -> AsyncIterator[ExecutionRuntime]:
        """As the worker asks on its behalf."""
        settings = RuntimeSettings(self.queue.address, SecretSource(Secret(SECRET)))
        async with open_runtimes(settings, cast("QueueClient", None)) as runtimes:
            yield runtimes.of(self.identity)

    async def create(self) -> None:
        body = {"jobId": self.identity.job_id, "serverId": "1", "serverName": "web-1"}
        async with self.queue.client() as client:
            path = f"/executions/{self.identity.execution_id}/create"
            assert (await client.post(path, json=body)).status_code == 200

    def metadata(self) -> dict[str, Any]:
        (execution,) = self.queue.store.report(self.identity.job_id).executions
        kept: dict[str, Any] = execution.metadata
        return kept


def token_of(identity: Identity, secret: str = SECRET) -> str:
    return sign(identity, Secret(secret), now=now_ms() // 1000).reveal()


@asynccontextmanager
async def serving(folder: Path) -> AsyncIterator[QueueRig]:
    async with running_queue(folder, jwt_secret=Secret(SECRET)) as queue:
        yield queue


async def claimed(queue: QueueRig, user_id: str = "local") -> Script:
    """The script of a new job of the user's."""
    job_id = queue.submit()
    with closing(sqlite3.connect(queue.database, isolation_level=None)) as connection:
        connection.execute("UPDATE jobs SET user_id = ? WHERE id = ?", (user_id, job_id))
    async with queue.client() as client:
        (job,) = await claim(client)
    metadata = job["metadata"]
    execution_id = f"exec_{job['id']}_{metadata['serverId']}_{job['attempts']}"
    identity = Identity(job["id"], execution_id, metadata["userId"], metadata["eventId"], 30)
    return Script(queue, identity)


def refusal(answer: httpx.Response) -> tuple[int, str]:
    """The status, and the API's own reason for it."""
    body = answer.json()
    assert set(body) == {"error", "message"}
    return answer.status_code, body["message"]


# Variables


async def test_the_workers_own_client_puts_and_reads_variables(tmp_path: Path) -> None:
    with trio.fail_after(10):
        async with serving(tmp_path) as queue:
            script = await claimed(queue)
            async with script.runtime() as runtime:
                texts = (b'{"a":[1,null]}', b'"text"', b"1.10", b"null", b'"1"', b"true")
                for number, text in enumerate(texts):
                    await runtime.set_variable(f"K.{number}-a_b", Raw(text))
                values = [await runtime.variable(f"K.{number}-a_b") for number in range(6)]
                with pytest.raises(HelperCallError) as missing:
                    await runtime.variable("NONE")
                with pytest.raises(HelperCallError) as tool:
                    await runtime.execute_tool_action("email", "send", Raw(b"{}"))

    assert [bytes(value) for value in values[:2]] == [b'{"a":[1,null]}', b'"text"']
    # A text is what is kept: what a number or a null was shows only in how it is read.
    assert [json.loads(bytes(value)) for value in values[2:]] == ["1.10", None, 1, True]
    assert str(missing.value).startswith("there is no variable NONE (")
    assert str(tool.value).endswith("501: the embedded queue has no tools")


async def test_a_variable_is_the_queue_apis_too_and_outlives_the_queue(tmp_path: Path) -> None:
    with trio.fail_after(10):
        async with serving(tmp_path) as queue:
            script = await claimed(queue)
            async with script.client() as client, queue.client() as worker:
                put = await client.put("/variables/K", json={"value": {"a": 1}})
                internal = await worker.get("/variables/local/K")
        async with (
            serving(tmp_path) as queue,
            replace(script, queue=queue).client() as client,
        ):
            after = await client.get("/variables/K")

    assert (put.status_code, put.json()) == (200, {"success": True, "data": None})
    assert internal.json()["value"] == '{"a":1}'
    assert after.json() == {"success": True, "data": internal.json()}


async def test_two_users_have_each_their_own_variables(tmp_path: Path) -> None:
    with trio.fail_after(10):
        async with serving(tmp_path) as queue:
            mine, theirs = await claimed(queue, "user-1"), await claimed(queue, "user-2")
            also_mine = await claimed(queue, "user-1")
            async with mine.client() as client, theirs.client() as other:
                await client.put("/variables/K", json={"value": "mine at first"})
                await client.put("/variables/K", json={"value": "mine"})
                before = await other.get("/variables/K", params={"userId": "user-1"})
                await other.put(
                    "/variables/K",
                    json={"value": "theirs", "userId": "user-1", "user_id": "user-1"},
                )
                values = [(await each.get("/variables/K")).json() for each in (client, other)]
            async with also_mine.client() as client:
                values.append((await client.get("/variables/K")).json())

    assert refusal(before) == (404, "Variable not found")
    assert [each["data"]["value"] for each in values] == ["mine", "theirs", "mine"]


# What else there is


async def test_input_and_context_are_the_jobs(tmp_path: Path) -> None:
    with trio.fail_after(10):
        async with serving(tmp_path) as queue:
            script = await claimed(queue)
            async with script.client() as client:
                given = await client.get("/input")
                context = (await client.get("/context")).json()["data"]
            await script.create()
            async with queue.client() as worker:
                path = f"/executions/{script.identity.execution_id}/context"
                internal = (await worker.get(path)).json()

    assert given.json() == {"success": True, "data": {}}
    assert context == internal
    assert (context["executionId"], context["jobId"], context["user"]["id"]) == (
        script.identity.execution_id,
        script.identity.job_id,
        "local",
    )


async def test_output_and_condition_are_kept_with_the_execution(tmp_path: Path) -> None:
    with trio.fail_after(10):
        async with serving(tmp_path) as queue:
            script = await claimed(queue)
            async with script.client() as client:
                early = await client.post("/output", json={"data": 1})
                await script.create()
                for path, body in (
                    ("/output", {"data": {"answer": 42}}),
                    ("/condition", {"condition": False}),
                ):
                    assert (await client.post(path, json=body)).status_code == 200
            kept = script.metadata()
            result = queue.store.report(script.identity.job_id).job.result

    assert refusal(early) == (404, "Execution not found")
    assert (kept["output"], kept["condition"]) == ({"answer": 42}, False)
    assert result is not None
    assert result["output"] == {"answer": 42}


async def test_tool_actions_are_refused_to_those_who_may_ask(tmp_path: Path) -> None:
    body = {"tool": "email", "action": "send", "config": {}}
    with trio.fail_after(10):
        async with serving(tmp_path) as queue:
            script = await claimed(queue)
            url = f"{queue.address}/tool-actions/execute"
            async with script.client() as client:
                known = await client.post(url, json=body)
                unknown = await client.post(url, json=body, headers={"Authorization": "Bearer x"})

    assert refusal(known) == (501, "the embedded queue has no tools")
    assert unknown.status_code == 401


async def test_without_a_secret_it_says_that_there_is_none(tmp_path: Path) -> None:
    with trio.fail_after(10):
        async with running_queue(tmp_path) as queue:
            script = await claimed(queue)
            async with script.client() as client:
                answers = (
                    await client.get("/variables/K"),
                    await client.post(f"{queue.address}/tool-actions/execute", json={}),
                )
            async with queue.client() as worker:
                internal = await worker.put("/variables/local/K", json={"value": 1})

    said = "this queue has no runtime API: it was started without CRONIUM_JWT_SECRET"
    assert [refusal(answer) for answer in answers] == [(503, said)] * 2
    assert internal.status_code == 200


# Tokens


def forged(identity: Identity) -> dict[str, str]:
    """Tokens that are not to be taken, by what of the reason is told."""
    now = now_ms() // 1000
    good = jwt.decode(token_of(identity), options={"verify_signature": False})

    def made(
        claims: Mapping[str, object] = {},
        without: str = "",
        secret: str = SECRET,
        algorithm: str = "HS256",
        headers: dict[str, Any] | None = None,
    ) -> str:
        payload = {name: value for name, value in {**good, **claims}.items() if name != without}
        return jwt.encode(payload, secret, algorithm, headers)

    def unsigned(algorithm: str) -> str:
        header, payload = ({"alg": algorithm, "typ": "JWT"}, good)
        return ".".join(
            urlsafe_b64encode(json.dumps(part).encode()).decode().rstrip("=")
            for part in (header, payload)
        )

    head, body, signature = made().split(".")
    *_, other_signature = made(secret=OTHER_SECRET).split(".")
    rsa_key = cast(Any, rsa.generate_private_key(public_exponent=65537, key_size=2048))
    signed_with = "its signature is not made with this queue's CRONIUM_JWT_SECRET"
    not_allowed = "The specified alg value is not allowed"
    return {
        # The algorithm
        unsigned("none") + ".": not_allowed,
        unsigned("None") + ".": not_allowed,
        unsigned("none") + "." + signature: not_allowed,
        unsigned("HS256") + ".": signed_with,
        unsigned("HS256"): "it is none",
        made(algorithm="HS512"): not_allowed,
        made(algorithm="HS384"): not_allowed,
        jwt.encode(good, rsa_key, "RS256"): not_allowed,
        # The signature
        made(secret=OTHER_SECRET): signed_with,
        made(secret=SECRET + "x"): signed_with,
        f"{head}.{body}.{other_signature}": signed_with,
        f"{head}.{made({'executionId': 'x'}).split('.')[1]}.{signature}": signed_with,
        # The times
        made({"exp": now - 1}): "expired",
        made(without="exp"): '"exp"',
        made({"exp": "soon"}): "it is none",
        made({"nbf": now + 60}): "not yet valid",
        made(without="nbf"): '"nbf"',
        made({"iat": now + 60}): "not yet valid",
        made(without="iat"): '"iat"',
        # From whom, for whom, about whom
        made({"iss": "somebody"}): "issuer",
        made(without="iss"): '"iss"',
        made({"aud": "another-service"}): "audience",
        made({"aud": ["cronium-orchestrator"]}): "audience",
        made(without="sub"): '"sub"',
        made({"sub": "job_other"}): "`sub` is not `jobId`",
        made(without="jobId"): "`jobId`",
        made(without="executionId"): "`executionId`",
        made(without="userId"): "`userId`",
        made({"userId": ""}): "`$.userId`",
        made({"userId": ["local"]}): "`$.userId`",
        made({"eventId": 1}): "`$.eventId`",
        # No token at all
        "garbage": "it is none",
        "a.b.c": "it is none",
        "..": "it is none",
        TOKEN: "it is none",
        "[" * 2000 + "." + "." + "": "it is none",
        urlsafe_b64encode(b"[" * 2900).decode() + ".e30.AA": "it is none",
        made({"more": "x" * 3000}): "too long",
        made(headers={"crit": ["x"], "x": 1}): "critical",
    }


async def test_no_forged_token_is_taken(tmp_path: Path) -> None:
    with trio.fail_after(20):
        async with serving(tmp_path) as queue:
            script = await claimed(queue)
            async with script.client() as client:
                taken = []
                for token, reason in forged(script.identity).items():
                    headers = {"Authorization": f"Bearer {token}"}
                    answer = await client.put("/variables/K", json={"value": 1}, headers=headers)
                    status, message = refusal(answer)
                    if status != 401 or reason not in message or SECRET in message:
                        taken.append((reason, token, status, message))
                    assert answer.headers["WWW-Authenticate"] == "Bearer"
                missing = await client.get("/variables/K")

    assert taken == []
    assert missing.status_code == 404


async def test_only_a_bearer_token_is_one(tmp_path: Path) -> None:
    with trio.fail_after(10):
        async with serving(tmp_path) as queue:
            script = await claimed(queue)
            url = f"{queue.address}/executions/{script.identity.execution_id}/input"
            async with httpx.AsyncClient() as client:
                answers = [
                    await client.get(url, headers={"Authorization": text}, params=query)
                    for text, query in (
                        ("", {}),
                        ("Bearer", {}),
                        (f"Basic {script.token}", {}),
                        (script.token, {}),
                        ("", {"token": script.token, "access_token": script.token}),
                    )
                ]
                good = await client.get(url, headers={"Authorization": f"Bearer {script.token}"})

    assert [refusal(answer) for answer in answers] == [(401, "there is no bearer token")] * 5
    assert good.status_code == 200


async def test_a_token_of_a_header_that_is_too_large_is_not_read(tmp_path: Path) -> None:
    with trio.fail_after(10):
        async with serving(tmp_path) as queue:
            script = await claimed(queue)
            async with script.client(script.token + "x" * 200_000) as client:
                try:
                    is_taken = (await client.get("/input")).is_success
                except httpx.TransportError:  # closed while it is still being sent
                    is_taken = False
            async with script.client() as client:
                others_are_served = (await client.get("/input")).is_success

    assert (is_taken, others_are_served) == (False, True)


async def test_each_api_takes_its_own_tokens_only(tmp_path: Path) -> None:
    with trio.fail_after(10):
        async with serving(tmp_path) as queue:
            script = await claimed(queue)
            headers = {"Authorization": f"Bearer {script.token}", "X-Orchestrator-ID": "worker-1"}
            async with httpx.AsyncClient(headers=headers) as client:
                answers = [
                    await client.get(f"{queue.address}{path}")
                    for path in (
                        "/api/internal/jobs/queue",
                        f"/api/internal/executions/{script.identity.execution_id}/context",
                        "/api/internal/variables/local/K",
                        "/api/internal/servers/1/credentials",
                        "/jobs/queue",
                        "/",
                    )
                ]

    assert [answer.status_code for answer in answers] == [401] * 6


async def test_a_genuine_token_speaks_for_its_own_execution_only(tmp_path: Path) -> None:
    with trio.fail_after(10):
        async with serving(tmp_path) as queue:
            script, other = await claimed(queue), await claimed(queue)
            await other.create()
            mine = script.identity
            refused = {
                replace(mine, execution_id=f"exec_{mine.job_id}_2_0"): "another execution's",
                other.identity: "another execution's",
            }
            answers = {}
            for identity in refused:
                async with script.client(token_of(identity)) as client:
                    for path, body in (
                        ("/input", None),
                        ("/context", None),
                        ("/variables/K", None),
                        ("/variables/K", {"value": 1}),
                        ("/output", {"data": 1}),
                        ("/condition", {"condition": True}),
                    ):
                        verb = "GET" if body is None else "PUT" if "K" in path else "POST"
                        answer = await client.request(verb, path, json=body)
                        answers[identity, verb, path] = refusal(answer)

    assert set(answers.values()) == {(403, "the token is another execution's")}
    assert len(answers) == 12


async def test_a_genuine_token_is_of_no_use_where_the_job_says_otherwise(tmp_path: Path) -> None:
    with trio.fail_after(10):
        async with serving(tmp_path) as queue:
            script, other = await claimed(queue), await claimed(queue)
            await other.create()
            mine = script.identity
            told = {}
            for identity in (
                replace(mine, job_id="job_none"),
                replace(mine, user_id="user-2"),
                replace(mine, event_id="999"),
                replace(mine, execution_id=other.identity.execution_id),
                replace(mine, execution_id="exec_none"),
                replace(mine, execution_id=f"exec_{mine.job_id}9_1_0"),
            ):
                asking = replace(script, identity=identity)
                async with asking.client() as client:
                    told[identity] = [
                        refusal(await client.get("/input")),
                        refusal(await client.get("/context")),
                        refusal(await client.get("/variables/K")),
                        refusal(await client.put("/variables/K", json={"value": 1})),
                        refusal(await client.post("/output", json={"data": 1})),
                        refusal(await client.post("/condition", json={"condition": True})),
                    ]
            async with script.client() as client:
                untouched = await client.get("/variables/K")
            their_metadata = other.metadata()

    assert [set(answers) for answers in told.values()] == [
        {(403, "the token's job is not one of this queue")},
        {(403, "the token's user or event is not its job's")},
        {(403, "the token's user or event is not its job's")},
        {(403, "the token's execution is not one of its job")},
        {(403, "the token's execution is not one of its job")},
        {(403, "the token's execution is not one of its job")},
    ]
    assert untouched.status_code == 404
    assert their_metadata == {}


async def test_a_token_ends_with_its_execution_and_its_job(tmp_path: Path) -> None:
    with trio.fail_after(10):
        async with serving(tmp_path) as queue:
            done, cancelled, ended = [await claimed(queue) for _ in range(3)]
            async with queue.client() as worker:
                end = {"status": "completed", "exitCode": 0}
                await worker.post(f"/jobs/{done.identity.job_id}/complete", json=end)
            queue.store.cancel(cancelled.identity.job_id, now_ms())
            await ended.create()
            told = []
            for script in (done, cancelled):
                async with script.client() as client:
                    told.append(refusal(await client.put("/variables/K", json={"value": 1})))
            async with ended.client() as client, queue.client() as worker:
                for status in ("FAILED", "running"):
                    path = f"/executions/{ended.identity.execution_id}/update"
                    await worker.put(path, json={"status": status})
                    told.append((await client.get("/input")).json().get("message", "answered"))

    assert told == [
        (403, "the token's job is over: completed"),
        (403, "the token's job is over: cancelled"),
        "the token's execution is over: FAILED",
        "answered",
    ]


# Paths and bodies


async def raw_get(address: str, path: str, token: str) -> tuple[int, str]:
    """A path as it stands: clients tidy it up."""
    host, _, port = address.removeprefix("http://").partition(":")
    head = f"GET {path} HTTP/1.1\r\nHost: x\r\nAuthorization: Bearer {token}\r\nConnection: close"
    async with await trio.open_tcp_stream(host, int(port)) as stream:
        await stream.send_all(f"{head}\r\n\r\n".encode())
        answer = b"".join([chunk async for chunk in stream])
    status, body = answer.split(b" ", 2)[1], answer.partition(b"\r\n\r\n")[2]
    return int(status), json.loads(body).get("message", "answered")


async def test_no_path_leads_elsewhere(tmp_path: Path) -> None:
    key = "key: expected 1 to 128 of A-Z a-z 0-9 _ . -, and neither `.` nor `..`"
    with trio.fail_after(10):
        async with serving(tmp_path) as queue:
            script, other = await claimed(queue), await claimed(queue)
            mine, theirs = script.identity.execution_id, other.identity.execution_id
            async with script.client() as client:
                for name in ("a-b", "AB", "k" * 128, "..."):
                    answer = await client.put(f"/variables/{name}", json={"value": name})
                    assert answer.status_code == 200
                for name in ("k" * 129, "a%2Fb", "a%252Fb", "a b"):
                    answer = await client.put(f"/variables/{name}", json={"value": name})
                    assert refusal(answer) == (400, key)
            answers = {
                path: await raw_get(queue.address, f"/executions/{path}", script.token)
                for path in (
                    f"{mine}/variables/a-b",
                    f"{mine}/variables/%61%2Db",
                    f"{mine}/variables/%41B",
                    f"{mine}/variables/" + "k" * 128,
                    f"{mine}/variables/...",
                    f"{mine}/variables/%2541B",
                    f"{mine}/variables/%252e%252e",
                    f"{mine}/variables/.",
                    f"{mine}/variables/..",
                    f"{mine}/variables/%2e",
                    f"{mine}/variables/%2e%2E",
                    f"{mine}/variables/..%2f..%2f{theirs}%2finput",
                    f"{mine}/variables/../input",
                    f"{mine}/variables/AB/",
                    f"{mine}/variables/AB%2F",
                    f"{mine}/variables//AB",
                    f"{mine}/variables/",
                    f"{mine}/variables/A%00B",
                    f"{mine}/variables/AB%0A",
                    f"{mine}/variables/A%20B",
                    f"{mine}/variables/A%C3%84",
                    f"{mine}/variables/" + "k" * 129,
                    f"{mine}/variables/%5c..%5cAB",
                    f"{theirs}/input",
                    f"{theirs}/variables/AB",
                    f"{mine}%00/input",
                    f"{mine}%2e/input",
                    f"%2565{mine[1:]}/input",
                    f"{mine}/../{theirs}/input",
                    f"{mine}%2f..%2f{theirs}/input",
                    f"../executions/{mine}/input",
                    f"{mine}/input%0A",
                    f"{mine}/input/",
                    f"{mine}",
                    "",
                )
            }

    by_answer: dict[tuple[int, str], list[str]] = {}
    for path, (status, message) in answers.items():
        told = "no route" if status == 404 else message
        shown = path.replace(mine, "mine").replace(theirs, "theirs").replace("k" * 128, "k*128")
        by_answer.setdefault((status, told), []).append(shown)
    assert by_answer == {
        (200, "answered"): [
            "mine/variables/a-b",
            "mine/variables/%61%2Db",
            "mine/variables/%41B",
            "mine/variables/k*128",
            "mine/variables/...",
        ],
        (400, key): [
            "mine/variables/%2541B",
            "mine/variables/%252e%252e",
            "mine/variables/.",
            "mine/variables/..",
            "mine/variables/%2e",
            "mine/variables/%2e%2E",
            "mine/variables/..%2f..%2ftheirs%2finput",
            "mine/variables/../input",
            "mine/variables/AB/",
            "mine/variables/AB%2F",
            "mine/variables//AB",
            "mine/variables/",
            "mine/variables/A%20B",
            "mine/variables/A%C3%84",
            "mine/variables/k*128k",
            "mine/variables/%5c..%5cAB",
        ],
        (400, "path: holds a control character"): [
            "mine/variables/A%00B",
            "mine/variables/AB%0A",
            "mine/input%0A",
        ],
        (403, "the token is another execution's"): [
            "theirs/input",
            "theirs/variables/AB",
            "mine%00/input",
            "mine%2e/input",
            "%2565" + mine[1:] + "/input",
        ],
        (404, "no route"): [
            "mine/../theirs/input",
            "mine%2f..%2ftheirs/input",
            "../executions/mine/input",
            "mine/input/",
            "mine",
            "",
        ],
    }


@pytest.mark.parametrize(
    ("path", "body", "status", "said"),
    [
        ("/variables/K", b"{}", 400, "body: Object missing required field `value`"),
        ("/variables/K", b"[]", 400, "body: Expected `object`, got `array`"),
        ("/variables/K", b"", 400, "body: Input data was truncated"),
        ("/variables/K", b'{"value": "\xff"}', 400, "body: 'utf-8' codec"),
        ("/variables/K", rb'{"value": "a\u0000"}', 400, "body: a text holds a NUL"),
        ("/variables/K", rb'{"value": "\ud800"}', 400, "body: "),
        ("/variables/K", b'{"value": 1e999}', 400, "`$.value`"),
        ("/variables/K", b'{"value":' + b"[" * 9000 + b"]" * 9000 + b"}", 400, "body: "),
        ("/output", b"{}", 400, "missing required field `data`"),
        ("/condition", b"{}", 400, "missing required field `condition`"),
        ("/condition", b'{"condition": "true"}', 400, "`$.condition`"),
        ("/variables/K", b'"' + b"x" * MAX_BODY_BYTES + b'"', 413, "exceeded 4mb"),
    ],
)
async def test_a_body_that_is_none_is_refused_with_the_field(
    path: str, body: bytes, status: int, said: str, tmp_path: Path
) -> None:
    with trio.fail_after(10):
        async with serving(tmp_path) as queue:
            script = await claimed(queue)
            async with script.client() as client:
                verb = "PUT" if path == "/variables/K" else "POST"
                answer = await client.request(verb, path, content=body)
                missing = await client.get("/variables/K")

    got, message = refusal(answer)
    assert (got, said in message) == (status, True), message
    assert missing.status_code == 404


async def test_another_verb_is_refused(tmp_path: Path) -> None:
    with trio.fail_after(10):
        async with serving(tmp_path) as queue:
            script = await claimed(queue)
            async with script.client() as client:
                answers = [
                    await client.delete("/variables/K"),
                    await client.post("/variables/K", json={"value": 1}),
                    await client.put("/input", json={}),
                ]

    assert [refusal(answer)[0] for answer in answers] == [405] * 3
