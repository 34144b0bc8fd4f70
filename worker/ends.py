"""How the executions of a job end: each is kept as soon as it is known, the last with the job."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from worker.relay import Relay
from worker.state.outbox import Entry


@dataclass(frozen=True, slots=True)
class End:
    """What is to be told of it, and what the state is to keep: both made off the loop."""

    entries: Callable[[], Sequence[Entry]]
    keep: Callable[[], object]


NOTHING = End(entries=list, keep=lambda: None)


class Ends:
    """Of a job with so many executions still `running`.

    To keep that of the `last` by itself would be one more commit, just before that of the job.
    """

    def __init__(self, job_id: str, relay: Relay, *, running: int) -> None:
        self._job_id = job_id
        self._relay = relay
        self._running = running
        self.last = NOTHING

    async def note(self, end: End) -> None:
        """It is on disk when this returns, or it is the last."""
        self._running -= 1
        if self._running:
            await self._relay.put_rows(self._job_id, end.entries, also=end.keep)
        else:
            self.last = end
