"""Sequences that are not the body of a call: of data files, of tables, and what Python callers pass."""
