-- Times are UTC epoch milliseconds. "sealed" is the Cronium app's format (worker/sealing.py).

CREATE TABLE settings (
    name  TEXT NOT NULL PRIMARY KEY,
    value TEXT NOT NULL
) STRICT;

CREATE TABLE servers (
    id          INTEGER PRIMARY KEY,
    name        TEXT    NOT NULL UNIQUE,
    host        TEXT    NOT NULL,
    port        INTEGER NOT NULL CHECK (port BETWEEN 1 AND 65535),
    username    TEXT    NOT NULL,
    private_key TEXT,                              -- sealed
    passphrase  TEXT,                              -- sealed
    password    TEXT,                              -- sealed
    created_at  INTEGER NOT NULL,
    updated_at  INTEGER NOT NULL
) STRICT;

CREATE TABLE events (
    id                INTEGER PRIMARY KEY,
    name              TEXT    NOT NULL,
    on_the_spot       INTEGER NOT NULL DEFAULT 0,  -- made by `submit --script`
    version           INTEGER NOT NULL DEFAULT 1,
    script_type       TEXT    NOT NULL CHECK (script_type IN ('BASH', 'PYTHON', 'NODEJS')),
    content           TEXT    NOT NULL,
    working_directory TEXT    NOT NULL DEFAULT '',
    environment       TEXT    NOT NULL DEFAULT '{}', -- JSON, each value sealed
    input             TEXT    NOT NULL DEFAULT '{}', -- JSON
    timeout_seconds   INTEGER NOT NULL CHECK (timeout_seconds > 0),
    created_at        INTEGER NOT NULL,
    updated_at        INTEGER NOT NULL
) STRICT;
-- Two files of one name may be submitted on the spot.
CREATE UNIQUE INDEX events_name ON events (name) WHERE NOT on_the_spot;

CREATE TABLE event_servers (
    event_id  INTEGER NOT NULL REFERENCES events (id) ON DELETE CASCADE,
    server_id INTEGER NOT NULL REFERENCES servers (id) ON DELETE CASCADE,
    position  INTEGER NOT NULL,
    PRIMARY KEY (event_id, server_id)
) STRICT, WITHOUT ROWID;

CREATE TABLE jobs (
    number          INTEGER PRIMARY KEY,           -- the app's log id
    id              TEXT    NOT NULL UNIQUE,
    event_id        INTEGER NOT NULL REFERENCES events (id),
    user_id         TEXT    NOT NULL,
    type            TEXT    NOT NULL DEFAULT 'SCRIPT',
    status          TEXT    NOT NULL CHECK (
        status IN ('queued', 'claimed', 'running', 'completed', 'failed', 'cancelled')
    ),
    priority        INTEGER NOT NULL CHECK (priority BETWEEN 0 AND 3),
    payload         TEXT    NOT NULL,              -- JSON, as the event was at submit
    scheduled_for   INTEGER NOT NULL,
    orchestrator_id TEXT    CHECK (length(orchestrator_id) BETWEEN 1 AND 255),
    lease_until     INTEGER,
    attempts        INTEGER NOT NULL DEFAULT 0,
    started_at      INTEGER,
    completed_at    INTEGER,
    reported_at     INTEGER,                       -- when the worker ended it, cancelled or not
    last_error      TEXT,
    created_at      INTEGER NOT NULL,
    updated_at      INTEGER NOT NULL,
    outcome         TEXT,                          -- the status that `complete` sent
    result          TEXT,                          -- JSON
    stdout          TEXT,
    stderr          TEXT
) STRICT;
CREATE INDEX jobs_queued ON jobs (priority DESC, scheduled_for, created_at, number)
    WHERE status = 'queued';
CREATE INDEX jobs_due ON jobs (scheduled_for) WHERE status = 'queued';
CREATE INDEX jobs_leased ON jobs (lease_until) WHERE status IN ('claimed', 'running');
CREATE INDEX jobs_owned ON jobs (orchestrator_id) WHERE status IN ('claimed', 'running');
CREATE INDEX jobs_cancelled ON jobs (orchestrator_id)
    WHERE status = 'cancelled' AND reported_at IS NULL;

CREATE TABLE executions (
    id                     TEXT    NOT NULL PRIMARY KEY CHECK (length(id) <= 100),
    job_id                 TEXT    NOT NULL REFERENCES jobs (id),
    server_id              INTEGER REFERENCES servers (id),
    server_name            TEXT    CHECK (length(server_name) <= 255),
    status                 TEXT    NOT NULL DEFAULT 'queued' CHECK (length(status) <= 50),
    started_at             INTEGER,
    completed_at           INTEGER,
    exit_code              INTEGER CHECK (exit_code BETWEEN -2147483648 AND 2147483647),
    error                  TEXT,
    metadata               TEXT    NOT NULL DEFAULT '{}', -- JSON
    setup_started_at       INTEGER,
    setup_completed_at     INTEGER,
    execution_started_at   INTEGER,
    execution_completed_at INTEGER,
    cleanup_started_at     INTEGER,
    cleanup_completed_at   INTEGER,
    setup_duration         INTEGER,
    execution_duration     INTEGER,
    cleanup_duration       INTEGER,
    total_duration         INTEGER,
    execution_metadata     TEXT,                   -- JSON
    created_at             INTEGER NOT NULL,
    updated_at             INTEGER NOT NULL,
    output                 TEXT
) STRICT;
CREATE INDEX executions_job ON executions (job_id);

CREATE TABLE variables (
    user_id    TEXT    NOT NULL,
    key        TEXT    NOT NULL,
    value      TEXT    NOT NULL,
    updated_at INTEGER NOT NULL,
    PRIMARY KEY (user_id, key)
) STRICT, WITHOUT ROWID;
