"""The SQL of servers; each function is a part of its caller's transaction."""

from sqlite3 import Connection

from worker.queue_server.keys import Keyring
from worker.queue_server.model import Server
from worker.queue_server.rows import Row, UnknownNameError

_SERVER = (
    "SELECT id, name, host, port, username, private_key, passphrase, password, host_key "
    "FROM servers"
)


def put(tx: Connection, keyring: Keyring, server: Server, now: int) -> int:
    """The id of `server`, which is kept when one of that name is replaced."""
    row = tx.execute(
        """
        INSERT INTO servers (name, host, port, username, private_key, passphrase, password,
                             host_key, created_at, updated_at)
        VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?)
        ON CONFLICT (name) DO UPDATE SET
            host = excluded.host, port = excluded.port, username = excluded.username,
            private_key = excluded.private_key, passphrase = excluded.passphrase,
            password = excluded.password, host_key = excluded.host_key,
            updated_at = excluded.updated_at
        RETURNING id
        """,
        (
            server.name,
            server.host,
            server.port,
            server.username,
            keyring.seal(server.private_key),
            keyring.seal(server.passphrase),
            keyring.seal(server.password),
            server.host_key,
            now,
            now,
        ),
    ).fetchone()
    return int(row[0])


def find(tx: Connection, keyring: Keyring, server_id: int) -> Server | None:
    row = tx.execute(f"{_SERVER} WHERE id = ?", (server_id,)).fetchone()
    return None if row is None else _opened(keyring, row)


def load(tx: Connection, keyring: Keyring, server_id: int) -> Server:
    """Raises UnknownNameError."""
    server = find(tx, keyring, server_id)
    if server is None:
        raise UnknownNameError("server", server_id)
    return server


def of_event(tx: Connection, keyring: Keyring, event_id: int) -> list[Server]:
    """In the order in which the event names them."""
    rows = tx.execute(
        f"{_SERVER} JOIN event_servers ON server_id = id WHERE event_id = ? ORDER BY position",
        (event_id,),
    )
    return [_opened(keyring, row) for row in rows]


def _opened(keyring: Keyring, row: Row) -> Server:
    """`row` is one of `_SERVER`."""
    server_id, name, host, port, username, *sealed, host_key = row
    private_key, passphrase, password = map(keyring.open_credential, sealed)
    return Server(
        server_id, name, host, port, username, private_key, passphrase, password, host_key
    )
