-- What a worker that starts anew takes up again, and for a while what became of it.
CREATE TABLE jobs (
    job_id   TEXT    NOT NULL PRIMARY KEY,
    -- running: its runs are to be followed. reported: its end is in the outbox, or with the API,
    -- and its runs are to be forgotten. finished: nothing is left to do.
    state    TEXT    NOT NULL CHECK (state IN ('running', 'reported', 'finished')),
    claim    BLOB,                    -- the claimed job, sealed under the state's own key
    boot     TEXT    NOT NULL,        -- of the machine, when the job's spools were last written
    began_at INTEGER NOT NULL,
    ended_at INTEGER,
    CHECK ((claim IS NULL) = (state = 'finished')),
    CHECK ((ended_at IS NULL) = (state = 'running'))
) STRICT;
CREATE INDEX jobs_ended ON jobs (ended_at) WHERE ended_at IS NOT NULL;

CREATE TABLE executions (
    execution_id TEXT NOT NULL PRIMARY KEY,
    job_id       TEXT NOT NULL REFERENCES jobs ON DELETE CASCADE,
    result       BLOB NOT NULL,       -- how it ended, as JSON
    has_run      INTEGER NOT NULL     -- whether there may be output of it in the spools
) STRICT;
CREATE INDEX executions_job ON executions (job_id);
