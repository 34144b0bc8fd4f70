"""What runs beside what: those marked `quiet` come last, a processor for each."""

import fcntl
import os
import time
from collections.abc import Generator, Sequence
from contextlib import ExitStack, suppress
from pathlib import Path
from typing import IO

import pytest


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """What wants quiet comes last, when the workers have nothing else left to do."""
    items.sort(key=lambda item: (_wants_quiet(item), -_seconds_of_quiet(item)))


@pytest.hookimpl(wrapper=True)
def pytest_runtest_protocol(item: pytest.Item) -> Generator[None, object, object]:
    """Tests marked `quiet` have a processor each to themselves, however many workers there are."""
    if "PYTEST_XDIST_WORKER" not in os.environ:
        return (yield)
    with ExitStack() as stack:
        # The directory around the workers' own ones is this run's, and no other run's.
        room = Path(item.config.option.basetemp).parent
        processors = [
            stack.enter_context((room / f"processor-{number}").open("w"))
            for number in os.sched_getaffinity(0)
        ]
        if _wants_quiet(item):
            with (room / "turn").open("w") as turn:
                fcntl.flock(turn, fcntl.LOCK_EX)
                _take_one(processors)
        else:
            _share_all(processors)
        return (yield)


def _share_all(processors: Sequence[IO[str]]) -> None:
    for processor in processors:
        fcntl.flock(processor, fcntl.LOCK_SH)


def _take_one(processors: Sequence[IO[str]]) -> None:
    """Whichever is free first; one caller at a time, or who comes late could have it sooner."""
    while True:
        for processor in processors:
            with suppress(BlockingIOError):
                fcntl.flock(processor, fcntl.LOCK_EX | fcntl.LOCK_NB)
                return
        time.sleep(0.05)


def _wants_quiet(item: pytest.Item) -> bool:
    return item.get_closest_marker("quiet") is not None


def _seconds_of_quiet(item: pytest.Item) -> float:
    """How long it takes, where that is long: the longest comes first."""
    mark = item.get_closest_marker("quiet")
    return mark.kwargs.get("seconds", 0) if mark else 0
