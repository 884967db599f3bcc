"""Rewrites of operators whose bits depend on the batch, as operators whose bits do not."""
