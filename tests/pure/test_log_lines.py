"""Which lines of a log are shown, and what a command makes of them."""

import json
import re
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner

from worker.cli.logs import logs
from worker.shown.log_lines import Wanted, read_line


def event(**fields: object) -> dict[str, Any]:
    return {
        "timestamp": "2026-11-23T10:00:00.000000Z",
        "level": "info",
        "event": "execution_started",
        "job_id": "job_1",
        "server": "web-1",
        "server_id": "7",
        **fields,
    }


@pytest.mark.parametrize(
    ("wanted", "taken"),
    [
        (Wanted(), True),
        (Wanted(job_id="job_1"), True),
        (Wanted(job_id="job_2"), False),
        (Wanted(server="web-1"), True),
        (Wanted(server="7"), True),
        (Wanted(server="web-2"), False),
        (Wanted(level="info"), True),
        (Wanted(level="warning"), False),
        (Wanted(since=1795428000000), True),
        (Wanted(since=1795428000001), False),
        (Wanted(pattern=re.compile("^exec")), True),
        (Wanted(pattern=re.compile("disk")), False),
    ],
)
def test_lines_are_taken_by_what_is_asked_for(wanted: Wanted, taken: bool) -> None:
    assert wanted.takes(event()) is taken


def test_a_line_keeps_what_others_put_in_front() -> None:
    line = read_line("worker-1  | " + json.dumps(event()))

    assert line is not None
    assert line.prefix == "worker-1  | "
    assert line.event == event()


@pytest.mark.parametrize("text", ["", "no event", '{"a": 1}', '{"timestamp": 1}', "{", "[1]"])
def test_what_is_no_event_is_none(text: str) -> None:
    assert read_line(text) is None


def shown(text: str, *arguments: str) -> str:
    done = CliRunner().invoke(logs, arguments, input=text)
    assert done.exit_code == 0, done.output
    return done.output


def test_a_log_is_shown_with_its_days_and_prefixes_of_servers() -> None:
    output = event(event="script_output", text="hello\x1b[2J", stream="stdout")
    text = "\n".join(
        [
            json.dumps(event()),
            "plain words",
            json.dumps(event(timestamp="2026-11-24T00:00:01.000000Z", event="job_ended", ms=5)),
            json.dumps(output),
        ]
    )

    assert shown(text) == (
        "--- 2026-11-23\n"
        "10:00:00.000 [web-1] info    execution_started job_id=job_1\n"
        "plain words\n"
        "--- 2026-11-24\n"
        "00:00:01.000 [web-1] info    job_ended job_id=job_1 ms=5\n"
        "--- 2026-11-23\n"
        "10:00:00.000 [web-1] hello\\x1b[2J\n"
    )


def test_what_was_not_asked_for_is_left_out(tmp_path: Path) -> None:
    log = tmp_path / "worker.log"
    log.write_text(f"plain words\n{json.dumps(event())}\n{json.dumps(event(level='error'))}\n")

    assert shown("", "--level", "error", str(log)).count("\n") == 2
    assert shown("", "--grep", "plain", str(log)) == ""
    assert shown("", "--since", "2026-11-23T10:00:01Z", str(log)) == ""


@pytest.mark.parametrize(
    "arguments", [["--since", "soon"], ["--grep", "("], ["--level", "loud"], ["absent.log"]]
)
def test_nonsense_is_a_usage_error(arguments: list[str]) -> None:
    done = CliRunner().invoke(logs, arguments)

    assert done.exit_code == 2
