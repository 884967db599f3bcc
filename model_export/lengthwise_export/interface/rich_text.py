"""What a command prints in a terminal, as plain text for Python: tables and reports without colours."""

from __future__ import annotations

import io
from typing import Final

from rich.console import Console, RenderableType

WIDTH: Final = 120  # columns


def as_text(*parts: RenderableType) -> str:
    """The parts as lines of text. Code is never wrapped."""
    text = io.StringIO()
    console = Console(file=text, width=WIDTH, force_terminal=False, force_jupyter=False, color_system=None)
    for part in parts:
        console.print(part, crop=False)
    return "\n".join(line.rstrip() for line in text.getvalue().splitlines())
