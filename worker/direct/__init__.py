"""Servers reached on an operator's word, without a queue."""
