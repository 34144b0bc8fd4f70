"""Exclusive locks of files, waited for no longer than is said."""

import fcntl
import time

LOOK_SECONDS = 0.01


def lock_within(fd: int, seconds: float) -> bool:
    """Whether the lock (flock) was had by then; it lasts until `fd` is closed.

    Raises OSError where the file system has none.
    """
    deadline = time.monotonic() + seconds
    while True:
        try:
            fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            if time.monotonic() >= deadline:
                return False
            time.sleep(LOOK_SECONDS)
        else:
            return True
