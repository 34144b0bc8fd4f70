"""The log's two forms."""

import io
import json
import logging
import re
from collections.abc import Iterator
from typing import Any

import pytest
import structlog
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from tests.real_log import configuration_restored
from worker.log_forms import MAX_LINE_BYTES, printable
from worker.logs import configure
from worker.settings import LogFormat, LogLevel, LogSettings

# Every character, halves of surrogate pairs too.
any_text = st.text(st.characters(codec=None, exclude_categories=()), max_size=200)
nasty_text = st.one_of(
    any_text,
    st.builds(lambda char, count: char * count, st.characters(), st.integers(0, 40_000)),
    st.just("\x01" * 40_000),
    st.just("\ud800" * 40_000),
)
fields = st.dictionaries(st.sampled_from(["text", "error", "job_id", "server"]), nasty_text)
same_log = settings(max_examples=40, suppress_health_check=[HealthCheck.function_scoped_fixture])


class Terminal(io.BytesIO):
    def isatty(self) -> bool:
        return True


@pytest.fixture(autouse=True)
def configuration_of_its_own() -> Iterator[None]:
    with configuration_restored():
        yield


def written(
    log_format: LogFormat,
    event: str = "job_started",
    *,
    level: LogLevel = LogLevel.INFO,
    stream: io.BytesIO | None = None,
    **values: Any,  # noqa: ANN401  whatever is logged
) -> bytes:
    """What one event at `info` puts into the log."""
    stream = io.BytesIO() if stream is None else stream
    settings = LogSettings(level, log_format, output=True)
    writer = configure(settings, worker_id="w-1", stream=stream)
    structlog.get_logger().info(event, **values)
    writer.close()
    return stream.getvalue()


def as_json(event: str = "job_started", **values: Any) -> dict[str, Any]:  # noqa: ANN401  as above
    line = written(LogFormat.JSON, event, **values)
    fields: dict[str, Any] = json.loads(line)
    return fields


def test_a_line_is_one_json_object_with_its_fields_in_order() -> None:
    fields = as_json(job_id="job_1", servers=3)

    assert list(fields)[:3] == ["timestamp", "level", "event"]
    assert set(fields) == {"timestamp", "level", "event", "worker_id", "job_id", "servers"}
    assert (fields["level"], fields["event"], fields["worker_id"]) == ("info", "job_started", "w-1")


def test_time_is_utc_with_microseconds() -> None:
    pattern = r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{6}Z"

    assert re.fullmatch(pattern, as_json()["timestamp"])


@same_log
@given(fields, nasty_text)
def test_any_text_is_one_json_line_of_at_most_16_kib(values: dict[str, Any], event: str) -> None:
    log = written(LogFormat.JSON, event, **values)

    assert log.endswith(b"\n")
    assert log.count(b"\n") == 1
    assert len(log) <= MAX_LINE_BYTES
    fields = json.loads(log)
    assert list(fields)[:3] == ["timestamp", "level", "event"]


def test_a_long_text_is_cut_and_the_rest_of_the_line_stays() -> None:
    fields = as_json(job_id="job_1", text="x" * 100_000)

    assert fields["text"] == "x" * 2048
    assert fields["job_id"] == "job_1"
    assert fields["truncated"] is True


@pytest.mark.parametrize(
    "value", [None, 1.5, [1, "a"], {"a": 1}, ValueError("bad"), b"\xff", {1, 2}]
)
def test_any_value_can_be_logged(value: object) -> None:
    assert "value" in as_json(value=value)


def test_a_traceback_is_a_field_of_the_same_line() -> None:
    fields = as_json(exc_info=ValueError("bad\nvalue"))

    assert "ValueError: bad" in fields["exception"]


@pytest.mark.parametrize("level", [LogLevel.WARNING, LogLevel.ERROR])
def test_what_is_below_the_level_is_not_logged(level: LogLevel) -> None:
    assert written(LogFormat.JSON, level=level) == b""


def test_auto_is_json_except_on_a_terminal() -> None:
    assert written(LogFormat.AUTO).startswith(b"{")
    assert not written(LogFormat.AUTO, stream=Terminal()).startswith(b"{")


def test_what_libraries_log_is_left_out() -> None:
    stream = io.BytesIO()
    written(LogFormat.JSON, stream=stream)
    before = stream.getvalue()

    logging.getLogger("asyncssh").error("password hunter2")

    assert stream.getvalue() == before


def test_the_console_shows_a_servers_output_behind_its_name() -> None:
    log = written(LogFormat.CONSOLE, "script_output", server="web-1", text="hello")

    assert re.fullmatch(rb"\d\d:\d\d:\d\d\.\d{3} \[web-1\] hello\n", log)


def test_the_console_shows_an_event_with_its_fields() -> None:
    log = written(LogFormat.CONSOLE, server="web-1", outcome="success", error=None)

    assert re.fullmatch(
        rb"\d\d:\d\d:\d\d\.\d{3} \[web-1\] info    job_started outcome=success\n", log
    )


def test_only_a_terminal_gets_colours() -> None:
    assert b"\x1b[" not in written(LogFormat.CONSOLE, server="web-1")
    assert b"\x1b[" in written(LogFormat.CONSOLE, stream=Terminal(), server="web-1")


@same_log
@given(fields, st.sampled_from(["script_output", "job_started"]), st.text(max_size=5))
def test_the_console_shows_no_control_character_and_forges_no_line(
    values: dict[str, Any], event: str, more: str
) -> None:
    log = written(LogFormat.CONSOLE, event + more, **{"text": "", **values}).decode()

    assert log.endswith("\n")
    assert all(character.isprintable() or character == "\t" for character in log[:-1])


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("plain", "plain"),
        ("žluť 漢字 🙂", "žluť 漢字 🙂"),
        ("a\tb", "a\tb"),
        ("\x1b[2J", "\\x1b[2J"),
        ("50%\r100%", "50%\\x0d100%"),
        ("a\nb", "a\\x0ab"),
        ("\x9b31m", "\\x9b31m"),
        ("\u202eevil", "\\x202eevil"),
    ],
)
def test_text_is_shown_without_what_moves_a_cursor(text: str, shown: str) -> None:
    assert printable(text) == shown
