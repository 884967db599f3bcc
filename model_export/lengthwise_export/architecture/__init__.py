"""The built-in architecture: its spec, its masked layers and its checkpoints."""
