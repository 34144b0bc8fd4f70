"""Runs jobs on servers over SSH."""

__version__ = "0.1.0"
