"""JSON text cut by its brackets alone, for what no parser here reads: nested beyond what it
follows, half of a surrogate pair, bytes that are not UTF-8."""

import re
from collections.abc import Iterator

# What is quoted counts for none of its brackets; what is not closed is quoted to the end, or else
# the search would go there from each of its marks.
_marks = re.compile(rb'"[^"\\]*(?:\\.[^"\\]*)*(?:"|\\?\Z)|[\[\]{},]', re.DOTALL)
# More than anybody means, and less than what a parser gives up at.
MOST_LEVELS = 100


def elements(text: bytes) -> Iterator[bytes]:
    """What stands between the outermost brackets, cut at its commas.

    Raises ValueError where these brackets are missing or do not close.
    """
    level = begin = 0
    for match in _marks.finditer(text):
        mark = match[0]
        if mark in (b"[", b"{"):
            level += 1
            if level == 1:
                begin = match.end()
        elif level == 1 and mark in (b"]", b"}", b","):
            if element := text[begin : match.start()].strip():
                yield element
            begin = match.end()
        if mark in (b"]", b"}"):
            level -= 1
            if level <= 0:
                return
    raise ValueError("not an array or object from end to end")


def member(text: bytes, name: str) -> bytes | None:
    """The value of `name` in an object; None where there is none. Raises as `elements` does."""
    for element in elements(text):
        key, _, value = element.partition(b":")
        if key.strip() == b'"%s"' % name.encode():
            return value.strip()
    return None


def shallow(text: bytes) -> bytes:
    """The same with null for whatever is nested deeper than MOST_LEVELS."""
    level = begin = 0
    kept = []
    for match in _marks.finditer(text):
        mark = match[0]
        if mark in (b"[", b"{"):
            level += 1
            if level == MOST_LEVELS + 1:
                kept += [text[begin : match.start()], b"null"]
        elif mark in (b"]", b"}"):
            if level == MOST_LEVELS + 1:
                begin = match.end()
            level -= 1
    return b"".join((*kept, text[begin:] if level <= MOST_LEVELS else b""))
