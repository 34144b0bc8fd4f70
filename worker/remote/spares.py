"""Calls of the runner that wait on a connection for the next runs, or have one prepared."""

from collections.abc import Callable

import structlog
import trio

from worker.errors import NoChannelError, SshError
from worker.remote.connection import Connection
from worker.remote.waiting import RunRequest, WaitingRun, prepare_spare

log = structlog.get_logger()

# A first spare is a guess, and a job on many servers is to have the processors for itself.
GUESS_AFTER_SECONDS = 0.5
GONE_SECONDS = 5.0
# Beyond one, each is let go once it was not needed for so long.
EXTRA_SECONDS = 10.0
# One that serves on and on is not to do so with an environment that has long been changed.
MOST_AGE_SECONDS = 300.0


class Spares:
    """Each costs the server three or four waiting shells, and saves a run the wait for their start.

    There are as many as there were runs at once, lately.
    """

    def __init__(self) -> None:
        # With when it began to wait; the last used is the next used.
        self._waiting: list[tuple[WaitingRun, float]] = []
        # By execution id, those that are ready for a run.
        self._staged: dict[str, WaitingRun] = {}
        self._was_used = False
        self._wanted = trio.Event()
        self._crowded = trio.Event()

    def want(self) -> None:
        """One is to be there for the next run, as soon as that does not disturb this one."""
        self._wanted.set()

    def take(self, request: RunRequest) -> WaitingRun | None:
        """The one that is ready for the request, or any."""
        staged = self._staged.pop(request.execution_id, None)
        if staged is not None:
            if staged.is_ready_for(request):
                return staged
            staged.close()
        return self._take()

    def _take(self) -> WaitingRun | None:
        while self._waiting:
            waiting, _ = self._waiting.pop()
            if waiting.is_waiting and not _is_old(waiting):
                self._was_used = True
                return waiting
            waiting.close()
        return None

    def stage(self, request: RunRequest) -> None:
        """Have one prepare a run that may come soon."""
        waiting = self._take()
        if waiting is None:
            return
        if waiting.is_being_written:
            self.give_back(waiting)
            return
        self._staged[request.execution_id] = waiting
        waiting.stage(request)

    def unstage(self, execution_id: str) -> None:
        """Drop what was prepared: the run did not come, or was started otherwise."""
        staged = self._staged.pop(execution_id, None)
        if staged is not None:
            staged.close()

    def give_back(self, waiting: WaitingRun) -> None:
        if _is_old(waiting):
            waiting.close()
            return
        self._waiting.append((waiting, trio.current_time()))
        if len(self._waiting) > 1:
            self._crowded.set()

    def any(self) -> WaitingRun | None:
        """One to ask something of: it is used last, so a run seldom waits for the answer."""
        return next((waiting for waiting, _ in self._waiting if waiting.is_waiting), None)

    def close(self) -> None:
        """None of them is to be used."""
        for waiting in (*self._staged.values(), *(each for each, _ in self._waiting)):
            waiting.close()
        self._staged.clear()
        self._waiting.clear()

    async def drop(self) -> bool:
        """Give a channel back to the server; whether there was one."""
        if self._waiting:
            waiting, _ = self._waiting.pop(0)
        elif self._staged:
            _, waiting = self._staged.popitem()
        else:
            return False
        waiting.close()
        with trio.move_on_after(GONE_SECONDS):
            await waiting.closed()
        return True

    async def keep(self, connection: Connection, path: Callable[[], str | None]) -> None:
        """Start one where none is and one is wanted, if `path` says where the runner is."""
        async with trio.open_nursery() as nursery:
            nursery.start_soon(self._thin_out)
            while True:
                await self._wanted.wait()
                self._wanted = trio.Event()
                if self.any() is not None:
                    continue
                if not self._was_used:
                    await trio.sleep(GUESS_AFTER_SECONDS)
                runner = path()
                if runner is None or self.any() is not None:
                    continue
                try:
                    self.give_back(await prepare_spare(connection, runner))
                except NoChannelError:
                    log.debug("spare_refused", channels=connection.channels)
                except SshError as error:
                    log.debug("spare_failed", error=str(error))

    async def _thin_out(self) -> None:
        while True:
            await self._crowded.wait()
            await trio.sleep(EXTRA_SECONDS)
            long_ago = trio.current_time() - EXTRA_SECONDS
            while len(self._waiting) > 1 and self._waiting[0][1] <= long_ago:
                self._waiting.pop(0)[0].close()
            if len(self._waiting) <= 1:
                self._crowded = trio.Event()


def _is_old(waiting: WaitingRun) -> bool:
    return trio.current_time() > waiting.since + MOST_AGE_SECONDS
