"""The root of the task tree."""

import os
import signal
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from functools import partial
from typing import NoReturn

import structlog
import trio

from worker import __version__
from worker.api.client import QueueClient, open_client
from worker.api.runtime import Runtimes, open_runtimes
from worker.api.wire import CapacityBody
from worker.clock import now_ms
from worker.crew import Surroundings
from worker.database import Database
from worker.errors import ProtocolError, QueueError
from worker.intake import Intake
from worker.jobs import Jobs
from worker.ownership import Ownership
from worker.relay import Relay
from worker.remote.artifact import load_artifact
from worker.remote.connector import Connector
from worker.remote.deployments import Deployments
from worker.remote.loop import open_loop
from worker.remote.pool import Pool, open_pool
from worker.remote.session import Remote
from worker.settings import DrainPolicy, Settings
from worker.snapshot import WorkerNow, show_forever
from worker.stalls import stalls_logged
from worker.state.directory import BEGUN, SPOOLS
from worker.state.history import History
from worker.state.marks import Marks
from worker.state.outbox import Outbox
from worker.state.runner_cache import RunnerCache
from worker.state.runs import RunStore
from worker.state.seal import open_state_seal
from worker.state.spool import Spools, boot_id
from worker.telemetry import StateNow, Telemetry
from worker.vitals import Vitals

log = structlog.get_logger()

HEARTBEAT_SECONDS = 15.0
REPORT_SECONDS = 60.0
OBSERVE_SECONDS = 5.0
# What is left in the outbox then is sent at the next start.
FLUSH_SECONDS = 10.0
# The runner's grace of 5 s, and the time to hear of it and to say so.
CANCEL_SECONDS = 20.0
SWEEP_SECONDS = 3600.0


class Service:
    def __init__(
        self,
        settings: Settings,
        client: QueueClient,
        runtimes: Runtimes,
        database: Database,
        pool: Pool,
        telemetry: Telemetry,
    ) -> None:
        """Raises StateError if the key of the state cannot be used."""
        self._settings = settings
        self._client = client
        self._database = database
        self._telemetry = telemetry
        self._runs = RunStore(
            database,
            open_state_seal(settings.state_dir, settings.state_key),
            Spools(settings.state_dir / SPOOLS),
            Marks(settings.state_dir / BEGUN),
            boot=boot_id(),
        )
        self._outbox = Outbox(database)
        self._relay = Relay(client, self._outbox, self._runs, database)
        artifact = load_artifact()
        remote = Remote(
            pool,
            Deployments(
                database, artifact, verify_after_seconds=settings.ssh.runner_verify_after_seconds
            ),
        )
        # Where the drain sets its limit, once there are jobs to limit.
        self._jobs_scope = trio.CancelScope()
        self._cancelling = False
        self._jobs = Jobs(
            Surroundings(settings, database, remote, self._relay, self._runs, runtimes, telemetry),
            Ownership(client, poll_seconds=settings.jobs.cancel_poll_seconds),
        )
        self._intake = Intake(
            client,
            self._relay,
            self._jobs,
            slots=settings.jobs.max_concurrent,
            batch_size=settings.jobs.poll_batch_size,
            telemetry=telemetry,
        )
        self._vitals = Vitals(
            settings.state_dir,
            lambda: {"polls": self._intake.due_at, "outbox": self._relay.due_at},
            is_stuck=lambda: database.is_stuck,
            is_answered=lambda: self._intake.is_answered,
        )
        self._pool = pool
        self._started_at = now_ms()
        self._is_draining = False

    @property
    def now(self) -> WorkerNow:
        return WorkerNow(
            version=__version__,
            started_at=self._started_at,
            is_draining=self._is_draining,
            api_answers=self._intake.is_answered,
            api_since=self._intake.answered_since,
            slots=self._settings.jobs.max_concurrent,
            free_slots=self._intake.free_slots,
            held_jobs=self._intake.held_jobs,
            jobs=self._jobs.now,
            pool=self._pool.now,
        )

    async def run(self, drain: trio.Event) -> bool:
        """Claim and run jobs until `drain` is set, then let them finish within the drain limit.

        The nurseries nest in the order in which things must end: claims, then jobs, then what
        tells the API of them. Whether the API has heard all that it must.
        """
        async with trio.open_nursery() as support:
            async with trio.open_nursery() as jobs:
                self._jobs_scope = jobs.cancel_scope
                await self._intake.take_up(jobs)
                support.start_soon(self._relay.run)
                support.start_soon(self._beat_forever)
                support.start_soon(self._vitals.show_forever)
                support.start_soon(self._report_forever)
                support.start_soon(show_forever, self._settings.state_dir, self._look)
                if self._telemetry.is_on:
                    support.start_soon(self._observe_forever)
                support.start_soon(self._sweep_forever)
                async with trio.open_nursery() as claiming:
                    claiming.start_soon(self._intake.claim_forever, jobs)
                    await drain.wait()
                    self._is_draining = True
                    log.info("draining", jobs=len(self._jobs.ids))
                    support.start_soon(self._limit_drain)
                    claiming.cancel_scope.cancel()
            # The poll that was cut off may have been granted jobs.
            with trio.move_on_after(FLUSH_SECONDS):
                await self._intake.release_orphans()
            with trio.move_on_after(FLUSH_SECONDS) as flush:
                await self._relay.wait_empty()
            if flush.cancelled_caught:
                log.warning("outbox_not_empty", jobs=len(await self._relay.pending_jobs()))
            support.cancel_scope.cancel()
        return not flush.cancelled_caught and await self._relay.is_done()

    def _look(self) -> WorkerNow:
        now = self.now
        self._telemetry.observe(now)
        return now

    async def _observe_forever(self) -> NoReturn:
        """What telemetry tells of the state file, which a thread of its own may not ask."""
        cache = RunnerCache(self._database)

        def look() -> StateNow:
            waiting, oldest_at = self._outbox.waiting()
            return StateNow(waiting, len(self._outbox.parked()), oldest_at, cache.count())

        while True:
            self._telemetry.observe_state(await self._database.run(look))
            await trio.sleep(OBSERVE_SECONDS)

    async def _limit_drain(self) -> None:
        """What still runs at the drain's limit is handed over, or ended, as is configured."""
        await trio.sleep(self._settings.jobs.drain_seconds)
        if self._settings.jobs.drain_policy is DrainPolicy.CANCEL:
            self.cancel_jobs()
        elif not self._cancelling:
            self._jobs_scope.cancel()

    def cancel_jobs(self) -> None:
        """End what runs, within `CANCEL_SECONDS` of the first call."""
        if self._cancelling:
            return
        self._cancelling = True
        self._jobs.cancel_all()
        self._jobs_scope.deadline = trio.current_time() + CANCEL_SECONDS

    async def _sweep_forever(self) -> NoReturn:
        """The state's janitor."""
        while True:
            await self._database.run(partial(self._runs.sweep, now=now_ms()))
            await self._database.run(partial(self._outbox.sweep, now=now_ms()))
            kept = self._settings.jobs.history_bytes
            await self._database.run(partial(History(self._database).sweep, limit_bytes=kept))
            await trio.sleep(SWEEP_SECONDS)

    async def _report_forever(self) -> NoReturn:
        """Tell the app how this worker is, and what it has done since; best effort."""
        while True:
            await trio.sleep(REPORT_SECONDS)
            now, pending = self.now, await self._relay.pending_jobs()
            gauges = {
                "activeJobs": now.slots - now.free_slots,
                "maxJobs": now.slots,
                "activeExecutions": sum(len(job.executions) for job in now.jobs),
                "connections": now.pool.connections,
                "outboxJobs": len(pending),
                "uptimeSeconds": (now_ms() - now.started_at) // 1000,
            }
            status = "healthy" if self._vitals.is_well else "degraded"
            counts = self._jobs.take_counts()
            try:
                await self._client.report_health(status, gauges)
                await self._client.report_metrics(counts)
            except (QueueError, ProtocolError) as error:
                self._jobs.give_back_counts(counts)
                log.debug("report_failed", error=str(error))

    async def _beat_forever(self) -> NoReturn:
        """Name every job that the API has not heard the end of; learn which were cancelled."""
        next_beat = trio.current_time()
        while True:
            pending = await self._relay.pending_jobs()
            running = tuple(dict.fromkeys((*self._jobs.ids, *self._intake.held_jobs, *pending)))
            free = self._intake.free_slots
            slots = self._settings.jobs.max_concurrent
            capacity = CapacityBody(
                max_jobs=slots, current_jobs=slots - free, available_slots=max(0, free)
            )
            try:
                cancelled = await self._client.heartbeat(running, capacity)
            except (QueueError, ProtocolError) as error:
                log.debug("heartbeat_failed", error=str(error))
            else:
                for job_id in cancelled:
                    self._jobs.cancel(job_id)
            next_beat = max(next_beat + HEARTBEAT_SECONDS, trio.current_time())
            await trio.sleep_until(next_beat)


