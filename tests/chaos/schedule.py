"""From a seed to the jobs and the faults of a run."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from random import Random

from tests.chaos.shapes import KINDS

# Between two jobs, and between two faults, on average.
JOB_SECONDS = 0.9
FAULT_SECONDS = 1.6


@dataclass(frozen=True, slots=True)
class Submission:
    at: float
    number: int
    kind: str
    servers: tuple[int, ...]


@dataclass(frozen=True, slots=True)
class Strike:
    """`target` is to be taken modulo however many there are to choose from."""

    at: float
    kind: str
    target: int
    seconds: float


def submissions(seed: int, length: float, servers: int) -> Iterator[Submission]:
    random = Random(f"{seed} jobs")  # noqa: S311  no secret
    shares = [kind.share for kind in KINDS.values()]
    at, number = 0.0, 0
    while at < length:
        number += 1
        (kind,) = random.choices(list(KINDS), shares)
        size = random.randint(1, min(servers, KINDS[kind].most_servers))
        yield Submission(at, number, kind, tuple(random.sample(range(servers), size)))
        at += random.expovariate(1 / JOB_SECONDS)


def strikes(seed: int, length: float, kinds: Mapping[str, tuple[float, float]]) -> Iterator[Strike]:
    """Each of `kinds` has the least and the most seconds that it lasts; what would not end within
    `length` does not strike."""
    random = Random(f"{seed} faults")  # noqa: S311  no secret
    at = 0.0
    while at < length:
        # A shuffled deck after another, so that a run of some length has all kinds.
        for kind in random.sample(list(kinds), len(kinds)):
            pause, seconds = random.expovariate(1 / FAULT_SECONDS), random.uniform(*kinds[kind])
            if at + pause + seconds < length:
                at += pause
                yield Strike(at, kind, random.randrange(2**16), seconds)
        at += FAULT_SECONDS
