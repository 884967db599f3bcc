"""The console and the other pages for people: what they load, their policy, who gets them, and turning them off."""

import base64
import hashlib
import re
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import httpx2
import pytest

from lengthwise.application import pages
from lengthwise.application.app import make_admin_app
from lengthwise.console import page
from lengthwise.protocols.predict import MEDIA_TYPES
from lengthwise.reports.templates import look
from lengthwise.repository.contents import Refusal
from lengthwise.versions import Key
from tests.support.http_lines import BEARER
from tests.support.numpy_models import Service, manifest, model, serving

BROWSER = {"accept": "text/html,application/xhtml+xml,application/xml;q=0.9,*/*;q=0.8"}
GOOD: dict[str, Any] = {"sequences": [[[1, 3]]]}


def _loaded(text: str) -> set[str]:
    """What a page loads from its own server."""
    return set(re.findall(r'<(?:link|script|img)[^>]* (?:href|src)="([^"]+)"', text))


async def test_a_browser_gets_the_console_and_all_that_it_loads(service: Service) -> None:
    front = await service.client.get("/", headers=BROWSER)
    assert front.headers["content-type"] == "text/html; charset=utf-8"
    assert front.headers["vary"] == "accept"
    asked = _loaded(front.text)
    assert "console/main.js" in asked
    for place in asked:
        assert (await service.client.get(f"/{place}")).status_code == 200
    for address in re.findall(r'<a href="([a-z][^"]*)">', front.text):
        assert (await service.client.get(f"/{address}")).status_code == 200


@pytest.mark.parametrize("console", [True, False])
async def test_programs_get_json_at_the_root(console: bool) -> None:
    async with serving(model(manifest()), console=console) as service:
        for accept in ("*/*", "application/json", ""):
            answer = await service.client.get("/", headers={"accept": accept})
            assert answer.headers["vary"] == "accept"
            assert answer.json() == {
                "service": "lengthwise",
                "predict": "/predict",
                "docs": "/docs",
                "openapi": "/openapi.json",
                "names": {"sums": {"1": None}},
                "health": "/healthz",
                "media_types": [*MEDIA_TYPES],
                "limits": {"max_body_bytes": 16_777_216, "max_queue_cost_steps": 1_000_000, "max_sequences": 1024},
            }


async def test_every_file_has_the_strict_policy_and_an_etag_of_its_bytes(service: Service) -> None:
    for path in ("/", *(f"/console/{name}" for name in sorted(page.files()))):
        answer = await service.client.get(path, headers=BROWSER)
        known = {**BROWSER, "if-none-match": f'"other", {answer.headers["etag"]}'}
        again = await service.client.get(path, headers=known)
        other = await service.client.get(path, headers={**BROWSER, "if-none-match": '"other"'})
        assert answer.status_code == 200
        policy = dict(rule.split(" ", 1) for rule in answer.headers["content-security-policy"].split("; "))
        assert {policy[name] for name in ("default-src", "base-uri", "form-action", "frame-ancestors")} == {"'none'"}
        assert policy["script-src"] == policy["style-src"] == policy["connect-src"] == "'self'"
        assert answer.headers["x-content-type-options"] == "nosniff"
        assert answer.headers["referrer-policy"] == "no-referrer"
        assert (again.status_code, again.content) == (304, b"")
        assert again.headers["content-security-policy"] == answer.headers["content-security-policy"]
        assert (other.status_code, other.content) == (200, answer.content)


def test_no_file_contains_what_the_policy_forbids_or_names_another_host() -> None:
    texts = {name: page.files()[name].content.decode() for name in page.files()}
    texts["index.html"] = page.page(()).content.decode()
    for name, text in texts.items():
        foreign = set(re.findall(r"https?://[^\s\"'`<>)]+", text)) - {"http://www.w3.org/2000/svg"}
        assert foreign == set(), name
        assert "eval(" not in text
        assert "innerHTML" not in text
    html = texts["index.html"]
    assert not re.search(r"\son[a-z]+=|\sstyle=|<style|<script(?![^>]* src=)|javascript:", html)


def test_the_page_stays_small() -> None:
    sizes = {name: len(page.files()[name].content) for name in page.files()}
    assert sum(sizes.values()) < 120_000
    assert all(text.count(b"\n") < 330 for text in (page.files()[name].content for name in page.files()))


def test_the_shared_look_is_one_file() -> None:
    assert page.files()["look.css"].content.decode() == look()


@pytest.mark.sampled(3)
@pytest.mark.parametrize(
    "path",
    [
        *("/docs/", "/docs/favicon.png", "/docs/../core.py", "/docs/%2e%2e/core.py", "/redoc", "/console/main.js/"),
        *("/console/index.html", "/console/page.py", "/console/../page.py", "/console/%2e%2e/page.py"),
        *("/console/..%2fpage.py", "/console/", "/console/nothing.js"),
    ],
)
async def test_nothing_else_of_the_package_is_served(service: Service, path: str) -> None:
    assert (await service.client.get(path)).status_code == 404


