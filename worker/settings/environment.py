"""The settings read from an environment, with all its faults at once."""

import difflib
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, TypeVar

from worker import values
from worker.errors import SettingsError
from worker.secret import Secret
from worker.settings import (
    ApiSettings,
    JobSettings,
    LogSettings,
    PhaseSettings,
    RuntimeSettings,
    SecretSource,
    Settings,
    SshSettings,
    variables,
)
from worker.settings.variables import OTHER_COMMANDS, VARIABLES, Variable

T = TypeVar("T")

_PREFIX = "CRONIUM_"


def load(environ: Mapping[str, str], *, has_queue: bool = True) -> Settings:
    """Those of a worker, or of a command that `has_queue` not: it needs neither endpoint nor token.

    Raises SettingsError, with all faults at once.
    """
    reader = _Reader(environ)
    # Where one is at fault, it gives None for any type; such settings get no further than here.
    read: Callable[[Variable[Any]], Any] = reader.read
    token = read(variables.API_TOKEN) if has_queue else None
    reader.together(variables.RUNTIME_URL, variables.JWT_SECRET)
    runtime_url, jwt_secret = read(variables.RUNTIME_URL), read(variables.JWT_SECRET)
    authorities = read(variables.API_CA)
    settings = Settings(
        orchestrator_id=read(variables.ORCHESTRATOR_ID),
        state_dir=read(variables.STATE_DIR),
        state_key=read(variables.STATE_KEY),
        encryption_key=read(variables.ENCRYPTION_KEY),
        api=ApiSettings(
            endpoint=read(variables.API_ENDPOINT) if has_queue else "",
            token=SecretSource(token or Secret(""), reader.secret_file(variables.API_TOKEN)),
            authorities=authorities,
        ),
        runtime=(
            RuntimeSettings(
                runtime_url,
                SecretSource(
                    jwt_secret, reader.secret_file(variables.JWT_SECRET), values.is_jwt_secret
                ),
                authorities,
            )
            if runtime_url and jwt_secret
            else None
        ),
        jobs=JobSettings(
            max_concurrent=read(variables.JOBS_MAX_CONCURRENT),
            poll_batch_size=read(variables.JOBS_POLL_BATCH_SIZE),
            drain_seconds=read(variables.DRAIN_TIMEOUT),
            drain_policy=read(variables.DRAIN_POLICY),
            cancel_poll_seconds=read(variables.CANCEL_POLL),
            live_output_seconds=read(variables.LIVE_OUTPUT),
            exit_code_policy=read(variables.EXIT_CODE_POLICY),
            output_limit_bytes=read(variables.OUTPUT_LIMIT),
            run_max_output_bytes=read(variables.RUN_MAX_OUTPUT),
            mask_names=read(variables.MASK_NAMES),
            history_bytes=read(variables.HISTORY_OUTPUT),
        ),
        phases=PhaseSettings(
            setup_seconds=read(variables.SETUP_TIMEOUT),
            cleanup_seconds=read(variables.CLEANUP_TIMEOUT),
            max_execution_seconds=read(variables.MAX_EXECUTION_TIMEOUT),
        ),
        ssh=SshSettings(
            host_keys=read(variables.SSH_HOST_KEYS),
            known_hosts=read(variables.SSH_KNOWN_HOSTS),
            keepalive_seconds=read(variables.SSH_KEEPALIVE),
            max_connections=read(variables.SSH_MAX_CONNECTIONS),
            idle_seconds=read(variables.SSH_IDLE_TIMEOUT),
            runner_verify_after_seconds=read(variables.RUNNER_VERIFY_AFTER),
        ),
        logs=LogSettings(
            level=read(variables.LOGGING_LEVEL),
            format=read(variables.LOGGING_FORMAT),
            output=read(variables.LOG_OUTPUT),
        ),
    )
    if reader.faults:
        raise SettingsError(tuple(reader.faults))
    return settings


