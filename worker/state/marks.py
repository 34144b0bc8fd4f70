"""Which runs are known to have begun, for a worker that starts anew."""

import os
from collections.abc import Collection
from contextlib import suppress
from pathlib import Path

from worker.state.run_files import MARK, RunFiles


class Marks:
    """A name in `directory` for each run of the jobs in flight that has begun.

    Most runs end at once and print nothing. As a new file takes long where many are deleted, all
    of these are names of one. Nothing is synced: they go when the machine itself went down.
    """

    def __init__(self, directory: Path) -> None:
        self._files = RunFiles(directory)
        self._file = directory / MARK

    def add(self, job_id: str, execution_id: str) -> None:
        """Raises OSError where there is no room for that."""
        path = self._files.path(job_id, execution_id)
        try:
            os.link(self._file, path)
        except FileExistsError:
            pass
        except OSError:  # the first, or the file can have no more names
            self._files.make_directory()
            path.touch(0o600)
            with suppress(OSError):
                os.link(path, self._file)
        self._files.made(path)

    def has(self, job_id: str, execution_id: str) -> bool:
        return self._files.path(job_id, execution_id).exists()

    def remove(self, job_id: str) -> None:
        self._files.remove(job_id)

    def remove_all_but(self, job_ids: Collection[str]) -> None:
        """What a worker that was killed meant to remove."""
        self._files.remove_all_but(job_ids)
