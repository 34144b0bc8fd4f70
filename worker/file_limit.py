"""How many files the process may have open, and how many connections those are enough for."""

import resource

FILE_LIMIT = 65536
# The socket, and the two spools of a run.
FILES_PER_CONNECTION = 3
# The state file, connections to the API, and what the program itself has open.
OTHER_FILES = 200


def raise_file_limit() -> int:
    """Raise the soft limit as far as is of use, from the usual 1024; the limit after that."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    wanted = FILE_LIMIT if hard == resource.RLIM_INFINITY else min(hard, FILE_LIMIT)
    if soft == resource.RLIM_INFINITY or soft >= wanted:
        return FILE_LIMIT if soft == resource.RLIM_INFINITY else soft
    resource.setrlimit(resource.RLIMIT_NOFILE, (wanted, hard))
    return wanted


def connections_within(files: int, wanted: int) -> int:
    """How many of the `wanted` connections that many files are enough for, one at least."""
    return max(1, min(wanted, (files - OTHER_FILES) // FILES_PER_CONNECTION))
