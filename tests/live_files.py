"""Files that another program makes and removes while they are looked at."""

import os
from pathlib import Path


def files_below(folder: Path) -> list[Path]:
    """By os.walk, as rglob trips over a directory that goes meanwhile."""
    return [Path(place, name) for place, _, names in os.walk(folder) for name in names]
