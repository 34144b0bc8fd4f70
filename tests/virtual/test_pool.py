"""Who gets which connection where the worker's limit is reached; all are made at once."""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import replace
from types import SimpleNamespace
from typing import cast

import pytest
import trio
from trio.testing import MockClock, wait_all_tasks_blocked

from tests.virtual.test_jobs import SETTINGS, a_job, a_server
from worker.dispatch.plan import plan_job
from worker.dispatch.server import Resumption, ServerExecution
from worker.errors import NoChannelError
from worker.remote.attachment import Offsets
from worker.remote.connection import Connection
from worker.remote.connector import Connector
from worker.remote.credentials import Credentials, OpenedCredential
from worker.remote.deployments import Deployments, Source, UsableRunner
from worker.remote.pool import Pool
from worker.remote.pooled import PooledConnection, places_for_runs
from worker.remote.session import Remote, ServerSession
from worker.remote.target import Credential, Target
from worker.secret import Secret
from worker.trigger import Trigger

PLACES = places_for_runs(10)
AN_HOUR = 3600


class Network:
    """Each connection is made at once, and gives no channel."""

    def __init__(self) -> None:
        self.made = 0
        self.tries = 0
        self.open_channels = 0

    def edition(self) -> None:
        """There is no known_hosts."""

    @asynccontextmanager
    async def connection(
        self, target: Target, _opened: OpenedCredential, _job_id: str
    ) -> AsyncIterator[Connection]:
        await trio.lowlevel.checkpoint()
        self.made += 1
        made = SimpleNamespace(
            lost=trio.Event(), channels=self.open_channels, target=target, exec=self._exec
        )
        yield cast("Connection", made)

    async def _exec(self, _command: str) -> None:
        self.tries += 1
        await trio.sleep(0.001)
        raise NoChannelError("open failed")


@pytest.fixture
def network() -> Network:
    return Network()


@pytest.fixture
def pool(network: Network, nursery: trio.Nursery) -> Pool:
    """One connection at most."""
    settings = replace(SETTINGS.ssh, max_connections=1, idle_seconds=300)
    return Pool(cast("Connector", network), settings, nursery)


def a_target(host: str = "a", password: str = "x") -> Target:  # noqa: S107
    return Target(host, 22, "deploy", Credential(password=Secret(password)))


async def opened() -> OpenedCredential:
    await trio.lowlevel.checkpoint()
    return OpenedCredential(None, Secret("x"))


async def a_place(pool: Pool, host: str = "a", *, urgent: bool = False) -> PooledConnection:
    return await pool.place(a_target(host), opened, "job_1", urgent=urgent)


def a_session(pool: Pool, host: str) -> ServerSession:
    remote = Remote(pool, cast("Deployments", NoDeployments()))
    return ServerSession(remote, host, a_target(host), no_credentials(), job_id="job_1")


def no_credentials() -> Credentials:
    return Credentials(None, lambda _: None)


class NoDeployments:
    """What follows on a connection."""

    async def runner(self, *_args: object) -> UsableRunner:
        await trio.sleep_forever()


class Waiting:
    """Somebody who wants a place, until it is theirs."""

    def __init__(self, pool: Pool, nursery: trio.Nursery, host: str = "a") -> None:
        self.got = trio.Event()
        self.place: PooledConnection | None = None
        self.scope = trio.CancelScope()
        nursery.start_soon(self._wait, pool, host)

    async def _wait(self, pool: Pool, host: str) -> None:
        with self.scope:
            self.place = await a_place(pool, host)
            self.got.set()


async def test_a_place_that_is_left_goes_to_who_waits_and_not_to_newcomers(
    autojump_clock: MockClock, pool: Pool, nursery: trio.Nursery
) -> None:
    held = [await a_place(pool) for _ in range(PLACES)]
    waiting = [Waiting(pool, nursery) for _ in range(2)]
    await wait_all_tasks_blocked()
    newcomers = []

    for left in held[:2]:
        pool.leave(left)
        newcomers.append(Waiting(pool, nursery))
        await wait_all_tasks_blocked()

    assert [each.place for each in waiting] == [held[0], held[0]]
    assert not any(each.got.is_set() for each in newcomers)


async def test_a_place_that_is_given_to_who_does_not_wait_any_more_is_left_again(
    autojump_clock: MockClock, pool: Pool, nursery: trio.Nursery
) -> None:
    held = [await a_place(pool) for _ in range(PLACES)]
    gone, next_one = Waiting(pool, nursery), Waiting(pool, nursery)
    await wait_all_tasks_blocked()

    pool.leave(held[0])
    gone.scope.cancel()
    await wait_all_tasks_blocked()

    assert (gone.place, next_one.place) == (None, held[0])
    for left in [*held[1:], held[0]]:
        pool.leave(left)
    assert held[0].is_idle


