"""Pages of HTML, and what notebooks and terminals show of them.

`render` fills a template of Jinja; `base.html` is a page in one file that loads nothing else. The module `notebook`
puts a page into a frame, and has a bar of progress for notebooks; `show` prints a table or report of rich, `as_text`
returns it as text.
"""

from __future__ import annotations

from lengthwise.reports import notebook
from lengthwise.reports.notebook import as_text, show
from lengthwise.reports.templates import render

__all__ = [
    "as_text",
    "notebook",
    "render",
    "show",
]