async def test_recordings_of_the_model_directory_are_given_to_who_has_a_key(keys: Path) -> None:
    lines = b'{"id":"a","label":"b","steps":[[1,2]]}\n{"id":"c","label":"a","steps":[[3,4]]}\n'
    kept = replace(model(manifest(version=2)), examples=lines, usual_lengths=[1, 1])
    async with serving(model(manifest()), kept, api_keys_file=keys) as service:
        state = (await service.client.get("/console/state", headers=BEARER)).json()
        asked = "/console/examples?model=sums&version="
        assert (await service.client.get(f"{asked}2")).status_code == 401
        answers = [await service.client.get(f"{asked}{version}", headers=BEARER) for version in (1, 2, 3)]
    assert [each["examples"] for each in state["models"]] == [0, 2]
    assert [each["usual_lengths"] for each in state["models"]] == [[], [1, 1]]
    assert [(answer.status_code, answer.content) for answer in answers[:2]] == [(200, b""), (200, lines)]
    assert answers[2].status_code == 404


async def test_the_state_says_what_is_served_refused_and_allowed() -> None:
    refused = Refusal(Key("broken", 1), "its golden sequences do not hold")
    async with serving(model(manifest(missing="zero")), refused=[refused], max_sequences=7) as service:
        answer = await service.client.get("/console/state")
        state = answer.json()
    assert answer.headers["cache-control"] == "no-store"
    assert state["refused"] == [{"model": "broken/1", "reason": "its golden sequences do not hold"}]
    (served,) = state["models"]
    assert (served["model"], served["version"], served["features"], served["missing"]) == ("sums", "1", 2, "zero")
    assert {"promise", "mean", "std", "names", "threshold", "min_length", "max_length"} <= served.keys()
    assert state["limits"]["max_sequences"] == 7
    assert (state["predict"], state["public_port"], state["keys"]) == ("predict", None, False)


@pytest.mark.long
@pytest.mark.process
def test_reading_files_is_loaded_by_nobody_who_uploads_none() -> None:
    program = "import sys, lengthwise.application.app; print([name for name in sys.modules if 'upload' in name])"
    told = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert told.stdout.strip() == "[]"


async def test_it_can_be_turned_off() -> None:
    async with serving(model(manifest()), console=False) as service:
        front = await service.client.get("/", headers=BROWSER)
        assert front.headers["content-type"] == "text/html; charset=utf-8"
        assert "<script" not in front.text
        assert _asked(front.text) == ["/docs", "/healthz", "/openapi.json"]
        for path in ("/console/main.js", "/console/state", "/console/live"):
            assert (await service.client.get(path)).status_code == 404
        admin = httpx2.ASGITransport(make_admin_app(service.serving))
        async with httpx2.AsyncClient(transport=admin, base_url="http://admin") as client:
            assert (await client.get("/", headers=BROWSER)).status_code == 404


async def test_with_an_admin_port_it_is_there_only_and_sends_its_calls_there() -> None:
    async with serving(model(manifest()), admin_port=9000) as service:
        assert "<script" not in (await service.client.get("/", headers=BROWSER)).text
        assert (await service.client.get("/console/state")).status_code == 404
        transport = httpx2.ASGITransport(make_admin_app(service.serving))
        async with httpx2.AsyncClient(transport=transport, base_url="http://admin") as admin:
            front = await admin.get("/", headers=BROWSER)
            assert "console/main.js" in front.text
            assert "/docs" not in re.findall(r'<a href="([a-z][^"]*)">', front.text)
            state = (await admin.get("/console/state")).json()
            assert (state["predict"], state["public_port"]) == ("console/predict", 8000)
            answer = await admin.post(f"/{state['predict']}", json=GOOD)
            assert answer.status_code == 200
            assert answer.json() == (await service.predict(GOOD)).json()
            assert (await admin.post("/predict", json=GOOD)).status_code == 404
            assert (await admin.get("/")).json()["predict"] == "/console/predict"


async def test_the_page_needs_no_key_and_all_that_it_shows_needs_one(keys: Path) -> None:
    async with serving(model(manifest()), api_keys_file=keys) as service:
        front = await service.client.get("/", headers=BROWSER)
        assert front.status_code == 200
        assert re.findall(r'<a href="([a-z][^"]*)">', front.text) == []  # a link sends no key
        for place in _loaded(front.text):
            assert (await service.client.get(f"/{place}")).status_code == 200
        assert (await service.client.get("/")).status_code == 401  # for programs, as before
        for path in ("/console/state", "/console/live", "/console/nothing.js", "/console/"):
            answer = await service.client.get(path, headers=BROWSER)
            assert (answer.status_code, answer.headers["www-authenticate"]) == (401, "Bearer")
        assert (await service.client.post("/console/sequences?name=a.csv", content=b"1")).status_code == 401
        state = await service.client.get("/console/state", headers=BEARER)
        assert state.json()["keys"] is True


async def test_the_calls_of_the_console_need_a_key_on_the_admin_port_too(keys: Path) -> None:
    async with serving(model(manifest()), api_keys_file=keys, admin_port=9000) as service:
        transport = httpx2.ASGITransport(make_admin_app(service.serving))
        async with httpx2.AsyncClient(transport=transport, base_url="http://admin") as admin:
            assert (await admin.post("/console/predict", json=GOOD)).status_code == 401
            assert (await admin.post("/console/predict", json=GOOD, headers=BEARER)).status_code == 200


@pytest.mark.parametrize(
    ("path", "method"), [("/console/live", "POST"), ("/console/main.js", "POST"), ("/console/sequences", "PUT")]
)
async def test_a_wrong_method_is_405(service: Service, path: str, method: str) -> None:
    assert (await service.client.request(method, path)).status_code == 405


# The other pages


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
        transport = httpx2.ASGITransport(service.app, root_path="/models")
        async with httpx2.AsyncClient(transport=transport, base_url="http://service") as client:
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
