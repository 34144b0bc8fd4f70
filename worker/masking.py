"""Secrets found in what a script prints and in what we say of it, and replaced by `***`."""

import re
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from functools import lru_cache
from typing import NamedTuple

from ahocorasick_rs import BytesAhoCorasick, Implementation

from worker.secret import Secret
from worker.secret_forms import MIN_LONG_CHARACTERS, as_bytes, forms

MASK = b"***"
# A form is found by its first bytes, and over several lines only where these stand together: so
# the end of a line is not held back for being a letter or two that a secret begins with.
HEAD_BYTES = 6
# How many bytes a form may take for each of its own: two of a line break behind every one.
SPREAD = 3
# Enough to tell most forms apart that begin alike, as keys do.
PROBE_BYTES = 64

ADD_MASK = b"::add-mask::"
MAX_ADDED = 100
# Of so long a line the end is waited for; one that is longer is a line as any.
MAX_ADD_MASK_BYTES = 8192

# A table of so many takes 11 ms and 6 MB and searches 500 MB/s; without one, 2 ms and 220 MB/s.
MAX_TABLE_PATTERNS = 4096

_BREAKS = b"\r\n"
_add_mask_line = re.compile(b"\n" + ADD_MASK)


class _Needle(NamedTuple):
    form: bytes
    # How many of its first bytes stand in the line before; they are not looked for.
    skip: int
    # Whether line breaks may stand in it.
    may_wrap: bool


_OPEN, _ABSENT = -1, 0


def _ends(text: bytes, start: int, needles: Iterable[_Needle]) -> Iterator[int]:
    """Where each needle that may stand at `start` ends; `_OPEN` if the text ends first."""
    probe = text[start : start + PROBE_BYTES].translate(None, _BREAKS)
    for form, skip, may_wrap in needles:
        length = len(form) - skip
        if may_wrap and not form.startswith(probe[:length], skip):
            yield _ABSENT
            continue
        piece = text[start : start + length]
        if form.startswith(piece, skip):
            yield start + length if len(piece) == length else _OPEN
        elif may_wrap:
            window = text[start : start + SPREAD * length]
            joined = window.translate(None, _BREAKS)[:length]
            if not form.startswith(joined, skip):
                yield _ABSENT
            elif len(joined) == length:
                yield start + _wrapped_length(window, length)
            else:
                yield _OPEN if len(window) < SPREAD * length else _ABSENT
        else:
            yield _ABSENT


def _wrapped_length(window: bytes, length: int) -> int:
    """How many bytes hold the first `length` that are no line breaks."""
    end = length
    while missing := length - len(window[:end].translate(None, _BREAKS)):
        end += missing
    return end


def _needles_of(form: bytes) -> Iterator[tuple[bytes, _Needle]]:
    """Each with the bytes that it is found by: its first, or a line break and its first."""
    joined = form.translate(None, _BREAKS)
    is_long = len(joined.decode(errors="ignore")) >= MIN_LONG_CHARACTERS
    if joined != form or not is_long:
        yield form[:HEAD_BYTES], _Needle(form, 0, may_wrap=False)
    if not is_long:
        return
    yield joined[:HEAD_BYTES], _Needle(joined, 0, may_wrap=True)
    # Where the line ends before its head does, what stands in the next line is found.
    for skip in range(1, HEAD_BYTES):
        yield b"\n" + joined[skip : skip + HEAD_BYTES], _Needle(joined, skip, may_wrap=True)


class _Head:
    """The forms that begin with the same bytes."""

    __slots__ = ("following", "needles")

    def __init__(self) -> None:
        self.needles: list[_Needle] = []
        # What comes next in each; None if there is one that ends before.
        self.following: set[bytes] | None = set()

    def add(self, needle: _Needle) -> None:
        self.needles.append(needle)
        end = needle.skip + HEAD_BYTES
        following = needle.form[end : end + HEAD_BYTES]
        if len(following) < HEAD_BYTES:
            self.following = None
        elif self.following is not None:
            self.following.add(following)


class _Index:
    """Finds where in a text forms may stand."""

    def __init__(self) -> None:
        self._heads: dict[bytes, _Head] = {}
        self._in_order: list[_Head] = []
        self._beginnings: set[bytes] = set()
        self._automaton: BytesAhoCorasick | None = None

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

    def candidates(self, text: bytes) -> Iterator[tuple[int, list[_Needle]]]:
        if self._automaton is None:
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

    def open_from(self, text: bytes, at: int) -> int:
        """Where, not before `at`, the text's end may be the beginning of a form's head."""
        for length in range(min(HEAD_BYTES, len(text)), 0, -1):
            tail = text[-length:]
            if tail in self._beginnings:
                # What is found by a line break begins behind it.
                start = len(text) - length + tail.startswith(b"\n")
                if start >= at:
                    return start
        return len(text)


def _stripped(secret: Secret) -> Secret:
    return Secret(secret.reveal().strip())


@lru_cache(maxsize=64)
def compiled(secrets: frozenset[Secret]) -> "Masker":
    """A masker of `secrets` alone, to be the base of others: jobs of one event have the same."""
    return Masker(secrets)


