-- What scripts have asked to be masked, for the worker that goes on where one was killed.
CREATE TABLE masks (
    execution_id TEXT NOT NULL PRIMARY KEY,
    job_id       TEXT NOT NULL REFERENCES jobs ON DELETE CASCADE,
    masks        BLOB NOT NULL        -- a JSON list, sealed as the job's claim is
) STRICT;
CREATE INDEX masks_job ON masks (job_id);
