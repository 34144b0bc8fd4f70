"""The server that most tests of the runner are about."""

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.process.runner_rig import SHELLS, Server, serving


@pytest.fixture(params=SHELLS)
def server(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Server]:
    """One of each shell."""
    with serving(tmp_path, request.param) as one:
        yield one
