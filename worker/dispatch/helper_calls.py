"""The helper calls of one execution: what its script says, and what it asks for."""

import hashlib
from collections import OrderedDict
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field
from typing import Protocol

import msgspec
import structlog
import trio
from msgspec import Raw

from worker.dispatch import calls
from worker.dispatch.calls import (
    Asked,
    BadCallError,
    ExecuteToolAction,
    GetVariable,
    GiveEvent,
    GiveInput,
    Name,
    SayCondition,
    SayOutput,
    SetVariable,
)
from worker.dispatch.plan import Plan, PlannedExecution
from worker.errors import HelperCallError

log = structlog.get_logger()

# At the APIs at once, on behalf of one execution.
MOST_AT_ONCE = 8
# Each waits in a process of its own on the server, so more are a mistake, or meant badly.
MOST_WAITING = 1000
MOST_WAITING_BYTES = 16 * 1024 * 1024
# A call comes again over the next connection, if its answer did not reach the server.
MOST_REMEMBERED = 100
MOST_REMEMBERED_BYTES = 4 * 1024 * 1024

# These are no calls that wait: the runner repeats to each new attacher what the script has said.
SAID_BEFORE = {"output": Name.OUTPUT, "condition": Name.SET_CONDITION}

Deliver = Callable[[bytes], Awaitable[None]]


class Runtime(Protocol):
    """What answers the calls that the plan does not.

    Every method raises HelperCallError, in words for the script.
    """

    async def variable(self, key: str) -> Raw: ...
    async def set_variable(self, key: str, value: Raw) -> None: ...
    async def execute_tool_action(self, tool: str, action: str, config: Raw) -> Raw: ...


# A call's id and what it asks for: should a helper ever use an id again, it is not answered with
# what another asked for.
Key = tuple[str, bytes]


@dataclass(frozen=True, slots=True)
class Waiting:
    """A call that waits for its answer, which may be known already."""

    key: Key
    size: int
    asked: Asked | None = None
    answer: bytes | None = field(default=None, repr=False)


