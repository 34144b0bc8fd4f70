"""Reading requests and writing answers; what the queue API and the runtime API share."""

import json
import re
from typing import TypeVar

import msgspec
from starlette.requests import ClientDisconnect, Request
from starlette.responses import Response

T = TypeVar("T")

MIB = 1024 * 1024

# An odd number of backslashes: "\\u0000" is a backslash and five letters.
_nul = re.compile(rb"(?<!\\)(?:\\\\)*\\u0000")


class RefusedError(Exception):
    """The answer is an error with this status."""

    def __init__(self, status: int, message: str) -> None:
        super().__init__(message)
        self.status = status


async def read_body(request: Request, *, max_bytes: int) -> bytes:
    """Raises RefusedError if it is too long, ClientDisconnect if it does not come."""
    raw, more = bytearray(), True
    while more:  # not request.stream(), a generator that would stay open after a refusal
        message = await request.receive()
        if message["type"] == "http.disconnect":
            raise ClientDisconnect
        raw += message.get("body", b"")
        more = message.get("more_body", False)
        if len(raw) > max_bytes:
            raise RefusedError(413, f"Body exceeded {max_bytes // MIB}mb limit")
    return bytes(raw)


def holds_nul(body: bytes) -> bool:
    """Whether a text in the JSON of `body` has a NUL, which PostgreSQL cannot keep."""
    return b"\\u0000" in body and _nul.search(body) is not None


def json_answer(
    value: object, *, status: int = 200, headers: dict[str, str] | None = None
) -> Response:
    try:
        content = msgspec.json.encode(value)
    except UnicodeEncodeError:
        # Half of a surrogate pair, as JSON can have it: for whoever reads the job that it is in.
        content = json.dumps(value).encode()
    return Response(content, status, headers, media_type="application/json")
