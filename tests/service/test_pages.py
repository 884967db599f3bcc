"""The page at `/docs`: with Swagger's files installed, everything that it asks for is here."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from service import pages
from tests.service.numpy_models import manifest, model, serving


async def test_the_page_gets_all_it_asks_for_from_this_service() -> None:
    assert pages.folder() is not None, "the extra docs is part of the development environment"
    async with serving(model(manifest())) as service:
        page = (await service.client.get("/docs")).text
        asked = [
            place for place in re.findall(r"""(?:src|href|url)[=:]\s*["']([^"']+)["']""", page) if place != "data:,"
        ]
        assert sorted(asked) == ["/docs/swagger-ui.css", "/docs/swagger-ui.js", "/openapi.json"]
        answers = [await service.client.get(place) for place in asked]
    assert {answer.status_code for answer in answers} == {200}
    kinds = sorted(answer.headers["content-type"].partition(";")[0] for answer in answers)
    assert kinds == ["application/json", "text/css", "text/javascript"]
    assert "://" not in page.replace("http://www.w3.org", "")


async def test_without_the_files_the_page_leads_to_their_usual_place(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pages, "folder", lambda: None)
    async with serving(model(manifest())) as service:
        page = await service.client.get("/docs")
        assert page.status_code == 200
        assert page.text.count("https://cdn.jsdelivr.net/") == 2
        assert (await service.client.get("/docs/swagger-ui.js")).status_code == 404


@pytest.mark.parametrize("path", ["/docs/", "/docs/favicon.png", "/docs/../core.py", "/docs/%2e%2e/core.py", "/redoc"])
async def test_nothing_else_of_the_package_is_served(path: str) -> None:
    async with serving(model(manifest())) as service:
        assert (await service.client.get(path)).status_code == 404


def test_a_package_that_is_not_installed_has_no_folder(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pages, "find_spec", lambda _: None)
    assert pages.folder() is None


def test_the_files_are_there() -> None:
    folder = pages.folder()
    assert isinstance(folder, Path)
    assert all((folder / name).stat().st_size > 100_000 for name in pages.FILES.values())
