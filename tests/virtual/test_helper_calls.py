"""The calls of one script: done once each, some at once, answered whatever happens."""

import json
from dataclasses import dataclass, field, replace
from typing import Any

import pytest
import trio
from msgspec import Raw
from structlog.testing import capture_logs
from trio.testing import MockClock, wait_all_tasks_blocked

from worker.dispatch.helper_calls import (
    MOST_AT_ONCE,
    MOST_REMEMBERED,
    MOST_REMEMBERED_BYTES,
    MOST_WAITING,
    HelperCalls,
)
from worker.dispatch.plan import Plan, PlannedExecution, Server
from worker.errors import HelperCallError
from worker.remote.payload import Interpreter

EXECUTION = PlannedExecution("exec_job_1_7_2", Server("7", "web-7", None))
PLAN = Plan(
    job_id="job_1",
    event_id="12",
    executions=(EXECUTION,),
    interpreter=Interpreter.BASH,
    script=b"",
    environment={},
    input=b'{"a": 1}',
    directory="",
    limit_seconds=30,
    attempts=2,
    user_id="user-1",
    event_name="nightly",
    event_version=3,
    triggered_by="schedule",
)


@dataclass
class FakeRuntime:
    """Variables in memory; each call takes `seconds`."""

    seconds: float = 0
    kept: dict[str, Raw] = field(default_factory=dict)
    done: list[tuple[str, ...]] = field(default_factory=list)
    fault: Exception | None = None
    going: int = 0
    most_going: int = 0

    async def variable(self, key: str) -> Raw:
        await self._work("get", key)
        if key not in self.kept:
            raise HelperCallError(f"there is no variable {key}")
        return self.kept[key]

    async def set_variable(self, key: str, value: Raw) -> None:
        await self._work("set", key, bytes(value).decode())
        self.kept[key] = value

    async def execute_tool_action(self, tool: str, action: str, config: Raw) -> Raw:
        await self._work(tool, action, bytes(config).decode())
        return Raw(b'{"sent":true}')

    async def _work(self, *what: str) -> None:
        self.going += 1
        self.most_going = max(self.most_going, self.going)
        try:
            await trio.sleep(self.seconds)
        finally:
            self.going -= 1
        if self.fault is not None:
            raise self.fault
        self.done.append(what)


@dataclass
class Desk:
    """A script's calls as the runner hands them on, and what comes back by their ids."""

    runtime: FakeRuntime
    calls: HelperCalls
    nursery: trio.Nursery
    answers: dict[str, list[bytes]] = field(default_factory=dict)

    def ask(self, call_id: str, call: str, form: str = "json", **fields: object) -> bool:
        """Whether an answer is to be expected."""
        return self.ask_raw(call_id, json.dumps({"call": call, "form": form, **fields}).encode())

    def ask_raw(self, call_id: str, request: bytes) -> bool:
        waiting = self.calls.take(call_id, request)
        if waiting is None:
            return False

        async def deliver(answer: bytes) -> None:
            await trio.lowlevel.checkpoint()
            self.answers.setdefault(call_id, []).append(answer)

        self.nursery.start_soon(self.calls.answer, waiting, deliver)
        return True

    async def answer(self, call: str, form: str = "json", **fields: object) -> tuple[str, Any]:
        """Ask and wait: `ok` or `error`, and the body."""
        call_id = f"call-{len(self.answers)}"
        assert self.ask(call_id, call, form, **fields)
        while call_id not in self.answers:
            await trio.sleep(0.001)
        head, body = self.answers[call_id][0].decode().split("\n", 1)
        return head, json.loads(body) if form == "json" else body


@pytest.fixture
def runtime() -> FakeRuntime:
    return FakeRuntime()


@pytest.fixture
def desk(runtime: FakeRuntime, nursery: trio.Nursery) -> Desk:
    return Desk(runtime, HelperCalls(PLAN, EXECUTION, runtime), nursery)


async def test_input_and_event_come_from_the_job(desk: Desk, autojump_clock: MockClock) -> None:
    assert await desk.answer("input") == ("ok", {"a": 1})
    assert await desk.answer("input", "text") == ("ok", '{"a": 1}')
    assert await desk.answer("event") == (
        "ok",
        {
            "id": "12",
            "name": "nightly",
            "version": 3,
            "jobId": "job_1",
            "executionId": "exec_job_1_7_2",
            "serverId": "7",
            "serverName": "web-7",
            "attempts": 2,
            "triggeredBy": "schedule",
        },
    )
    assert desk.runtime.done == []


