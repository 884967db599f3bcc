"""The site that `make site` has built: its links, and its pages in a browser at three widths, in light and dark."""

from __future__ import annotations

import re
from collections import defaultdict
from functools import cache
from html.parser import HTMLParser
from pathlib import Path
from typing import Any
from urllib.parse import unquote, urlsplit

import pytest

from tests.console.browser import ROOT, Window

HTML = ROOT / "runs" / "site" / "html"
PAGES = ["index", "docs/api", "docs/masking", "docs/deployment", "reference", "CHANGELOG", "examples/check_and_export"]
WIDTHS = [1280, 800, 360]

pytestmark = [
    pytest.mark.console,
    pytest.mark.skipif(not (HTML / "index.html").is_file(), reason="the site is not built: make site"),
]


class Links(HTMLParser):
    """The links of a page, and what may be linked to in it."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.targets: list[str] = []
        self.anchors: set[str] = set()
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        """Keeps what a tag links to, and its name."""
        values = dict(attrs)
        self.targets += [value for name in ("href", "src") if (value := values.get(name))]
        self.anchors |= {value for name in ("id", "name") if (value := values.get(name))}


@cache
def links(page: Path) -> Links:
    return Links(page.read_text("utf-8"))


def test_every_link_within_the_site_leads_somewhere() -> None:
    broken = defaultdict(set)
    for page in HTML.rglob("*.html"):
        for link in links(page).targets:
            parts = urlsplit(link)
            if parts.scheme or parts.netloc:
                continue
            target = (page.parent / unquote(parts.path)).resolve() if parts.path else page
            is_page = target.suffix == ".html" and target.is_file()
            if not target.exists() or (
                is_page and parts.fragment and unquote(parts.fragment) not in links(target).anchors
            ):
                broken[str(page.relative_to(HTML))].add(link)
    assert broken == {}


def test_every_page_of_the_documents_is_in_the_site_once() -> None:
    pages = {path.relative_to(ROOT).with_suffix(".html") for path in (ROOT / "docs").glob("*.md")}
    assert {str(page) for page in pages if not (HTML / page).is_file()} == set()


@pytest.mark.parametrize("page", PAGES)
def test_no_page_needs_sideways_scrolling(browser: Any, page: str) -> None:
    for width in WIDTHS:
        window = Window(browser, "", {"width": width, "height": 900})
        window.page.goto((HTML / f"{page}.html").as_uri())
        assert window.page.evaluate("document.documentElement.scrollWidth") <= width, width
        window.close()


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("page", PAGES)
def test_axe_finds_nothing(browser: Any, page: str, scheme: str) -> None:
    window = Window(browser, "", color_scheme=scheme)
    window.page.goto((HTML / f"{page}.html").as_uri())
    assert window.violations() == []
    window.close()


def test_a_visitor_sees_on_the_first_page_what_it_does_and_how_to_begin(browser: Any) -> None:
    window = Window(browser, "", {"width": 360, "height": 740})
    window.page.goto((HTML / "index.html").as_uri())
    seen = window.page.locator("pre").first.bounding_box()
    window.close()
    assert seen is not None
    assert seen["y"] + seen["height"] < 740


def test_the_search_finds_a_page(browser: Any) -> None:
    window = Window(browser, "")
    window.page.goto((HTML / "search.html").as_uri() + "?q=masking")
    window.page.locator("#search-results li").first.wait_for()
    assert re.search("masking", window.page.locator("#search-results").inner_text(), re.I)
    window.close()
