"""Scans a folder of models, verifies and loads them, and keeps the registry of those that are served."""
