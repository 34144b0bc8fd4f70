"""Sleeps that tell whether the worker stood still: others may have its jobs by then."""

import trio

# A lease is longer, by much.
LATE_SECONDS = 5.0


async def slept(seconds: float) -> bool:
    """Sleep so long; False if it took longer by more than a worker that is busy would need.

    Whatever else was due meanwhile, such as a look at whose a job is, comes before the next sleep
    is over.
    """
    due_at = trio.current_time() + seconds
    await trio.sleep_until(due_at)
    return trio.current_time() <= due_at + LATE_SECONDS
