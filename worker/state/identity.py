"""The worker's id."""

import re
import secrets
import socket

from worker.database import Database


def worker_id(database: Database, configured: str | None) -> str:
    """The id on the wire: `configured`, or the host's name at first start, and 8 hex digits.

    The digits are kept in the state file, so two replicas with one name never share an id.
    """
    with database.transaction() as tx:
        row = tx.execute("SELECT name, suffix FROM identity").fetchone()
        if row is None:
            row = (_host_name(), secrets.token_hex(4))
            tx.execute("INSERT INTO identity (only, name, suffix) VALUES (1, ?, ?)", row)
    name, suffix = row
    return f"{configured or name}-{suffix}"


def _host_name() -> str:
    return re.sub(r"[^A-Za-z0-9._-]", "-", socket.gethostname())[:200] or "worker"
