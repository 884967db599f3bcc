"""The priorities of requests: whole numbers, higher first."""

from typing import Final

MAX_PRIORITY: Final = 9
"""Priorities are 0, the default, to this."""