def load_state_dir(environ: Mapping[str, str]) -> Path:
    """For commands that need no more than that. Raises SettingsError."""
    reader = _Reader(environ)
    directory = reader.read(variables.STATE_DIR)
    if directory is None:
        raise SettingsError(tuple(reader.faults))
    return directory


def given(environ: Mapping[str, str], variable: Variable[T]) -> T | None:
    """The value of one variable; None if there is none, or if it is at fault."""
    return _Reader(environ).read(variable)


def given_secret(environ: Mapping[str, str], variable: Variable[Any]) -> Secret | None:
    """The text of one variable, or of the file that its `_FILE` names; None where neither is set.

    Raises SettingsError where that cannot be read, or both are set.
    """
    reader = _Reader(environ)
    text = reader.text(variable) if reader.is_given(variable) else None
    if reader.faults:
        raise SettingsError(tuple(reader.faults))
    return None if text is None else Secret(text)


def unknown_variables(environ: Mapping[str, str]) -> tuple[str, ...]:
    """A warning for each `CRONIUM_*` variable that nobody reads, with the nearest name."""
    known = {variable.name for variable in VARIABLES} | set(OTHER_COMMANDS)
    known |= {f"{variable.name}_FILE" for variable in VARIABLES if variable.secret}
    # What all have in common makes none the nearer.
    own = [name.removeprefix(_PREFIX) for name in known]
    warnings = []
    for name in sorted(environ):
        if name.startswith(_PREFIX) and name not in known:
            near = difflib.get_close_matches(name.removeprefix(_PREFIX), own, n=1)
            hint = f"; did you mean {_PREFIX}{near[0]}?" if near else ""
            warnings.append(f"{name} is not a setting of this program{hint}")
    return tuple(warnings)


class _Reader:
    """Reads variables one after another and collects every fault."""

    def __init__(self, environ: Mapping[str, str]) -> None:
        self._environ = environ
        self.faults: list[str] = []

    def read(self, variable: Variable[T]) -> T | None:
        """The value; None if there is none, or if it is at fault."""
        text = self.text(variable)
        if text is None:
            return None
        try:
            return variable.parse(text)
        except values.ValueFault as fault:
            # A URL may hold a password before its @.
            shown = "its value" if variable.secret or "@" in text else repr(text)
            self.faults.append(f"{variable.name}: {shown} {fault}; expected {variable.expected}")
            return None

    def text(self, variable: Variable[Any]) -> str | None:
        """What it was given, or its file holds; its default otherwise."""
        text = self._environ.get(variable.name, "").strip()
        file = self.secret_file(variable) if variable.secret else None
        if file and text:
            self.faults.append(
                f"{variable.name}: given twice, also as {variable.name}_FILE; expected one of them"
            )
            return None
        if file:
            try:
                text = file.read_text().strip()
            except (OSError, UnicodeDecodeError) as error:
                self.faults.append(
                    f"{variable.name}_FILE: {str(file)!r} cannot be read ({error}); "
                    "expected the path of a readable file"
                )
                return None
            if not text:
                self.faults.append(
                    f"{variable.name}_FILE: {str(file)!r} is empty; expected {variable.expected}"
                )
                return None
        if text:
            return text
        if variable.required:
            self.faults.append(f"{variable.name}: not set; expected {variable.expected}")
        return variable.default

    def secret_file(self, variable: Variable[Any]) -> Path | None:
        path = self._environ.get(variable.name + "_FILE", "").strip()
        if not path:
            return None
        try:
            return Path(path).expanduser()
        except RuntimeError:  # below a home that nobody has: no such file, then
            return Path(path)

    def is_given(self, variable: Variable[Any]) -> bool:
        """Whether there is anything, be it at fault."""
        given = self._environ.get(variable.name, "").strip()
        return bool(given or (variable.secret and self.secret_file(variable)))

    def together(self, one: Variable[Any], other: Variable[Any]) -> None:
        """Two that make no sense alone."""
        if self.is_given(one) != self.is_given(other):
            given, missing = (one, other) if self.is_given(one) else (other, one)
            self.faults.append(
                f"{missing.name}: not set, but {given.name} is; expected both or neither"
            )
