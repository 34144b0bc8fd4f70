"""One call to an API of the app; the one place where httpx's errors are translated."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import TypeVar
from urllib.parse import quote

import httpx
import msgspec

from worker import __version__
from worker.api import wire
from worker.errors import ProtocolError

T = TypeVar("T")

# 401 is here because a token that was changed comes back: its file is read again.
_ASK_AGAIN = frozenset((401, 408, 425, 429))

# Whoever says these means this body, or this very call.
_FINAL = frozenset((409, 413))

_error = msgspec.json.Decoder(wire.ErrorBody)


@dataclass(frozen=True, slots=True)
class Api:
    """An API's name in messages, and its errors: asking again may help, or will not.

    `unavailable` takes None for the status of an answer that did not come.
    """

    name: str
    unavailable: Callable[[str, int | None], Exception]
    refused: Callable[[int, str], Exception]


def new_client(base_url: str) -> httpx.AsyncClient:
    return httpx.AsyncClient(
        base_url=base_url + "/",
        headers={"Accept": "application/json", "User-Agent": f"cronium-worker/{__version__}"},
        # An app that a proxy variable names by accident is a job's output gone astray.
        trust_env=False,
    )


async def send(
    http: httpx.AsyncClient,
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
        return await http.request(method, path, content=content, headers=headers, timeout=seconds)
    except httpx.TimeoutException as error:
        raise api.unavailable(f"{api.name} gave no answer within {seconds:g} s", None) from error
    except (httpx.TransportError, httpx.InvalidURL) as error:
        message = f"{api.name} cannot be reached: {str(error) or type(error).__name__}"
        raise api.unavailable(message, None) from error
    except httpx.HTTPError as error:  # undecodable content, too many redirects
        raise ProtocolError(f"{api.name}'s answer: {error}") from error


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
        raise api.unavailable(f"{api.name} answered {status}: {reason}", status)
    raise api.refused(status, message or response.reason_phrase)


def segment(name: str) -> str:
    return quote(name, safe="")


def decode(decoder: msgspec.json.Decoder[T], response: httpx.Response) -> T:
    try:
        return decoder.decode(response.content)
    except wire.UNDECODABLE as error:
        raise ProtocolError(f"{response.request.url.path}: {error}") from error


def _message(response: httpx.Response) -> str | None:
    """What the API itself says of its refusal; None if that was not the API."""
    try:
        body = _error.decode(response.content)
    except wire.UNDECODABLE:
        return None
    # The runtime API has the status in words as `error`, and says why beside it.
    said = body.message if isinstance(body.message, str) else ""
    return (said or body.error)[:300] or None
