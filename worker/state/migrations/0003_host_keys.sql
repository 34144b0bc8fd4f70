-- Where the server was that showed the key; null where nothing was connected to, and before this.
-- A pin made by hand has no job in `pinned_by`: it is empty.
ALTER TABLE host_keys ADD COLUMN address TEXT;
-- Names of hosts are the same in either case. The one that was pinned in lower case stays.
UPDATE OR IGNORE host_keys SET host = lower(host);
DELETE FROM host_keys WHERE host <> lower(host);
