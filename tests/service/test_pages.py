"""The pages for people: nothing on them is of another host, and none of them is blank."""

import base64
import hashlib
import re
from pathlib import Path

import httpx
import pytest

from lengthwise.http import pages
from tests.support.http_lines import BEARER
from tests.support.numpy_models import Service, manifest, model, serving

BROWSER = {"accept": "text/html,application/xhtml+xml,application/xml;q=0.9,*/*;q=0.8"}


def _asked(page: str) -> list[str]:
    """The places that a page has the browser load."""
    found = re.findall(r"""(?:src|href|data-openapi)=["']([^"']+)["']""", page)
    return sorted({place for place in found if place != "data:,"})


async def test_the_page_of_calls_gets_all_it_asks_for_from_this_service(service: Service) -> None:
    page = (await service.client.get("/docs")).text
    asked = _asked(page)
    assert asked == ["/docs/start.js", "/docs/swagger-ui.css", "/docs/swagger-ui.js", "/openapi.json"]
    answers = [await service.client.get(place) for place in asked]
    assert {answer.status_code for answer in answers} == {200}
    assert [len(answer.content) > 100_000 for answer in answers[1:3]] == [True, True]
    kinds = sorted(answer.headers["content-type"].partition(";")[0] for answer in answers)
    assert kinds == ["application/json", "text/css", "text/javascript", "text/javascript"]
    assert "://" not in page
    assert "://" not in answers[0].text


async def test_the_page_of_calls_begins_with_predictions_and_ends_with_health(service: Service) -> None:
    paths = list((await service.client.get("/openapi.json")).json()["paths"])
    assert paths[0] == "/predict"
    assert paths.index("/livez") > paths.index("/v1/models") > 0


async def test_behind_a_prefix_the_page_asks_for_what_is_behind_it_too() -> None:
    async with serving(model(manifest()), console=False) as service:
        transport = httpx.ASGITransport(service.app, root_path="/models")
        async with httpx.AsyncClient(transport=transport, base_url="http://service") as client:
            asked = _asked((await client.get("/models/docs")).text)
            front = _asked((await client.get("/models/", headers=BROWSER)).text)
    assert asked
    assert all(place.startswith("/models/") for place in (*asked, *front))


async def test_without_the_files_the_page_says_what_brings_them_and_asks_nobody(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(pages, "find_spec", lambda _: None)  # of the package with Swagger's files
    async with serving(model(manifest())) as service:
        page = await service.client.get("/docs")
        assert page.status_code == 200
        assert "lengthwise[serve]" in page.text
        assert _asked(page.text) == ["/openapi.json"]
        assert "script" not in page.text
        assert (await service.client.get("/docs/swagger-ui.js")).status_code == 404


async def test_a_page_whose_script_does_not_run_is_not_blank(service: Service) -> None:
    page = (await service.client.get("/docs")).text
    shown = re.sub(r"<head>.*</head>|<[^>]+>", "", page, flags=re.DOTALL)
    assert "could not run the script" in shown
    assert "/openapi.json" in shown


async def test_without_the_console_a_browser_gets_a_page_of_links_and_programs_get_json() -> None:
    async with serving(model(manifest()), console=False) as service:
        page = await service.client.get("/", headers=BROWSER)
        assert page.headers["content-type"] == "text/html; charset=utf-8"
        places = (await service.client.get("/")).json()
        assert _asked(page.text) == sorted({places["docs"], places["openapi"], places["health"]})
        for accept in ("*/*", "application/json", ""):
            answer = await service.client.get("/", headers={"accept": accept})
            assert answer.json() == places
            assert answer.headers["vary"] == "accept"


@pytest.mark.parametrize("path", ["/", "/docs"])
async def test_the_policy_of_a_page_lets_nothing_in_that_it_does_not_need(path: str) -> None:
    async with serving(model(manifest()), console=False) as service:
        page = await service.client.get(path, headers=BROWSER)
    policy = dict(rule.split(" ", 1) for rule in page.headers["content-security-policy"].split("; "))
    assert policy["default-src"] == "'none'"
    assert policy["frame-ancestors"] == policy["base-uri"] == policy["form-action"] == "'none'"
    assert policy.get("script-src", "'none'") == ("'self'" if path == "/docs" else "'none'")
    assert "http" not in page.headers["content-security-policy"]
    for style in re.findall(r"<style>(.*?)</style>", page.text):
        digest = base64.b64encode(hashlib.sha256(style.encode()).digest()).decode()
        assert policy["style-src"] == f"'sha256-{digest}'"
    assert not re.search(r"<script>|<script(?![^>]* src=)", page.text)


@pytest.mark.parametrize("path", ["/", "/docs"])
async def test_where_keys_are_set_a_browser_is_told_how_a_key_is_sent(path: str, keys: Path) -> None:
    async with serving(model(manifest()), api_keys_file=keys, console=False) as service:
        page = await service.client.get(path, headers=BROWSER)
        assert page.status_code == 401
        assert page.headers["www-authenticate"] == "Bearer"
        assert page.headers["content-type"] == "text/html; charset=utf-8"
        assert "authorization: Bearer KEY" in page.text
        assert (await service.client.get(path)).headers["content-type"] == "application/problem+json"
        told = await service.client.get("/openapi.json", headers=BROWSER)
        assert (told.status_code, told.headers["content-type"]) == (401, "application/problem+json")
        allowed = await service.client.get(path, headers=BROWSER | BEARER)
        assert allowed.status_code == 200


@pytest.mark.parametrize("path", ["/docs/", "/docs/favicon.png", "/docs/../core.py", "/docs/%2e%2e/core.py", "/redoc"])
async def test_nothing_else_of_the_package_is_served(service: Service, path: str) -> None:
    assert (await service.client.get(path)).status_code == 404
