"""Web pages of other sites: they may neither change, upload nor read; other programs and the service's own page may."""

from collections.abc import Iterator
from typing import Any

import httpx2
import orjson
import pytest

from lengthwise.application.app import make_admin_app
from lengthwise.connections.web_pages import WebPages
from lengthwise.errors import Forbidden, Misdirected
from tests.support.numpy_models import Service, manifest, model, serving
from tests.support.server_process import ServerProcess, started

EVIL = "https://evil.example"
GOOD: dict[str, Any] = {"sequences": [[[1, 3]]]}
TENSORS: dict[str, Any] = {"inputs": [{"name": "values", "shape": [1, 1, 2], "datatype": "FP32", "data": [1, 3]}]}
CALLS: dict[str, Any] = {
    "POST /predict": GOOD,
    "POST /v1/models/sums:predict": {"instances": GOOD["sequences"]},
    "POST /v2/models/sums/infer": TENSORS,
    "POST /v2/models/sums/versions/1/infer": TENSORS,
    "POST /v2/repository/index": {},
    "POST /console/sequences?name=a.csv": [1, 2],
    "GET /console/state": None,
}
OTHERS = [
    *({"origin": EVIL, "sec-fetch-site": "cross-site"}, {"origin": EVIL}, {"origin": "null"}),
    *({"origin": "http://service:81"}, {"origin": "http://service.evil.example"}),
    *({"origin": "http://evil.example://service"}, {"origin": ""}),
    *({"origin": "http://another.service", "sec-fetch-site": "same-site"}, {"sec-fetch-site": "cross-site"}),
    *({"sec-fetch-site": "same-site"}, {"sec-fetch-site": "of another kind"}),
]
OWN = [
    {},
    {"origin": "http://service"},
    {"origin": "http://SERVICE:80"},
    {"sec-fetch-site": "none"},
    {"sec-fetch-site": "same-origin", "origin": "http://service"},
    {"sec-fetch-site": "same-origin", "origin": "https://the.proxy.example"},  # which names another host
]


async def asked(service: Service, call: str, headers: dict[str, str]) -> int:
    method, path = call.split(" ")
    content = None if CALLS[call] is None else orjson.dumps(CALLS[call]).strip(b"[]")
    return (await service.client.request(method, path, content=content, headers=headers)).status_code


@pytest.mark.parametrize("headers", OTHERS, ids=str)
async def test_a_page_of_another_site_is_refused(headers: dict[str, str]) -> None:
    async with serving(model(manifest())) as service:
        assert {call: await asked(service, call, headers) for call in CALLS} == dict.fromkeys(CALLS, 403)
        figures = await service.figures()
    assert figures['lengthwise_requests_total{code="403",key="-",model="",version=""}'] == 4


@pytest.mark.process
@pytest.mark.sampled(6)
@pytest.mark.parametrize("headers", OWN, ids=str)
async def test_its_own_page_and_other_programs_are_answered(headers: dict[str, str]) -> None:
    async with serving(model(manifest())) as service:
        statuses = {call: await asked(service, call, headers) for call in CALLS}
    assert statuses == dict.fromkeys(CALLS, 200)


@pytest.mark.long
@pytest.mark.sampled(2)
@pytest.mark.process
@pytest.mark.parametrize("allowed", ["https://evil.example", "*"])
async def test_an_origin_that_is_named_may_call(allowed: str) -> None:
    async with serving(model(manifest()), cors_origins=(allowed,)) as service:
        for call in CALLS:
            assert await asked(service, call, OTHERS[0]) == 200


async def test_a_link_of_another_site_leads_to_the_page() -> None:
    headers = {"sec-fetch-site": "cross-site", "sec-fetch-mode": "navigate", "accept": "text/html"}
    async with serving(model(manifest())) as service:
        for path in ("/", "/docs"):
            assert (await service.client.get(path, headers=headers)).status_code == 200


LOCAL = ["localhost", "localhost:8000", "LocalHost.", "a.localhost:80", "127.0.0.1:8000", "[::1]:8000", "::1", "x"]
REBOUND = [
    "rebound.evil.example",
    "evil.example:8000",
    "localhost.evil.example",
    "127.0.0.1.evil.example",
    "127.1.nip.io",
]
REBOUND += ["localhost@evil.example", "evil.example.", "1.2.3", "notlocalhost.example", "[::1].evil.example", "a.local"]


