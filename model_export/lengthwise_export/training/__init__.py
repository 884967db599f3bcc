"""The reference trainer of the built-in architecture."""
