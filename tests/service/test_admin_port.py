"""The admin port: figures and admin calls only there, probes on both, and there as long as anybody may ask."""

import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import grpc
import httpx2
import orjson
import pytest

from lengthwise.application.app import make_admin_app
from lengthwise.bench import remote
from lengthwise.bench.connection import ServerAddress
from lengthwise.bench.launch import free_port
from lengthwise.bench.remote import RemoteModel
from lengthwise.bench.workload import Input
from lengthwise.connections.limits import ADMIN_CONNECTIONS
from tests.support.grpc_calls import listening
from tests.support.numpy_models import manifest, model, samples, serving
from tests.support.server_process import PATIENCE_SECONDS, ServerProcess, exit_of, request, started

pytestmark = pytest.mark.process

GOOD = {"sequences": [[[0.5] * 12]]}


@contextmanager
def with_admin_port(*options: str) -> Iterator[tuple[ServerProcess, httpx2.Client]]:
    """A server, and a client of its admin port."""
    port = free_port()
    with (
        started("--runners", "1", "--admin-port", str(port), *options) as server,
        httpx2.Client(base_url=f"http://127.0.0.1:{port}", trust_env=False, timeout=PATIENCE_SECONDS) as admin,
    ):
        yield server, admin


@pytest.fixture(scope="module")
def both() -> Iterator[tuple[ServerProcess, httpx2.Client]]:
    with with_admin_port() as pair:
        yield pair


@pytest.mark.parametrize("path", ["/metrics", "/healthz"])
def test_figures_are_on_the_admin_port_only(both: tuple[ServerProcess, httpx2.Client], path: str) -> None:
    server, admin = both
    assert admin.get(path).status_code == 200
    assert server.get(path).status_code == 404
    assert path not in server.get("/openapi.json").json()["paths"]


def test_a_load_finds_its_model(both: tuple[ServerProcess, httpx2.Client]) -> None:
    found = remote.model(ServerAddress("127.0.0.1", both[0].port))
    assert found == RemoteModel(Input("values", 12), 1024, 1)


@pytest.mark.parametrize("call", ["load", "unload"])
def test_admin_calls_are_on_the_admin_port_only(both: tuple[ServerProcess, httpx2.Client], call: str) -> None:
    server, admin = both
    path = f"/v2/repository/models/japanese-vowels/{call}"
    assert admin.post(path).status_code == 403  # not enabled
    assert server.client.post(path).status_code == 404


@pytest.mark.parametrize("path", ["/livez", "/readyz"])
@pytest.mark.parametrize("method", ["GET", "HEAD"])
def test_probes_are_on_both(both: tuple[ServerProcess, httpx2.Client], method: str, path: str) -> None:
    server, admin = both
    for client in (server.client, admin):
        answer = client.request(method, path)
        assert (answer.status_code, answer.text) == (200, "ok" if method == "GET" else "")


@pytest.mark.parametrize("path", ["/predict", "/v1/models/japanese-vowels:predict", "/docs", "/v2"])
def test_nothing_else_is_on_the_admin_port(both: tuple[ServerProcess, httpx2.Client], path: str) -> None:
    _, admin = both
    assert admin.post(path, json=GOOD).status_code == 404
    assert admin.get(path).status_code == 404


def test_its_figures_count_what_the_other_port_answers(both: tuple[ServerProcess, httpx2.Client]) -> None:
    server, admin = both
    name = 'lengthwise_requests_total{code="200",key="-",model="japanese-vowels",version="1"}'
    before = samples(admin.get("/metrics").text).get(name, 0)
    assert server.predict(GOOD).status_code == 200
    assert samples(admin.get("/metrics").text)[name] == before + 1


@pytest.mark.long
def test_it_is_there_until_the_drain_has_ended() -> None:
    with with_admin_port() as (server, admin), server.connect() as wire:
        whole = request(GOOD)
        wire.send(whole[:-10])  # a request that has begun holds the exit
        assert admin.get("/livez").status_code == 200  # the loop has turned since, and has read it
        server.terminate()
        deadline = time.monotonic() + PATIENCE_SECONDS
        while (ready := admin.get("/readyz")).status_code == 200:
            assert time.monotonic() < deadline
        assert (ready.status_code, ready.headers["connection"]) == (503, "close")
        assert admin.get("/livez").status_code == 200
        assert orjson.loads(admin.get("/healthz").content)["draining"]
        assert "lengthwise_ready" in admin.get("/metrics").text
        wire.send(whole[-10:])
        assert wire.answer()[0] == 503
        assert server.end() == 0


@pytest.mark.long
def test_callers_who_hold_every_connection_leave_the_admin_port_its_own() -> None:
    with with_admin_port("--max-connections", "1", "--workers", "1") as (server, admin), server.connect() as first:
        first.send(request(GOOD))
        assert first.answer()[0] == 200
        with server.connect() as second:
            assert second.answer()[0] == 503
        assert admin.get("/livez").status_code == 200


def test_it_has_few_connections() -> None:
    assert ADMIN_CONNECTIONS < 64


async def test_it_wants_a_key_where_keys_are_set(tmp_path: Path) -> None:
    keys = tmp_path / "keys"
    keys.write_text("a-key-of-some-length\n")
    bearer = {"authorization": "Bearer a-key-of-some-length"}
    async with serving(model(manifest()), api_keys_file=keys, admin_port=9000) as service:
        transport = httpx2.ASGITransport(make_admin_app(service.serving))
        async with httpx2.AsyncClient(transport=transport, base_url="http://admin") as admin:
            assert (await admin.get("/metrics")).status_code == 401
            assert (await admin.post("/v2/repository/models/sums/load")).status_code == 401
            assert (await admin.get("/livez")).status_code == 200
            assert (await admin.get("/metrics", headers=bearer)).status_code == 200


@pytest.mark.long
async def test_grpc_loads_nothing_where_an_admin_port_is_set() -> None:
    async with listening(model(manifest()), admin_port=9000, admin_calls=True) as caller:
        for method in ("RepositoryModelLoad", "RepositoryModelUnload"):
            error = await caller.refused(method)
            assert error.code() is grpc.StatusCode.PERMISSION_DENIED
            assert "admin port" in str(error.details())


@pytest.mark.long
def test_a_port_that_is_taken_is_told_by_its_option(both: tuple[ServerProcess, httpx2.Client]) -> None:
    code, said = exit_of("--admin-port", str(both[1].base_url.port))
    assert code == 2
    assert "another --admin-port may be free" in said
