"""What becomes of an entry that was to be told, and what that changes in the state."""

import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import structlog

from worker.database import Database
from worker.errors import ProtocolError, QueueRefusedError, QueueUnavailableError
from worker.state.outbox import FINAL_KINDS, Entry, Kind, Outbox, QueuedEntry
from worker.state.runs import RunStore

log = structlog.get_logger()

FIRST_PAUSE_SECONDS = 0.5
MOST_PAUSE_SECONDS = 60.0


@dataclass(frozen=True, slots=True)
class Delivered:
    pass


@dataclass(frozen=True, slots=True)
class Later:
    """Not before `after_seconds`, as the API said."""

    reason: str
    after_seconds: float = 0.0


@dataclass(frozen=True, slots=True)
class Parked:
    reason: str


@dataclass(frozen=True, slots=True)
class Void:
    """It is not to be said any more, though the job is still ours."""

    reason: str


@dataclass(frozen=True, slots=True)
class Disowned:
    """The job is another worker's, or ended: what was to be said of it is void."""

    reason: str


Verdict = Delivered | Later | Parked | Void | Disowned


def judge(
    entry: Entry,
    error: QueueRefusedError | QueueUnavailableError | ProtocolError,
    *,
    is_guarded: bool = False,
) -> Verdict:
    """What becomes of an entry whose delivery failed."""
    match error:
        case QueueRefusedError(status=403) if is_guarded:
            return Disowned(str(error))
        case QueueRefusedError():
            return Parked(str(error))
        # The app answers a second create of a row with 500: it is there.
        case QueueUnavailableError(status=500) if entry.kind is Kind.CREATE:
            return Delivered()
        case _:
            return later(error)


def later(error: QueueRefusedError | QueueUnavailableError | ProtocolError) -> Later:
    after_seconds = error.after_seconds if isinstance(error, QueueUnavailableError) else 0.0
    return Later(str(error), after_seconds)


def pause_seconds(attempts: int) -> float:
    """Full jitter: up to 0.5 s * 2^attempts, at most a minute."""
    most = min(FIRST_PAUSE_SECONDS * 2 ** min(attempts, 16), MOST_PAUSE_SECONDS)
    return random.uniform(0, most)  # noqa: S311  jitter, not a secret


class Aftermath:
    """Every method is one transaction; `now` is in Unix milliseconds."""

    def __init__(
        self, database: Database, outbox: Outbox, runs: RunStore, now: Callable[[], int]
    ) -> None:
        self._database = database
        self._outbox = outbox
        self._runs = runs
        self._now = now

    def keep(self, job_id: str, told: Sequence[tuple[QueuedEntry, Verdict]]) -> list[QueuedEntry]:
        """Keep what has become of a job's entries; what is to be told of it next."""
        with self._database.transaction():
            for queued, verdict in told:
                self._keep(queued, verdict)
            return self._outbox.next_of(job_id, now=self._now())

    def _keep(self, queued: QueuedEntry, verdict: Verdict) -> None:
        entry = queued.entry
        match verdict:
            case Delivered():
                self._outbox.delivered(queued.id)
                if entry.kind is Kind.RELEASE:
                    self._runs.drop(entry.job_id)
            case Later(_, after_seconds):
                # On top, so that a pool of workers does not come back as one.
                pause = after_seconds + pause_seconds(queued.attempts)
                due_at = self._now() + round(pause * 1000)
                self._outbox.postpone(queued.id, due_at=due_at)
            case Parked(reason):
                self._outbox.park(queued.id, reason)
                # Its runs hold the only copy of what the API would not take.
                if entry.kind in FINAL_KINDS:
                    self._runs.drop(entry.job_id)
            case Void():
                self._outbox.delivered(queued.id)
            case Disowned():
                self.drop(entry.job_id)

    def drop(self, job_id: str) -> None:
        """Say nothing more of a job, and know nothing of it."""
        with self._database.transaction():
            self._outbox.drop_job(job_id)
            self._runs.drop(job_id)


def log_verdict(entry: Entry, verdict: Verdict) -> None:
    fields = {"job_id": entry.job_id, "kind": entry.kind}
    match verdict:
        case Delivered():
            log.debug("outbox_delivered", **fields)
        case Later(reason):
            log.warning("outbox_postponed", **fields, error=reason)
        case Parked(reason):
            log.error("outbox_parked", **fields, subject=entry.subject, error=reason)
        case Void(reason):
            log.warning("outbox_voided", **fields, reason=reason)
        case Disowned(reason):
            log.warning("job_disowned", **fields, reason=reason)
