"""Where a fault strikes, and what it is: nothing starts twice, is lost, told twice or left."""

from collections.abc import Callable, Iterator
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from time import monotonic, sleep

import pytest

from tests.faults.api_proxy import Failure
from tests.faults.facts import violations
from tests.faults.scene import FIRST_ERR, FIRST_OUT, Scene, open_scene
from tests.faults.tcp_proxy import Way
from tests.process.worker_process import wait_for

pytestmark = pytest.mark.usefixtures("openssh")

# `x` is a cell. What is left out has nothing to break: `s` no session yet, `a` nothing that the
# API must hear any more, `n` as in the next line or, for the app, in the line of that name. The app
# has no tokens for its claims, and so is asked for a job before it is told of it.
TABLE = """
where                    killed  reset  black hole  session killed  500  hangs  refused
before the claim's answer   x      s        s             s          x     x       x
claimed                     x      s        s             s          x     x       x
claimed from the app        x      s        s             s          x     x       x
acknowledged by the app     x      s        s             s          x     x       x
connecting                  x      x        x             x          x     x       x
deploying                   x      x        x             x          x     x       x
payload half sent           x      x        x             x          x     x       x
start unheard               x      x        x             x          n     n       n
started                     x      x        x             x          x     x       x
mid output                  x      x        x             x          x     x       x
exit seen                   x      n        n             n          n     n       n
outbox written              x      x        x             x          x     x       x
complete sent               x      x        x             x          x     x       x
outbox written for the app  x      n        n             n          x     x       x
complete sent to the app    x      n        n             n          x     x       x
forgetting                  x      x        x             x          a     a       a
"""

OUTAGE_SECONDS = 1.0


@dataclass(frozen=True, slots=True)
class Point:
    """Where the worker stands still: until `release`, and until its lines are healed.

    `felt` is what its log says once an outage of the API has been felt from there on.
    """

    release: Callable[[], None]
    felt: str = "job_ended"


def _nothing() -> None:
    pass


def before_the_claims_answer(scene: Scene) -> Point:
    hold = scene.api.hold_answer("claim")
    scene.submit()
    hold.wait_reached()
    return Point(hold.release, felt="queue_unavailable")


def claimed(scene: Scene) -> Point:
    hold = scene.api.hold("status")
    scene.submit()
    hold.wait_reached()
    return Point(hold.release)


def claimed_from_the_app(scene: Scene) -> Point:
    scene.api.hides_tokens = True
    hold = scene.api.hold("acknowledge")
    scene.submit()
    hold.wait_reached()
    return Point(hold.release)


def acknowledged_by_the_app(scene: Scene) -> Point:
    scene.api.hides_tokens = True
    return claimed(scene)


def connecting(scene: Scene) -> Point:
    scene.stall()
    scene.submit()
    # Not of the sessions alone: that of who looked whether sshd is up may not be over yet.
    wait_for(
        lambda: all(scene.connections()) and len(scene.sessions()) == len(scene.lines),
        "a connection",
    )
    return Point(_nothing)


def deploying(scene: Scene) -> Point:
    scene.gate.hold("deploy")
    scene.submit()
    wait_for(lambda: scene.gate.seen("deploy"), "the deploy")
    return Point(lambda: scene.gate.release("deploy"))


def payload_half_sent(scene: Scene) -> Point:
    for line in scene.lines:
        line.stall_after(400_000, Way.TO_SERVER)
    scene.submit(padding=800_000)
    wait_for(lambda: all(line.is_stalled for line in scene.lines), "half a payload")
    wait_for(lambda: scene.gate.seen("run"), "the run that is being sent")
    return Point(_nothing)


def start_unheard(scene: Scene) -> Point:
    scene.gate.hold("run")
    scene.submit(begins=False, padding=100_000)
    wait_for(
        lambda: all(line.passed[Way.TO_SERVER] > 100_000 for line in scene.lines), "the payload"
    )
    for line in scene.lines:
        line.mute(Way.TO_CLIENT)
    scene.gate.release("run")
    scene.wait_started()
    return Point(scene.begin)


def started(scene: Scene) -> Point:
    scene.submit(begins=False)
    scene.wait_started()
    return Point(scene.begin)


def mid_output(scene: Scene) -> Point:
    scene.submit(begins=False, ends=False)
    scene.wait_started()
    for line in scene.lines:
        line.stall_after(50_000, Way.TO_CLIENT)
    scene.begin()
    wait_for(lambda: all(line.is_stalled for line in scene.lines), "half of the output")
    scene.worker.wait_for_event("script_output")
    return Point(scene.end)


def exit_seen(scene: Scene) -> Point:
    scene.submit(ends=False)
    first = len((FIRST_OUT + FIRST_ERR).encode())
    wait_for(
        lambda: all(line.passed[Way.TO_CLIENT] > first for line in scene.lines), "the first output"
    )
    scene.worker.wait_for_event("script_output")
    lock = ExitStack()
    lock.enter_context(scene.state_locked())
    scene.end()
    scene.worker.wait_for_event("execution_ended")
    return Point(lock.close)


