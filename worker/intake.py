"""Claims: long-poll, capacity, back-off, and the hand-over to the jobs' nursery."""

import math
import random
from typing import NoReturn

import structlog
import trio

from worker.api.client import QueueClient
from worker.api.wire import BadJob, JobBody
from worker.clock import now_ms
from worker.errors import ProtocolError, QueueError, QueueRefusedError, QueueUnavailableError
from worker.jobs import Jobs
from worker.relay import Relay
from worker.report import release_entry
from worker.telemetry import Telemetry

log = structlog.get_logger()

CONTAINER = "container"
# Released at once, such a job would come back in the very next answer.
HOLD_SECONDS = 30.0
RELEASE_SECONDS = 5.0
# After a poll that brought jobs.
REST_SECONDS = 0.02
# Where the queue does not hold polls: after jobs soon again, when idle up to 5 s.
POLL_FIRST_SECONDS = 1.0
POLL_MOST_SECONDS = 5.0
# When the API fails: full jitter, so that a pool of workers does not come back as one.
FAILED_FIRST_SECONDS = 0.5
FAILED_MOST_SECONDS = 30.0
# A poll that nobody waits for any more, because we or a proxy gave it up, is answered by then.
GRANTED_SECONDS = 120.0
# No round takes longer: a look for orphans, a poll of which each step is as slow as it may be, and
# the pause after it, or an answer at once and the pause that it asks for.
ROUND_SECONDS = 240.0


