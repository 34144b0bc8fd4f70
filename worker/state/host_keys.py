"""Host keys pinned on first use."""

from worker.database import Database


class HostKeys:
    def __init__(self, database: Database) -> None:
        self._database = database

    def pinned(self, host: str, port: int) -> str | None:
        """The public key line pinned for that server."""
        with self._database.transaction() as tx:
            row = tx.execute(
                "SELECT public_key FROM host_keys WHERE (host, port) = (?, ?)", (host, port)
            ).fetchone()
        return row[0] if row else None

    def pin(self, host: str, port: int, public_key: str, *, job_id: str, now: int) -> str:
        """The key that is pinned then: the first use decides, so perhaps not `public_key`."""
        with self._database.transaction() as tx:
            tx.execute(
                """
                INSERT INTO host_keys (host, port, public_key, pinned_at, pinned_by)
                VALUES (?, ?, ?, ?, ?) ON CONFLICT DO NOTHING
                """,
                (host, port, public_key, now, job_id),
            )
            (pinned,) = tx.execute(
                "SELECT public_key FROM host_keys WHERE (host, port) = (?, ?)", (host, port)
            ).fetchone()
        return str(pinned)
