-- What `history` and `show` tell of a job; null of those from before this.
ALTER TABLE jobs ADD COLUMN event TEXT;      -- its name, or its id where it has none
ALTER TABLE jobs ADD COLUMN servers TEXT;    -- JSON: execution ids with their servers' names
ALTER TABLE jobs ADD COLUMN status TEXT;     -- how it ended, null until then
ALTER TABLE jobs ADD COLUMN exit_code INTEGER;
ALTER TABLE jobs ADD COLUMN message TEXT;

-- The first and the last of what an execution printed, masked.
CREATE TABLE outputs (
    execution_id TEXT    NOT NULL PRIMARY KEY REFERENCES executions ON DELETE CASCADE,
    ended_at     INTEGER NOT NULL,
    stdout       BLOB    NOT NULL,
    stderr       BLOB    NOT NULL
) STRICT;
CREATE INDEX outputs_ended ON outputs (ended_at);
