"""The embedded queue: the Cronium app's queue API over one SQLite file."""
