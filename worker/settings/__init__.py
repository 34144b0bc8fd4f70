"""The settings as the rest of the program has them: a frozen tree."""

from collections.abc import Callable
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path

from worker import values
from worker.sealing import SealingKey
from worker.secret import Secret


class HostKeyPolicy(StrEnum):
    ACCEPT_NEW = "accept-new"
    STRICT = "strict"
    OFF = "off"


class ExitCodePolicy(StrEnum):
    SUM = "sum"
    PARTIAL100 = "partial100"


class DrainPolicy(StrEnum):
    HANDOVER = "handover"
    CANCEL = "cancel"


class LogFormat(StrEnum):
    AUTO = "auto"
    JSON = "json"
    CONSOLE = "console"


class LogLevel(StrEnum):
    DEBUG = "debug"
    INFO = "info"
    WARNING = "warning"
    ERROR = "error"


@dataclass(frozen=True, slots=True)
class SecretSource:
    """A secret and, if it was given as a file, where to read it again after a 401."""

    value: Secret
    file: Path | None = None
    is_usable: Callable[[str], bool] = values.is_header_text

    def read(self) -> Secret:
        """The secret as it is now; the first value when its file cannot be read."""
        if self.file is None:
            return self.value
        try:
            text = self.file.read_text().strip()
        except (OSError, UnicodeDecodeError):
            return self.value
        # One that is just being written may be empty or cut.
        return Secret(text) if self.is_usable(text) else self.value


@dataclass(frozen=True, slots=True)
class ApiSettings:
    """The queue API; `authorities` are those that its certificate may be of, if not the public."""

    endpoint: str
    token: SecretSource
    authorities: Path | None = None


@dataclass(frozen=True, slots=True)
class RuntimeSettings:
    """The runtime API; `jwt_secret` signs the tokens that it takes, `authorities` as above."""

    url: str
    jwt_secret: SecretSource
    authorities: Path | None = None


@dataclass(frozen=True, slots=True)
class JobSettings:
    max_concurrent: int
    poll_batch_size: int
    drain_seconds: float
    drain_policy: DrainPolicy
    cancel_poll_seconds: float
    live_output_seconds: float
    exit_code_policy: ExitCodePolicy
    output_limit_bytes: int
    run_max_output_bytes: int
    mask_names: tuple[str, ...]
    history_bytes: int


@dataclass(frozen=True, slots=True)
class PhaseSettings:
    setup_seconds: float
    cleanup_seconds: float
    max_execution_seconds: float


@dataclass(frozen=True, slots=True)
class SshSettings:
    host_keys: HostKeyPolicy
    known_hosts: Path | None
    keepalive_seconds: float
    max_connections: int
    idle_seconds: float
    runner_verify_after_seconds: float


@dataclass(frozen=True, slots=True)
class LogSettings:
    level: LogLevel
    format: LogFormat
    output: bool


@dataclass(frozen=True, slots=True)
class Settings:
    orchestrator_id: str | None
    state_dir: Path
    state_key: Secret | None
    encryption_key: SealingKey | None
    api: ApiSettings
    runtime: RuntimeSettings | None
    jobs: JobSettings
    phases: PhaseSettings
    ssh: SshSettings
    logs: LogSettings


def secrets_of(settings: Settings) -> frozenset[Secret]:
    """Those of the worker's own that can be told again, and so must be masked."""
    found = {settings.api.token.value, settings.state_key}
    if settings.runtime is not None:
        found.add(settings.runtime.jwt_secret.value)
    return frozenset(secret for secret in found if secret is not None)
