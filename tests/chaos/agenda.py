"""What is to be done later."""

import heapq
from collections.abc import Callable
from itertools import count
from time import monotonic, sleep

LOOK_SECONDS = 0.05
Action = Callable[[], object]


class Agenda:
    def __init__(self) -> None:
        self._began = monotonic()
        self._order = count()
        self._entries: list[tuple[float, int, Action]] = []

    @property
    def now(self) -> float:
        """Seconds since the beginning."""
        return monotonic() - self._began

    def restart(self) -> None:
        """Count the seconds from here on."""
        self._began = monotonic()

    def at(self, moment: float, action: Action) -> None:
        heapq.heappush(self._entries, (moment, next(self._order), action))

    def later(self, seconds: float, action: Action) -> None:
        self.at(self.now + seconds, action)

    def run_until(self, end: float) -> None:
        """Do what is due, until then."""
        while self.now < end:
            while self._entries and self._entries[0][0] <= self.now:
                _, _, action = heapq.heappop(self._entries)
                action()
            sleep(LOOK_SECONDS)

    def finish(self, seconds: float) -> bool:
        """Do the rest now, and what that adds as soon; whether that came to an end in time."""
        end = monotonic() + seconds
        while self._entries and monotonic() < end:
            entries, self._entries = sorted(self._entries), []
            for _, _, action in entries:
                action()
            sleep(LOOK_SECONDS)
        return not self._entries
