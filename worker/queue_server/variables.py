"""The SQL of scripts' variables; each function is a part of its caller's transaction."""

from sqlite3 import Connection

from worker.queue_server.rows import UnknownNameError


def read(tx: Connection, user_id: str, key: str) -> tuple[str, int]:
    """The value, and when it was put. Raises UnknownNameError."""
    row = tx.execute(
        "SELECT value, updated_at FROM variables WHERE user_id = ? AND key = ?", (user_id, key)
    ).fetchone()
    if row is None:
        raise UnknownNameError("variable", key)
    return str(row[0]), int(row[1])


def put(tx: Connection, user_id: str, key: str, value: str, now: int) -> None:
    tx.execute(
        """
        INSERT INTO variables (user_id, key, value, updated_at) VALUES (?, ?, ?, ?)
        ON CONFLICT (user_id, key) DO UPDATE SET
            value = excluded.value, updated_at = excluded.updated_at
        """,
        (user_id, key, value, now),
    )
