"""Files that another program makes and removes while they are looked at."""

import os
from pathlib import Path

from worker.state.directory import BEGUN, SPOOLS
from worker.state.run_files import MARK


def files_below(folder: Path) -> list[Path]:
    """By os.walk, as rglob trips over a directory that goes meanwhile."""
    return [Path(place, name) for place, _, names in os.walk(folder) for name in names]


def files_of_runs(state: Path) -> list[Path]:
    """What a worker's state has of runs in flight: their spools, and marks that they have begun."""
    marks = [path for path in files_below(state / BEGUN) if path.name != MARK]
    return files_below(state / SPOOLS) + marks
