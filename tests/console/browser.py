"""A real Chromium, driven by Playwright, and the service whose console it shows."""

import json
import shutil
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import pytest

from lengthwise.settings import bundled_models
from tests.support.server_process import ServerProcess, started

ROOT = Path(__file__).resolve().parents[2]
AXE = ROOT / ".venv" / "npm-console" / "node_modules" / "axe-core" / "axe.min.js"
OFFLINE = "--host-resolver-rules=MAP * ~NOTFOUND, EXCLUDE 127.0.0.1"
EXAMPLE = ROOT / "examples" / "japanese-vowels.json"
NAME = "japanese-vowels"
WIDE = {"width": 1280, "height": 900}
NARROW = {"width": 360, "height": 740}


_DRIVERS: list[Any] = []


@contextmanager
def chromium(*arguments: str) -> Iterator[Any]:
    """Chromium without any other host than this machine; the test is skipped where it is not installed."""
    playwright = pytest.importorskip(
        "playwright.sync_api", reason="Playwright is not installed (make console-check installs it)"
    )
    program = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
    if program is None:
        pytest.skip("Chromium is not installed (apt-get install chromium)")
    with ExitStack() as stack:
        if not _DRIVERS:  # a thread may have one only
            _DRIVERS.append(stack.enter_context(playwright.sync_playwright()))
            stack.callback(_DRIVERS.clear)
        options = ["--no-sandbox", *(arguments or (OFFLINE,))]
        browser = _DRIVERS[0].chromium.launch(executable_path=program, args=options)
        stack.callback(browser.close)
        yield browser


def repository(folder: Path) -> Path:
    """The bundled model in two versions, and a third whose graph is damaged."""
    source = bundled_models() / NAME / "1"
    for version in (1, 2, 3):
        directory = folder / NAME / str(version)
        shutil.copytree(source, directory)
        manifest = json.loads((directory / "manifest.json").read_text()) | {"version": version}
        (directory / "manifest.json").write_text(json.dumps(manifest))
    (folder / NAME / "3" / "model.onnx").write_bytes(b"damaged")
    return folder


@contextmanager
def console(folder: Path, *options: str) -> Iterator[ServerProcess]:
    """A service with that repository."""
    with started(str(repository(folder / "models")), "--versions", "all", *options) as server:
        yield server


class Window:
    """A page of the browser, and what went wrong in it (`troubles`), but for refusals of the service."""

    def __init__(self, browser: Any, url: str, size: dict[str, int] = WIDE, **options: Any) -> None:
        self.url = url
        self.context = browser.new_context(viewport=size, **options)
        self.page = self.context.new_page()
        self.troubles: list[str] = []
        self.page.on("pageerror", lambda error: self.troubles.append(str(error)))
        self.page.on("console", lambda message: self._heard(message.type, message.text))

    def _heard(self, kind: str, text: str) -> None:
        if kind in ("error", "warning") and "the server responded with a status of" not in text:
            self.troubles.append(text)

    def open(self, part: str = "predict") -> Any:
        """Opens a part; returns the page."""
        self.page.goto(f"{self.url}/#{part}")
        self.page.locator("#status").filter(has_text="ready").wait_for()
        return self.page

    def violations(self) -> list[str]:
        """What axe finds on the page as it is now."""
        if not AXE.is_file():
            pytest.skip("axe is not installed (make console-check installs it)")
        self.page.evaluate(AXE.read_text())
        found = self.page.evaluate("axe.run(document, {resultTypes: ['violations']})")
        return [
            f"{one['id']}: {one['help']}: {[node['html'][:160] for node in one['nodes'][:3]]}"
            for one in found["violations"]
        ]

    def close(self) -> None:
        """Closes the page, when the calls that a test answers are over."""
        self.page.unroute_all(behavior="wait")
        self.context.close()


def answered(window: Window) -> Any:
    """The page, once its first sequence is answered."""
    page = window.open()
    page.locator(".answer .label").wait_for()
    return page


def pasted(page: Any, text: str) -> None:
    page.click("#paste")
    page.fill("#pasted", text)
    page.click("#use-pasted")


def at(page: Any, share: float, below: float) -> tuple[float, float]:
    """A place in the picture: a share of its width, and pixels below its top."""
    box = page.locator("#signal").bounding_box()
    return box["x"] + box["width"] * share, box["y"] + below


def dragged(page: Any, start: tuple[float, float], end: tuple[float, float]) -> None:
    page.mouse.move(*at(page, *start))
    page.mouse.down()
    page.mouse.move(*at(page, *end), steps=5)
    page.mouse.up()
