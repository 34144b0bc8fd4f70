"""A job in flight in this process."""

from collections.abc import Callable

import structlog
import trio

from worker.clock import now_ms
from worker.notice import Notice
from worker.trigger import Trigger

log = structlog.get_logger()


class Flight:
    """`admitted_at` is when it was claimed or taken up, in Unix milliseconds."""

    def __init__(
        self, job_id: str, free_slot: Callable[[], None], *, claim: str | None = None
    ) -> None:
        self.job_id = job_id
        # The claim's token, where the queue gives one; a later claim of the same job has another.
        self.claim = claim
        self.admitted_at = now_ms()
        self.cancelled = Trigger()
        # Whether an earlier worker had it, whose scripts may run still.
        self.may_have_begun = False
        # Where it was started before the API was told so.
        self.notice: Notice | None = None
        # Whether the API has a row for each of its executions.
        self.has_rows = False
        # The API has heard, or will hear from the outbox, how the job ended.
        self.is_settled = False
        # It has heard: what is left is to clean up.
        self.is_over = False
        # It is another's, or was over before we could say so.
        self.is_disowned = False
        # Around all that is done on servers.
        self.scope = trio.CancelScope()
        self._free_slot = free_slot
        self._holds_slot = True

    def cancel(self) -> None:
        if not self.cancelled.is_set():
            log.info("job_cancelling", job_id=self.job_id)
            self.cancelled.set()

    def settle(self) -> None:
        """The job's end is in the outbox."""
        self.is_settled = True
        self.free_slot()

    def disown(self) -> None:
        """The job is another's now, or over: leave its runs alone and say nothing of it."""
        self.is_settled = self.is_over = self.is_disowned = True
        self.scope.cancel()

    def free_slot(self) -> None:
        if self._holds_slot:
            self._holds_slot = False
            self._free_slot()
