"""Files of the runs of jobs in flight, which go with their jobs."""

import hashlib
from collections.abc import Collection
from pathlib import Path

# What separates a name from the job's id; no id has it.
MARK = "@"
# A longer id of a job stands there as its digest: an execution's id has up to 100 bytes, a stream's
# name 7, and where names are encrypted, eCryptfs has room for no more than 143.
JOB_BYTES = 35


class RunFiles:
    """All of them in one directory: one for each job would take ten times as long to make and to
    remove as the files themselves."""

    def __init__(self, directory: Path) -> None:
        self._directory = directory
        # By job as it is shown, those of this process and of what it found.
        self._paths: dict[str, list[Path]] = {}

    def path(self, job_id: str, name: str) -> Path:
        return self._directory / f"{name}{MARK}{_shown(job_id)}"

    def make_directory(self) -> None:
        self._directory.mkdir(mode=0o700, parents=True, exist_ok=True)

    def made(self, path: Path) -> None:
        """There is that file now."""
        shown = path.name.rpartition(MARK)[2]
        # In a new list: the database's thread may be removing those of the job meanwhile, and what
        # it misses goes with the next that it removes.
        self._paths[shown] = [*self._paths.get(shown, ()), path]

    def remove(self, job_id: str) -> None:
        self._remove(_shown(job_id))

    def remove_all_but(self, job_ids: Collection[str]) -> None:
        """What a worker that was killed meant to remove."""
        for path in self._directory.glob(f"?*{MARK}*"):
            self.made(path)
        for shown in self._paths.keys() - {_shown(job_id) for job_id in job_ids}:
            self._remove(shown)

    def _remove(self, shown: str) -> None:
        for path in self._paths.pop(shown, ()):
            try:
                path.unlink(missing_ok=True)
            except OSError:
                self.made(path)  # tried again where the job comes back


def _shown(job_id: str) -> str:
    if len(job_id) <= JOB_BYTES:
        return job_id
    return hashlib.sha256(job_id.encode()).hexdigest()[:JOB_BYTES]
