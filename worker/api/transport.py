"""One call to an API of the app; the one place where httpx's errors are translated."""

import ssl
from collections import deque
from collections.abc import AsyncIterator, Callable, Mapping
from contextlib import aclosing, asynccontextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TypeVar, cast
from urllib.parse import quote

import httpx
import msgspec
import trio

from worker import __version__
from worker.api import cut, wire
from worker.api.retry_after import seconds_of
from worker.clock import now_ms
from worker.errors import ProtocolError

T = TypeVar("T")

# 401 is here because a token that was changed comes back: its file is read again.
_ASK_AGAIN = frozenset((401, 408, 425, 429))

# Whoever says these means this body, or this very call.
_FINAL = frozenset((409, 413))

# Of the routes; the rest of a path is ids.
_WORDS = frozenset(
    (
        *("jobs", "queue", "orphaned", "acknowledge", "status", "complete", "fail", "release"),
        *("executions", "create", "update", "input", "output", "condition", "context"),
        *("orchestrator", "heartbeat", "health", "metrics", "variables", "tool-actions", "execute"),
    )
)

# An API that answers needs no more calls at once; one that takes its time is not waited for with
# the next.
CALLS_AT_ONCE = 8
MOST_CONNECTIONS = 100
# As long as httpx keeps one that nobody uses.
IDLE_SECONDS = 5.0
PATIENCE_SECONDS = 0.5
# Of an answer and of what is told: ten jobs, or a result, may be large, and a line slow.
SLOWEST_BYTES_PER_SECOND = 50_000

_error = msgspec.json.Decoder(wire.ErrorBody)


@dataclass(frozen=True, slots=True)
class Api:
    """An API's name in messages, and its errors: asking again may help, or will not.

    `unavailable` takes None for the status of an answer that did not come, and after how many
    seconds to ask.
    """

    name: str
    unavailable: Callable[[str, int | None, float], Exception]
    refused: Callable[[int, str], Exception]


@dataclass(frozen=True, slots=True)
class ApiCall:
    """One that was made; `route` is without ids, `status` or else `error` is there."""

    api: str
    method: str
    route: str
    seconds: float
    status: int | None = None
    error: str | None = None


class Http:
    """The connections to the API at `base_url`; `heard` is told of each call.

    httpx's transport alone: its client follows redirects, keeps cookies, and heeds proxy
    variables, of which nothing is wanted here, and it makes a small call half as dear again.

    Each call has a transport to itself: for each, httpcore looks at all the connections that a
    transport has, twice, to see whether they are still good. For 32 jobs in flight that was a
    sixth of what a job costs.
    """

    def __init__(
        self,
        base_url: str,
        new_transport: Callable[[], httpx.AsyncBaseTransport],
        heard: Callable[[ApiCall], None] | None = None,
    ) -> None:
        self._base_url = base_url.rstrip("/")
        self._host = httpx.URL(base_url).host
        self._new_transport = new_transport
        # With when they were used: the last of them last, as its connection is most likely to
        # be there still.
        self._idle: deque[tuple[httpx.AsyncBaseTransport, float]] = deque()
        self._heard = heard
        self._turns = trio.Semaphore(CALLS_AT_ONCE)
        self._connections = trio.CapacityLimiter(MOST_CONNECTIONS)

    async def aclose(self) -> None:
        """Close what no call uses."""
        while self._idle:
            transport, _ = self._idle.pop()
            await transport.aclose()

    async def request(
        self,
        method: str,
        path: str,
        *,
        content: bytes | None,
        headers: Mapping[str, str],
        seconds: float,
    ) -> httpx.Response:
        """The whole answer; `seconds` is for each step of the way to it. Its body is one, with
        more time for the more that has come, as there is for much `content`.

        Raises what httpx does.
        """
        request = httpx.Request(
            method,
            f"{self._base_url}/{path}",
            content=content,
            headers={
                "Accept": "application/json",
                "User-Agent": f"cronium-worker/{__version__}",
                **headers,
            },
            extensions={"timeout": _limits(seconds, content or b"").as_dict()},
        )
        began = trio.current_time()
        status = error = None
        try:
            response = await self._in_turn(request, seconds)
            status = response.status_code
        except httpx.HTTPError as failure:
            error = type(failure).__name__
            raise
        finally:
            if self._heard is not None and (status is not None or error is not None):
                took = trio.current_time() - began
                self._heard(ApiCall(self._host, method, _route(path), took, status, error))
        return response

    async def _in_turn(self, request: httpx.Request, seconds: float) -> httpx.Response:
        has_turn = False
        with trio.move_on_after(PATIENCE_SECONDS):
            await self._turns.acquire()
            has_turn = True
        try:
            async with self._connections:
                return await self._send(request, seconds)
        finally:
            if has_turn:
                self._turns.release()

    async def _send(self, request: httpx.Request, seconds: float) -> httpx.Response:
        transport = self._idle.pop()[0] if self._idle else self._new_transport()
        try:
            response = await transport.handle_async_request(request)
            response.request = request
            try:
                with trio.move_on_after(seconds) as limit:
                    body = cast("httpx.AsyncByteStream", response.stream)
                    response.stream = _Growing(body, limit)
                    await response.aread()
                if limit.cancelled_caught:
                    raise httpx.ReadTimeout("the answer does not end", request=request)
            finally:
                await response.aclose()  # noqa: ASYNC102  httpcore shields it
        finally:
            self._idle.append((transport, trio.current_time()))
            await self._close_oldest()  # noqa: ASYNC102  httpcore shields it
        return response

    async def _close_oldest(self) -> None:
        """If that is one too many, or was not used for long. One for each call is enough."""
        transport, used_at = self._idle[0]
        if len(self._idle) > CALLS_AT_ONCE or trio.current_time() - used_at > IDLE_SECONDS:
            self._idle.popleft()
            await transport.aclose()


