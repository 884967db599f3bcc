"""Renders pages and their parts from Jinja templates: `*.html` files beside the modules that fill them.

`base.html` is a page in one file that loads nothing else; `parts.html` and `chart.html` have macros for every page.
"""

from __future__ import annotations

from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Final

from markupsafe import Markup

if TYPE_CHECKING:
    from jinja2 import Environment

LOOK: Final = Path(__file__).with_name("look.css")  # of the console and the reports, with colours for light and dark


@cache
def look() -> Markup:
    """The style sheet of every page, not escaped."""
    return Markup(LOOK.read_text("utf-8"))


def render(template: Path, **values: object) -> Markup:
    """Renders a template with its values to a page or a section. Each value is escaped, unless it is `Markup`."""
    return Markup(_environment(template.parent).get_template(template.name).render(values))


def render_macro(template: Path, macro: str, *arguments: object) -> Markup:
    """Renders a macro of a template with its arguments to a part of a page; values are escaped as by `render`."""
    return Markup(getattr(_environment(template.parent).get_template(template.name).module, macro)(*arguments))


@cache
def _environment(folder: Path) -> Environment:
    """Jinja's environment for the templates of a folder and those of this one; a name without a value is an error."""
    from jinja2 import Environment, FileSystemLoader, StrictUndefined  # at the first page: a start takes less time

    loader = FileSystemLoader([folder, LOOK.parent])
    environment = Environment(
        autoescape=True, loader=loader, lstrip_blocks=True, trim_blocks=True, undefined=StrictUndefined
    )
    environment.globals["look"] = look()
    return environment
