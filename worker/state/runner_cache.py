"""Which runner lies where: remembered, so that a known server costs no deployment."""

from dataclasses import dataclass

from worker.database import Database


@dataclass(frozen=True, slots=True)
class ServerKey:
    """What makes a server the same one; another user has another home."""

    server_id: str
    host: str
    port: int
    user: str


@dataclass(frozen=True, slots=True)
class CachedRunner:
    """`host_key` is the fingerprint of the server on which it was verified."""

    artifact: str
    sha256: str
    path: str
    host_key: str
    verified_at: int


@dataclass(frozen=True, slots=True)
class CacheEntry:
    """`hits` counts the times that no deployment was needed."""

    key: ServerKey
    runner: CachedRunner
    deployed_at: int
    hits: int


class RunnerCache:
    def __init__(self, database: Database) -> None:
        self._database = database

    def find(self, key: ServerKey, sha256: str) -> CachedRunner | None:
        """The runner on that server, as `use`, though nothing can be written."""
        with self._database.transaction() as tx:
            row = tx.execute(
                """
                SELECT artifact, sha256, path, host_key, verified_at FROM runner_cache
                WHERE (server_id, host, port, user) = (?, ?, ?, ?) AND sha256 = ?
                """,
                (key.server_id, key.host, key.port, key.user, sha256),
            ).fetchone()
        return CachedRunner(*row) if row else None

    def use(self, key: ServerKey, sha256: str) -> CachedRunner | None:
        """The runner on that server, counted as a hit; None if another version lies there."""
        with self._database.transaction() as tx:
            row = tx.execute(
                """
                UPDATE runner_cache SET hits = hits + 1
                WHERE (server_id, host, port, user) = (?, ?, ?, ?) AND sha256 = ?
                RETURNING artifact, sha256, path, host_key, verified_at
                """,
                (key.server_id, key.host, key.port, key.user, sha256),
            ).fetchone()
        return CachedRunner(*row) if row else None

    def all(self) -> list[CacheEntry]:
        with self._database.transaction() as tx:
            rows = tx.execute(
                """
                SELECT server_id, host, port, user, artifact, sha256, path, host_key, verified_at,
                       deployed_at, hits
                FROM runner_cache ORDER BY host, port, user, server_id
                """
            ).fetchall()
        return [CacheEntry(ServerKey(*row[:4]), CachedRunner(*row[4:9]), *row[9:]) for row in rows]

    def put(self, key: ServerKey, runner: CachedRunner) -> None:
        with self._database.transaction() as tx:
            tx.execute(
                """
                INSERT OR REPLACE INTO runner_cache
                    (server_id, host, port, user, artifact, sha256, path, host_key,
                     deployed_at, verified_at)
                VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?)
                """,
                (
                    key.server_id,
                    key.host,
                    key.port,
                    key.user,
                    runner.artifact,
                    runner.sha256,
                    runner.path,
                    runner.host_key,
                    runner.verified_at,
                    runner.verified_at,
                ),
            )

    def verified(self, key: ServerKey, *, now: int) -> None:
        with self._database.transaction() as tx:
            tx.execute(
                """
                UPDATE runner_cache SET verified_at = ?
                WHERE (server_id, host, port, user) = (?, ?, ?, ?)
                """,
                (now, key.server_id, key.host, key.port, key.user),
            )

    def drop(self, key: ServerKey) -> None:
        with self._database.transaction() as tx:
            tx.execute(
                "DELETE FROM runner_cache WHERE (server_id, host, port, user) = (?, ?, ?, ?)",
                (key.server_id, key.host, key.port, key.user),
            )

    def count(self) -> int:
        with self._database.transaction() as tx:
            (count,) = tx.execute("SELECT count(*) FROM runner_cache").fetchone()
        return int(count)