@pytest.mark.parametrize("address", ["127.0.0.1", "127.1.2.3", "::1", "localhost"])
def test_on_a_loopback_address_only_local_names_are_answered(address: str) -> None:
    pages = WebPages((), address, keys=False)
    for _ in range(2):  # what was accepted is remembered
        for host in LOCAL:
            pages.check({b"host": host.encode()})
        for host in REBOUND:
            with pytest.raises(Misdirected):
                pages.check_host({b"host": host.encode()})
    pages.check({})  # of HTTP/1.0


def test_elsewhere_or_where_keys_are_set_or_the_name_is_allowed_it_may_be_any() -> None:
    for address in ("0.0.0.0", "::", "192.168.1.2", "service.example"):
        WebPages((), address, keys=False).check({b"host": b"api.example"})
    WebPages((), "127.0.0.1", keys=True).check_host({b"host": b"api.example"})
    WebPages(("*",), "127.0.0.1", keys=False).check_host({b"host": b"api.example"})
    named = WebPages(("https://API.example:8443",), "127.0.0.1", keys=False)
    named.check_host({b"host": b"api.example"})
    with pytest.raises(Misdirected):
        named.check_host({b"host": b"other.example"})
    with pytest.raises(Forbidden):
        named.check({b"host": b"api.example", b"origin": b"http://page.example"})


def test_so_many_names_are_remembered_and_no_more() -> None:
    pages = WebPages((), "127.0.0.1", keys=False)
    for number in range(1000):
        pages.check_host({b"host": b"name-%d" % number})
    with pytest.raises(Misdirected):
        pages.check_host({b"host": b"name-1.example"})


@pytest.fixture(scope="module")
def server() -> Iterator[ServerProcess]:
    with started("--runners", "1", "--admin-calls") as process:
        yield process


def post(path: str, *headers: str, body: bytes = b"", method: str = "POST") -> bytes:
    lines = [f"{method} {path} HTTP/1.1", f"content-length: {len(body)}", *headers]
    return "\r\n".join(lines).encode() + b"\r\n\r\n" + body


@pytest.mark.long
@pytest.mark.process
def test_over_a_socket_no_page_unloads_a_model_or_reads_anything(server: ServerProcess) -> None:
    good = orjson.dumps({"sequences": [[[0.5] * 12]]})
    evil = ("origin: https://evil.example", "sec-fetch-site: cross-site", "content-type: text/plain")
    with server.connect() as wire:
        for path in ("/v2/repository/models/japanese-vowels/unload", "/v2/repository/models/japanese-vowels/load"):
            wire.send(post(path, "host: 127.0.0.1", *evil))
            assert wire.answer()[0] == 403
        # The same connection, so that a header block that is known is compared too.
        for site, status in (("same-origin", 200), ("same-origin", 200), ("cross-site", 403), ("same-origin", 200)):
            wire.send(post("/predict", "host: 127.0.0.1", f"sec-fetch-site: {site}", body=good))
            assert wire.answer()[0] == status
        for host, status in (("localhost", 200), ("localhost", 200), ("rebound.evil.example", 421), ("localhost", 200)):
            wire.send(post("/predict", f"host: {host}", body=good))
            assert wire.answer()[0] == status
        for path in ("/", "/metrics", "/healthz", "/console/state", "/console/live", "/docs", "/livez"):
            wire.send(post(path, "host: rebound.evil.example", method="GET"))
            assert wire.answer()[0] == 421, path


@pytest.mark.long
@pytest.mark.process
async def test_the_admin_port_has_the_same_rules() -> None:
    async with serving(model(manifest()), admin_calls=True, admin_port=1) as service:
        transport = httpx2.ASGITransport(make_admin_app(service.serving))
        async with httpx2.AsyncClient(base_url="http://127.0.0.1", transport=transport) as client:
            path = "/v2/repository/models/sums/unload"
            assert (await client.post(path, headers={"origin": EVIL})).status_code == 403
            assert (await client.get("/metrics", headers={"host": "rebound.evil.example"})).status_code == 421
            assert (await client.get("/metrics")).status_code == 200
        assert (await service.client.get("/readyz")).status_code == 200
