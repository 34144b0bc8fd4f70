"""What all experiments share."""

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from tests.bench.rows import Measured, Row


class CannotMeasureError(Exception):
    """Why an experiment cannot be done here, or why what it did does not count."""


@dataclass(frozen=True, slots=True)
class Bench:
    """`quick` is for trying the benchmark itself: its numbers are of no use otherwise."""

    folder: Path
    servers: int
    rounds: int
    quick: bool
    wanted: frozenset[str]
    peers: Path
    say: Callable[[str], None]

    def room(self, name: str) -> Path:
        """A folder of its own."""
        room = self.folder / name
        room.mkdir()
        return room

    def wants(self, *names: str) -> bool:
        return not self.wanted.isdisjoint(names)

    def pick(self, full: int, quick: int) -> int:
        return quick if self.quick else full


@dataclass(frozen=True, slots=True)
class Experiment:
    """Rows that come out of one set-up."""

    name: str
    rows: tuple[Row, ...]
    run: Callable[[Bench], list[Measured]]


@contextmanager
def timed(bench: Bench, what: str) -> Iterator[None]:
    began = time.monotonic()
    yield
    bench.say(f"{what}: {time.monotonic() - began:.1f} s")
