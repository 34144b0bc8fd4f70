"""How the executions of a job end: each is kept as soon as that is known, the last with the job."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from worker.state.outbox import Entry


@dataclass(frozen=True, slots=True)
class End:
    """What is to be told of it, and what the state is to keep: both made off the loop."""

    entries: Callable[[], Sequence[Entry]]
    keep: Callable[[], object]


NOTHING = End(entries=list, keep=lambda: None)


class Ends:
    """Of a job with so many executions still `running`.

    That of the `last` is held back: to keep it by itself would be one more commit, just before that
    of the job.
    """

    def __init__(self, running: int) -> None:
        self._running = running
        self.last = NOTHING

    def count(self) -> bool:
        """One more has come; whether it is the last."""
        self._running -= 1
        return not self._running
