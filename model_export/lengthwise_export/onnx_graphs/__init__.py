"""Graphs as they stand in a file: read, tried, labelled, and made at another precision."""