class HelperCalls:
    """`output` is JSON; both it and `condition` are what was said last."""

    def __init__(self, plan: Plan, execution: PlannedExecution, runtime: Runtime) -> None:
        self._plan = plan
        self._execution = execution
        self._runtime = runtime
        self.output: bytes | None = None
        self.condition: bool | None = None
        self._heard: set[Name] = set()
        self._running: set[Key] = set()
        self._finished = _Remembered()
        self._waiting = 0
        self._waiting_bytes = 0
        self._slots = trio.CapacityLimiter(MOST_AT_ONCE)
        self._inputs: dict[calls.Form, bytes] = {}

    def take(self, call_id: str, request: bytes) -> Waiting | None:
        """Take in a call; what it says counts from here on. `answer` is to follow.

        None where there is nothing to answer: to a call that is being done already, and to what
        was said before.
        """
        if call_id in SAID_BEFORE:
            self._hear_again(SAID_BEFORE[call_id], request)
            return None
        key = (call_id, hashlib.sha256(request).digest())
        if key in self._running:
            return None
        if self._waiting >= MOST_WAITING:
            log.warning("helper_call_left", reason=f"{MOST_WAITING} calls wait for their answers")
            return None
        waiting = self._known(key) or self._begun(key, request)
        self._waiting += 1
        self._waiting_bytes += waiting.size
        return waiting

    async def answer(self, waiting: Waiting, deliver: Deliver) -> None:
        """Do what was asked, and `deliver` the answer, which is that of an error at the worst."""
        try:
            if waiting.asked is None:
                await deliver(waiting.answer or b"")
                return
            # Held until the answer has gone, for answers may be large.
            async with self._slots:
                await deliver(await self._answer(waiting.key, waiting.asked))
        finally:
            self._running.discard(waiting.key)
            self._waiting -= 1
            self._waiting_bytes -= waiting.size

    def _known(self, key: Key) -> Waiting | None:
        answer = self._finished.get(key)
        return None if answer is None else Waiting(key, 0, answer=answer)

    def _begun(self, key: Key, request: bytes) -> Waiting:
        try:
            asked = calls.parse(request)
        except BadCallError as error:
            log.debug("helper_call", call=None, outcome="error", duration_ms=0)
            return Waiting(key, 0, answer=calls.error(error.form, str(error)))
        try:
            answer = self._answer_from_plan(asked)
        except Exception as error:  # a fault of ours is this call's alone
            log.exception("helper_call_fault", call=asked.name)
            return Waiting(key, 0, answer=_fault(asked, error))
        if answer is not None:
            _log_call(asked, trio.current_time(), "ok")
            return Waiting(key, 0, answer=answer)
        if self._waiting_bytes + len(request) > MOST_WAITING_BYTES:
            text = "too many calls wait for their answers"
            return Waiting(key, 0, answer=calls.error(asked.form, text))
        self._running.add(key)
        return Waiting(key, len(request), asked=asked)

    def _answer_from_plan(self, asked: Asked) -> bytes | None:
        match asked.call:
            case GiveInput():
                return self._input(asked.form)
            case GiveEvent():
                return calls.ok(asked.form, self._event())
            case SayOutput() | SayCondition():
                self._heard.add(asked.name)
                self._hear(asked)
                return calls.ok(asked.form)
            case _:
                return None

    def _hear_again(self, name: Name, request: bytes) -> None:
        # What came while we listened is later than what the runner had of an earlier worker.
        if name in self._heard:
            return
        try:
            asked = calls.parse(request)
        except BadCallError:  # the worker that heard it did not take it either
            return
        if asked.name is name:
            self._hear(asked)

    def _hear(self, asked: Asked) -> None:
        match asked.call:
            case SayOutput(data):
                self.output = bytes(data)
            case SayCondition(condition):
                self.condition = condition

    def _input(self, form: calls.Form) -> bytes:
        # Once per form: inputs may be large, and all that wait for theirs share it.
        if form not in self._inputs:
            text = calls.clean_json(self._plan.input).encode()
            self._inputs[form] = calls.ok(form, Raw(text))
        return self._inputs[form]

    def _event(self) -> Raw:
        plan, server = self._plan, self._execution.server
        known = {
            "id": plan.event_id or None,
            "name": plan.event_name or None,
            "version": plan.event_version,
            "jobId": plan.job_id,
            "executionId": self._execution.id,
            "serverId": server.id,
            "serverName": server.name,
            "attempts": plan.attempts,
            "triggeredBy": plan.triggered_by,
        }
        return Raw(msgspec.json.encode({k: v for k, v in known.items() if v is not None}))

    async def _answer(self, key: Key, asked: Asked) -> bytes:
        began = trio.current_time()
        outcome = "error"
        try:
            answer = calls.ok(asked.form, await self._ask(asked))
            outcome = "ok"
        except HelperCallError as error:
            answer = calls.error(asked.form, str(error))
        except Exception as error:  # a fault of ours is this call's alone
            log.exception("helper_call_fault", call=asked.name)
            answer = _fault(asked, error)
        _log_call(asked, began, outcome)
        self._finished.keep(key, answer)
        self._running.discard(key)
        return answer

    async def _ask(self, asked: Asked) -> Raw | None:
        match asked.call:
            case GetVariable(key):
                return _clean(await self._runtime.variable(key))
            case SetVariable(key, value):
                await self._runtime.set_variable(key, value)
                return None
            case ExecuteToolAction(tool, action, config):
                return _clean(await self._runtime.execute_tool_action(tool, action, config))
            case _:
                raise AssertionError("the plan answers all other calls")


class _Remembered:
    """Answers by their calls: the latest, as many as there is room for."""

    def __init__(self) -> None:
        self._answers: OrderedDict[Key, bytes] = OrderedDict()
        self._size = 0

    def get(self, key: Key) -> bytes | None:
        return self._answers.get(key)

    def keep(self, key: Key, answer: bytes) -> None:
        """For a call that is not here; nothing is dropped for one that is too large."""
        if len(answer) > MOST_REMEMBERED_BYTES:
            return
        self._answers[key] = answer
        self._size += len(answer)
        while len(self._answers) > MOST_REMEMBERED or self._size > MOST_REMEMBERED_BYTES:
            _, oldest = self._answers.popitem(last=False)
            self._size -= len(oldest)


def _fault(asked: Asked, error: Exception) -> bytes:
    return calls.error(asked.form, f"a fault of the worker: {type(error).__name__}")


def _clean(value: Raw) -> Raw:
    return Raw(calls.clean_json(bytes(value)).encode())


def _log_call(asked: Asked, began: float, outcome: str) -> None:
    milliseconds = round((trio.current_time() - began) * 1000)
    log.debug("helper_call", call=asked.name, outcome=outcome, duration_ms=milliseconds)