async def test_an_event_has_what_is_known(
    runtime: FakeRuntime, nursery: trio.Nursery, autojump_clock: MockClock
) -> None:
    bare = Plan("job_1", "", (EXECUTION,), Interpreter.BASH, b"", {}, b"{}", "", 30)
    desk = Desk(runtime, HelperCalls(bare, EXECUTION, runtime), nursery)

    _, event = await desk.answer("event")

    assert sorted(event) == ["attempts", "executionId", "jobId", "serverId", "serverName"]


async def test_what_was_said_last_counts(desk: Desk, autojump_clock: MockClock) -> None:
    assert (desk.calls.output, desk.calls.condition) == (None, None)

    assert await desk.answer("output", data=1) == ("ok", None)
    assert await desk.answer("output", "text", dataText='{"a": [1.10]}') == ("ok", "")
    assert await desk.answer("setCondition", condition=True) == ("ok", None)
    assert await desk.answer("setCondition", condition="false") == ("ok", None)

    assert (desk.calls.output, desk.calls.condition) == (b'{"a": [1.10]}', False)


async def test_what_is_said_counts_before_it_is_answered(
    desk: Desk, autojump_clock: MockClock
) -> None:
    desk.ask("1", "output", data="last words")
    desk.ask("2", "setCondition", condition=True)

    assert (desk.calls.output, desk.calls.condition, desk.answers) == (b'"last words"', True, {})
    await wait_all_tasks_blocked()
    assert desk.answers == {"1": [b"ok\nnull"], "2": [b"ok\nnull"]}


async def test_what_was_said_to_an_earlier_worker_counts_until_something_is_said(
    desk: Desk, autojump_clock: MockClock
) -> None:
    assert not desk.ask("output", "output", data="before")
    assert not desk.ask("condition", "setCondition", condition=True)
    assert (desk.calls.output, desk.calls.condition) == (b'"before"', True)

    desk.ask("1", "output", data="after")
    assert not desk.ask("output", "output", data="before")
    assert not desk.ask("condition", "setCondition", condition=False)

    assert (desk.calls.output, desk.calls.condition) == (b'"after"', False)
    await wait_all_tasks_blocked()
    assert list(desk.answers) == ["1"]


@pytest.mark.parametrize("odd", [b"", b"no JSON", b'{"call":"event","form":"json"}'])
async def test_what_was_said_before_and_makes_no_sense_is_left(
    desk: Desk, autojump_clock: MockClock, odd: bytes
) -> None:
    assert not desk.ask_raw("output", odd)
    assert not desk.ask_raw("condition", odd)
    await wait_all_tasks_blocked()

    assert (desk.calls.output, desk.calls.condition) == (None, None)


async def test_variables_and_tools_are_the_runtimes(desk: Desk, autojump_clock: MockClock) -> None:
    assert await desk.answer("setVariable", "text", key="K", valueText="1.10") == ("ok", "")
    assert await desk.answer("getVariable", "text", key="K") == ("ok", "1.10")
    assert await desk.answer("setVariable", key="K", value={"a": "b"}) == ("ok", None)
    assert await desk.answer("getVariable", key="K") == ("ok", {"a": "b"})
    assert await desk.answer("getVariable", key="L") == ("error", "there is no variable L")
    assert await desk.answer("executeToolAction", tool="email", action="send") == (
        "ok",
        {"sent": True},
    )
    assert desk.runtime.done[-1] == ("email", "send", "{}")


async def test_a_key_that_leads_elsewhere_never_reaches_the_runtime(
    desk: Desk, autojump_clock: MockClock
) -> None:
    head, text = await desk.answer("getVariable", key="../other-user/KEY")

    assert (head, desk.runtime.done) == ("error", [])
    assert "no variable's key" in text


@pytest.mark.parametrize("request_", [b"", b"\xff\0", b"[]", b'{"call": "sing"}'])
async def test_what_is_no_call_is_answered_with_an_error(
    desk: Desk, autojump_clock: MockClock, request_: bytes
) -> None:
    desk.ask_raw("1", request_)
    await wait_all_tasks_blocked()

    assert desk.answers["1"][0].startswith(b"error\nnot a call")


