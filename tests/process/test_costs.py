"""Counts that must not grow: each is a row of the benchmark, measured here on every run."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]


def measured(*rows: str, folder: Path) -> dict[str, float]:
    file = folder / "rows.json"
    done = subprocess.run(
        [sys.executable, "-m", "tests.bench", *rows, "--quick", "--json", str(file)],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert done.returncode == 0, done.stderr
    return {row["name"]: row["value"] for row in json.loads(file.read_text())["rows"]}


def test_a_job_of_one_server_takes_few_calls_and_commits(tmp_path: Path) -> None:
    # Claimed, told to run, told to have ended; its row goes along with both.
    # For the app: claimed, read, told to run, its row made and filled, read again, told to have
    # ended.
    # Kept, ended, told, forgotten.
    names = ("api-calls-per-job", "app-calls-per-job", "commits-per-job")

    rows = measured(*names, folder=tmp_path)

    assert rows == dict(zip(names, (3, 7, 4), strict=True))


@pytest.mark.quiet(seconds=20)
def test_executions_take_the_round_trips_that_they_must(tmp_path: Path) -> None:
    names = ("rtt-warm-spare", "rtt-warm", "rtt-cold", "rtt-fresh")

    rows = measured(*names, folder=tmp_path)

    assert rows == dict(zip(names, (1, 3, 7, 10), strict=True))
