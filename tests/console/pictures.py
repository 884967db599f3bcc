"""Draws docs/console-*.png, and docs/console-live.webp, a recording: `make console-pictures`."""

import io
import tempfile
from pathlib import Path
from typing import Any

from PIL import Image

from tests.console.browser import EXAMPLE, NARROW, ROOT, WIDE, Window, chromium, console, dragged, pasted

DOCS = ROOT / "docs"
BETWEEN_MS = 600
FRAMES = 16
RECORDED = {"width": 960, "height": 640}


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


def recording(window: Window) -> bytes:
    """The view while bursts arrive, as an animated WebP that begins again at its end."""
    page = window.open("live")
    page.locator("#live-state", has_text="live").wait_for()
    frames = []
    for _ in range(FRAMES):
        page.click("#burst")
        page.locator("#burst:not([disabled])").wait_for()
        page.wait_for_timeout(BETWEEN_MS / 2)
        frames.append(Image.open(io.BytesIO(page.screenshot())).convert("RGB"))
    written = io.BytesIO()
    frames[0].save(
        written, "WEBP", save_all=True, append_images=frames[1:], duration=BETWEEN_MS, loop=0, quality=45, method=6
    )
    return written.getvalue()


def main() -> None:
    """Draws every picture."""
    with chromium() as browser, tempfile.TemporaryDirectory() as folder, console(Path(folder)) as server:
        for name, part, size, scheme in (
            ("predict-light", predict, WIDE, "light"),
            ("predict-dark", predict, WIDE, "dark"),
            ("360", predict, NARROW, "light"),
        ):
            window = Window(browser, server.url, size, color_scheme=scheme)
            page = part(window)
            page.screenshot(path=DOCS / f"console-{name}.png", full_page=size is WIDE)
            window.close()
            print(f"docs/console-{name}.png")
        window = Window(browser, server.url, RECORDED, color_scheme="light")
        (DOCS / "console-live.webp").write_bytes(recording(window))
        window.close()
        print("docs/console-live.webp")


if __name__ == "__main__":
    main()
