"""The tokens that the runtime API takes: one per execution, in the worker's memory alone."""

import warnings
from dataclasses import dataclass

import jwt

from worker.clock import now_ms
from worker.secret import Secret
from worker.settings import SecretSource

ALGORITHM = "HS256"
ISSUER = "cronium-orchestrator"
# A call may be on its way when the limit comes, and the runtime API's clock may be ahead of ours …
MARGIN_SECONDS = 60
# … or behind it: such a token would not be valid yet.
EARLY_SECONDS = 30


@dataclass(frozen=True, slots=True)
class Identity:
    """Whose script asks. The limit is the execution's."""

    job_id: str
    execution_id: str
    user_id: str
    event_id: str
    limit_seconds: int


class ExecutionToken:
    """Made when first needed."""

    def __init__(self, identity: Identity, secret: SecretSource) -> None:
        self._identity = identity
        self._secret = secret
        self._token: Secret | None = None

    def current(self) -> Secret:
        if self._token is None:
            self._token = sign(self._identity, self._secret.value, now=now_ms() // 1000)
        return self._token

    def renewed(self) -> Secret:
        """Another one, as the runtime API did not take the last; the secret may have changed."""
        self._token = sign(self._identity, self._secret.read(), now=now_ms() // 1000)
        return self._token


def sign(identity: Identity, secret: Secret, *, now: int) -> Secret:
    """A token that outlasts the execution; `now` is in seconds."""
    claims = {
        "jobId": identity.job_id,
        "executionId": identity.execution_id,
        "userId": identity.user_id,
        "eventId": identity.event_id,
        "iss": ISSUER,
        "sub": identity.job_id,
        "iat": now - EARLY_SECONDS,
        "nbf": now - EARLY_SECONDS,
        "exp": now + identity.limit_seconds + MARGIN_SECONDS,
    }
    with warnings.catch_warnings():
        # The settings say what a secret should have.
        warnings.filterwarnings("ignore", "The HMAC key is")
        return Secret(jwt.encode(claims, secret.reveal(), algorithm=ALGORITHM))
