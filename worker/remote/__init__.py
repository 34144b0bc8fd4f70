"""Servers over SSH: connections, the runner on them, and its protocol; knows nothing of jobs."""