def outbox_written(scene: Scene) -> Point:
    hold = scene.api.hold("complete")
    scene.submit()
    hold.wait_reached()
    return Point(hold.release, felt="outbox_postponed")


def complete_sent(scene: Scene) -> Point:
    hold = scene.api.hold_answer("complete")
    scene.submit()
    hold.wait_reached()
    return Point(hold.release, felt="outbox_postponed")


def outbox_written_for_the_app(scene: Scene) -> Point:
    scene.api.hides_tokens = True
    return outbox_written(scene)


def complete_sent_to_the_app(scene: Scene) -> Point:
    scene.api.hides_tokens = True
    return complete_sent(scene)


def forgetting(scene: Scene) -> Point:
    scene.gate.hold("forget")
    scene.submit()
    wait_for(lambda: scene.gate.seen("forget"), "the forget")
    return Point(lambda: scene.gate.release("forget"))


def killed(scene: Scene, point: Point) -> None:
    scene.kill_worker()
    point.release()
    scene.heal()
    scene.start_worker()
    scene.worker.wait_for_event("worker_started")


def reset(scene: Scene, point: Point) -> None:
    scene.cut()
    scene.heal()
    point.release()


def black_hole(scene: Scene, point: Point) -> None:
    before = scene.connections()
    scene.stall()
    point.release()
    wait_for(
        lambda: (
            _is_given_up(scene)
            or all(now > then for now, then in zip(scene.connections(), before, strict=True))
        ),
        "another connection, or none being wanted any more",
    )
    scene.heal()


def session_killed(scene: Scene, point: Point) -> None:
    assert scene.sshd.kill_sessions() >= len(scene.lines)
    scene.heal()
    point.release()


def outage(how: Failure) -> Callable[[Scene, Point], None]:
    def strike(scene: Scene, point: Point) -> None:
        scene.api.fail(how)
        scene.heal()
        point.release()
        deadline = monotonic() + OUTAGE_SECONDS
        while monotonic() < deadline and not scene.worker.events(point.felt):
            sleep(0.02)
        scene.api.heal()

    return strike


WHERE = {
    "before the claim's answer": before_the_claims_answer,
    "claimed": claimed,
    "claimed from the app": claimed_from_the_app,
    "acknowledged by the app": acknowledged_by_the_app,
    "connecting": connecting,
    "deploying": deploying,
    "payload half sent": payload_half_sent,
    "start unheard": start_unheard,
    "started": started,
    "mid output": mid_output,
    "exit seen": exit_seen,
    "outbox written": outbox_written,
    "complete sent": complete_sent,
    "outbox written for the app": outbox_written_for_the_app,
    "complete sent to the app": complete_sent_to_the_app,
    "forgetting": forgetting,
}
WHAT = {
    "killed": killed,
    "reset": reset,
    "black hole": black_hole,
    "session killed": session_killed,
    "500": outage(Failure.ANSWERS_500),
    "hangs": outage(Failure.HANGS),
    "refused": outage(Failure.REFUSES),
}
# A server that says nothing until the setup's limit was never reached.
NEVER_STARTED = [("connecting", "black hole")]


def _cells() -> Iterator[tuple[str, str]]:
    _, head, *lines = TABLE.splitlines()
    assert head.split() == ["where", *" ".join(WHAT).split()]
    for line, where in zip(lines, WHERE, strict=True):
        marks = line.removeprefix(where).split()
        yield from ((where, what) for what, mark in zip(WHAT, marks, strict=True) if mark == "x")


@pytest.fixture
def scene(tmp_path: Path) -> Iterator[Scene]:
    with open_scene(tmp_path) as scene:
        yield scene


@pytest.mark.parametrize(
    ("where", "what"), [pytest.param(*cell, id=", ".join(cell)) for cell in _cells()]
)
def test_a_script_runs_once_and_whole_is_told_once_and_leaves_nothing(
    where: str, what: str, scene: Scene
) -> None:
    started = (where, what) not in NEVER_STARTED

    strike(where, what, scene, setup_limit="60s" if started else "4s")

    wrong = violations(scene, started=started)
    assert not wrong, "\n".join(wrong)


@pytest.mark.parametrize("what", ["killed", "reset"])
def test_three_servers_are_as_independent_as_one(what: str, tmp_path: Path) -> None:
    with open_scene(tmp_path, servers=3) as scene:
        strike("mid output", what, scene)

        wrong = violations(scene, started=True)
        assert not wrong, "\n".join(wrong)


def strike(where: str, what: str, scene: Scene, *, setup_limit: str = "60s") -> None:
    scene.environ = {"SSH_KEEPALIVE": "3s", "SETUP_TIMEOUT": setup_limit}
    scene.start_worker()
    point = WHERE[where](scene)
    WHAT[what](scene, point)
    wait_for(scene.is_reported, "the job's end")


def _is_given_up(scene: Scene) -> bool:
    return any(line["outcome"] == "unreachable" for line in scene.worker.events("execution_ended"))
