"""A small run of `scripts/scale`."""

from pathlib import Path

import pytest

from tests.scale.run import run


@pytest.mark.usefixtures("openssh")
def test_two_workers_share_the_jobs_and_one_that_is_killed_costs_none(tmp_path: Path) -> None:
    shared, with_a_kill = run(tmp_path, [2], servers=16, jobs=24, echo=print)

    assert shared.faults == ()
    assert min(shared.shares) >= 6
    assert with_a_kill.faults == ()
    assert with_a_kill.has_killed
