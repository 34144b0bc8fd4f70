-- Of the claim that the job is under; null where it is under none.
ALTER TABLE jobs ADD COLUMN claim_token TEXT;
