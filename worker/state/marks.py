"""Which runs are known to have begun, for a worker that starts anew."""

import hashlib
import os
from collections.abc import Collection
from contextlib import suppress
from pathlib import Path

# What separates the two ids in a name; no id has it.
MARK = "@"
# A longer id of a job stands there as its digest: an execution's id has up to 100 bytes, and where
# names are encrypted, eCryptfs has room for no more than 143.
JOB_BYTES = 42


class Marks:
    """A name in `directory` for each run of the jobs in flight that has begun.

    Most runs end at once and print nothing. As a new file takes long where many are deleted, all
    of these are names of one. Nothing is synced: they go when the machine itself went down.
    """

    def __init__(self, directory: Path) -> None:
        self._directory = directory
        self._file = directory / MARK
        # By job, those of this process and of what it took up.
        self._paths: dict[str, list[Path]] = {}

    def add(self, job_id: str, execution_id: str) -> None:
        """Raises OSError where there is no room for that."""
        path = self._path(job_id, execution_id)
        try:
            os.link(self._file, path)
        except FileExistsError:
            pass
        except OSError:  # the first, or the file can have no more names
            self._directory.mkdir(mode=0o700, parents=True, exist_ok=True)
            path.touch(0o600)
            with suppress(OSError):
                os.link(path, self._file)
        # Last, and in a new list: the database's thread may be removing those of the job meanwhile,
        # and what it misses goes with the next that it removes.
        self._paths[job_id] = [*self._paths.get(job_id, ()), path]

    def has(self, job_id: str, execution_id: str) -> bool:
        return self._path(job_id, execution_id).exists()

    def remove(self, job_id: str) -> None:
        for path in self._paths.pop(job_id, ()):
            _unlink(path)

    def remove_all_but(self, job_ids: Collection[str]) -> None:
        """What a worker that was killed meant to remove."""
        kept = {_shown(job_id): job_id for job_id in job_ids}
        for path in self._directory.glob(f"?*{MARK}*"):
            job_id = kept.get(path.name.rpartition(MARK)[2])
            if job_id is not None:
                self._paths.setdefault(job_id, []).append(path)
            else:
                _unlink(path)

    def _path(self, job_id: str, execution_id: str) -> Path:
        return self._directory / f"{execution_id}{MARK}{_shown(job_id)}"


def _shown(job_id: str) -> str:
    if len(job_id) <= JOB_BYTES:
        return job_id
    return hashlib.sha256(job_id.encode()).hexdigest()[:JOB_BYTES]


def _unlink(path: Path) -> None:
    with suppress(OSError):  # what stays says no more than that a run is to be looked for
        path.unlink()
