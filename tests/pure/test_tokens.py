"""The tokens of the runtime API."""

from pathlib import Path

import jwt
import pytest
from hypothesis import given
from hypothesis import strategies as st

from worker.api.tokens import EARLY_SECONDS, MARGIN_SECONDS, ExecutionToken, Identity, sign
from worker.secret import Secret
from worker.settings import SecretSource
from worker.values import is_jwt_secret

SECRET = "a-secret-of-the-app-32-characters"  # noqa: S105  opens nothing
NOW = 1_795_422_166
SOMEBODY = Identity("job_1", "exec_job_1_1_0", "user-1", "12", 30)


def claims_of(token: Secret, secret: str = SECRET) -> dict[str, object]:
    """As the runtime API verifies them, but for the clock."""
    return jwt.decode(
        token.reveal(),
        secret,
        algorithms=["HS256"],
        options={"verify_exp": False, "verify_nbf": False, "verify_iat": False},
    )


def test_a_token_has_the_claims_of_the_contract_and_outlasts_its_execution() -> None:
    token = sign(SOMEBODY, Secret(SECRET), now=NOW)

    assert jwt.get_unverified_header(token.reveal())["alg"] == "HS256"
    assert claims_of(token) == {
        "jobId": "job_1",
        "executionId": "exec_job_1_1_0",
        "userId": "user-1",
        "eventId": "12",
        "iss": "cronium-orchestrator",
        "sub": "job_1",
        "iat": NOW - EARLY_SECONDS,
        "nbf": NOW - EARLY_SECONDS,
        "exp": NOW + 30 + MARGIN_SECONDS,
    }


@given(names=st.lists(st.text(), min_size=4, max_size=4), limit=st.integers(1, 30 * 86400))
def test_any_identity_can_be_signed_and_read_back(names: list[str], limit: int) -> None:
    identity = Identity(names[0], names[1], names[2], names[3], limit)

    claims = claims_of(sign(identity, Secret(SECRET), now=NOW))

    told = [claims[name] for name in ("jobId", "executionId", "userId", "eventId")]
    assert told == names


def test_a_token_of_another_secret_is_not_accepted() -> None:
    token = sign(SOMEBODY, Secret(SECRET), now=NOW)

    with pytest.raises(jwt.InvalidSignatureError):
        claims_of(token, "another-secret-of-32-characters-!")


def test_a_short_secret_signs_without_a_word() -> None:
    token = sign(SOMEBODY, Secret("x" * 16), now=NOW)  # a warning would be an error here

    assert token.reveal().count(".") == 2


def test_a_token_is_made_once_and_anew_when_asked_for(tmp_path: Path) -> None:
    file = tmp_path / "secret"
    file.write_text(SECRET)
    token = ExecutionToken(SOMEBODY, SecretSource(Secret(SECRET), file, is_jwt_secret))
    first = token.current()
    assert token.current() is first

    changed = "another-secret-of-32-characters-!"
    file.write_text(changed)
    assert token.current() is first
    renewed = token.renewed()

    assert claims_of(renewed, changed)["executionId"] == "exec_job_1_1_0"
    assert token.current() is renewed


def test_a_token_is_not_shown() -> None:
    token = sign(SOMEBODY, Secret(SECRET), now=NOW)

    assert (repr(token), str(token)) == ("***", "***")