async def test_a_fault_of_ours_is_that_calls_error_and_logged(
    desk: Desk, autojump_clock: MockClock
) -> None:
    desk.runtime.fault = ZeroDivisionError("secret data")

    with capture_logs() as logs:
        answer = await desk.answer("setVariable", key="K", value="v")

    assert answer == ("error", "a fault of the worker: ZeroDivisionError")
    assert [entry["event"] for entry in logs] == ["helper_call_fault", "helper_call"]
    desk.runtime.fault = None
    assert await desk.answer("setVariable", key="K", value="v") == ("ok", None)


async def test_a_fault_in_what_the_plan_answers_is_that_calls_error_too(
    runtime: FakeRuntime, nursery: trio.Nursery, autojump_clock: MockClock
) -> None:
    odd = replace(PLAN, input=b'"\\x"')
    desk = Desk(runtime, HelperCalls(odd, EXECUTION, runtime), nursery)

    assert await desk.answer("input", "text") == ("error", "a fault of the worker: DecodeError")
    assert (await desk.answer("event"))[0] == "ok"


async def test_an_answer_of_the_runtime_that_is_no_unicode_is_mended(
    desk: Desk, autojump_clock: MockClock
) -> None:
    desk.runtime.kept["K"] = Raw(b'"a\\ud800b\xff\\u0000"')

    assert await desk.answer("getVariable", key="K") == ("ok", "a\ufffdb\ufffd\ufffd")
    assert await desk.answer("getVariable", "text", key="K") == ("ok", "a\ufffdb\ufffd\ufffd")


async def test_8_calls_go_at_once_and_the_plans_answers_wait_for_none(
    desk: Desk, autojump_clock: MockClock
) -> None:
    desk.runtime.seconds = 10
    for number in range(20):
        desk.ask(str(number), "setVariable", key=f"K{number}", value=1)
    desk.ask("input", "input")

    await trio.sleep(5)
    assert (desk.runtime.most_going, sorted(desk.answers)) == (MOST_AT_ONCE, ["input"])

    await trio.sleep(30)
    assert desk.runtime.most_going == MOST_AT_ONCE
    assert len(desk.answers) == 21


async def test_a_call_that_is_being_done_is_not_begun_a_second_time(
    desk: Desk, autojump_clock: MockClock
) -> None:
    desk.runtime.seconds = 10

    assert desk.ask("1", "executeToolAction", tool="email", action="send")
    await trio.sleep(5)
    assert not desk.ask("1", "executeToolAction", tool="email", action="send")
    await trio.sleep(10)

    assert len(desk.runtime.done) == 1
    assert len(desk.answers["1"]) == 1


async def test_a_call_that_was_done_is_answered_from_memory(
    desk: Desk, autojump_clock: MockClock
) -> None:
    for _ in range(3):
        assert desk.ask("1", "executeToolAction", tool="email", action="send")
        await wait_all_tasks_blocked()

    assert len(desk.runtime.done) == 1
    assert desk.answers["1"] == [b'ok\n{"sent":true}'] * 3


async def test_an_id_that_is_used_again_is_not_answered_with_what_another_asked_for(
    desk: Desk, autojump_clock: MockClock
) -> None:
    desk.runtime.kept = {"K": Raw(b"1"), "L": Raw(b"2")}

    desk.ask("1", "getVariable", key="K")
    await wait_all_tasks_blocked()
    desk.ask("1", "getVariable", key="L")
    await wait_all_tasks_blocked()

    assert desk.answers["1"] == [b"ok\n1", b"ok\n2"]


async def test_a_call_that_waits_for_its_turn_is_not_begun_a_second_time(
    desk: Desk, autojump_clock: MockClock
) -> None:
    desk.runtime.seconds = 10
    for number in range(MOST_AT_ONCE):
        desk.ask(str(number), "setVariable", key="K", value=number)
    desk.ask("late", "executeToolAction", tool="email", action="send")

    assert not desk.ask("late", "executeToolAction", tool="email", action="send")
    await trio.sleep(30)

    assert desk.answers["late"] == [b'ok\n{"sent":true}']


