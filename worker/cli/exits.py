"""What commands exit with, and how they say why."""

import sys
from typing import NoReturn

import click

EXIT_FAILED = 1
EXIT_CONFIGURATION = 2
# As sysexits.h has them.
EXIT_UNAVAILABLE = 69
EXIT_TRY_AGAIN = 75
# Of which a process can tell.
MOST_EXIT_CODE = 255
# As a shell has it of a command that SIGINT has ended.
EXIT_INTERRUPTED = 130


def fail(message: str, code: int) -> NoReturn:
    for line in message.splitlines():
        click.echo(f"cronium-worker: {line}", err=True)
    sys.exit(code)
