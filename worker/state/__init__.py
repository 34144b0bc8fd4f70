"""What the worker remembers over restarts: one SQLite file and what lies beside it."""