async def test_an_answer_that_is_being_handed_over_can_be_had_again(
    desk: Desk, autojump_clock: MockClock
) -> None:
    """The connection that it goes over may be dead, and another there already."""
    request = b'{"call":"setVariable","form":"json","key":"K","value":1}'
    waiting = desk.calls.take("1", request)
    assert waiting is not None
    desk.nursery.start_soon(desk.calls.answer, waiting, _never)
    await wait_all_tasks_blocked()

    assert desk.ask_raw("1", request)
    await wait_all_tasks_blocked()

    assert desk.answers["1"] == [b"ok\nnull"]
    assert len(desk.runtime.done) == 1


async def _never(_answer: bytes) -> None:
    await trio.sleep_forever()


async def test_answers_that_are_remembered_have_a_bound(
    desk: Desk, autojump_clock: MockClock
) -> None:
    for number in (*range(MOST_REMEMBERED + 1), MOST_REMEMBERED, 1):
        desk.ask(str(number), "setVariable", key="K", value=1)
        await wait_all_tasks_blocked()
    assert len(desk.runtime.done) == MOST_REMEMBERED + 1

    desk.ask("0", "setVariable", key="K", value=1)
    await wait_all_tasks_blocked()
    assert len(desk.runtime.done) == MOST_REMEMBERED + 2


async def test_large_answers_are_remembered_as_far_as_there_is_room(
    desk: Desk, autojump_clock: MockClock
) -> None:
    desk.runtime.kept["K"] = Raw(b'"' + b"x" * (MOST_REMEMBERED_BYTES // 2) + b'"')
    desk.runtime.kept["L"] = Raw(b'"' + b"x" * MOST_REMEMBERED_BYTES + b'"')

    for call_id, key in (("1", "K"), ("2", "K"), ("3", "L"), ("2", "K"), ("1", "K"), ("3", "L")):
        desk.ask(call_id, "getVariable", key=key)
        await wait_all_tasks_blocked()

    assert [key for _, key in desk.runtime.done] == ["K", "K", "L", "K", "L"]


async def test_too_many_calls_that_wait_are_left_to_the_next_attachment(
    desk: Desk, autojump_clock: MockClock
) -> None:
    desk.runtime.seconds = 10
    for number in range(MOST_WAITING):
        assert desk.ask(str(number), "getVariable", key="K")

    assert not desk.ask("more", "input")
    await trio.sleep(10 * MOST_WAITING / MOST_AT_ONCE + 1)

    assert len(desk.answers) == MOST_WAITING
    assert desk.ask("more", "input")


async def test_calls_that_wait_with_too_much_data_are_an_error(
    desk: Desk, autojump_clock: MockClock
) -> None:
    desk.runtime.seconds = 10
    for number in range(18):
        desk.ask(str(number), "setVariable", key="K", value="x" * 1_000_000)
    await trio.sleep(1)

    assert {call_id: each[0][:30] for call_id, each in desk.answers.items()} == {
        "16": b'error\n"too many calls wait for',
        "17": b'error\n"too many calls wait for',
    }
    await trio.sleep(60)
    assert len(desk.answers) == 18
    assert await desk.answer("setVariable", key="K", value="x" * 1_000_000) == ("ok", None)


async def test_inputs_that_wait_are_one(desk: Desk, autojump_clock: MockClock) -> None:
    """A thousand processes that ask for 50 MB cost 50 MB."""
    taken = [desk.calls.take(str(number), b'{"call":"input","form":"text"}') for number in range(3)]
    await trio.lowlevel.checkpoint()

    assert len({id(waiting.answer) for waiting in taken if waiting is not None}) == 1


async def test_a_call_is_logged_by_its_name_and_never_with_its_data(
    desk: Desk, autojump_clock: MockClock
) -> None:
    desk.runtime.seconds = 2

    with capture_logs() as logs:
        await desk.answer("setVariable", key="KEY", value="DATA")
        await desk.answer("getVariable", key="KEY")
        await desk.answer("getVariable", key="NONE")
        await desk.answer("output", data="DATA")
        await desk.answer("getVariable", key="KEY/..")

    assert [(entry["event"], entry["log_level"]) for entry in logs] == [
        ("helper_call", "debug")
    ] * 5
    assert [(entry["call"], entry["outcome"], entry["duration_ms"]) for entry in logs] == [
        ("setVariable", "ok", 2000),
        ("getVariable", "ok", 2000),
        ("getVariable", "error", 2000),
        ("output", "ok", 0),
        (None, "error", 0),
    ]
    assert not [word for word in ("KEY", "DATA") if word in repr(logs)]
