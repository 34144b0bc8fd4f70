"""The SQL of events; each function is a part of its caller's transaction."""

import json
from collections.abc import Sequence
from sqlite3 import Connection

from worker.queue_server.keys import Keyring
from worker.queue_server.model import Script
from worker.queue_server.rows import UnknownNameError


def find(tx: Connection, name: str) -> int | None:
    """The id of the event of that name; one made for a script given on the spot is passed over."""
    row = tx.execute("SELECT id FROM events WHERE name = ? AND NOT on_the_spot", (name,)).fetchone()
    return None if row is None else int(row[0])


def put(
    tx: Connection,
    keyring: Keyring,
    name: str,
    script: Script,
    server_names: Sequence[str],
    now: int,
) -> int:
    """The id of the event; one of that name is replaced, and its version counted up.

    Raises UnknownNameError if a server is not known.
    """
    event_id = find(tx, name)
    if event_id is None:
        return insert(tx, keyring, name, script, server_names, now, on_the_spot=False)
    tx.execute(
        """
        UPDATE events SET version = version + 1, script_type = ?, content = ?,
            working_directory = ?, environment = ?, input = ?, timeout_seconds = ?,
            updated_at = ?
        WHERE id = ?
        """,
        (*_script_row(keyring, script), now, event_id),
    )
    _set_servers(tx, event_id, server_names)
    return event_id


def insert(
    tx: Connection,
    keyring: Keyring,
    name: str,
    script: Script,
    server_names: Sequence[str],
    now: int,
    *,
    on_the_spot: bool,
) -> int:
    """The id of a new event. Raises UnknownNameError if a server is not known."""
    (event_id,) = tx.execute(
        """
        INSERT INTO events (script_type, content, working_directory, environment, input,
                            timeout_seconds, name, on_the_spot, created_at, updated_at)
        VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?) RETURNING id
        """,
        (*_script_row(keyring, script), name, on_the_spot, now, now),
    ).fetchone()
    _set_servers(tx, event_id, server_names)
    return int(event_id)


def _script_row(keyring: Keyring, script: Script) -> tuple[str | int, ...]:
    return (
        script.type,
        script.content,
        script.working_directory,
        json.dumps(keyring.seal_environment(script.environment)),
        json.dumps(script.input),
        script.timeout_seconds,
    )


def _set_servers(tx: Connection, event_id: int, server_names: Sequence[str]) -> None:
    tx.execute("DELETE FROM event_servers WHERE event_id = ?", (event_id,))
    for position, name in enumerate(dict.fromkeys(server_names)):
        found = tx.execute("SELECT id FROM servers WHERE name = ?", (name,)).fetchone()
        if found is None:
            raise UnknownNameError("server", name)
        tx.execute("INSERT INTO event_servers VALUES (?, ?, ?)", (event_id, found[0], position))
