"""The parts of every report: elements, tables, sections, and a page of one file that loads nothing else."""

from __future__ import annotations

import html
from collections.abc import Iterable, Sequence
from functools import cache
from pathlib import Path
from typing import Final

LOOK: Final = Path(__file__).with_name("look.css")  # of the console and the reports, with colours for light and dark


class Html(str):
    """Markup; every other text is escaped where it becomes part of an element."""

    __slots__ = ()


def element(name: str, *content: object, **attributes: object) -> Html:
    """An element; `class_` is written `class`, `stroke_width` as `stroke-width`, and None leaves one out."""
    written = "".join(
        f' {key.rstrip("_").replace("_", "-")}="{html.escape(str(value))}"'
        for key, value in attributes.items()
        if value is not None
    )
    return Html(f"<{name}{written}>{joined(*content)}</{name}>")


def joined(*content: object) -> Html:
    """Parts one after the other: `Html` and what a notebook can show as they are, all others escaped."""
    return Html("".join(map(_part, content)))


def table(rows: Iterable[Sequence[object]], heads: Sequence[str] = (), *, cell: str | None = None) -> Html:
    """A table; `cell` is the style of each cell, for one outside a `page`."""
    head = element("tr", *(element("th", name, scope="col", style=cell) for name in heads)) if heads else ""
    body = (element("tr", *(element("td", value, style=cell) for value in row)) for row in rows)
    return element("table", head, *body)


def bullets(lines: Iterable[object]) -> Html:
    """A list; empty without lines."""
    items = [element("li", line) for line in lines]
    return element("ul", *items) if items else Html()


def section(title: str, *content: object) -> Html:
    """A part of a page under a title; wide content scrolls, and shadows at its sides show that there is more."""
    return element("section", element("h2", title), element("div", *content, class_="scrolls"))


@cache
def look() -> str:
    """The style sheet of every page."""
    return LOOK.read_text("utf-8")


def page(title: str, *content: object, style: str = "", heading: object = None) -> str:
    """A whole page; `heading` stands in the place of the title on it."""
    heading = title if heading is None else heading
    return (
        '<!doctype html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
        '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
        f"{element('title', title)}\n<style>\n{look()}{style}</style>\n</head>\n<body>\n"
        f"{element('main', element('h1', heading), *content)}\n</body>\n</html>\n"
    )


def _part(value: object) -> str:
    shown = getattr(value, "_repr_html_", None)
    return value if isinstance(value, Html) else html.escape(str(value)) if shown is None else str(shown())
