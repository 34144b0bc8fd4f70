"""Where in a text what a secret may look like stands."""

from collections.abc import Iterable, Iterator
from typing import NamedTuple

from ahocorasick_rs import BytesAhoCorasick, Implementation, MatchKind

from worker.secret import Secret
from worker.secret_forms import MIN_LONG_CHARACTERS, forms

# A form is found by its first bytes, and over several lines only where these stand together: so
# the end of a line is not held back for being a letter or two that a secret begins with.
HEAD_BYTES = 6
# Bytes of text for each byte of a form, at most: a line break of two may follow every one.
SPREAD = 3
# Enough to tell most forms apart that begin alike, as keys do.
PROBE_BYTES = 64

# A table of so many takes 11 ms and 6 MB and searches 500 MB/s; without one, 2 ms and 220 MB/s.
MAX_TABLE_PATTERNS = 4096

# The library looks for so few at 4 GB/s, several bytes at a time, where it need not tell how they
# overlap; beyond some rounds of that it is faster to look for all at once.
FEW_PATTERNS = 64
MAX_SIEVED_PATTERNS = 4 * FEW_PATTERNS
# What is shorter is not worth a look ahead; nor is a text, for so long, in which it was in vain.
MIN_SIEVED_BYTES = 4096
UNSIEVED_BYTES = 1024 * 1024

_BREAKS = b"\r\n"


class Needle(NamedTuple):
    form: bytes
    # How many of its first bytes stand in the line before; they are not looked for.
    skip: int
    # Whether line breaks may stand in it.
    may_wrap: bool


OPEN, ABSENT = -1, 0


def ends_of(text: bytes, start: int, needles: Iterable[Needle]) -> Iterator[int]:
    """Where each needle that may stand at `start` ends; `OPEN` if the text ends first."""
    probe = text[start : start + PROBE_BYTES].translate(None, _BREAKS)
    for form, skip, may_wrap in needles:
        length = len(form) - skip
        if may_wrap and not form.startswith(probe[:length], skip):
            yield ABSENT
            continue
        piece = text[start : start + length]
        if form.startswith(piece, skip):
            yield start + length if len(piece) == length else OPEN
        elif may_wrap:
            window = text[start : start + SPREAD * length]
            joined = window.translate(None, _BREAKS)[:length]
            if not form.startswith(joined, skip):
                yield ABSENT
            elif len(joined) == length:
                yield start + _wrapped_length(window, length)
            else:
                yield OPEN if len(window) < SPREAD * length else ABSENT
        else:
            yield ABSENT


def _wrapped_length(window: bytes, length: int) -> int:
    """How many bytes hold the first `length` that are no line breaks."""
    end = length
    while missing := length - len(window[:end].translate(None, _BREAKS)):
        end += missing
    return end


def _needles_of(form: bytes) -> Iterator[tuple[bytes, Needle]]:
    """Each with the bytes that it is found by: its first, or a line break and its first."""
    joined = form.translate(None, _BREAKS)
    is_long = len(joined.decode(errors="ignore")) >= MIN_LONG_CHARACTERS
    if joined != form or not is_long:
        yield form[:HEAD_BYTES], Needle(form, 0, may_wrap=False)
    if not is_long:
        return
    yield joined[:HEAD_BYTES], Needle(joined, 0, may_wrap=True)
    # Where the line ends before its head does, what stands in the next line is found.
    for skip in range(1, HEAD_BYTES):
        yield b"\n" + joined[skip : skip + HEAD_BYTES], Needle(joined, skip, may_wrap=True)


class _Head:
    """The forms that begin with the same bytes."""

    __slots__ = ("following", "needles")

    def __init__(self) -> None:
        self.needles: list[Needle] = []
        # What comes next in each; None if there is one that ends before.
        self.following: set[bytes] | None = set()

    def add(self, needle: Needle) -> None:
        self.needles.append(needle)
        end = needle.skip + HEAD_BYTES
        following = needle.form[end : end + HEAD_BYTES]
        if len(following) < HEAD_BYTES:
            self.following = None
        elif self.following is not None:
            self.following.add(following)


