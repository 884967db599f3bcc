"""The look that the console and the reports share: one style sheet, with colours for light and dark."""

from __future__ import annotations

from functools import cache
from pathlib import Path
from typing import Final

FILE: Final = Path(__file__).with_name("look.css")


@cache
def style() -> str:
    """The style sheet, for a page that contains it."""
    return FILE.read_text("utf-8")
