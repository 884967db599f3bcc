"""One browser for all tests, one service with the bundled model, and a window for each test."""

from collections.abc import Iterator
from typing import Any

import pytest

from tests.console.browser import Window, answered, chromium, console
from tests.support.server_process import ServerProcess


@pytest.fixture(scope="package")
def browser() -> Iterator[Any]:
    with chromium() as opened:
        yield opened


@pytest.fixture(scope="package")
def server(browser: Any, tmp_path_factory: pytest.TempPathFactory) -> Iterator[ServerProcess]:
    with console(tmp_path_factory.mktemp("served")) as running:
        yield running


@pytest.fixture
def window(browser: Any, server: ServerProcess) -> Iterator[Window]:
    opened = Window(browser, server.url, permissions=["clipboard-read", "clipboard-write"])
    yield opened
    opened.close()
    assert opened.troubles == []


@pytest.fixture
def page(window: Window) -> Any:
    return answered(window)
