"""Answers that are not, or hardly, the API's: what a worker has to tell is not lost over them."""

import json
from collections.abc import Callable, Iterator
from types import SimpleNamespace
from typing import cast

import httpx
import pytest
import trio
from trio.testing import MockClock

from tests.fakes import Rig, relay_rig
from worker.api.client import QueueClient
from worker.api.transport import Http
from worker.relay import Relay
from worker.report import fail_entry
from worker.secret import Secret
from worker.settings import ApiSettings
from worker.state.outbox import Entry, Kind

DEEP = 1200 * b"[" + 1200 * b"]"
TOKEN = SimpleNamespace(value=Secret("t"), read=lambda: Secret("t"))


@pytest.fixture
def rig() -> Iterator[Rig]:
    with relay_rig() as rig:
        yield rig


def client_of(answer: Callable[[str], httpx.Response]) -> QueueClient:
    """Of an API that answers a route's last word so."""

    async def handle(request: httpx.Request) -> httpx.Response:
        await trio.sleep(0.01)
        return answer(request.url.path.rpartition("/")[2])

    http = Http("http://queue/api/internal", lambda: httpx.MockTransport(handle))
    return QueueClient(http, cast("ApiSettings", SimpleNamespace(token=TOKEN)), "worker-1")


def relay_to(client: QueueClient, rig: Rig) -> Relay:
    now = lambda: round(trio.current_time() * 1000)  # noqa: E731  shorter so
    return Relay(client, rig.outbox, rig.runs, rig.database, now=now)


def complete() -> Entry:
    output = {"stdout": "all there is\n", "stderr": ""}
    body = {"status": "completed", "exitCode": 0, "output": output, "timestamp": ""}
    return Entry("job_1", Kind.COMPLETE, "job_1", json.dumps(body).encode())


JOB = {"success": True, "job": {"id": "job_1", "status": "running"}}
ODD = {
    "a gateway's refusal": httpx.Response(403, json={"message": "Your address is not allowed"}),
    "a gateway's missing route": httpx.Response(404, json={"message": "no Route matched"}),
    "a page": httpx.Response(200, html="<html>We will be back soon</html>"),
    "nothing": httpx.Response(204),
}


@pytest.mark.parametrize("token", [None, "token-1"])
@pytest.mark.parametrize("odd", ODD.values(), ids=ODD)
async def test_a_result_is_told_once_the_api_itself_answers(
    autojump_clock: MockClock, rig: Rig, odd: httpx.Response, token: str | None
) -> None:
    told: list[str] = []

    def answer(route: str) -> httpx.Response:
        if trio.current_time() < 5:
            return odd
        told.append(route)
        return httpx.Response(200, json=JOB)

    relay = relay_to(client_of(answer), rig)
    relay.claim_of = lambda _job_id: token
    async with trio.open_nursery() as nursery:
        nursery.start_soon(relay.run)
        word = await relay.put_last("job_1", lambda: (complete(),), also=lambda: None)
        with trio.fail_after(300):
            await word.said.wait()
        nursery.cancel_scope.cancel()

    assert told[-1] == "complete"
    assert word.accepted
    assert rig.parked() == []


async def test_a_job_that_is_nested_too_deep_can_be_failed(
    autojump_clock: MockClock, rig: Rig
) -> None:
    """Its row has it too, in whatever it is asked for by."""
    told: list[str] = []

    def answer(route: str) -> httpx.Response:
        told.append(route)
        return httpx.Response(
            200, content=b'{"job": {"id": "bad", "status": "claimed", "payload": %s}}' % DEEP
        )

    relay = relay_to(client_of(answer), rig)
    async with trio.open_nursery() as nursery:
        nursery.start_soon(relay.run)
        await relay.put(fail_entry("bad", "job: too deep", now=0))
        with trio.fail_after(60):
            await relay.wait_empty()
        nursery.cancel_scope.cancel()

    assert told == ["acknowledge", "fail"]


async def test_orphans_are_known_however_deep_their_rows_are(autojump_clock: MockClock) -> None:
    rows = b'[{"id": "bad", "payload": %s}, {"id": "good", "payload": 1}]' % DEEP
    client = client_of(lambda _route: httpx.Response(200, content=rows))

    assert await client.orphaned() == ("bad", "good")


async def test_a_claim_is_its_good_jobs_whatever_lies_beside_them(
    autojump_clock: MockClock,
) -> None:
    good = b'{"id": "good", "type": "ssh", "execution": {"target": {}, "script": {"type": "BASH", "content": "true"}}}'  # noqa: E501
    bad = good.replace(b"good", b"bad").replace(b'"target"', b'"inputData": %s, "target"' % DEEP)
    half = good.replace(b"good", b"half").replace(b"true", b"\\ud800")
    odd = good.replace(b"good", b"odd").replace(b"true", b"\xff")
    jobs = b", ".join((bad, b"null", half, b'"text"', odd, good))
    client = client_of(lambda _route: httpx.Response(200, content=b'{"jobs": [%s]}' % jobs))

    claim = await client.claim(10)

    assert [job.id for job in claim.jobs] == ["bad", None, "half", None, "odd", "good"]


@pytest.mark.parametrize("status", [429, 503])
async def test_a_gateway_that_says_when_to_come_back_is_heeded(
    autojump_clock: MockClock, rig: Rig, status: int
) -> None:
    heard: list[float] = []

    def answer(route: str) -> httpx.Response:
        if route == "acknowledge":
            return httpx.Response(200, json=JOB)
        heard.append(trio.current_time())
        if len(heard) == 1:
            return httpx.Response(status, headers={"Retry-After": "30"}, text="slow down")
        return httpx.Response(200, json={"success": True})

    relay = relay_to(client_of(answer), rig)
    async with trio.open_nursery() as nursery:
        nursery.start_soon(relay.run)
        await relay.put(complete())
        with trio.fail_after(60):
            await relay.wait_empty()
        nursery.cancel_scope.cancel()

    first, second = heard
    assert 30 <= second - first <= 31
