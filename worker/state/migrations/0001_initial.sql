-- Every `_at` is UTC epoch in milliseconds.

CREATE TABLE identity (
    only   INTEGER NOT NULL PRIMARY KEY CHECK (only = 1),
    name   TEXT    NOT NULL,          -- used when none is configured
    suffix TEXT    NOT NULL           -- 8 hex digits that tell replicas of one name apart
) STRICT;

CREATE TABLE runner_cache (
    server_id   TEXT    NOT NULL,
    host        TEXT    NOT NULL,
    port        INTEGER NOT NULL,
    user        TEXT    NOT NULL,
    artifact    TEXT    NOT NULL,     -- the version: first 12 digits of sha256
    sha256      TEXT    NOT NULL,
    path        TEXT    NOT NULL,     -- where it lies on the server
    host_key    TEXT    NOT NULL,     -- fingerprint of the server that it was put on
    deployed_at INTEGER NOT NULL,
    verified_at INTEGER NOT NULL,
    hits        INTEGER NOT NULL DEFAULT 0,
    PRIMARY KEY (server_id, host, port, user)
) STRICT;

CREATE TABLE host_keys (
    host       TEXT    NOT NULL,
    port       INTEGER NOT NULL,
    public_key TEXT    NOT NULL,      -- one line, OpenSSH's format
    pinned_at  INTEGER NOT NULL,
    pinned_by  TEXT    NOT NULL,      -- the job that saw it first
    PRIMARY KEY (host, port)
) STRICT;

CREATE TABLE outbox (
    id         INTEGER NOT NULL PRIMARY KEY AUTOINCREMENT, -- the order within a job
    job_id     TEXT    NOT NULL,
    kind       TEXT    NOT NULL,
    subject    TEXT    NOT NULL,      -- the job's or the execution's id
    body       BLOB    NOT NULL,
    created_at INTEGER NOT NULL,
    due_at     INTEGER NOT NULL,
    attempts   INTEGER NOT NULL DEFAULT 0 CHECK (attempts >= 0),
    parked     TEXT                   -- why it will not be tried again
) STRICT;
CREATE INDEX outbox_heads ON outbox (job_id, id) WHERE parked IS NULL;
