"""Who may call: keys over every protocol, what stays open, and how a refusal is told and counted."""

import asyncio
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import grpc
import httpx2
import pytest
from grpc_health.v1 import health_pb2, health_pb2_grpc
from grpc_reflection.v1alpha import reflection_pb2, reflection_pb2_grpc

from lengthwise.bench.launch import free_port
from lengthwise.errors import ConfigurationError
from lengthwise.serving import Serving
from lengthwise.settings import Settings
from tests.support.grpc_calls import listening
from tests.support.grpc_calls import request as infer
from tests.support.numpy_models import manifest, model, samples, serving
from tests.support.server_process import ServerProcess, exit_of, request, started
from tests.support.used_metrics import page_of

KEY = "a-key-of-some-length"
BEARER = {"authorization": f"Bearer {KEY}"}
WRONG = {"authorization": "Bearer another-key-of-some-length"}
GOOD: dict[str, Any] = {"sequences": [[[1, 3]]]}
V2: dict[str, Any] = {"inputs": [{"name": "values", "shape": [1, 1, 2], "datatype": "FP32", "data": [1, 3]}]}

INFERENCE = [
    ("/predict", GOOD),
    ("/invocations", GOOD),
    ("/v1/models/sums:predict", {"instances": GOOD["sequences"]}),
    ("/v2/models/sums/infer", V2),
    ("/v2/models/sums/versions/1/infer", V2),
]
OTHERS = [
    *(("GET", "/healthz"), ("GET", "/metrics"), ("GET", "/"), ("GET", "/docs"), ("GET", "/openapi.json")),
    *(("GET", "/v1/models"), ("GET", "/v1/models/sums"), ("GET", "/v2"), ("GET", "/v2/health/live")),
    *(("GET", "/v2/health/ready"), ("GET", "/v2/models/sums"), ("GET", "/v2/models/sums/ready")),
    *(("GET", "/v2/models/stats"), ("GET", "/v2/models/sums/stats"), ("GET", "/v2/models/sums/versions/1/config")),
    *(("POST", "/v2/repository/index"), ("POST", "/v2/repository/models/sums/load"), ("GET", "/predict")),
    *(("GET", "/v2/models/sums/infer"), ("GET", "/nothing"), ("GET", "/livez/"), ("GET", "//livez")),
    *(("GET", "/LIVEZ"), ("GET", "/livez/../metrics"), ("GET", "/livez%2f..%2fmetrics"), ("GET", "/readyz%00")),
]


@pytest.fixture
def keys(tmp_path: Path) -> Path:
    path = tmp_path / "keys"
    path.write_text(f"{KEY}\n")
    return path


@pytest.mark.sampled(2)
@pytest.mark.parametrize(("path", "body"), INFERENCE)
@pytest.mark.parametrize("headers", [{}, WRONG], ids=["no key", "wrong key"])
async def test_an_inference_call_without_a_key_is_401_under_every_protocol(
    keys: Path, path: str, body: dict[str, Any], headers: dict[str, str]
) -> None:
    async with serving(model(manifest()), api_keys_file=keys) as service:
        answer = await service.client.post(path, json=body, headers=headers)
        assert (await service.client.post(path, json=body, headers=BEARER)).status_code == 200
        figures = samples((await service.client.get("/metrics", headers=BEARER)).text)
    assert (answer.status_code, answer.headers["www-authenticate"]) == (401, "Bearer")
    assert "x-request-id" in answer.headers
    assert "key" in (answer.json()["error"] if path.startswith("/v") else answer.json()["detail"])
    assert figures['lengthwise_requests_total{code="401",key="-",model="",version=""}'] == 1


@pytest.mark.parametrize(("path", "body"), INFERENCE)
async def test_a_call_is_counted_under_the_name_of_its_key_whatever_its_status(
    tmp_path: Path, path: str, body: dict[str, Any]
) -> None:
    keys = tmp_path / "keys"
    keys.write_text(f"team-a: {KEY}\nanother-key-of-some-length\n")
    async with serving(model(manifest()), api_keys_file=keys) as service:
        for headers in (BEARER, WRONG, {}):
            await service.client.post(path, json=body, headers=headers)
        await service.client.post(path, json={}, headers=BEARER)
        await service.client.post(path, content=b"{}", headers=BEARER | {"content-type": "text/plain"})
        figures = samples((await service.client.get("/metrics", headers=BEARER)).text)
    bad = 422 if path in ("/predict", "/invocations") else 400
    counted = {name: value for name, value in figures.items() if name.startswith("lengthwise_requests_total") and value}
    of_calls = 'lengthwise_requests_total{code="%s",key="%s",model="%s",version="%s"}'
    assert counted == {
        of_calls % (200, "team-a", "sums", "1"): 1,
        of_calls % (200, "-", "sums", "1"): 1,
        of_calls % (401, "-", "", ""): 1,
        of_calls % (bad, "team-a", "", ""): 1,
        of_calls % (415, "team-a", "", ""): 1,
    }


@pytest.mark.sampled(3)
@pytest.mark.parametrize(("method", "path"), OTHERS)
async def test_everything_else_wants_a_key_and_is_not_counted(keys: Path, method: str, path: str) -> None:
    async with serving(model(manifest()), api_keys_file=keys) as service:
        for headers in ({}, WRONG):
            answer = await service.client.request(method, path, headers=headers)
            assert (answer.status_code, answer.headers["www-authenticate"]) == (401, "Bearer")
        assert (await service.client.request(method, path, headers=BEARER)).status_code != 401
        figures = samples((await service.client.get("/metrics", headers=BEARER)).text)
    assert not any("401" in name for name in figures)


