"""Gives lengths to a graph that was written without them, operator by operator."""
