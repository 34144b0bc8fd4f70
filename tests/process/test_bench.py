"""`scripts/bench` on two rows that take no time, and what it holds processes by."""

import json
import subprocess
import sys
import time
from pathlib import Path

import pytest

from tests.bench import processes
from tests.process.runner_rig import wait_until

ROWS = ("version-start", "probe-cpu")


def bench(*arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "tests.bench", *ROWS, "--quick", *arguments],
        cwd=Path(__file__).parents[2],
        capture_output=True,
        text=True,
        timeout=60,
    )


def test_rows_are_written_as_json_and_a_missed_target_fails_the_check(tmp_path: Path) -> None:
    file = tmp_path / "rows.json"

    met = bench("--json", str(file), "--check", *(f"--target={row}=1e6" for row in ROWS))
    rows = json.loads(file.read_text())["rows"]
    missed = bench("--json", str(file), "--check", "--target=version-start=1")
    missed_rows = {row["name"]: row for row in json.loads(file.read_text())["rows"]}

    assert met.returncode == 0, met.stderr
    assert [row["name"] for row in rows] == list(ROWS)
    for row in rows:
        assert set(row) == {"name", "value", "unit", "target", "ok"}
        assert isinstance(row["value"], float)
        assert row["value"] > 0
        assert (row["unit"], row["target"], row["ok"]) == ("ms", "<= 1e+06", True)
    assert missed.returncode == 1, missed.stderr
    assert "missed: version-start" in missed.stdout
    assert missed_rows["version-start"]["ok"] is False


@pytest.mark.quiet(seconds=2)
def test_a_held_process_uses_its_share_and_goes_on_afterwards() -> None:
    spinning = "import time\nend = time.monotonic() + 20\nwhile time.monotonic() < end: pass"
    with subprocess.Popen([sys.executable, "-c", spinning]) as process:
        try:
            before = processes.cpu_seconds(process.pid)
            began = time.monotonic()
            with processes.held([process.pid], 0.2):
                time.sleep(1)
                held = processes.cpu_seconds(process.pid) - before
            seconds = time.monotonic() - began
            wait_until(lambda: processes.cpu_seconds(process.pid) - before > 1, "it goes on")
        finally:
            process.kill()

    assert held < 0.3 * seconds