@asynccontextmanager
async def open_service(
    settings: Settings, database: Database, worker_id: str, telemetry: Telemetry | None = None
) -> AsyncIterator[Service]:
    """A service with all that it reaches the API and servers by."""
    told = telemetry or Telemetry()
    # Calls are a part of every job, and nobody is to pay for what nobody wants to know.
    heard = told.api_called if told.is_on else None
    async with (
        open_loop(),
        open_client(settings.api, worker_id, heard) as client,
        open_runtimes(settings.runtime, client, heard) as runtimes,
        open_pool(Connector(settings.ssh, database), settings.ssh) as pool,
    ):
        yield Service(settings, client, runtimes, database, pool, told)


async def serve(
    settings: Settings, database: Database, worker_id: str, telemetry: Telemetry
) -> bool:
    """The whole worker, until a signal has drained it; whether the API has heard all it must.

    The first signal drains, the second cancels what runs, the third ends the process at once.
    """
    async with (
        stalls_logged(),
        open_service(settings, database, worker_id, telemetry) as service,
        trio.open_nursery() as nursery,
    ):
        drain = trio.Event()
        await nursery.start(_obey_signals, service, drain)
        log.info("worker_started", version=__version__, endpoint=settings.api.endpoint)
        all_said = await service.run(drain)
        log.info("worker_stopped")
        nursery.cancel_scope.cancel()
    return all_said


async def _obey_signals(
    service: Service, drain: trio.Event, task_status: trio.TaskStatus[None]
) -> None:
    with trio.open_signal_receiver(signal.SIGTERM, signal.SIGINT) as signals:
        task_status.started()
        count = 0
        async for _ in signals:
            count += 1
            if count == 1:
                drain.set()
            elif count == 2:
                log.warning("cancelling_jobs")
                service.cancel_jobs()
            else:
                # Whatever holds the program up may hold up its orderly end too; the state
                # file takes a cut at any moment.
                os.write(2, b"cronium-worker: stopped at once by a third signal\n")
                os._exit(1)
