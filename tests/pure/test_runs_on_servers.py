"""Which of a server's runs are meant where none is named."""

from worker.cli.runs import ended
from worker.remote.runner import RunOnServer


def test_all_but_those_that_run_have_ended() -> None:
    found = [
        RunOnServer(f"exec_{state}", state, age_seconds=1, stdout_bytes=0, stderr_bytes=0)
        for state in ("running", "ended", "lost")
    ]

    assert ended(found) == ["exec_ended", "exec_lost"]
