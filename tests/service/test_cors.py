"""Pages of other origins: refused by their browsers unless an option names them."""

from pathlib import Path
from typing import Any

import pytest

from lengthwise.errors import ConfigurationError
from lengthwise.settings import Settings
from tests.support.http_lines import BEARER, net
from tests.support.http_lines import GOOD as SENT
from tests.support.numpy_models import Service, manifest, model, serving

PAGE = "https://page.example"
GOOD: dict[str, Any] = {"sequences": [[[1, 3]]]}
ASKING = {"origin": PAGE, "access-control-request-method": "POST", "access-control-request-headers": "authorization"}
ALLOWED = "access-control-allow-origin"


async def test_by_default_no_page_is_allowed(service: Service) -> None:
    answer = await service.predict(GOOD, origin=PAGE)
    asked = await service.client.options("/predict", headers=ASKING)
    assert answer.status_code == 403
    assert ALLOWED not in answer.headers
    assert asked.status_code == 405
    assert ALLOWED not in asked.headers


@pytest.mark.parametrize("path", ["/predict", "/v2/models/sums/infer", "/healthz"])
async def test_a_page_that_is_named_may_ask(path: str) -> None:
    async with serving(model(manifest()), cors_origins=(PAGE, "https://other.example")) as service:
        asked = await service.client.options(path, headers=ASKING)
        stranger = await service.client.options(path, headers=ASKING | {"origin": "https://stranger.example"})
    assert (asked.status_code, asked.headers[ALLOWED]) == (200, PAGE)
    assert "authorization" in asked.headers["access-control-allow-headers"]
    assert stranger.status_code == 400
    assert ALLOWED not in stranger.headers


async def test_its_answers_may_be_read_and_so_may_its_refusals() -> None:
    async with serving(model(manifest()), cors_origins=(PAGE,)) as service:
        answer = await service.predict(GOOD, origin=PAGE)
        refused = await service.predict({"sequences": []}, origin=PAGE)
        stranger = await service.predict(GOOD, origin="https://stranger.example")
        figures = await service.figures()
    assert (answer.status_code, answer.headers[ALLOWED]) == (200, PAGE)
    assert "x-request-id" in answer.headers["access-control-expose-headers"]
    assert (refused.status_code, refused.headers[ALLOWED]) == (422, PAGE)
    assert stranger.status_code == 403
    assert ALLOWED not in stranger.headers
    assert figures['lengthwise_requests_total{code="200",key="-",model="sums",version="1"}'] == 1
    assert figures['lengthwise_requests_total{code="403",key="-",model="",version=""}'] == 1


async def test_a_browser_may_ask_without_a_key_what_it_may_send_and_no_more(keys: Path) -> None:
    async with serving(model(manifest()), cors_origins=("*",), api_keys_file=keys) as service:
        asked = await service.client.options("/predict", headers=ASKING)
        refused = await service.predict(GOOD, origin=PAGE)
        answered = await service.predict(GOOD, origin=PAGE, **BEARER)
    assert (asked.status_code, asked.headers[ALLOWED]) == (200, "*")
    assert (refused.status_code, refused.headers[ALLOWED]) == (401, "*")
    assert answered.status_code == 200
    assert "access-control-allow-credentials" not in answered.headers


async def test_over_a_socket_a_page_goes_the_way_where_its_headers_are() -> None:
    async with serving(model(manifest()), cors_origins=(PAGE,)) as service, net(service) as made:
        line = await made.line()
        status, headers, _ = await line.ask(SENT, f"origin: {PAGE}")
        assert (status, headers[ALLOWED]) == (200, PAGE)
        status, headers, _ = await line.ask(SENT)  # without an origin none of them is there
        assert (status, made.by_asgi, [name for name in headers if name.startswith("access-control")]) == (200, 1, [])


@pytest.mark.parametrize("origin", ["page.example", "https://page.example/", "https://*.example", "https://", "null"])
def test_what_is_no_origin_is_refused_at_the_start(origin: str) -> None:
    with pytest.raises(ConfigurationError, match="--cors-origins"):
        Settings.load(cors_origins=origin)
