"""A server as SSH sees it."""

from dataclasses import dataclass

from worker.secret import Secret


@dataclass(frozen=True, slots=True)
class Credential:
    """As it came from the queue: perhaps sealed, perhaps base64; opened just before use."""

    private_key: Secret | None = None
    passphrase: Secret | None = None
    password: Secret | None = None


@dataclass(frozen=True, slots=True)
class Target:
    host: str
    port: int
    user: str
    credential: Credential

    def __str__(self) -> str:
        return f"{self.user}@{self.host}:{self.port}"
