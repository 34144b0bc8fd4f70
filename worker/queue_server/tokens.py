"""The tokens that the runtime API takes, one per execution: verified, never made."""

import warnings
from typing import Annotated, Any

import jwt
import msgspec
from msgspec import Meta

from worker.errors import WorkerError
from worker.secret import Secret

# Pinned, whatever the token's own header says.
ALGORITHMS = ("HS256",)
ISSUER = "cronium-orchestrator"
# The issuer is required by being given.
REQUIRED = ("sub", "iat", "nbf", "exp")
# Ids have a hundred characters or so: a worker's token has less than a kilobyte.
MAX_CHARACTERS = 4096

Name = Annotated[str, Meta(min_length=1, max_length=255)]


class TokenError(WorkerError):
    """The token is not one that this queue's workers make, or it is not valid at this time."""


class Claims(msgspec.Struct, frozen=True, kw_only=True, rename="camel"):
    """Whose script asks, as the worker signed it (api-contract.md, JWT of an execution)."""

    job_id: Name
    execution_id: Name
    user_id: Name
    event_id: Name


def verify(token: str, secret: Secret) -> Claims:
    """The claims of `token`; a token for some audience is not for us.

    Raises TokenError, naming what is wrong but nothing of what the token holds.
    """
    if len(token) > MAX_CHARACTERS:
        raise TokenError("the token is too long")
    payload = _payload(token, secret)
    try:
        claims = msgspec.convert(payload, Claims)
    except msgspec.ValidationError as error:
        raise TokenError(f"the token's claims: {error}") from error
    if payload["sub"] != claims.job_id:
        raise TokenError("the token's claims: `sub` is not `jobId`")
    return claims


def _payload(token: str, secret: Secret) -> dict[str, Any]:
    with warnings.catch_warnings():
        # The settings say what a secret should have.
        warnings.filterwarnings("ignore", "The HMAC key is")
        try:
            return jwt.decode(
                token,
                secret.reveal(),
                algorithms=ALGORITHMS,
                issuer=ISSUER,
                options={"require": list(REQUIRED)},
            )
        except jwt.DecodeError as error:
            # A signature under another secret is one too; what else it says is of the bytes.
            said = (
                "its signature is not made with this queue's CRONIUM_JWT_SECRET"
                if isinstance(error, jwt.InvalidSignatureError)
                else "it is none"
            )
            raise TokenError(f"the token: {said}") from error
        except jwt.InvalidTokenError as error:
            raise TokenError(f"the token: {error}") from error
