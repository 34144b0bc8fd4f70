"""What was received of one stream of a run, in a file of bounded size."""

import os
import shutil
import struct
from collections.abc import Callable, Collection, Iterable
from pathlib import Path

import structlog

from worker.state.run_files import RunFiles

log = structlog.get_logger()

MAGIC = b"cwspool2"
# Magic, limit, bytes kept, and how much of the stream these stand for.
_header = struct.Struct("<8sQQQ")
_counts = struct.Struct("<QQ")
_COUNTS_AT = _header.size - _counts.size
# So much more than half of the limit the ring has room for: bytes of one write, which are not
# counted before its end, do not take the place of any that are wanted.
PIECE_BYTES = 256 * 1024
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

    def __init__(
        self, path: Path, limit: int, *, made: Callable[[Path], None] | None = None
    ) -> None:
        """The spool at `path` as it was left, with the limit that it had, or an empty one; `made`
        is told of its file."""
        self._path = path
        self._made = made
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
        except FileNotFoundError:  # the first of all
            self._path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
            file = _create(self._path)
        if self._made is not None:
            self._made(self._path)
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
    """The spools of all jobs in flight."""

    def __init__(self, directory: Path) -> None:
        self._directory = directory
        self._files = RunFiles(directory)

    def spool(self, job_id: str, execution_id: str, stream: str, *, limit: int) -> Spool:
        path = self._files.path(job_id, f"{execution_id}.{stream}")
        return Spool(path, limit, made=self._files.made)

    def remove(self, job_id: str) -> None:
        self._files.remove(job_id)

    def remove_all_but(self, job_ids: Collection[str]) -> None:
        """What a worker that was killed meant to remove."""
        if self._directory.exists():
            self._take_over_former(job_ids)
            self._files.remove_all_but(job_ids)

    def _take_over_former(self, job_ids: Collection[str]) -> None:
        """Earlier versions had a directory for each job."""
        for directory in self._directory.iterdir():
            if directory.is_dir():
                if directory.name in job_ids:
                    for path in directory.iterdir():
                        path.replace(self._files.path(directory.name, path.name))
                shutil.rmtree(directory, ignore_errors=True)


def boot_id() -> str:
    """What names this boot of the machine; empty where the system does not say."""
    try:
        return Path("/proc/sys/kernel/random/boot_id").read_text().strip()
    except OSError:
        return ""


def _create(path: Path) -> int:
    return os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)


def _put(file: int, data: bytes, at: int) -> None:
    view = memoryview(data)
    while view:
        written = os.pwrite(file, view, at)
        view, at = view[written:], at + written