class _Sieve:
    """Lets through each text that has one of the patterns in it, as hardly any has.

    Where there are too many patterns for that to be fast, it lets through all.
    """

    def __init__(self, patterns: Iterable[bytes]) -> None:
        parts: dict[bool, list[bytes]] = {True: [], False: []}
        for pattern in patterns:
            parts[pattern.startswith(b"\n")].append(pattern)
        first = parts[False]
        rounds = [first[at : at + FEW_PATTERNS] for at in range(0, len(first), FEW_PATTERNS)]
        # Those behind a line break are looked for there alone, however many they are.
        rounds.append(parts[True])
        self._rounds = [
            BytesAhoCorasick(
                few, implementation=Implementation.DFA, matchkind=MatchKind.LeftmostFirst
            )
            for few in rounds
            if few and len(first) <= MAX_SIEVED_PATTERNS
        ]

    def lets_through(self, text: bytes) -> bool:
        found = (few.find_matches_as_indexes(text) for few in self._rounds)
        return not self._rounds or any(found)


class SecretIndex:
    """Finds where in a text forms may stand."""

    def __init__(self) -> None:
        self._heads: dict[bytes, _Head] = {}
        self._in_order: list[_Head] = []
        self._beginnings: set[bytes] = set()
        self._automaton: BytesAhoCorasick | None = None
        self._sieve: _Sieve | None = None
        # How much more is looked for without a sieve, which takes longer to make than to search
        # what most scripts print.
        self._unsieved_bytes = UNSIEVED_BYTES

    def add(self, secrets: Iterable[Secret]) -> None:
        found = {form for secret in secrets for form in forms(secret.reveal())}
        for pattern, needle in {pair for form in found for pair in _needles_of(form)}:
            head = self._heads.get(pattern)
            if head is None:
                head = self._heads[pattern] = _Head()
                self._beginnings.update([pattern[:end] for end in range(1, len(pattern))])
            head.add(needle)
        self._in_order = list(self._heads.values())
        if self._heads:
            is_large = len(self._heads) > MAX_TABLE_PATTERNS
            kind = Implementation.ContiguousNFA if is_large else Implementation.DFA
            self._automaton = BytesAhoCorasick(self._heads, implementation=kind)
        self._sieve = None

    def candidates(self, text: bytes) -> Iterator[tuple[int, list[Needle]]]:
        if self._automaton is None or self._is_held_back(text):
            return
        for number, _, end in self._automaton.find_matches_as_indexes(text, overlapping=True):
            head = self._in_order[number]
            if head.following is not None:
                # A form may begin like a word that is all over the text, such as https:.
                following = text[end : end + HEAD_BYTES]
                if (
                    following not in head.following
                    and len(following) == HEAD_BYTES
                    and b"\n" not in following
                    and b"\r" not in following
                ):
                    continue
            yield end - HEAD_BYTES, head.needles

    def _is_held_back(self, text: bytes) -> bool:
        """Whether it is known already that nothing stands there."""
        if len(text) < MIN_SIEVED_BYTES:
            return False
        if self._unsieved_bytes > 0:
            self._unsieved_bytes -= len(text)
            return False
        if self._sieve is None:
            self._sieve = _Sieve(self._heads)
        if self._sieve.lets_through(text):
            self._unsieved_bytes = UNSIEVED_BYTES
            return False
        return True

    def open_from(self, text: bytes, at: int) -> int:
        """Where, not before `at`, the text's end may be the beginning of a form's head."""
        end = text[-HEAD_BYTES:]
        for skip in range(len(end)):
            tail = end[skip:]
            if tail in self._beginnings:
                # What is found by a line break begins behind it.
                start = len(text) - len(tail) + tail.startswith(b"\n")
                if start >= at:
                    return start
        return len(text)
