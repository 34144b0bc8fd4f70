"""What can strike, and how it passes."""

import signal
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from time import monotonic
from typing import TypeVar

from tests.chaos.agenda import LOOK_SECONDS
from tests.chaos.schedule import Strike
from tests.chaos.seat import Seat
from tests.chaos.stage import LEASE_SECONDS, Stage, Station
from tests.faults.api_proxy import Failure
from worker.clock import now_ms
from worker.demo.sshd import Sshd
from worker.queue_server.model import JobStatus

T = TypeVar("T")

# What it says of itself; None if there was nothing to strike.
Fault = Callable[[Stage, Strike], str | None]


@dataclass(frozen=True, slots=True)
class Kind:
    """`seconds` is from the least to the most that it lasts."""

    strike: Fault
    seconds: tuple[float, float] = (0, 0)


def worker_killed(stage: Stage, strike: Strike) -> str | None:
    if (seat := _seat(stage, strike)) is None:
        return None
    seat.kill()
    stage.agenda.later(strike.seconds, seat.start)
    return f"worker {seat.name} killed for {strike.seconds:.1f} s"


def state_lost(stage: Stage, strike: Strike) -> str | None:
    """The lease frees its jobs."""
    if (seat := _seat(stage, strike)) is None:
        return None
    seat.kill()
    lost_id = seat.lose_state()
    stage.agenda.later(0, seat.start)
    return f"worker {seat.name} killed with its state, as {lost_id}"


def state_lost_and_released(stage: Stage, strike: Strike) -> str | None:
    """An operator frees its jobs."""
    if (seat := _seat(stage, strike)) is None:
        return None
    seat.kill()
    if (lost_id := seat.lose_state()) is not None:
        stage.start_command("orphans", "--of", lost_id, "--release")
    stage.agenda.later(strike.seconds, seat.start)
    return f"worker {seat.name} killed with its state, its jobs released, as {lost_id}"


def worker_stopped(stage: Stage, strike: Strike) -> str | None:
    """Longer than its leases last, so that its jobs are another's when it goes on."""
    if (seat := _seat(stage, strike)) is None:
        return None

    def go_on() -> None:
        seat.signal(signal.SIGCONT)
        seat.is_up = True

    seat.is_up = False
    seat.signal(signal.SIGSTOP)
    stage.agenda.later(strike.seconds, go_on)
    return f"worker {seat.name} stopped for {strike.seconds:.1f} s"


def worker_drained(stage: Stage, strike: Strike) -> str | None:
    if (seat := _seat(stage, strike)) is None:
        return None
    stage.drain(seat, strike.seconds)
    return f"worker {seat.name} told to end, and started again {strike.seconds:.1f} s later"


def connections_reset(stage: Stage, strike: Strike) -> str | None:
    station = _station(stage, strike)
    count = station.line.open
    station.line.cut()
    return f"{count} connections to {station.name} reset" if count else None


def black_hole(stage: Stage, strike: Strike) -> str | None:
    station = _station(stage, strike)
    station.line.stall()
    stage.agenda.later(strike.seconds, station.line.heal)
    return f"{station.name} in a black hole for {strike.seconds:.1f} s"


def server_refuses(stage: Stage, strike: Strike) -> str | None:
    station = _station(stage, strike)
    station.line.cut()
    station.line.refuse()
    stage.agenda.later(strike.seconds, station.line.heal)
    return f"{station.name} takes no connections for {strike.seconds:.1f} s"


def sessions_killed(stage: Stage, strike: Strike) -> str | None:
    sshd = _sshd(stage, strike)
    count = sshd.kill_sessions()
    return f"{count} sessions on {_names(sshd)} killed" if count else None


def sshd_restarted(stage: Stage, strike: Strike) -> str | None:
    sshd = _sshd(stage, strike)
    sshd.restart()
    return f"sshd of {_names(sshd)} restarted"


def runner_deleted(stage: Stage, strike: Strike) -> str | None:
    station = _station(stage, strike)
    runners = list((station.home / ".cache" / "cronium").glob("runner-*"))
    for runner in runners:
        runner.unlink()
    return f"the runner on {station.name} deleted" if runners else None


