-- What the server's host key has to be; workers decide by themselves where it is null.
ALTER TABLE servers ADD COLUMN host_key TEXT;
