"""The settings as commands read them from the environment."""

import os
from collections.abc import Mapping
from pathlib import Path

from worker.cli.exits import EXIT_CONFIGURATION, fail
from worker.cli.state import warn_of_unknown_variables
from worker.errors import ConnectError, SettingsError
from worker.remote.known_hosts import KnownHostsFile
from worker.settings import Settings, environment
from worker.settings.variables import SSH_KNOWN_HOSTS


def load(environ: Mapping[str, str], *, has_queue: bool = True) -> Settings:
    """As `worker.settings.environment.load`, and known_hosts can be read.

    Raises SettingsError, with all faults at once.
    """
    file = environment.given(environ, SSH_KNOWN_HOSTS)
    faults = () if file is None else _faults_of(file)
    try:
        loaded = environment.load(environ, has_queue=has_queue)
    except SettingsError as error:
        raise SettingsError((*error.faults, *faults)) from None
    if faults:
        raise SettingsError(faults)
    return loaded


def load_without_queue() -> Settings:
    """For a command that needs neither endpoint nor token.

    Warns of unknown variables, and ends the command where there are faults.
    """
    warn_of_unknown_variables()
    try:
        return load(os.environ, has_queue=False)
    except SettingsError as error:
        fail(str(error), EXIT_CONFIGURATION)


def _faults_of(known_hosts: Path) -> tuple[str, ...]:
    try:
        KnownHostsFile(known_hosts).read()
    except ConnectError as error:
        return (str(error),)
    return ()
