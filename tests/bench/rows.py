"""Rows: a number, its unit, its target and whether that is met."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from statistics import median


@dataclass(frozen=True, slots=True)
class Target:
    """A bound that still counts as met."""

    bound: float
    at_least: bool = False

    def is_met_by(self, value: float) -> bool:
        return value >= self.bound if self.at_least else value <= self.bound

    def __str__(self) -> str:
        return f"{'>=' if self.at_least else '<='} {self.bound:g}"


@dataclass(frozen=True, slots=True)
class Row:
    """`meaning` is for people; a row without a target is for information."""

    name: str
    unit: str
    meaning: str
    target: Target | None = None
    digits: int = 2


@dataclass(frozen=True, slots=True)
class Measured:
    """One row's outcome; `value` is None where it could not be measured, and `note` says why."""

    name: str
    value: float | None
    samples: tuple[float, ...] = ()
    note: str = ""

    def meets(self, target: Target | None) -> bool | None:
        """None where there is nothing to judge."""
        if target is None or self.value is None:
            return None
        return target.is_met_by(self.value)


def measured(name: str, samples: Iterable[float], note: str = "") -> Measured:
    """The median of `samples`."""
    kept = tuple(samples)
    return Measured(name, median(kept), kept, note)


def unmeasured(names: Iterable[str], why: str) -> list[Measured]:
    return [Measured(name, None, note=why) for name in names]


def ratios(ours: Sequence[float], theirs: Sequence[float]) -> list[float]:
    """Pair by pair, as they were measured one after the other."""
    return [one / other for one, other in zip(ours, theirs, strict=True)]


def at_most(bound: float) -> Target:
    return Target(bound)


def at_least(bound: float) -> Target:
    return Target(bound, at_least=True)
