"""What holds of a job whatever has failed: each function says what does not."""

from collections.abc import Callable, Iterator, Sequence
from itertools import zip_longest
from time import monotonic, sleep

from tests.faults.scene import Scene, printed
from worker.report import STDERR_HEADING

# What is left to be done after a job's end takes milliseconds, or a pause and another try.
PATIENCE_SECONDS = 20.0


def violations(scene: Scene, *, started: bool) -> list[str]:
    """All that is wrong once the job has ended; the worker is drained for that.

    `started` is false where no server could be reached: then the job is to say so.
    """
    return [
        *_left(scene, started=started),
        *_not_started_once(scene, started=started),
        *_not_told_whole(scene, started=started),
        *_not_told_once(scene),
    ]


def _not_started_once(scene: Scene, *, started: bool) -> Iterator[str]:
    for name, starts in zip(scene.names, scene.starts(), strict=True):
        if starts != "x" * started:
            yield f"the script was started {len(starts)} times on {name}"


def _not_told_whole(scene: Scene, *, started: bool) -> Iterator[str]:
    report = scene.report()
    whole = [printed(name) if started else ("", "") for name in scene.names]
    end = (report.job.status, report.exit_code)
    if end != (("completed", 0) if started else ("failed", 255 * len(whole))):
        yield f"the job's end is told as {end}: {report.message}"
    for name, (out, err) in zip(scene.names, whole, strict=True):
        yield from _difference(f"stdout of {name}", out, _said_by(name, report.stdout))
        if started:  # otherwise it says there why not
            yield from _difference(f"stderr of {name}", err, _said_by(name, report.stderr))
    ends = [(row.status, row.exit_code) for row in report.executions]
    if ends != [("COMPLETED", 0) if started else ("FAILED", 255)] * len(whole):
        yield f"the rows' ends are told as {ends}"
    rows = sorted(f"{out}{STDERR_HEADING}{err}" if err else out for out, err in whole)
    told = sorted(row.output or "" for row in report.executions)
    for expected, output in zip_longest(rows, told, fillvalue=""):
        yield from _difference("output of a row", expected, output)


def _not_told_once(scene: Scene) -> Iterator[str]:
    ends = [call.route for route in ("complete", "fail") for call in scene.api.accepted(route)]
    if ends != ["complete"]:
        yield f"the queue accepted {ends}"


def _left(scene: Scene, *, started: bool) -> Iterator[str]:
    left: dict[str, Callable[[], Sequence[object]]] = {
        "runs on the servers": scene.runs,
        "halves of a runner": scene.half_deployed,
        "the outbox": scene.outbox,
        "the runs in the state": scene.kept_of_runs,
    }
    _wait(lambda: not any(look() for look in left.values()))
    scene.worker.process.terminate()
    if code := scene.worker.wait():
        yield f"the worker exited with {code}"
    left |= {
        "connections": scene.open_connections,
        "sessions": scene.sessions,
        "processes on the servers": scene.sshd.processes,
    }
    _wait(lambda: not any(look() for look in left.values()))
    yield from (f"left of {what}: {some}" for what, look in left.items() if (some := look()))
    yield from (f"a fault of the worker: {fault}" for fault in scene.faults())
    if len(scene.tombstones()) != started * len(scene.lines):
        yield f"the tombstones are {scene.tombstones()}"


def _said_by(server: str, told: str) -> str:
    prefix = f"[{server}] "
    lines = told.splitlines(keepends=True)
    return "".join(line.removeprefix(prefix) for line in lines if line.startswith(prefix))


def _difference(what: str, expected: str, told: str) -> Iterator[str]:
    if told != expected:
        pairs = enumerate(zip_longest(expected, told))
        at = next(at for at, (one, other) in pairs if one != other)
        yield (
            f"{what} has {len(told)} for {len(expected)} characters; "
            f"from {at} on: {told[at : at + 60]!r} instead of {expected[at : at + 60]!r}"
        )


def _wait(condition: Callable[[], bool]) -> None:
    deadline = monotonic() + PATIENCE_SECONDS
    while monotonic() < deadline and not condition():
        sleep(0.02)
