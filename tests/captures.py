"""Captures over spools of their own."""

import atexit
import itertools
from collections.abc import Sequence
from pathlib import Path
from tempfile import TemporaryDirectory

from worker.dispatch.capture import Capture
from worker.state.spool import Spool

_folder = TemporaryDirectory()
atexit.register(_folder.cleanup)
_numbers = itertools.count()


def new_path() -> Path:
    return Path(_folder.name) / str(next(_numbers))


def a_capture(
    chunks: Sequence[bytes | tuple[int, bytes]], *, limit: int, share: int | None = None
) -> Capture:
    """A capture of `chunks`, each with its order where that is not its place."""
    capture = Capture(Spool(new_path(), limit), limit if share is None else share)
    for place, chunk in enumerate(chunks):
        order, data = chunk if isinstance(chunk, tuple) else (place, chunk)
        capture.write(data)
        capture.note(order, len(data))
    capture.close()
    return capture