@pytest.mark.parametrize("method", ["GET", "HEAD"])
@pytest.mark.parametrize("path", ["/livez", "/readyz", "/ping"])
async def test_probes_need_no_key(keys: Path, method: str, path: str) -> None:
    async with serving(model(manifest()), api_keys_file=keys) as service:
        assert (await service.client.request(method, path)).status_code == 200
        service.serving.batcher.begin_draining()
        expected = 200 if path == "/livez" else 503
        assert (await service.client.request(method, path)).status_code == expected


async def test_a_key_is_asked_for_before_the_body_is_read(keys: Path) -> None:
    async def never() -> Any:
        raise AssertionError("the body was read")
        yield b""

    async with serving(model(manifest()), api_keys_file=keys) as service:
        assert (await service.client.post("/predict", content=never())).status_code == 401


async def test_no_key_reaches_the_log(keys: Path, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level("DEBUG")
    async with serving(model(manifest()), api_keys_file=keys, access_log=1) as service:
        await service.client.post("/predict", json=GOOD, headers=BEARER)
        await service.client.post("/predict", json=GOOD, headers=WRONG)
    assert "status=401" in caplog.text
    assert "of-some-length" not in caplog.text


@pytest.mark.long
@pytest.mark.process
def test_keys_that_cannot_be_read_are_told_before_anything_listens(tmp_path: Path) -> None:
    with pytest.raises(ConfigurationError):
        Serving(Settings(api_keys_file=tmp_path / "none"))
    code, said = exit_of("--api-keys-file", str(tmp_path / "none"))
    assert code == 2
    assert "cannot be read" in said
    assert "listening" not in said


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ServerProcess]:
    path = tmp_path_factory.mktemp("keys") / "keys"
    path.write_text(f"team-a: {KEY}\r\n")
    with started("--runners", "1", "--api-keys-file", str(path), "--grpc-port", str(free_port())) as process:
        yield process


@pytest.mark.process
def test_a_socket_is_asked_for_a_key_on_the_way_past_asgi_too(server: ServerProcess) -> None:
    good = {"sequences": [[[0.5] * 12]]}
    with server.connect() as wire:
        for headers, expected in [({}, 401), (WRONG, 401), (BEARER, 200), (BEARER, 200), ({}, 401)]:
            wire.send(request(good, **headers))
            status, answered, _ = wire.answer()
            assert status == expected
            assert answered.get("www-authenticate") == ("Bearer" if status == 401 else None)
    figures = samples(httpx2.get(f"{server.url}/metrics", headers=BEARER).text)
    assert figures['lengthwise_requests_total{code="401",key="-",model="",version=""}'] == 3
    assert figures['lengthwise_requests_total{code="200",key="team-a",model="japanese-vowels",version="1"}'] == 2


@pytest.mark.parametrize("method", ["ServerLive", "ServerReady", "ServerMetadata", "ModelReady", "RepositoryIndex"])
async def test_grpc_wants_a_key(keys: Path, method: str) -> None:
    async with listening(model(manifest()), api_keys_file=keys) as caller:
        error = await caller.refused(method)
        assert (error.code(), error.details()) == (
            grpc.StatusCode.UNAUTHENTICATED,
            "a key is needed: send it as 'authorization: Bearer KEY'",
        )
        assert (await caller.refused(method, metadata=tuple(WRONG.items()))).code() is grpc.StatusCode.UNAUTHENTICATED
        figures = samples(page_of(caller.service.serving.metrics).decode())
    assert not any("401" in name for name in figures)


async def test_a_grpc_inference_call_without_a_key_is_counted_and_with_one_answered(keys: Path) -> None:
    keys.write_text(f"team-a: {KEY}\n")
    async with listening(model(manifest()), api_keys_file=keys) as caller:
        error = await caller.refused("ModelInfer", infer())
        assert error.code() is grpc.StatusCode.UNAUTHENTICATED
        await caller.call("ModelInfer", infer(), metadata=tuple(BEARER.items()))
        wanted = {
            'lengthwise_requests_total{code="401",key="-",model="",version=""}': 1.0,
            'lengthwise_requests_total{code="200",key="team-a",model="sums",version="1"}': 1.0,
        }
        async with asyncio.timeout(180):  # the caller may have its answer before the server has counted it
            while not wanted.items() <= samples(page_of(caller.service.serving.metrics).decode()).items():
                await asyncio.sleep(0)


@pytest.mark.long
@pytest.mark.process
async def test_grpcs_health_and_reflection_want_a_key(keys: Path) -> None:
    async with listening(model(manifest()), api_keys_file=keys) as caller:
        health = health_pb2_grpc.HealthStub(caller.channel)
        reflection = reflection_pb2_grpc.ServerReflectionStub(caller.channel)
        asked = health_pb2.HealthCheckRequest()
        with pytest.raises(grpc.aio.AioRpcError) as checked:
            await health.Check(asked)
        with pytest.raises(grpc.aio.AioRpcError) as watched:
            await anext(aiter(health.Watch(asked)))
        listed = reflection_pb2.ServerReflectionRequest(list_services="")
        with pytest.raises(grpc.aio.AioRpcError) as reflected:
            await anext(aiter(reflection.ServerReflectionInfo(iter([listed]))))
        for raised in (checked, watched, reflected):
            assert raised.value.code() is grpc.StatusCode.UNAUTHENTICATED
        passed = await health.Check(asked, metadata=tuple(BEARER.items()))
        assert passed.status == health_pb2.HealthCheckResponse.SERVING
