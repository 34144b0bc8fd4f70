"""The nursery of one job."""

from collections.abc import Sequence

import pytest
import trio
from trio.testing import MockClock, wait_all_tasks_blocked

from worker.dispatch.fanout import fan_out
from worker.dispatch.result import Outcome, ServerResult
from worker.trigger import Trigger


class Child:
    """Ends after `seconds`, never if that is None; keeps what was done to it."""

    def __init__(
        self, name: str, seconds: float | None = 1, outcome: Outcome = Outcome.SUCCESS
    ) -> None:
        self.name = name
        self.seconds = seconds
        self.outcome = outcome
        self.done: list[tuple[str, float]] = []

    @property
    def steps(self) -> list[str]:
        return [step for step, _ in self.done]

    async def run(self) -> ServerResult:
        if self.seconds is None:
            await trio.sleep_forever()
        else:
            await trio.sleep(self.seconds)
        self._note("ran")
        return ServerResult(self.name, self.name, self.name, self.outcome, 0, 0, 0)

    async def clean_up(self, haste: Trigger) -> None:
        with trio.CancelScope(shield=True) as limit, haste.armed(limit.cancel):
            await trio.sleep(5)
        self._note("cleaned up")

    def close(self) -> None:
        self._note("closed")

    def _note(self, step: str) -> None:
        self.done.append((step, trio.current_time()))


class Report:
    def __init__(self, *, accepts: bool = True, seconds: float = 0) -> None:
        self.accepts = accepts
        self.seconds = seconds
        self.results: list[tuple[str, Outcome]] = []
        self.at: float | None = None

    async def __call__(self, results: Sequence[ServerResult]) -> bool:
        self.at = trio.current_time()
        self.results += [(result.server_name, result.outcome) for result in results]
        await trio.sleep(self.seconds)
        return self.accepts


async def test_servers_run_at_once_and_the_slowest_decides(autojump_clock: MockClock) -> None:
    children = [Child(str(number), seconds=number) for number in range(1, 51)]
    report = Report()
    began = trio.current_time()

    await fan_out(children, report)

    assert report.at is not None
    assert report.at - began == pytest.approx(50)


async def test_results_come_in_the_order_of_the_servers(autojump_clock: MockClock) -> None:
    children = [Child("slow", 9), Child("quick", 1, Outcome.FAILED), Child("middle", 5)]
    report = Report()

    await fan_out(children, report)

    assert report.results == [
        ("slow", Outcome.SUCCESS),
        ("quick", Outcome.FAILED),
        ("middle", Outcome.SUCCESS),
    ]


@pytest.mark.parametrize("outcome", [each for each in Outcome if each is not Outcome.SUCCESS])
async def test_one_servers_failure_leaves_the_others_alone(
    autojump_clock: MockClock, outcome: Outcome
) -> None:
    failing, other = Child("failing", 0, outcome), Child("other", 100)
    report = Report()

    await fan_out([failing, other], report)

    assert report.results == [("failing", outcome), ("other", Outcome.SUCCESS)]


async def test_runs_are_forgotten_once_the_results_were_accepted(
    autojump_clock: MockClock,
) -> None:
    children = [Child("a", 1), Child("b", 2)]
    report = Report(seconds=10)
    began = trio.current_time()

    await fan_out(children, report)

    for child in children:
        assert child.steps == ["ran", "cleaned up", "closed"]
        # The first was ready long before; cleanup takes 5 s, and all of them clean up at once.
        assert child.done[1][1] - began == pytest.approx(2 + 10 + 5)


async def test_results_that_were_not_accepted_leave_the_runs_as_they_are(
    autojump_clock: MockClock,
) -> None:
    children = [Child("a"), Child("b")]

    await fan_out(children, Report(accepts=False))

    assert [child.steps for child in children] == [["ran", "closed"]] * 2


async def test_cancellation_closes_every_server_and_reports_nothing(
    autojump_clock: MockClock,
) -> None:
    children = [Child("ended", 1), Child("going", None), Child("going too", None)]
    report = Report()

    with trio.move_on_after(30) as drain:
        await fan_out(children, report)

    assert drain.cancelled_caught
    assert report.results == []
    assert [child.steps for child in children] == [["ran", "closed"], ["closed"], ["closed"]]


async def test_cancellation_while_reporting_cleans_nothing_up(autojump_clock: MockClock) -> None:
    children = [Child("a"), Child("b")]

    with trio.move_on_after(30) as drain:
        await fan_out(children, Report(seconds=1000))

    assert drain.cancelled_caught
    assert [child.steps for child in children] == [["ran", "closed"]] * 2


async def test_cancellation_has_those_that_clean_up_make_haste(autojump_clock: MockClock) -> None:
    children = [Child("a"), Child("b")]

    with trio.move_on_after(2) as stop:  # 1 s of running, then amid what takes 5 s
        await fan_out(children, Report())

    assert stop.cancelled_caught
    assert trio.current_time() == pytest.approx(2)
    assert [child.steps for child in children] == [["ran", "cleaned up", "closed"]] * 2


async def test_a_fault_in_a_report_closes_every_server(autojump_clock: MockClock) -> None:
    children = [Child("a"), Child("b")]

    async def report(results: tuple[ServerResult, ...]) -> bool:
        await trio.lowlevel.checkpoint()
        raise ZeroDivisionError

    with pytest.RaisesGroup(ZeroDivisionError):
        await fan_out(children, report)

    assert [child.steps for child in children] == [["ran", "closed"]] * 2


async def test_nothing_is_reported_before_the_last_server_has_ended(
    autojump_clock: MockClock,
) -> None:
    report = Report()
    last = Child("last", None)

    async with trio.open_nursery() as nursery:
        nursery.start_soon(fan_out, [Child("a", 0), last], report)
        await wait_all_tasks_blocked()
        assert report.at is None
        nursery.cancel_scope.cancel()

    assert last.steps == ["closed"]
