"""A run that was started before there is anything to run, kept ready on a connection."""

from collections.abc import Callable

import structlog
import trio

from worker.errors import NoChannelError, SshError
from worker.remote.connection import Connection
from worker.remote.runner import WaitingRun, prepare

log = structlog.get_logger()

# A first spare is a guess, and a job on many servers is to have the processors for itself.
GUESS_AFTER_SECONDS = 0.5
GONE_SECONDS = 5.0


class Spare:
    """At most one per connection; it costs the server a waiting shell."""

    def __init__(self) -> None:
        self._waiting: WaitingRun | None = None
        self._was_used = False
        self._wanted = trio.Event()

    def want(self) -> None:
        """One is to be there for the next run, as soon as that does not disturb this one."""
        self._wanted.set()

    def take(self) -> WaitingRun | None:
        waiting, self._waiting = self._waiting, None
        if waiting is None or not waiting.is_waiting:
            return None
        self._was_used = True
        return waiting

    async def drop(self) -> bool:
        """Give its channel back to the server; whether there was one."""
        waiting, self._waiting = self._waiting, None
        if waiting is None:
            return False
        waiting.close()
        with trio.move_on_after(GONE_SECONDS):
            await waiting.closed()
        return True

    async def keep(self, connection: Connection, path: Callable[[], str | None]) -> None:
        """Start one whenever it is wanted and `path` says where the runner is."""
        while True:
            await self._wanted.wait()
            self._wanted = trio.Event()
            if not self._was_used:
                await trio.sleep(GUESS_AFTER_SECONDS)
            runner = path()
            if runner is None or (self._waiting is not None and self._waiting.is_waiting):
                continue
            try:
                self._waiting = await prepare(connection, runner)
            except NoChannelError:
                log.debug("spare_refused", channels=connection.channels)
            except SshError as error:
                log.debug("spare_failed", error=str(error))
