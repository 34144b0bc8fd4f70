"""When an API that cannot just now wants to be asked again."""

from datetime import UTC, datetime
from email.utils import format_datetime, formatdate

import pytest
from hypothesis import given
from hypothesis import strategies as st

from worker.api.retry_after import MOST_SECONDS, seconds_of

NOW = 1_795_000_000.0


@pytest.mark.parametrize(
    ("header", "seconds"),
    [
        ("0", 0),
        (" 7 ", 7),
        ("60", MOST_SECONDS),
        ("86400", MOST_SECONDS),
        ("9" * 5000, MOST_SECONDS),
        (formatdate(NOW + 20, usegmt=True), 20),
        (format_datetime(datetime.fromtimestamp(NOW + 20, UTC)), 20),
        (formatdate(NOW - 20, usegmt=True), 0),
        (formatdate(NOW + 86400, usegmt=True), MOST_SECONDS),
        ("Fri, 31 Dec 9999 23:59:59 GMT", MOST_SECONDS),
        ("", 0),
        ("-7", 0),
        ("1.5", 0),
        ("٣", 0),
        ("soon", 0),
        ("Fri, 99 Dec 2026 99:99:99 GMT", 0),
        ("Fri, 31 Dec 2026 23:59:59 +99999999999999999999", 0),
    ],
)
def test_seconds_and_dates_are_heeded_within_a_minute(header: str, seconds: float) -> None:
    assert seconds_of(header, now=NOW) == seconds


@given(st.text())
def test_nothing_that_stands_there_is_a_fault(header: str) -> None:
    assert 0 <= seconds_of(header, now=NOW) <= MOST_SECONDS
