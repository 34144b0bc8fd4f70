"""A refused credential is remembered for a minute."""

import pytest
import trio
from trio.testing import MockClock

from worker.errors import AuthenticationError, ConnectError
from worker.remote.refusals import Refusals
from worker.remote.target import Credential, Target
from worker.secret import Secret

REFUSED = AuthenticationError("deploy@web-1:22 refused the credential")


def target(host: str = "web-1", user: str = "deploy", password: str = "wrong") -> Target:  # noqa: S107
    return Target(host, 22, user, Credential(password=Secret(password)))


def attempt(refusals: Refusals, where: Target, error: Exception | None = None) -> None:
    with refusals.heeded(where):
        if error is not None:
            raise error


def refuse(refusals: Refusals, where: Target) -> None:
    with pytest.raises(AuthenticationError):
        attempt(refusals, where, REFUSED)


async def test_it_is_not_shown_again_for_a_minute(autojump_clock: MockClock) -> None:
    refusals = Refusals()
    refuse(refusals, target())
    await trio.sleep(59)

    with pytest.raises(AuthenticationError, match="refused the credential 59 s ago"):
        attempt(refusals, target())

    await trio.sleep(1.1)
    attempt(refusals, target())


async def test_an_attempt_that_was_not_made_does_not_count(autojump_clock: MockClock) -> None:
    refusals = Refusals()
    refuse(refusals, target())
    await trio.sleep(30)
    with pytest.raises(AuthenticationError, match="for another 30 s"):
        attempt(refusals, target())
    await trio.sleep(30.1)

    attempt(refusals, target())


@pytest.mark.parametrize(
    "other",
    [target(host="web-2"), target(user="root"), target(password="right")],
    ids=["server", "user", "credential"],
)
async def test_another_server_user_or_credential_is_tried(
    autojump_clock: MockClock, other: Target
) -> None:
    await trio.lowlevel.checkpoint()
    refusals = Refusals()
    refuse(refusals, target())

    attempt(refusals, other)


async def test_what_is_no_refusal_is_not_remembered(autojump_clock: MockClock) -> None:
    await trio.lowlevel.checkpoint()
    refusals = Refusals()
    with pytest.raises(ConnectError):
        attempt(refusals, target(), ConnectError("no route"))

    attempt(refusals, target())


async def test_what_is_remembered_is_bounded_and_no_secret(autojump_clock: MockClock) -> None:
    refusals = Refusals()
    for number in range(100):
        refuse(refusals, target(password=f"wrong-{number}"))
        await trio.sleep(1)

    assert len(refusals._until) <= 61
    assert "wrong" not in repr(refusals._until)