def _limits(seconds: float, content: bytes) -> httpx.Timeout:
    """httpx writes a body in one step; the end of it is on its way still when that is over."""
    told = seconds + len(content) / SLOWEST_BYTES_PER_SECOND
    return httpx.Timeout(seconds, write=told, read=told)


class _Growing(httpx.AsyncByteStream):
    """A body whose every byte moves `limit` away.

    httpx limits the wait for each piece, of which there may be any number.
    """

    def __init__(self, body: httpx.AsyncByteStream, limit: trio.CancelScope) -> None:
        self._body = body
        self._pieces = aiter(body)
        self._limit = limit

    def __aiter__(self) -> AsyncIterator[bytes]:
        return self

    async def __anext__(self) -> bytes:
        piece = await anext(self._pieces)
        self._limit.deadline += len(piece) / SLOWEST_BYTES_PER_SECOND
        return piece

    async def aclose(self) -> None:
        await self._body.aclose()


@asynccontextmanager
async def open_http(
    base_url: str,
    authorities: Path | None = None,
    heard: Callable[[ApiCall], None] | None = None,
) -> AsyncIterator[Http]:
    """`authorities` is a file of those that are trusted in the place of the public ones."""
    # An app that a proxy variable names by accident is a job's output gone astray.
    new_transport = partial(
        httpx.AsyncHTTPTransport, verify=_tls(base_url, authorities), trust_env=False
    )
    async with aclosing(Http(base_url, new_transport, heard)) as http:
        yield http


def _tls(base_url: str, authorities: Path | None) -> ssl.SSLContext:
    """Where there is no TLS one that trusts nobody: to read who is trusted takes 30 ms."""
    if httpx.URL(base_url).scheme != "https":
        return ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    if authorities is not None:
        return ssl.create_default_context(cafile=authorities)
    return httpx.create_ssl_context(trust_env=False)


async def send(
    http: Http,
    api: Api,
    method: str,
    path: str,
    content: bytes | None,
    *,
    headers: Mapping[str, str],
    seconds: float,
) -> httpx.Response:
    """The answer, whatever its status."""
    headers = {"Content-Type": "application/json", **headers}
    try:
        return await http.request(method, path, content=content, headers=headers, seconds=seconds)
    except httpx.TimeoutException as error:
        raise api.unavailable(f"{api.name} gave no answer within {seconds:g} s", None, 0) from error
    except (httpx.TransportError, httpx.InvalidURL) as error:
        message = f"{api.name} cannot be reached: {_reason(error)}"
        raise api.unavailable(message, None, 0) from error
    except httpx.HTTPError as error:  # undecodable content, too many redirects
        raise ProtocolError(f"{api.name}'s answer: {error}") from error


def _reason(error: BaseException) -> str:
    """What it says, or what led to it: trio's own errors say nothing of a certificate."""
    cause: BaseException | None = error
    while cause is not None:
        if isinstance(cause, ssl.SSLCertVerificationError):
            return f"its certificate is not trusted ({cause.verify_message}); see CRONIUM_API_CA"
        if said := str(cause):
            return said
        cause = cause.__cause__ or cause.__context__
    return type(error).__name__


def check(api: Api, response: httpx.Response) -> httpx.Response:
    """The answer, if it says that the call took effect."""
    if response.is_success:
        return response
    message = _message(response)
    status = response.status_code
    # The API says why; a gateway that does not know the route for a while does not.
    passes = status in _ASK_AGAIN or response.is_server_error
    if passes or (message is None and status not in _FINAL):
        reason = message or response.reason_phrase
        after_seconds = seconds_of(response.headers.get("Retry-After", ""), now=now_ms() / 1000)
        raise api.unavailable(f"{api.name} answered {status}: {reason}", status, after_seconds)
    raise api.refused(status, message or response.reason_phrase)


def segment(name: str) -> str:
    return quote(name, safe="")


def _route(path: str) -> str:
    """Without what names one job, execution, user or variable."""
    parts = path.partition("?")[0].split("/")
    return "/".join(part if part in _WORDS else "{}" for part in parts)


def decode(
    decoder: msgspec.json.Decoder[T], response: httpx.Response, *, is_deep: bool = False
) -> T:
    """What the answer says; `is_deep` is for what holds more than is read, however deep that is."""
    content = response.content
    try:
        try:
            return decoder.decode(content)
        except RecursionError:
            if not is_deep:
                raise
            return decoder.decode(cut.shallow(content))
    except wire.UNDECODABLE as error:
        raise ProtocolError(f"{response.request.url.path}: {error}") from error


def _message(response: httpx.Response) -> str | None:
    """What the API itself says of its refusal; None if that was not the API."""
    try:
        body = _error.decode(response.content)
    except wire.UNDECODABLE:
        return None
    if not body.error:  # a gateway's
        return None
    # The runtime API has the status in words as `error`, and says why beside it.
    said = body.message if isinstance(body.message, str) else ""
    return (said or body.error)[:300] or None
