"""Secrets found in what a script prints and in what we say of it, and replaced by `***`."""

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from functools import lru_cache

from ahocorasick_rs import BytesAhoCorasick

from worker.secret import Secret
from worker.secret_forms import as_bytes, forms
from worker.secret_index import ABSENT, OPEN, Needle, SecretIndex, ends_of

MASK = b"***"
ADD_MASK = b"::add-mask::"
MAX_ADDED = 100
# The end of an `::add-mask::` line is waited for up to this; a longer one is ordinary output.
MAX_ADD_MASK_BYTES = 8192

# Ten times as fast as `in`, and every piece of output is searched.
_add_mask_lines = BytesAhoCorasick([b"\n" + ADD_MASK])


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
        self._own = SecretIndex()
        self._own.add(self._known)
        self._learned: tuple[SecretIndex, ...] = ()

    @property
    def indexes(self) -> tuple[SecretIndex, ...]:
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
        # Most of what is logged has nothing in it: to see that takes half of masking it.
        if not self.candidates(b"\n" + data):
            return text
        masked = self.mask(data)
        return text if masked == data else masked.decode(errors="surrogateescape")

    def candidates(self, text: bytes) -> list[tuple[int, list[Needle]]]:
        """Where something may stand, in order."""
        found: dict[int, list[Needle]] = {}
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

    It holds back no more than what may be the beginning of a form. A new stream goes on, to the
    byte, where this one was if it is fed from `consumed` on, and is given that `offset`, the masks
    that were added, and whether all output before is empty or ends in a newline (`begins_line`).

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
        if not data and not self._held:
            return Masked(b"", self._received)  # most streams end so
        # The line break is there for what is looked for at the beginning of a line only.
        before = b"\n" if self._begins_line else b""
        text = b"".join(part for part in (before, self._held, data) if part)
        self._received += len(data)
        done: list[bytes] = []
        at, held_from = len(before), len(text)
        candidates = iter(self._candidates(text))
        while candidate := next(candidates, None):
            start, needles = candidate
            if start < at:
                continue
            if needles:
                ends = list(ends_of(text, start, needles))
                end = OPEN if OPEN in ends and not is_last else max(ends)
            else:
                end = _end_of_add_mask(text, start, is_last=is_last)
            if end == OPEN and not is_last:
                held_from = start
                break
            if end <= ABSENT:
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

    def _candidates(self, text: bytes) -> list[tuple[int, list[Needle]]]:
        """Where something may stand, in order; with no needles it is an `::add-mask::` line."""
        found = self._masker.candidates(text)
        lines = _add_mask_lines.find_matches_as_indexes(text) if self._add else ()
        if lines:
            found += [(start + 1, []) for _, start, _ in lines]
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
            return ABSENT
        if not is_last:
            return OPEN
        end = len(text)
    return end - text.endswith(b"\r", 0, end)
