"""Many names in few words: `web-1..web-48`."""

import re
from collections.abc import Iterable
from dataclasses import dataclass

_parts = re.compile(r"(?P<head>.*?)(?P<number>[0-9]+)(?P<tail>[^0-9]*)\Z", re.DOTALL)
# Two names in a row are as short as their range, and clearer.
LEAST_RANGE = 3
# A longer number is a digest or an id, and says nothing of what stands beside it.
MOST_DIGITS = 9


@dataclass(frozen=True, slots=True)
class NameRange:
    """`count` names that differ in their last number alone, which goes up by one."""

    first: str
    last: str
    count: int

    def __str__(self) -> str:
        if self.count == 1:
            return self.first
        return f"{self.first}..{self.last}"


def natural_key(name: str) -> tuple[tuple[int, int, str], ...]:
    """Sorts web-2 before web-10."""
    return tuple(
        (0, int(part), part) if part.isascii() and part.isdigit() else (1, 0, part)
        for part in re.split(r"([0-9]{1,18})", name)
        if part
    )


def fold_names(names: Iterable[str]) -> tuple[NameRange, ...]:
    """All of `names` once each, in natural order."""
    ranges: list[list[str]] = []
    for name in sorted(set(names), key=natural_key):
        if ranges and _is_next(ranges[-1][-1], name):
            ranges[-1].append(name)
        else:
            ranges.append([name])
    folded: list[NameRange] = []
    for members in ranges:
        if len(members) < LEAST_RANGE:
            folded += (NameRange(name, name, 1) for name in members)
        else:
            folded.append(NameRange(members[0], members[-1], len(members)))
    return tuple(folded)


def folded(names: Iterable[str]) -> str:
    """`db-1, web-1..web-48`."""
    return ", ".join(map(str, fold_names(names)))


def _is_next(name: str, following: str) -> bool:
    one, other = _parts.match(name), _parts.match(following)
    if one is None or other is None:
        return False
    if (one["head"], one["tail"]) != (other["head"], other["tail"]):
        return False
    digits = one["number"]
    if len(digits) > MOST_DIGITS:
        return False
    # 9 is followed by 10, 09 too, but 9 never by 010.
    return other["number"] == str(int(digits) + 1).zfill(len(digits))
