"""Draws docs/console-*.png: `make console-pictures`."""

import tempfile
from pathlib import Path
from typing import Any

from tests.console.browser import EXAMPLE, NARROW, ROOT, WIDE, Window, chromium, console, dragged, pasted

DOCS = ROOT / "docs"
BURSTS = 30
BETWEEN_MS = 600


def predict(window: Window) -> Any:
    """A recording with some steps left out, and the answers under more and more padding."""
    page = window.open()
    pasted(page, EXAMPLE.read_text())
    page.locator(".answer .label", has_text="probability 0.9997").wait_for()
    dragged(page, (0.84, 60), (0.9, 60))
    page.locator(".answer .facts li", has_text="left out").wait_for()
    page.locator("#signal rect.attention").first.wait_for()
    page.check("input[name=added][value=neighbours]", force=True)
    page.click("#sweep")
    page.locator("#padding-verdict.good", has_text="1, 2, 4, 8, 16, 32, 48, 63").wait_for()
    page.evaluate("scrollTo(0, 0)")
    return page


def live(window: Window) -> Any:
    """The view after some bursts."""
    page = window.open("live")
    page.locator("#live-state", has_text="live").wait_for()
    for _ in range(BURSTS):
        page.click("#burst")
        page.locator("#burst:not([disabled])").wait_for()
        page.locator("#burst-note", has_text="were answered").wait_for()
        page.wait_for_timeout(BETWEEN_MS)
    page.wait_for_function("document.querySelector('#batches').getAttribute('aria-label').includes('the newest has')")
    return page


def main() -> None:
    """Draws every picture."""
    with chromium() as browser, tempfile.TemporaryDirectory() as folder, console(Path(folder)) as server:
        for name, part, size, scheme in (
            ("predict-light", predict, WIDE, "light"),
            ("predict-dark", predict, WIDE, "dark"),
            ("live-light", live, WIDE, "light"),
            ("live-dark", live, WIDE, "dark"),
            ("360", predict, NARROW, "light"),
        ):
            window = Window(browser, server.url, size, color_scheme=scheme)
            page = part(window)
            page.screenshot(path=DOCS / f"console-{name}.png", full_page=size is WIDE)
            window.close()
            print(f"docs/console-{name}.png")


if __name__ == "__main__":
    main()
