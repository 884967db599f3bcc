"""Fitted estimators of other libraries, as graphs that take lengths."""