class Intake:
    def __init__(
        self,
        client: QueueClient,
        relay: Relay,
        jobs: Jobs,
        *,
        slots: int,
        batch_size: int,
        telemetry: Telemetry | None = None,
    ) -> None:
        self._client = client
        self._telemetry = telemetry or Telemetry()
        self._relay = relay
        self._jobs = jobs
        self._slots = slots
        self._batch_size = batch_size
        self._busy = 0
        self._slot_freed = trio.Event()
        self._held: set[str] = set()
        # The kinds of failure that this outage has shown; none while the API answers.
        self._failed_with: set[int | type[Exception] | None] = set()
        # Whether the API has answered, and does; and since when that is so, in Unix milliseconds.
        self.is_answered = False
        self.answered_since = now_ms()
        # By when the polls mean to have come round, by the loop's clock.
        self.due_at = math.inf

    @property
    def free_slots(self) -> int:
        return self._slots - self._busy

    @property
    def held_jobs(self) -> tuple[str, ...]:
        """Jobs that are not ours to run and wait for their release."""
        return tuple(self._held)

    async def take_up(self, jobs: trio.Nursery) -> None:
        """Start in `jobs` what an earlier worker left, before anything is delivered or claimed."""
        for kept, last_word in await self._relay.take_up():
            if last_word is None:
                self._busy += 1
            # A job whose end is told takes no slot.
            self._jobs.admit(kept.job_id, self._free_slot if last_word is None else _nothing)
            jobs.start_soon(self._jobs.take_up, kept, last_word)

    async def claim_forever(self, jobs: trio.Nursery) -> NoReturn:
        """Claim as many jobs as there are free slots and start each in `jobs`.

        One poll at a time: two at once under one id would get the same jobs twice.
        """
        try:
            async with trio.open_nursery() as holding:
                await self._claim_forever(jobs, holding)
        finally:
            self.due_at = math.inf

    async def _claim_forever(self, jobs: trio.Nursery, holding: trio.Nursery) -> NoReturn:
        failures = idle = 0
        # The queue may still be at a poll of the worker that was here before.
        has_looked, look_again_at = False, trio.current_time() + GRANTED_SECONDS
        while True:
            self.due_at = trio.current_time() + ROUND_SECONDS
            # What was claimed under this id and never arrived: by a run of this worker before,
            # or with an answer that was lost.
            if not has_looked or trio.current_time() >= look_again_at:
                if has_looked:
                    look_again_at = math.inf
                has_looked = await self.release_orphans()
            # The slot comes first: a claimed job must not wait, its lease is running.
            # Jobs that came in the place of held ones may be more than there are slots.
            while self.free_slots <= 0:
                self.due_at = math.inf
                self._slot_freed = trio.Event()
                with trio.move_on_at(look_again_at):
                    await self._slot_freed.wait()
                if trio.current_time() >= look_again_at:
                    look_again_at = math.inf
                    has_looked = await self.release_orphans()
            # It waits for a delivery, which has a limit of its own.
            self.due_at = math.inf
            await self._relay.last_words.wait_abreast()
            self.due_at = trio.current_time() + ROUND_SECONDS
            # The queue counts held jobs against the poll, so ask for as many more.
            began = trio.current_time()
            count = min(self._batch_size, self.free_slots) + len(self._held)
            try:
                claim = await self._client.claim(count)
            except (QueueError, ProtocolError) as error:
                self._note_failure(error)
                failures += 1
                # The queue may still be at it, and grant what nobody waits for any more.
                has_looked, look_again_at = False, trio.current_time() + GRANTED_SECONDS
                after = error.after_seconds if isinstance(error, QueueUnavailableError) else 0.0
                pause = _jittered(FAILED_FIRST_SECONDS, failures, FAILED_MOST_SECONDS)
                await trio.sleep(after + pause)
                continue
            self._telemetry.polled(trio.current_time() - began, len(claim.jobs))
            self._note_answered(is_answered=True)
            if self._failed_with:
                self._failed_with.clear()
                log.info("queue_answers_again")
            failures = 0
            # Before anything is awaited, so that no job is left half taken.
            taken = [self._take(job, jobs, holding) for job in claim.jobs]
            refused = [
                await self._refuse(job)
                for job, is_taken in zip(claim.jobs, taken, strict=True)
                if isinstance(job, BadJob) and not is_taken
            ]
            # Duplicates, and what has no id, a queue may hand out without end.
            is_news = any(taken) or any(refused)
            idle = 0 if is_news else idle + 1
            if claim.jobs and claim.waited:
                # What was claimed has its start told first, and more slots may be free by then.
                await trio.sleep(REST_SECONDS)
            # A queue that says it waited and did not would be asked without end.
            at_once = trio.current_time() - began < POLL_FIRST_SECONDS
            if not claim.waited or (at_once and not is_news):
                await trio.sleep(_jittered(POLL_FIRST_SECONDS, idle, POLL_MOST_SECONDS))

    async def release_orphans(self) -> bool:
        """Give back the jobs claimed under this worker's id that nobody here knows.

        Whether the API could be asked.
        """
        # A job may end while it is asked for.
        known = await self._known()
        try:
            claimed = await self._client.orphaned()
        except (QueueError, ProtocolError) as error:
            log.debug("orphans_unknown", error=str(error))
            self._note_answered(is_answered=False)
            return False
        self._note_answered(is_answered=True)
        known |= await self._known()
        for job_id in claimed:
            if job_id not in known:
                log.warning("orphan_released", job_id=job_id)
                await self._relay.put(release_entry(job_id, "claimed, but not known to the worker"))
        return True

    async def _known(self) -> set[str]:
        return {*self._jobs.ids, *self._held, *await self._relay.known_jobs()}

    def _take(self, job: JobBody | BadJob, jobs: trio.Nursery, holding: trio.Nursery) -> bool:
        """Whether it is begun, or held."""
        if job.id is not None and job.type == CONTAINER:
            # Whatever is in it, such as no script: it is not for this worker to say.
            return self._take_container(job.id, holding)
        if isinstance(job, BadJob):
            return False
        if job.id in self._held or not self._jobs.admit(
            job.id, self._free_slot, claim=job.claim_token
        ):
            log.info("duplicate_dropped", job_id=job.id)
            return False
        self._busy += 1
        jobs.start_soon(self._jobs.run, job)
        return True

    def _take_container(self, job_id: str, holding: trio.Nursery) -> bool:
        if job_id in self._held:
            log.info("duplicate_dropped", job_id=job_id)
            return False
        self._held.add(job_id)
        holding.start_soon(self._hold, job_id)
        return True

    async def _refuse(self, job: BadJob) -> bool:
        """Whether the queue is told that it failed."""
        if job.id is None:
            log.error("job_without_id", error=job.fault)
            return False
        if job.id in self._held or self._jobs.has(job.id):
            # It was understood when it was claimed, and must not be failed now.
            log.warning("duplicate_dropped", job_id=job.id, error=job.fault)
            return False
        await self._jobs.refuse(job.id, job.fault)
        return True

    async def _hold(self, job_id: str) -> None:
        log.info("container_job_held", job_id=job_id, seconds=HOLD_SECONDS)
        try:
            await trio.sleep(HOLD_SECONDS)
        finally:
            with trio.move_on_after(RELEASE_SECONDS, shield=True):  # a drain cuts the wait short
                await self._relay.put(
                    release_entry(job_id, "container jobs are not run by this worker")
                )
                await self._relay.wait_said(job_id)
            self._held.discard(job_id)

    def _free_slot(self) -> None:
        self._busy -= 1
        self._slot_freed.set()

    def _note_answered(self, *, is_answered: bool) -> None:
        if is_answered is not self.is_answered:
            self.is_answered, self.answered_since = is_answered, now_ms()

    def _note_failure(self, error: Exception) -> None:
        self._note_answered(is_answered=False)
        # Once of each kind: an outage of a night is not a log of a night, and an API that comes
        # back may refuse the token.
        kind = _kind_of(error)
        if kind not in self._failed_with:
            self._failed_with.add(kind)
            log.warning("queue_unavailable", error=str(error))
        else:
            log.debug("queue_unavailable", error=str(error))


def _kind_of(error: Exception) -> int | type[Exception] | None:
    """The status of the API's answer, None if there was none, or what was wrong with it."""
    if isinstance(error, QueueUnavailableError | QueueRefusedError):
        return error.status
    return type(error)


def _nothing() -> None:
    pass


def _jittered(first: float, times: int, most: float) -> float:
    return random.uniform(0, min(first * 2 ** min(times, 16), most))  # noqa: S311  not a secret
