"""Servers with the same output shown once, the others by how they differ."""

import difflib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from worker.log_forms import printable
from worker.shown.names import folded, natural_key

# difflib takes time by the product of both; longer output is shown whole.
MOST_DIFF_LINES = 1000


@dataclass(frozen=True, slots=True)
class Group:
    """Servers, by name, whose output is `content`."""

    names: tuple[str, ...]
    content: bytes


def group(outputs: Sequence[tuple[str, bytes]]) -> tuple[Group, ...]:
    """Names by what they printed: the most names first, then by their natural order."""
    names: dict[bytes, list[str]] = {}
    for name, content in outputs:
        names.setdefault(content, []).append(name)
    groups = [
        Group(tuple(sorted(members, key=natural_key)), content)
        for content, members in names.items()
    ]
    return tuple(sorted(groups, key=lambda each: (-len(each.names), natural_key(each.names[0]))))


def fold_lines(outputs: Sequence[tuple[str, bytes]]) -> Iterator[str]:
    """The largest group's output whole, each other's as its difference from that where this is
    shorter; nothing that moves a terminal's cursor."""
    groups = group(outputs)
    for each in groups:
        lines = harmless_lines(each.content)
        heading = f"{folded(each.names)} ({len(each.names)})"
        difference = None if each is groups[0] else _difference(groups[0].content, lines)
        if difference is not None:
            yield f"{heading}, unlike {folded(groups[0].names)}:"
            yield from difference
        elif lines:
            yield f"{heading}:"
            yield from lines
        else:
            yield f"{heading}: no output"


def harmless_lines(content: bytes) -> list[str]:
    r"""Lines end with \n alone; what would move a cursor is written out."""
    text = content.decode(errors="replace").removesuffix("\n")
    return [printable(line.removesuffix("\r")) for line in text.split("\n")] if content else []


def _difference(reference: bytes, lines: list[str]) -> list[str] | None:
    """Lines with `-`, `+` or a blank before them; None where the lines themselves say it better."""
    before = harmless_lines(reference)
    if max(len(before), len(lines)) > MOST_DIFF_LINES:
        return None
    found = list(difflib.unified_diff(before, lines, lineterm="", n=1))[2:]
    return found if found and len(found) < len(lines) else None


def both_streams(stdout: bytes, stderr: bytes) -> bytes:
    """The two of one execution, with a line between where there is a second."""
    if not stderr:
        return stdout
    between = b"" if stdout.endswith(b"\n") or not stdout else b"\n"
    return stdout + between + b"--- stderr ---\n" + stderr
