"""Whose job is it? Under a claim's token every call says so; the app, which has no guard of its
own, is asked for the job before."""

from collections.abc import Iterable
from typing import NoReturn

import structlog
import trio

from worker.api.client import QueueClient
from worker.api.wire import FINAL_STATUSES, JobRowBody, RowBody
from worker.errors import ProtocolError, QueueRefusedError, QueueUnavailableError
from worker.flight import Flight

log = structlog.get_logger()

# How long a claimed job waits for an API that has just stopped answering, before it starts anyway.
ACKNOWLEDGE_SECONDS = 10


class Ownership:
    def __init__(self, client: QueueClient, *, poll_seconds: float) -> None:
        self._client = client
        self._poll_seconds = poll_seconds

    async def may_start(self, flight: Flight, rows: Iterable[RowBody]) -> bool:
        """Whether the job is still ours to start, or to continue; if so, the API was told that it
        runs. An API that has stopped answering does not hold it up: then it counts as ours.

        Under a claim's token `rows` go with the same call, and the flight notes it (`has_rows`).
        """
        try:
            with trio.fail_after(ACKNOWLEDGE_SECONDS):
                if flight.claim is None:
                    job = await self._start_unguarded(flight)
                else:
                    job = await self._client.report_running(
                        flight.job_id, claim=flight.claim, rows=rows
                    )
                    flight.has_rows = True
                    flight.may_have_begun = job.last_error is not None
        except QueueRefusedError as error:
            # Anything but 403 says nothing of whose the job is: it was claimed, so it is run.
            log.warning(
                "job_disowned" if error.status == 403 else "acknowledge_failed", error=str(error)
            )
            return error.status != 403
        except (QueueUnavailableError, ProtocolError, trio.TooSlowError) as error:
            log.warning("acknowledge_failed", error=str(error) or "no answer")
            return True
        if job.status == "cancelled":
            flight.cancel()
        elif job.status in FINAL_STATUSES:
            log.warning("job_disowned", reason=f"the job is {job.status}")
            return False
        return True

    async def _start_unguarded(self, flight: Flight) -> JobRowBody:
        job = await self._client.read_job(flight.job_id)
        flight.may_have_begun = job.last_error is not None
        if job.status not in (*FINAL_STATUSES, "cancelled", "running"):
            # Never sent late, since it revives a cancelled job.
            await self._client.report_running(flight.job_id)
        return job

    async def watch_forever(self, flight: Flight) -> NoReturn:
        """Learn of a cancel, and of a job that is no longer ours, which is disowned then."""
        while True:
            await trio.sleep(self._poll_seconds)
            if not flight.is_settled:
                await self.still_ours(flight)

    async def still_ours(self, flight: Flight) -> bool:
        """Whether the job is, as far as is known; an API that does not answer says nothing."""
        try:
            job = await self._client.read_job(flight.job_id)
        except QueueRefusedError as error:
            if error.status != 403:
                return True
            reason = str(error)
        except (QueueUnavailableError, ProtocolError):
            return True
        else:
            if job.status == "cancelled":
                flight.cancel()
            if job.status not in FINAL_STATUSES:
                return True
            reason = f"the job is {job.status}"
        if flight.is_settled:
            return True  # it is over because we have said so
        log.warning("job_disowned", job_id=flight.job_id, reason=reason)
        flight.disown()
        return False
