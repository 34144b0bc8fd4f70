"""One script on some servers: the engine of a job, with a screen in the place of the queue."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import partial

import msgspec
import trio

from worker import logs
from worker.direct.screen import Screen
from worker.dispatch.aggregate import aggregate
from worker.dispatch.capture import Capture
from worker.dispatch.fanout import fan_out
from worker.dispatch.helper_calls import HelperCalls
from worker.dispatch.plan import Plan, PlannedExecution
from worker.dispatch.result import JobResult, ServerResult
from worker.dispatch.server import ServerExecution
from worker.errors import HelperCallError
from worker.masked import mask_result
from worker.masking import ExecutionMasker, Masker, compiled
from worker.printed import Orders, Printed
from worker.remote.credentials import Credentials
from worker.remote.frames import Stream
from worker.remote.session import Remote
from worker.settings import Settings
from worker.signals import ending_signals
from worker.state.history import KeptOutput
from worker.state.spool import Spools
from worker.trigger import Trigger


@dataclass(frozen=True, slots=True)
class CallEnd:
    """How a call ended; `outputs` are those of `results`, in their order."""

    job: JobResult
    results: tuple[ServerResult, ...]
    outputs: tuple[KeptOutput, ...] = field(repr=False)


@dataclass(frozen=True, slots=True)
class Left:
    """A call that was not waited for; `executions` are those whose runs may go on."""

    executions: tuple[PlannedExecution, ...]


class NoRuntime:
    """There is no event and no user whose variables these could be."""

    async def variable(self, key: str) -> msgspec.Raw:
        raise await _refusal(f"getVariable {key}")

    async def set_variable(self, key: str, value: msgspec.Raw) -> None:  # noqa: ARG002  the protocol's
        raise await _refusal(f"setVariable {key}")

    async def execute_tool_action(self, tool: str, action: str, config: msgspec.Raw) -> msgspec.Raw:  # noqa: ARG002  the protocol's
        raise await _refusal(f"executeToolAction {tool} {action}")


async def _refusal(what: str) -> HelperCallError:
    await trio.lowlevel.checkpoint()
    return HelperCallError(f"{what}: there is no runtime API, as this is no job of a queue")


class DirectExecution:
    """A child of the fan-out that is told of on a screen."""

    def __init__(
        self, name: str, inner: ServerExecution, printed: Printed, masker: Masker, screen: Screen
    ) -> None:
        self._name = name
        self._has_ended = False
        self._inner = inner
        self._printed = printed
        self._masker = masker
        self._screen = screen

    @property
    def may_go_on(self) -> bool:
        """Whether a run may have started there whose end is not known."""
        return self._inner.may_have_begun and not self._has_ended

    async def run(self) -> ServerResult:
        logs.mask_with(self._masker.mask_text)
        begun = partial(self._screen.begun, self._name)
        result = mask_result(await self._inner.run(begun), self._masker)
        self._has_ended = True
        await self._printed.end()
        self._screen.ended(self._name, result.outcome)
        return result

    async def clean_up(self, haste: Trigger) -> None:
        await self._inner.clean_up(haste)

    def close(self) -> None:
        self._printed.close()


class Call:
    """`spools` has what is received; `keep` is told the results as soon as they are known."""

    def __init__(
        self,
        plan: Plan,
        remote: Remote,
        settings: Settings,
        spools: Spools,
        screen: Screen,
        *,
        cancelled: Trigger,
        keep: Callable[[Sequence[ServerResult]], None],
    ) -> None:
        self._plan = plan
        self._remote = remote
        self._settings = settings
        self._spools = spools
        self._screen = screen
        self._cancelled = cancelled
        self._keep = keep
        self._masker = Masker(base=compiled(plan.secrets))
        self._credentials = Credentials(settings.encryption_key, self._masker.learn)
        self._orders = Orders()
        self._printed: dict[str, Printed] = {}
        self._end: CallEnd | None = None

    async def run(self) -> CallEnd | Left:
        """The script's end on all servers, its runs forgotten; if that was not waited for, what
        is left.

        The first SIGINT, SIGTERM or SIGHUP ends the runs, the second leaves them to themselves.
        """
        logs.mask_with(self._masker.mask_text)
        children = [self._child(execution) for execution in self._plan.executions]
        async with trio.open_nursery() as nursery:
            await nursery.start(self._obey_signals, nursery.cancel_scope)
            await fan_out(children, self._report)
            nursery.cancel_scope.cancel()
        self._screen.close()
        if self._end is not None:
            return self._end
        pairs = zip(self._plan.executions, children, strict=True)
        return Left(tuple(execution for execution, child in pairs if child.may_go_on))

    def _child(self, execution: PlannedExecution) -> DirectExecution:
        name = execution.server.name
        limit = self._settings.jobs.output_limit_bytes
        captures = {
            stream: Capture(
                self._spools.spool(self._plan.job_id, execution.id, stream, limit=limit), limit
            )
            for stream in Stream
        }
        masker = ExecutionMasker(self._masker, ())
        printed = self._printed[execution.id] = Printed(
            captures,
            masker,
            trio.lowlevel.checkpoint,
            self._orders,
            into_log=False,
            show=partial(self._screen.lines, name),
        )
        inner = ServerExecution(
            self._plan,
            execution,
            self._remote,
            self._settings,
            credentials=self._credentials,
            cancelled=self._cancelled,
            still_ours=_nobody_elses,
            sink=printed.take_in,
            calls=HelperCalls(self._plan, execution, NoRuntime()),
        )
        return DirectExecution(name, inner, printed, masker, self._screen)

    async def _report(self, results: tuple[ServerResult, ...]) -> bool:
        job = aggregate(
            results,
            cancelled=self._cancelled.is_set(),
            policy=self._settings.jobs.exit_code_policy,
        )
        outputs = tuple(self._output(result) for result in results)
        self._end = CallEnd(job, results, outputs)
        self._keep(results)
        await trio.lowlevel.checkpoint()
        return True

    def _output(self, result: ServerResult) -> KeptOutput:
        captures = self._printed[result.execution_id].captures
        return KeptOutput(*(captures[stream].content() for stream in Stream))

    async def _obey_signals(
        self, scope: trio.CancelScope, task_status: trio.TaskStatus[None]
    ) -> None:
        with trio.open_signal_receiver(*ending_signals()) as signals:
            task_status.started()
            async for _ in signals:
                if self._cancelled.is_set():
                    scope.cancel()
                self._cancelled.set()


async def _nobody_elses() -> bool:
    """Whoever else attaches is an operator: the runs stay ours."""
    await trio.lowlevel.checkpoint()
    return True
