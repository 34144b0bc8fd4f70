"""Pinned host keys: on first use by the worker, or by hand."""

from dataclasses import astuple, dataclass
from typing import Any

from worker.database import Database

_PINS = "SELECT host, port, public_key, pinned_at, pinned_by, address FROM host_keys"


@dataclass(frozen=True, slots=True)
class Pin:
    """`public_key` is one line in OpenSSH's format, `job_id` None where it was pinned by hand,
    `address` the one that was connected to, None where none was."""

    host: str
    port: int
    public_key: str
    pinned_at: int
    job_id: str | None = None
    address: str | None = None


class HostKeys:
    """One key per host, in either case of its letters, and port."""

    def __init__(self, database: Database) -> None:
        self._database = database

    def pinned(self, host: str, port: int) -> Pin | None:
        with self._database.transaction() as tx:
            row = tx.execute(
                f"{_PINS} WHERE (host, port) = (?, ?)", (host.lower(), port)
            ).fetchone()
        return _pin(row) if row else None

    def pin(self, pin: Pin) -> Pin:
        """What is pinned then: the first use decides, so perhaps another key."""
        with self._database.transaction():
            pinned = self.pinned(pin.host, pin.port)
            if pinned is None:
                self.replace(pin)
            return pinned or pin

    def replace(self, pin: Pin) -> None:
        """Pin it whatever is there."""
        host, port, public_key, pinned_at, job_id, address = astuple(pin)
        with self._database.transaction() as tx:
            tx.execute(
                """
                INSERT OR REPLACE INTO host_keys
                    (host, port, public_key, pinned_at, pinned_by, address)
                VALUES (?, ?, ?, ?, ?, ?)
                """,
                (host.lower(), port, public_key, pinned_at, job_id or "", address),
            )

    def forget(self, host: str, port: int) -> bool:
        """Whether there was one."""
        with self._database.transaction() as tx:
            done = tx.execute(
                "DELETE FROM host_keys WHERE (host, port) = (?, ?)", (host.lower(), port)
            )
        return done.rowcount > 0

    def all(self) -> tuple[Pin, ...]:
        with self._database.transaction() as tx:
            rows = tx.execute(f"{_PINS} ORDER BY host, port").fetchall()
        return tuple(map(_pin, rows))


def _pin(row: tuple[Any, ...]) -> Pin:
    host, port, public_key, pinned_at, job_id, address = row
    return Pin(host, port, public_key, pinned_at, job_id or None, address)
