"""One run, from the first job to the verdict."""

from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from signal import SIGTERM
from time import monotonic, sleep

from tests.chaos.audit import Fact, Finding, audit, wait_clean
from tests.chaos.faults import FAULTS
from tests.chaos.schedule import Strike, strikes, submissions
from tests.chaos.seat import DRAINED, LEAVE_SECONDS
from tests.chaos.stage import Stage, open_stage
from tests.chaos.told import told_of, untold_rows
from tests.process.worker_process import wait_for
from worker.dispatch.result import Outcome
from worker.queue_server.model import JobReport

# A lease, the longest script, and the pauses between tries of two workers for a backlog of jobs.
OVER_SECONDS = 180.0
# The cleanups' own limit and what comes before; processes on servers notice an end within 10 s.
CLEAN_SECONDS = 75.0
ENDED_SECONDS = 15.0
STATUS_SECONDS = 10.0


@dataclass(frozen=True, slots=True)
class Verdict:
    faults: Counter[str]
    statuses: Counter[str]
    outcomes: Counter[str]
    untold_rows: int
    prevented: list[str]
    findings: list[Finding]
    problems: list[str]

    @property
    def is_good(self) -> bool:
        return not self.findings and not self.problems and sum(self.outcomes.values()) > 0

    def table(self) -> Iterator[str]:
        for title, counts in (
            ("faults", self.faults),
            ("jobs", self.statuses),
            ("executions", self.outcomes),
        ):
            yield f"{title:26}{counts.total():5}"
            yield from (f"  {name:24}{count:5}" for name, count in sorted(counts.items()))
        yield f"{'rows without their end':26}{self.untold_rows:5}"
        yield from self.prevented

    def last_line(self) -> str:
        facts = Counter(dict.fromkeys(Fact, 0))
        for finding in self.findings:
            facts[finding.fact] += finding.count
        counts = " ".join(f"{fact}={facts[fact]}" for fact in Fact)
        return f"jobs={self.statuses.total()} faults={self.faults.total()} {counts}"


def run(
    folder: Path,
    *,
    seed: int,
    seconds: float,
    echo: Callable[[str], None],
    as_app: bool = False,
) -> Verdict:
    """Faults and new jobs for so many seconds; then all is healed and ends within some minutes."""
    began = monotonic()

    def say(text: str) -> None:
        echo(f"{monotonic() - began:6.1f} s  seed {seed}  {text}")

    with open_stage(folder, say) as stage:
        stage.api.hides_tokens = as_app
        faults = _strike_and_submit(stage, seed, seconds)
        say("no more faults: all is healed, and the jobs come to their ends")
        stage.heal()
        _wait_over(stage)
        wait_clean(stage, CLEAN_SECONDS, are_drained=False)
        say("the workers are drained")
        _drain(stage)
        wait_clean(stage, ENDED_SECONDS, are_drained=True)
        say("the audit")
        return _judge(stage, faults)


def _strike_and_submit(stage: Stage, seed: int, seconds: float) -> Counter[str]:
    faults: Counter[str] = Counter()

    def strike(what: Strike) -> None:
        said = FAULTS[what.kind].strike(stage, what)
        if said is not None:
            faults[what.kind] += 1
            stage.say(f"fault {faults.total()}: {said}")

    for seat in stage.seats:
        seat.start()
    agenda = stage.agenda
    agenda.restart()
    for submission in submissions(seed, seconds, len(stage.stations)):
        agenda.at(submission.at, partial(stage.submit, submission))
    kinds = {name: kind.seconds for name, kind in FAULTS.items()}
    for each in strikes(seed, seconds, kinds):
        agenda.at(each.at, partial(strike, each))
    _every(stage, 1.0, seconds, stage.look)
    _every(stage, 1.0, seconds, stage.forget_bodies)
    _every(stage, STATUS_SECONDS, seconds, lambda: _say_status(stage))
    agenda.run_until(seconds)
    return faults


def _every(stage: Stage, seconds: float, end: float, action: Callable[[], object]) -> None:
    for turn in range(1, int(end / seconds)):
        stage.agenda.at(turn * seconds, action)


def _say_status(stage: Stage) -> None:
    stage.say(f"jobs: {len(stage.jobs)} submitted, {len(stage.unfinished())} not over")


def _wait_over(stage: Stage) -> None:
    deadline = monotonic() + OVER_SECONDS
    while stage.unfinished() and monotonic() < deadline:
        stage.look()
        stage.forget_bodies()
        sleep(0.2)


def _drain(stage: Stage) -> None:
    for seat in stage.seats:
        wait_for(seat.has_started, f"worker {seat.name}")
        seat.is_up = False
        seat.signal(SIGTERM)
    deadline = monotonic() + LEAVE_SECONDS
    for seat in stage.seats:
        while not seat.has_ended() and monotonic() < deadline:
            sleep(0.1)
        stage.note_end(seat, (DRAINED,))


def _judge(stage: Stage, faults: Counter[str]) -> Verdict:
    reports = {job.id: stage.site.store.report(job.id) for job in stage.jobs}
    problems = [*stage.problems, *(text for seat in stage.seats for text in seat.defects())]
    return Verdict(
        faults,
        Counter(report.job.status.value for report in reports.values()),
        Counter(told.outcome.value for report in reports.values() for told in told_of(report)),
        sum(map(untold_rows, reports.values())),
        list(_prevented(stage, reports)),
        audit(stage, reports),
        problems,
    )


def _prevented(stage: Stage, reports: dict[str, JobReport]) -> Iterator[str]:
    """The executions that did not come to their own end, and why."""
    starts = stage.starts.read_text().splitlines() if stage.starts.exists() else []
    for job in stage.jobs:
        for told in told_of(reports[job.id]):
            if told.outcome in (Outcome.LOST, Outcome.UNREACHABLE, Outcome.NOT_DEPLOYED):
                has_started = any(line.endswith(f"{job.id} {told.server}") for line in starts)
                yield (
                    f"  job {job.submission.number} on {told.server}: {told.outcome}"
                    f"{', though it was started' * has_started}: {told.error} ({job.id})"
                )
