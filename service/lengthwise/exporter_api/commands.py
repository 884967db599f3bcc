"""Commands, and their options: each is declared once, for the command line and for Python.

    class CheckOptions(Options):
        max_length: int = Field(default=1024, ge=1, description="Longest sequence tried.")

`@flags(CheckOptions)` gives a `Command` the flag `--max-length`, `@keywords(CheckOptions)` a function the keyword
`max_length`. A `Flag` in a field's metadata says how it looks on the command line; with `PYTHON_ONLY` it has no flag.
`DataOptions` are those of every command that reads a data file, and `reading_of` turns them into a `Reading`.
"""

from __future__ import annotations

from lengthwise.commands.command import Command, show_json
from lengthwise.commands.data_options import ABOUT_COLUMNS, ABOUT_PADDING, Columns, DataOptions, PaddingCut, reading_of
from lengthwise.commands.options import PYTHON_ONLY, Flag, Options, flags, keywords

__all__ = [
    "ABOUT_COLUMNS",
    "ABOUT_PADDING",
    "PYTHON_ONLY",
    "Columns",
    "Command",
    "DataOptions",
    "Flag",
    "Options",
    "PaddingCut",
    "flags",
    "keywords",
    "reading_of",
    "show_json",
]
