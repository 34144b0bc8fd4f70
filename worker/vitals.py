"""The worker's signs of life: two files that a probe looks at."""

import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import NoReturn

import structlog
import trio

from worker.state.directory import HEARTBEAT, READY

log = structlog.get_logger()

SHOWN_SECONDS = 15.0
# While the API does not answer: who waits for a worker to be ready is to know at once.
SOON_SECONDS = 1.0
# Three that were missed, and a little.
STALE_SECONDS = 60.0


@dataclass(frozen=True, slots=True)
class Health:
    """`fault` says why not, where a worker is not well."""

    is_well: bool
    fault: str | None = None


def overdue(due_at: Mapping[str, float], now: float) -> tuple[str, ...]:
    """The loops that should have come round by `now`."""
    return tuple(name for name, due in due_at.items() if due < now)


def health(directory: Path, *, is_ready: bool, now: float | None = None) -> Health:
    """What the files in `directory` say: whether the worker lives, or also the API answers it.

    `now` is in Unix seconds.
    """
    now = time.time() if now is None else now
    files = {HEARTBEAT: "the worker does not run, or its loops stand still"}
    if is_ready:
        files[READY] = "the queue API does not answer, or refuses"
    for name, meaning in files.items():
        file = directory / name
        try:
            age = abs(now - file.stat().st_mtime)  # of a clock that was set back, how far
        except FileNotFoundError:
            return Health(is_well=False, fault=f"{meaning}: {file} was never there")
        except OSError as error:  # which says nothing of the worker
            return Health(is_well=False, fault=f"{file} cannot be looked at: {error.strerror}")
        if age > STALE_SECONDS:
            return Health(is_well=False, fault=f"{meaning}: {file} is {age:.0f} s old")
    return Health(is_well=True)


class Vitals:
    """`due_at` says of each loop by when it means to have come round, by the loop's clock.

    A loop that waits for room on its disk, as `is_stuck` tells, is as well as it can be: to start
    it anew makes no room.
    """

    def __init__(
        self,
        directory: Path,
        due_at: Callable[[], Mapping[str, float]],
        *,
        is_stuck: Callable[[], bool],
        is_answered: Callable[[], bool],
    ) -> None:
        self._directory = directory
        self._due_at = due_at
        self._is_stuck = is_stuck
        self._is_answered = is_answered
        self._overdue: tuple[str, ...] = ()
        self._failed = False

    async def show_forever(self) -> NoReturn:
        while True:
            if self._goes_round():
                self._touch(HEARTBEAT)
                if self._is_answered():
                    self._touch(READY)
            await trio.sleep(SHOWN_SECONDS if self._is_answered() else SOON_SECONDS)

    @property
    def is_well(self) -> bool:
        """Whether all loops came round when it was last looked."""
        return not (self._overdue or self._is_stuck())

    def _goes_round(self) -> bool:
        before, self._overdue = self._overdue, overdue(self._due_at(), trio.current_time())
        for name in set(self._overdue).difference(before):
            log.error("loop_overdue", loop=name)
        return self._is_stuck() or not self._overdue

    def _touch(self, name: str) -> None:
        try:
            (self._directory / name).touch()
        except OSError as error:  # the probe notices; the jobs need not
            if not self._failed:
                log.warning("heartbeat_file_failed", error=str(error))
            self._failed = True
        else:
            self._failed = False
