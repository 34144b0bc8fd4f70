"""What the worker knows of its servers' host keys, and what it learns of them."""

import structlog

from worker.clock import now_ms
from worker.database import Database
from worker.remote.connection import HostKey
from worker.remote.given_keys import GivenKey
from worker.remote.host_keys import NOTHING_LISTED, HostKeyCheck, changed
from worker.remote.known_hosts import Edition, KnownHostsFile
from worker.remote.target import Target
from worker.settings import HostKeyPolicy, SshSettings
from worker.state.host_keys import HostKeys, Pin

log = structlog.get_logger()


class HostTrust:
    """Asked anew for every connection: pins and known_hosts change while the worker runs."""

    def __init__(self, settings: SshSettings, database: Database) -> None:
        self._policy = settings.host_keys
        self._file = KnownHostsFile(settings.known_hosts) if settings.known_hosts else None
        self._pins = HostKeys(database)
        self._database = database

    def edition(self) -> Edition | None:
        """Another one after every change of known_hosts."""
        return self._file.edition() if self._file else None

    async def check(self, target: Target, given: tuple[GivenKey, ...]) -> HostKeyCheck:
        """Raises ConnectError if known_hosts cannot be read."""
        return await self._database.run(lambda: self._check(target, given))

    async def pin(self, target: Target, shown: HostKey, job_id: str) -> None:
        """Raises HostKeyError if another connection has pinned another key meanwhile."""
        host, port = target.address.host, target.address.port
        pin = Pin(host, port, shown.public_line, now_ms(), job_id, shown.address)
        pinned = await self._database.run(lambda: self._pins.pin(pin))
        if pinned.public_key != shown.public_line:
            raise changed(target.address, pinned.public_key, shown.fingerprint)
        log.info("host_key_pinned", fingerprint=shown.fingerprint, address=shown.address)

    def _check(self, target: Target, given: tuple[GivenKey, ...]) -> HostKeyCheck:
        listed, pinned = NOTHING_LISTED, None
        if self._file is not None and self._policy is not HostKeyPolicy.OFF:
            listed = self._file.read().listed(target.address)
        if self._policy is HostKeyPolicy.ACCEPT_NEW:
            pinned = self._pins.pinned(target.host, target.port)
        return HostKeyCheck(
            self._policy, target.address, listed, pinned.public_key if pinned else None, given
        )
