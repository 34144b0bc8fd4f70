"""One execution with its row at the API and its lines in the log."""

import itertools
from collections.abc import Awaitable, Callable

import structlog
import trio

from worker import logs
from worker.clock import now_ms
from worker.dispatch.output import Capture, LineCutter
from worker.dispatch.plan import Plan, PlannedExecution
from worker.dispatch.result import ServerResult
from worker.dispatch.server import ServerExecution
from worker.relay import Relay
from worker.remote.credentials import Credentials
from worker.remote.frames import Stream
from worker.remote.session import Remote
from worker.report import Captures, running_entry, share_bytes, update_entry
from worker.settings import Settings

log = structlog.get_logger()

# A run that is over sooner is told of once, by its final row.
RUNNING_AFTER_SECONDS = 1.0
# Between two looks at everything else: a script may print a million lines a second.
LINES_AT_ONCE = 500


class ReportedExecution:
    """A child of the fan-out; `order` numbers what all servers of the job print."""

    def __init__(
        self,
        plan: Plan,
        execution: PlannedExecution,
        remote: Remote,
        relay: Relay,
        settings: Settings,
        *,
        credentials: Credentials,
        cancelled: trio.Event,
        still_ours: Callable[[], Awaitable[bool]],
        order: "itertools.count[int]",
    ) -> None:
        self._plan = plan
        self._execution = execution
        self._relay = relay
        self._order = order
        self._logs_output = settings.logs.output
        self._output_limit_bytes = settings.jobs.output_limit_bytes
        self._captures = {stream: Capture(self._output_limit_bytes) for stream in Stream}
        self._cutters = {stream: LineCutter() for stream in Stream}
        self._started = trio.Event()
        self._inner = ServerExecution(
            plan,
            execution,
            remote,
            settings,
            credentials=credentials,
            cancelled=cancelled,
            still_ours=still_ours,
            started=self._started.set,
            sink=self._take_output,
        )

    @property
    def id(self) -> str:
        return self._execution.id

    @property
    def captures(self) -> Captures:
        return self._captures

    async def run(self) -> ServerResult:
        """How the execution ended; its final row is in the outbox then."""
        async with trio.open_nursery() as nursery:
            nursery.start_soon(self._announce)
            result = await self._inner.run()
            # Before the final row, so that the row's `running` never comes after it.
            nursery.cancel_scope.cancel()
        for stream, cutter in self._cutters.items():
            await self._keep(stream, cutter.flush())
        structlog.contextvars.unbind_contextvars("phase")
        log.info(
            "execution_ended",
            outcome=result.outcome,
            exit_code=result.exit_code,
            setup_ms=result.times.setup_ms,
            execution_ms=result.times.execution_ms,
            runner=result.runner,
            error=result.error,
        )
        await self._relay.put(update_entry(self._plan, result, self._captures))
        self._keep_share()
        return result

    async def yield_connection(self) -> None:
        await self._inner.yield_connection()

    async def clean_up(self) -> None:
        await self._inner.clean_up()

    async def close(self) -> None:
        await self._inner.close()

    async def _announce(self) -> None:
        await self._started.wait()
        started_at = now_ms()
        await trio.sleep(RUNNING_AFTER_SECONDS)
        await self._relay.put(running_entry(self._plan, self._execution, now=started_at))

    def _keep_share(self) -> None:
        """After the final row, only the job's share of the output is still of use."""
        share = share_bytes(len(self._plan.executions), self._output_limit_bytes)
        self._captures = {
            stream: capture.trimmed(share) for stream, capture in self._captures.items()
        }

    async def _take_output(self, stream: Stream, data: bytes) -> None:
        await self._keep(stream, self._cutters[stream].feed(data))

    async def _keep(self, stream: Stream, lines: bytes) -> None:
        if not lines:
            return
        self._captures[stream].add(next(self._order), lines)
        if self._logs_output:
            texts = lines.removesuffix(b"\n").split(b"\n")
            for at in range(0, len(texts), LINES_AT_ONCE):
                logs.log_output(stream, texts[at : at + LINES_AT_ONCE])
                await trio.lowlevel.checkpoint()
