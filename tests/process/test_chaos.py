"""A short run of `scripts/chaos`."""

from pathlib import Path

import pytest

from tests.chaos.run import run

# So long, this seed has thirteen kinds of faults.
SEED, SECONDS = 87, 8.0


@pytest.mark.usefixtures("openssh")
@pytest.mark.parametrize("as_app", [False, True])
def test_killing_and_cutting_at_random_starts_nothing_twice_and_loses_nothing(
    tmp_path: Path, as_app: bool
) -> None:
    progress: list[str] = []

    verdict = run(tmp_path, seed=SEED, seconds=SECONDS, echo=progress.append, as_app=as_app)

    found = [*verdict.problems, *map(str, verdict.findings)]
    assert not found, "\n".join([*progress, *found])
    assert verdict.outcomes["success"] > 0
    assert len(verdict.faults) > 5
