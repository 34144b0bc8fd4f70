"""What was received of one stream of a run, in a file of bounded size."""

import hashlib
import os
import shutil
import struct
from collections.abc import Collection, Iterable
from contextlib import suppress
from pathlib import Path

import structlog

log = structlog.get_logger()

MAGIC = b"cwspool2"
# Magic, limit, bytes kept, and how much of the stream these stand for.
_header = struct.Struct("<8sQQQ")
_counts = struct.Struct("<QQ")
_COUNTS_AT = _header.size - _counts.size
# So much more than half of the limit the ring has room for: bytes of one write, which are not
# counted before its end, do not take the place of any that are wanted.
PIECE_BYTES = 256 * 1024
# What separates the two ids in a mark's name; no id has it.
MARK = "@"
# A longer id of a job stands there as its digest: an execution's id has up to 100 bytes, and where
# names are encrypted, eCryptfs has room for no more than 143.
MARK_JOB_BYTES = 42
# A header that says more is damaged.
MOST_LIMIT_BYTES = 2**32
MOST_RECEIVED_BYTES = 2**50


class Spool:
    """The first and the last half of a stream, under the limit all of it.

    What is kept may be shorter than what it stands for, as secrets are masked: `source` is the
    offset that it has come to in the stream itself.

    Each byte has a place that follows from its offset alone, and the count follows the bytes. So
    a process that is killed in between finds fewer counted, is given the rest once more, and
    writes it to the same places. Nothing is synced: after the machine itself went down, begin anew.

    Raises OSError from `write` where there is no room; what is counted stays whole.
    """

    def __init__(self, path: Path, limit: int) -> None:
        """The spool at `path` as it was left, with the limit that it had, or an empty one."""
        self._path = path
        self._file: int | None = None
        self.limit = limit
        self.received = self.source = 0
        try:
            with path.open("rb") as file:
                head = file.read(_header.size)
        except FileNotFoundError:
            self.exists = False
            return
        self.exists = True
        if len(head) == _header.size and head.startswith(MAGIC):
            _, limit, received, source = _header.unpack(head)
            # Nothing of ours is larger, or has been received faster than that.
            if limit <= MOST_LIMIT_BYTES and max(received, source) <= MOST_RECEIVED_BYTES:
                self.limit, self.received, self.source = limit, received, source

    def write(self, data: bytes, *, source: int | None = None) -> None:
        """Add the next bytes, PIECE_BYTES at most and perhaps none: the file is there then.

        They stand for the stream up to `source`; by default for as much as they are.
        """
        if self._file is None:
            self._file = self._open()
        end, taken = self.received + len(data), 0
        for at, length in self._places(self.received, end):
            _put(self._file, data[taken : taken + length], at)
            taken += length
        source = self.source + len(data) if source is None else source
        if (end, source) != (self.received, self.source):
            _put(self._file, _counts.pack(end, source), _COUNTS_AT)
            self.received, self.source = end, source

    def read(self, start: int, end: int) -> bytes:
        """The bytes from one offset up to another, of the first or the last half; none where
        somebody has deleted the file. Raises OSError where it cannot be read at the moment.
        """
        if start >= end:
            return b""
        try:
            file = self._path.open("rb")
        except FileNotFoundError:
            log.warning("spool_deleted", path=str(self._path))
            return b""
        with file:
            return b"".join(
                os.pread(file.fileno(), length, at) for at, length in self._places(start, end)
            )

    def close(self) -> None:
        if self._file is not None:
            os.close(self._file)
            self._file = None

    def _open(self) -> int:
        try:
            file = _create(self._path)
        except FileNotFoundError:  # the first of its job
            self._path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
            file = _create(self._path)
        try:
            _put(file, _header.pack(MAGIC, self.limit, self.received, self.source), 0)
        except BaseException:
            os.close(file)
            raise
        self.exists = True
        return file

    def _places(self, start: int, end: int) -> Iterable[tuple[int, int]]:
        """Where the bytes between two offsets lie: places in the file, with lengths."""
        head = self.limit - self.limit // 2
        ring = self.limit // 2 + PIECE_BYTES
        while start < end:
            if start < head:
                at, length = start, head - start
            else:
                turn = (start - head) % ring
                at, length = head + turn, ring - turn
            length = min(length, end - start)
            yield _header.size + at, length
            start += length


class Spools:
    """The spools of all jobs in flight, a directory each, and marks of their runs that have begun.

    Most runs end at once and print nothing. As a new file takes long where many are deleted, a
    mark is but one more name of one that is there already.
    """

    def __init__(self, directory: Path) -> None:
        self._directory = directory
        self._model = directory / MARK
        # By job, those of this process and of what it took up.
        self._marks: dict[str, list[Path]] = {}

    def spool(self, job_id: str, execution_id: str, stream: str, *, limit: int) -> Spool:
        return Spool(self._directory / job_id / f"{execution_id}.{stream}", limit)

    def mark(self, job_id: str, execution_id: str) -> None:
        """Mark that a run has begun. Raises OSError where there is no room for that."""
        path = self._mark(job_id, execution_id)
        try:
            os.link(self._model, path)
        except FileExistsError:
            pass
        except OSError:  # the first, or it can have no more names
            path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
            path.touch(0o600)
            with suppress(OSError):
                os.link(path, self._model)
        # Last, and in a new list: the database's thread may be removing those of the job meanwhile,
        # and what it misses goes with the next that it removes.
        self._marks[job_id] = [*self._marks.get(job_id, ()), path]

    def is_marked(self, job_id: str, execution_id: str) -> bool:
        return self._mark(job_id, execution_id).exists()

    def remove(self, job_id: str) -> None:
        for path in self._marks.pop(job_id, ()):
            _remove(path)
        if not self._marks:
            _remove(self._model)
        # The id of an orphan may be any text, and lead anywhere; such a job has no spools.
        if Path(job_id).name == job_id and job_id not in ("", "..") and MARK not in job_id:
            _remove(self._directory / job_id)

    def remove_all_but(self, job_ids: Collection[str]) -> None:
        """What a worker that was killed meant to remove."""
        kept = {_in_mark(job_id): job_id for job_id in job_ids}
        for path in self._directory.iterdir() if self._directory.exists() else ():
            _, mark, job = path.name.rpartition(MARK)
            if mark and job in kept:
                self._marks.setdefault(kept[job], []).append(path)
            elif path.name not in job_ids:
                _remove(path)

    def _mark(self, job_id: str, execution_id: str) -> Path:
        return self._directory / f"{execution_id}{MARK}{_in_mark(job_id)}"


def boot_id() -> str:
    """What names this boot of the machine; empty where the system does not say."""
    try:
        return Path("/proc/sys/kernel/random/boot_id").read_text().strip()
    except OSError:
        return ""


def _in_mark(job_id: str) -> str:
    if len(job_id) <= MARK_JOB_BYTES:
        return job_id
    return hashlib.sha256(job_id.encode()).hexdigest()[:MARK_JOB_BYTES]


def _remove(path: Path) -> None:
    try:
        path.unlink()
    except (FileNotFoundError, ValueError):  # no file can have such a name
        pass
    except OSError:  # a directory, though macOS says only that this is not allowed
        shutil.rmtree(path, ignore_errors=True)


def _create(path: Path) -> int:
    return os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)


def _put(file: int, data: bytes, at: int) -> None:
    view = memoryview(data)
    while view:
        written = os.pwrite(file, view, at)
        view, at = view[written:], at + written
