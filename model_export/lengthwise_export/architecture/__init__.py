"""The built-in architecture: its spec, its masked layers, its weights on disk."""
