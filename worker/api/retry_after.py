"""When an API that cannot just now wants to be asked again (RFC 9110, section 10.2.3)."""

from email.utils import parsedate_to_datetime

# However long it says: no worker is to be away for an hour because of a number.
MOST_SECONDS = 60.0


def seconds_of(header: str, *, now: float) -> float:
    """What the header says, as seconds or as a date; 0 where that makes no sense. `now` is in Unix
    seconds."""
    text = header.strip()
    if text.isascii() and text.isdigit():
        return min(float(text), MOST_SECONDS)
    try:
        until = parsedate_to_datetime(text).timestamp()
    except (ValueError, TypeError, IndexError, OverflowError):  # whatever it stumbled over
        return 0.0
    return min(max(0.0, until - now), MOST_SECONDS)