class Masker:
    """Masks `secrets`, what it learns, and all that `base` masks."""

    def __init__(self, secrets: Iterable[Secret] = (), *, base: "Masker | None" = None) -> None:
        self._base = base
        self._known = {_stripped(secret) for secret in secrets}
        self._own = _Index()
        self._own.add(self._known)
        self._learned: tuple[_Index, ...] = ()

    @property
    def indexes(self) -> tuple[_Index, ...]:
        below = () if self._base is None else self._base.indexes
        return (*below, self._own, *self._learned)

    def learn(self, secrets: Iterable[Secret]) -> None:
        """Mask these too from now on."""
        new = frozenset(each for each in map(_stripped, secrets) if not self.knows(each))
        if new:
            self._known |= new
            self._learned += compiled(new).indexes

    def knows(self, secret: Secret) -> bool:
        return secret in self._known or (self._base is not None and self._base.knows(secret))

    def mask(self, data: bytes) -> bytes:
        return MaskingStream(self).flush(data).data

    def mask_text(self, text: str) -> str:
        data = as_bytes(text)
        masked = self.mask(data)
        return text if masked == data else masked.decode(errors="surrogateescape")

    def candidates(self, text: bytes) -> list[tuple[int, list[_Needle]]]:
        """Where something may stand, in order."""
        found: dict[int, list[_Needle]] = {}
        for index in self.indexes:
            for start, needles in index.candidates(text):
                found[start] = [*found.get(start, ()), *needles]
        return sorted(found.items())

    def open_from(self, text: bytes, at: int) -> int:
        return min(index.open_from(text, at) for index in self.indexes)


class ExecutionMasker(Masker):
    """What `job` masks, and what the script of one execution adds."""

    def __init__(self, job: Masker, added: Iterable[Secret] = ()) -> None:
        """`added` is what the execution had added before this worker was started anew."""
        self._added = dict.fromkeys(added)
        super().__init__(self._added, base=job)
        # How many were over the limit.
        self.refused = 0

    @property
    def added(self) -> tuple[Secret, ...]:
        return tuple(self._added)

    def add(self, secret: Secret) -> bool:
        """Mask `secret` from now on; whether that changes anything."""
        if secret in self._added or not forms(secret.reveal()):
            return False
        if len(self._added) >= MAX_ADDED:
            self.refused += 1
            return False
        self._added[secret] = None
        self._own.add([secret])
        return True


@dataclass(frozen=True, slots=True)
class Masked:
    """`data` is final; all given so far stands for the stream up to the offset `consumed`."""

    data: bytes
    consumed: int


class MaskingStream:
    """Masks a stream piece by piece, to the same bytes however it is cut.

    It holds back what may be the beginning of a form, no more. A new one that is fed from
    `consumed` on goes on to the byte where this one was, given that offset, whether what was
    masked before it is empty or ends in a newline (`begins_line`), and the masks that were added.

    Where forms overlap the first one counts, of those that begin together the longest.
    """

    def __init__(
        self,
        masker: Masker,
        *,
        add: Callable[[Secret], bool] | None = None,
        offset: int = 0,
        begins_line: bool = True,
    ) -> None:
        """`add` is given the values of `::add-mask::` lines; without it they are lines as any."""
        self._masker = masker
        self._add = add
        self._received = offset
        self._begins_line = begins_line
        self._held = b""

    def feed(self, data: bytes) -> Masked:
        """The next bytes of the stream, and which of it are final with these."""
        return self._advance(data, is_last=False)

    def flush(self, data: bytes = b"") -> Masked:
        """As `feed`, with the last bytes there are: nothing is held back."""
        return self._advance(data, is_last=True)

    def _advance(self, data: bytes, *, is_last: bool) -> Masked:
        # The line break is there for what is looked for at the beginning of a line only.
        before = b"\n" if self._begins_line else b""
        text = b"".join((before, self._held, data))
        self._received += len(data)
        done: list[bytes] = []
        at, held_from = len(before), len(text)
        candidates = iter(self._candidates(text))
        while candidate := next(candidates, None):
            start, needles = candidate
            if start < at:
                continue
            if needles:
                ends = list(_ends(text, start, needles))
                end = _OPEN if _OPEN in ends and not is_last else max(ends)
            else:
                end = _end_of_add_mask(text, start, is_last=is_last)
            if end == _OPEN and not is_last:
                held_from = start
                break
            if end <= _ABSENT:
                continue
            done.append(text[at:start])
            at = end
            if needles:
                done.append(MASK)
                continue
            value = text[start + len(ADD_MASK) : end]
            done.append(ADD_MASK + (MASK if value else b""))
            if self._add and self._add(Secret(value.decode(errors="surrogateescape"))):
                candidates = iter(self._candidates(text))
        else:
            if not is_last:
                held_from = self._open_from(text, at)
        done.append(text[at:held_from])
        self._held = text[held_from:]
        self._begins_line = text.endswith(b"\n", 0, held_from)
        return Masked(b"".join(done), self._received - len(self._held))

    def _candidates(self, text: bytes) -> list[tuple[int, list[_Needle]]]:
        """Where something may stand, in order; with no needles it is an `::add-mask::` line."""
        found = self._masker.candidates(text)
        if self._add and b"\n" + ADD_MASK in text:
            found += [(line.start() + 1, []) for line in _add_mask_line.finditer(text)]
            found.sort(key=lambda candidate: (candidate[0], len(candidate[1]) > 0))
        return found

    def _open_from(self, text: bytes, at: int) -> int:
        """From where on, if not from its end, the text may be the beginning of something."""
        start = self._masker.open_from(text, at)
        line = text.rfind(b"\n") + 1
        is_add_mask = self._add and max(at, 1) <= line and ADD_MASK.startswith(text[line:])
        return min(line, start) if is_add_mask else start


def _end_of_add_mask(text: bytes, start: int, *, is_last: bool) -> int:
    """Where the value ends that the line at `start` names."""
    end = text.find(b"\n", start, start + MAX_ADD_MASK_BYTES)
    if end < 0:
        if len(text) - start >= MAX_ADD_MASK_BYTES:
            return _ABSENT
        if not is_last:
            return _OPEN
        end = len(text)
    return end - text.endswith(b"\r", 0, end)
