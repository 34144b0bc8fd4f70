"""Runs of one server go together while a call is on its way, and fail apart."""

from collections.abc import Callable, Sequence

import pytest
import trio
from trio.testing import wait_all_tasks_blocked

from worker.errors import ConnectionLostError, RunRefusedError
from worker.remote.forgetting import MOST_AT_ONCE, Forgetting
from worker.remote.target import Credential, Target

HERE, THERE = (Target(host, 22, "deploy", Credential()) for host in ("here", "there"))


class Calls:
    """What reached a server; each call waits for `go`, and `judge` may raise."""

    def __init__(self, judge: Callable[[Sequence[str]], None] = lambda _: None) -> None:
        self.ids: list[tuple[str, ...]] = []
        self.go = trio.Event()
        self._judge = judge

    async def __call__(self, ids: Sequence[str]) -> None:
        self.ids.append(tuple(ids))
        await self.go.wait()
        self._judge(ids)


async def start(
    nursery: trio.Nursery, forgetting: Forgetting, calls: Calls, *ids: str, target: Target = HERE
) -> None:
    for each in ids:
        nursery.start_soon(forgetting.forget, target, each, calls)
        await wait_all_tasks_blocked()


async def test_those_that_come_while_a_call_is_on_its_way_go_together() -> None:
    forgetting, calls, elsewhere = Forgetting(), Calls(), Calls()
    async with trio.open_nursery() as nursery:
        await start(nursery, forgetting, calls, "a", "b", "c", "d")
        await start(nursery, forgetting, elsewhere, "e", target=THERE)
        assert elsewhere.ids == [("e",)]
        calls.go.set()
        elsewhere.go.set()

    assert calls.ids == [("a",), ("b", "c", "d")]
    assert not forgetting._gatherings


async def test_more_than_a_command_line_should_hold_are_two_calls() -> None:
    forgetting, calls = Forgetting(), Calls()
    names = [f"run-{number}" for number in range(MOST_AT_ONCE + 2)]
    async with trio.open_nursery() as nursery:
        await start(nursery, forgetting, calls, *names)
        calls.go.set()

    assert [len(ids) for ids in calls.ids] == [1, MOST_AT_ONCE, 1]
    assert {each for ids in calls.ids for each in ids} == set(names)


async def test_a_run_that_goes_on_is_refused_alone() -> None:
    def judge(ids: Sequence[str]) -> None:
        if "busy" in ids:
            raise RunRefusedError(66, "still running: busy")

    forgetting, calls = Forgetting(), Calls(judge)
    refused = []

    async def forget(name: str) -> None:
        try:
            await forgetting.forget(HERE, name, calls)
        except RunRefusedError:
            refused.append(name)

    async with trio.open_nursery() as nursery:
        for name in ("a", "b", "busy", "c"):
            nursery.start_soon(forget, name)
            await wait_all_tasks_blocked()
        calls.go.set()

    assert refused == ["busy"]
    assert not forgetting._gatherings


async def test_who_waits_goes_on_where_the_one_before_failed() -> None:
    def judge(ids: Sequence[str]) -> None:
        if ids[0] == "a":
            raise ConnectionLostError("gone")

    forgetting, calls = Forgetting(), Calls(judge)

    async def fail() -> None:
        with pytest.raises(ConnectionLostError):
            await forgetting.forget(HERE, "a", calls)

    async with trio.open_nursery() as nursery:
        nursery.start_soon(fail)
        await wait_all_tasks_blocked()
        await start(nursery, forgetting, calls, "b", "c")
        calls.go.set()

    assert calls.ids == [("a",), ("b", "c")]


async def test_who_is_cancelled_holds_up_nobody() -> None:
    forgetting, calls = Forgetting(), Calls()
    scope = trio.CancelScope()
    async with trio.open_nursery() as nursery:
        nursery.start_soon(cancelled, scope, forgetting, calls)
        await wait_all_tasks_blocked()
        await start(nursery, forgetting, calls, "b")
        scope.cancel()
        await wait_all_tasks_blocked()
        assert calls.ids == [("a",), ("b",)]
        calls.go.set()

    assert not forgetting._gatherings


async def cancelled(scope: trio.CancelScope, forgetting: Forgetting, calls: Calls) -> None:
    with scope:
        await forgetting.forget(HERE, "a", calls)
