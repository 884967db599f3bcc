"""The pages in a real browser that can reach this service and nothing else."""

import re
from collections.abc import Iterator
from pathlib import Path

import pytest

from lengthwise.bench.launch import free_port, running, serve_command
from tests.deploy.tools import program, run

pytestmark = pytest.mark.deploy

OFFLINE = "--host-resolver-rules=MAP * ~NOTFOUND, EXCLUDE 127.0.0.1"


@pytest.fixture(scope="module")
def url() -> Iterator[str]:
    """A real service."""
    port = free_port()
    with running(serve_command(None, port, {}), port):
        yield f"http://127.0.0.1:{port}"


def _seen(url: str, folder: Path) -> tuple[str, str]:
    """A page after its scripts ran, and what the browser logged."""
    browser = program("chromium", "apt-get install chromium")
    command = [browser, "--headless", "--no-sandbox", "--disable-gpu", OFFLINE, f"--user-data-dir={folder}"]
    command += ["--enable-logging=stderr", "--virtual-time-budget=20000", "--dump-dom", url]
    said = run(command)
    return said[said.index("<!DOCTYPE html>") :] if "<!DOCTYPE html>" in said else "", said


def test_the_page_of_calls_works_offline_under_its_own_policy(url: str, tmp_path: Path) -> None:
    page, said = _seen(f"{url}/docs", tmp_path)
    shown = re.findall(r'data-path="([^"]+)"', page)
    assert "/predict" in shown
    assert len(set(shown)) > 10
    assert "Content Security Policy" not in said


def test_the_console_works_offline_under_its_own_policy(url: str, tmp_path: Path) -> None:
    page, said = _seen(f"{url}/", tmp_path)
    assert 'href="docs"' in page
    assert '<option value="japanese-vowels">' in page
    assert "Content Security Policy" not in said
