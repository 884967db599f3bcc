"""The export: read, candidate, verify, publish."""
