"""What two connections make of a host key that neither of them knew."""

from collections.abc import Iterator

import asyncssh
import pytest
from trio.testing import MockClock

from worker.database import Database
from worker.errors import HostKeyError
from worker.remote.connection import HostKey
from worker.remote.target import Credential, Target
from worker.remote.trust import HostTrust
from worker.settings import HostKeyPolicy, SshSettings
from worker.state.directory import MIGRATIONS

WEB = Target("web", 22, "deploy", Credential())
ONE, OTHER = (
    HostKey.of(asyncssh.generate_private_key("ssh-ed25519").convert_to_public(), "10.0.0.5")
    for _ in range(2)
)


@pytest.fixture
def trust() -> Iterator[HostTrust]:
    database = Database(":memory:", MIGRATIONS, inline=True)
    settings = SshSettings(HostKeyPolicy.ACCEPT_NEW, None, 30, 10, 300, 60)
    yield HostTrust(settings, database)
    database.close()


async def test_the_same_key_may_be_pinned_twice(
    trust: HostTrust, autojump_clock: MockClock
) -> None:
    await trust.pin(WEB, ONE, "job_1")
    await trust.pin(WEB, ONE, "job_2")

    assert (await trust.check(WEB, ())).pinned == ONE.public_line


async def test_whoever_pins_another_key_a_moment_later_is_refused_with_both(
    trust: HostTrust, autojump_clock: MockClock
) -> None:
    await trust.pin(WEB, ONE, "job_1")

    with pytest.raises(HostKeyError, match="host key changed") as refused:
        await trust.pin(WEB, OTHER, "job_2")

    assert ONE.fingerprint in str(refused.value)
    assert OTHER.fingerprint in str(refused.value)
    assert (await trust.check(WEB, ())).pinned == ONE.public_line
