"""Trains the built-in architecture."""
