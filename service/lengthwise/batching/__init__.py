"""Which sequences run together, when, and in which thread."""