def api_fault(how: Failure) -> Fault:
    def strike_api(stage: Stage, strike: Strike) -> str | None:
        stage.api.fail(how)
        stage.agenda.later(strike.seconds, stage.api.heal)
        return f"the API {how.name.lower()} for {strike.seconds:.1f} s"

    return strike_api


def answer_lost(*routes: str) -> Fault:
    """The queue has done what it was asked for, and the worker does not hear of it."""

    def lose_answer(stage: Stage, strike: Strike) -> str | None:
        route = _one_of(routes, strike)
        hold = stage.api.hold_answer(route)
        deadline = monotonic() + strike.seconds

        def lose_when_there() -> None:
            if hold.call is None and monotonic() < deadline:
                stage.agenda.later(LOOK_SECONDS, lose_when_there)
            elif hold.call is None:
                hold.release()  # for when it comes after all
            else:
                stage.api.fail(Failure.RESETS)
                hold.release()
                stage.agenda.later(LOOK_SECONDS, stage.api.heal)

        lose_when_there()
        return f"the next answer to a {route} is lost"

    return lose_answer


def queue_killed(stage: Stage, strike: Strike) -> str | None:
    if not stage.queue.is_up:
        return None
    stage.queue.kill()
    stage.agenda.later(strike.seconds, stage.queue.start)
    return f"the queue killed for {strike.seconds:.1f} s"


def job_cancelled(stage: Stage, strike: Strike) -> str | None:
    open_jobs = [
        (job, row) for job, row in stage.unfinished() if row.status is not JobStatus.CANCELLED
    ]
    if not open_jobs:
        return None
    job, row = _one_of(open_jobs, strike)
    stage.cancelled.add(job.id)
    stage.site.store.cancel(job.id, now_ms())
    return f"job {job.submission.number} cancelled while {row.status}: {job.id}"


FAULTS = {
    "worker killed": Kind(worker_killed, (0, 3)),
    "state lost, released": Kind(state_lost_and_released, (0, 3)),
    # The seconds that the lease still has are no time of the fault, but must not be cut short.
    "state lost, lease": Kind(state_lost, (LEASE_SECONDS, LEASE_SECONDS)),
    "worker stopped": Kind(worker_stopped, (LEASE_SECONDS + 1, LEASE_SECONDS + 5)),
    "worker drained": Kind(worker_drained, (0, 2)),
    "connections reset": Kind(connections_reset),
    "black hole": Kind(black_hole, (1, 8)),
    "server refuses": Kind(server_refuses, (0.2, 3)),
    "sessions killed": Kind(sessions_killed),
    "sshd restarted": Kind(sshd_restarted),
    "runner deleted": Kind(runner_deleted),
    "API answers 500": Kind(api_fault(Failure.ANSWERS_500), (0.5, 6)),
    "API hangs": Kind(api_fault(Failure.HANGS), (0.5, 6)),
    "API refuses": Kind(api_fault(Failure.REFUSES), (0.5, 6)),
    "API resets": Kind(api_fault(Failure.RESETS), (0.5, 6)),
    "answer to complete lost": Kind(answer_lost("complete"), (5, 5)),
    "answer lost": Kind(answer_lost("claim", "status", "update", "release"), (5, 5)),
    "queue killed": Kind(queue_killed, (0, 3)),
    "job cancelled": Kind(job_cancelled),
}


def _seat(stage: Stage, strike: Strike) -> Seat | None:
    up = [seat for seat in stage.seats if seat.is_up]
    return _one_of(up, strike) if up else None


def _station(stage: Stage, strike: Strike) -> Station:
    return _one_of(stage.stations, strike)


def _sshd(stage: Stage, strike: Strike) -> Sshd:
    return _one_of(stage.sshds, strike)


def _names(sshd: Sshd) -> str:
    return " and ".join(server.name for server in sshd.servers)


def _one_of(choices: Sequence[T], strike: Strike) -> T:
    return choices[strike.target % len(choices)]
