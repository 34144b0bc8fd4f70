"""A server as SSH sees it."""

from dataclasses import dataclass

from worker.remote.address import Address
from worker.remote.given_keys import GivenKey
from worker.secret import Secret


@dataclass(frozen=True, slots=True)
class Credential:
    """As it came from the queue: perhaps sealed, perhaps base64; opened just before use."""

    private_key: Secret | None = None
    passphrase: Secret | None = None
    password: Secret | None = None


@dataclass(frozen=True, slots=True)
class Target:
    """`host_keys` are those of the job's own entry, where it has some: no other will do then."""

    host: str
    port: int
    user: str
    credential: Credential
    host_keys: tuple[GivenKey, ...] = ()

    @property
    def address(self) -> Address:
        return Address(self.host, self.port)

    def __str__(self) -> str:
        return f"{self.user}@{self.host}:{self.port}"