async def test_who_waits_for_one_server_shares_the_connection_that_another_got(
    autojump_clock: MockClock, pool: Pool, nursery: trio.Nursery
) -> None:
    held = await a_place(pool, "other")
    waiting = [Waiting(pool, nursery) for _ in range(3)]
    await wait_all_tasks_blocked()

    pool.leave(held)
    await wait_all_tasks_blocked()

    assert len({each.place for each in waiting}) == 1
    assert all(each.got.is_set() for each in waiting)


async def test_what_went_beyond_the_limit_does_not_stay_there_idle(
    autojump_clock: MockClock, pool: Pool, nursery: trio.Nursery
) -> None:
    within = await a_place(pool, "a")
    beyond = await a_place(pool, "b", urgent=True)
    await pool.connection(within)
    await pool.connection(beyond)

    pool.leave(beyond)
    await wait_all_tasks_blocked()
    assert pool.now.connections == 1
    pool.leave(within)

    with trio.fail_after(1):
        await a_place(pool, "c")


async def test_a_connection_that_is_gone_takes_no_slot_with_its_last_place(
    autojump_clock: MockClock, pool: Pool, nursery: trio.Nursery
) -> None:
    place = await a_place(pool)
    connection = await pool.connection(place)
    connection.lost.set()
    await wait_all_tasks_blocked()

    pool.leave(place)

    with trio.fail_after(1):
        await a_place(pool, "b")


async def test_a_run_is_attached_to_again_although_others_wait_for_connections(
    autojump_clock: MockClock, pool: Pool, network: Network, nursery: trio.Nursery
) -> None:
    ours, others = a_session(pool, "a"), a_session(pool, "b")
    await ours.take_place()
    nursery.start_soon(others.take_place)
    await wait_all_tasks_blocked()

    await ours.pause()  # its connection was lost
    await wait_all_tasks_blocked()
    with trio.move_on_after(AN_HOUR):
        await ours.attach("exec_1", Offsets())

    assert network.made == 3


async def test_a_run_of_an_earlier_worker_is_cancelled_although_others_have_all_connections(
    autojump_clock: MockClock, pool: Pool, network: Network, nursery: trio.Nursery
) -> None:
    await a_session(pool, "b").take_place()  # for a day
    plan = plan_job(a_job(a_server(1)), sealing_key=None, max_execution_seconds=60)
    cancelled = Trigger()

    async def still_ours() -> bool:
        await trio.lowlevel.checkpoint()
        return True

    execution = ServerExecution(
        plan,
        plan.executions[0],
        Remote(pool, cast("Deployments", NoDeployments())),
        SETTINGS,
        credentials=no_credentials(),
        cancelled=cancelled,
        still_ours=still_ours,
        sink=cast("object", None),  # type: ignore[arg-type]
        calls=cast("object", None),  # type: ignore[arg-type]
        resumption=Resumption(may_have_begun=True, has_begun=True),
    )

    async with trio.open_nursery() as running:
        running.start_soon(execution.run, lambda: None)
        await trio.sleep(10)
        assert network.made == 1
        cancelled.set()
        await trio.sleep(10)
        assert network.made == 2
        running.cancel_scope.cancel()


async def test_a_channel_that_nobody_has_any_more_is_no_reason_to_try_for_ever(
    autojump_clock: MockClock, network: Network, nursery: trio.Nursery
) -> None:
    pool = Pool(cast("Connector", network), SETTINGS.ssh, nursery)
    network.open_channels = 1  # of a run that was let go, and that its server has not ended yet
    session = a_session(pool, "a")
    await session.take_place()
    assert session._pooled is not None
    await pool.connection(session._pooled)
    session._pooled.know_runner(UsableRunner("/runner", Source.CACHED, None, 10**6))

    with trio.move_on_after(10):
        await session.attach("exec_1", Offsets())

    assert (network.tries, network.made) == (1, 2)


async def test_what_servers_refused_is_not_known_for_ever(
    autojump_clock: MockClock, network: Network, nursery: trio.Nursery
) -> None:
    pool = Pool(cast("Connector", network), SETTINGS.ssh, nursery)
    network.open_channels = 3
    for number in range(20):
        place = await pool.place(a_target(password=f"rotated {number}"), opened, "job_1")
        connection = await pool.connection(place)
        assert not await pool.made_room(place, connection, 1)
        pool.leave(place)
        await trio.sleep(AN_HOUR)

    assert len(pool._lessons) == 1
