"""The outbox as the relay looks at it."""

from worker.state.outbox import Outbox, QueuedEntry


def first_due(outbox: Outbox, *, limit: int, now: int) -> list[QueuedEntry]:
    """The first entry of each job, where it is due; the longest overdue first."""
    return [outbox.next_of(job_id, now=now)[0] for job_id in outbox.due_jobs(limit=limit, now=now)]
