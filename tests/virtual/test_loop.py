"""The loop that asyncssh runs in: much at a time, and others have their turn."""

import asyncio

import pytest
import structlog
import trio
import trio.lowlevel
import trio_asyncio

from worker.remote import loop as eager
from worker.remote.loop import MOST_AT_ONCE, EagerLoop, is_known, open_loop

CALLBACKS = 100


async def turns_of_others(callbacks: int) -> int:
    """How often another task has its turn until all `callbacks` are through."""
    done = 0
    turns = 0

    def call() -> None:
        nonlocal done
        done += 1

    loop = trio_asyncio.current_loop.get()
    for _ in range(callbacks):
        loop.call_soon(call)
    while done < callbacks:
        await trio.lowlevel.checkpoint()
        turns += 1
    return turns


async def test_many_callbacks_are_done_in_one_turn_and_not_all_of_them() -> None:
    with trio.fail_after(5):
        async with open_loop():
            assert isinstance(trio_asyncio.current_loop.get(), EagerLoop)
            turns = await turns_of_others(CALLBACKS)

    assert CALLBACKS // MOST_AT_ONCE <= turns < 2 * CALLBACKS // MOST_AT_ONCE


async def test_timers_come_in_their_order_among_callbacks() -> None:
    said: list[str] = []
    with trio.fail_after(5):
        async with open_loop():
            loop = trio_asyncio.current_loop.get()
            loop.call_later(0.05, said.append, "late")
            loop.call_later(0.01, said.append, "soon")
            loop.call_soon(said.append, "at once")
            await trio.sleep(0.1)

    assert said == ["at once", "soon", "late"]


async def test_tasks_of_asyncio_and_trio_end_as_they_should() -> None:
    async def add(number: int) -> int:
        await asyncio.sleep(0)
        there: int = await trio_asyncio.trio_as_aio(trio_add)(number)
        return number + there

    async def trio_add(number: int) -> int:
        await trio.lowlevel.checkpoint()
        return number

    with trio.fail_after(5):
        async with open_loop():
            sums = [await trio_asyncio.aio_as_trio(add)(number) for number in range(20)]
            with pytest.raises(ZeroDivisionError):
                await trio_asyncio.aio_as_trio(fail)()

    assert sums == [2 * number for number in range(20)]


async def fail() -> None:
    await asyncio.sleep(0)
    raise ZeroDivisionError


def test_this_trio_asyncio_is_known() -> None:
    assert is_known(trio_asyncio.TrioEventLoop)


async def test_with_another_it_goes_on_as_that_has_it(monkeypatch: pytest.MonkeyPatch) -> None:
    async def one(self: object) -> None: ...

    monkeypatch.setattr(trio_asyncio.TrioEventLoop, "_main_loop_one", one)
    assert not is_known(trio_asyncio.TrioEventLoop)
    monkeypatch.undo()
    monkeypatch.setattr(eager, "is_known", lambda _kind: False)
    eager._say_once.cache_clear()

    with trio.fail_after(5), structlog.testing.capture_logs() as lines:
        async with open_loop():
            turns = await turns_of_others(CALLBACKS)

    assert turns >= CALLBACKS
    assert [line["event"] for line in lines] == ["eager_loop_off"]


async def test_what_asyncio_only_reports_ends_nothing() -> None:
    with trio.fail_after(5), structlog.testing.capture_logs() as lines:
        async with open_loop():
            trio_asyncio.current_loop.get().call_soon(lambda: 1 / 0)
            await trio.sleep(0.05)

    assert [line["event"] for line in lines] == ["asyncio_error"]
