from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable
from typing import Any

import httpx2
import pytest

from lengthwise.application.app import Application, make_admin_app
from lengthwise.errors import ConfigurationError
from lengthwise.repository.contents import Refusal, Repository
from lengthwise.serving import Serving
from lengthwise.settings import Settings
from lengthwise.versions import Key
from tests.support.numpy_models import manifest, model, repository, samples, serving
from tests.support.waiting import until

GETS = ["/", "/livez", "/readyz", "/ping", "/healthz", "/metrics", "/docs", "/openapi.json"]


class Lifespan:
    """An application whose lifespan runs while the block does, as a server runs it."""

    def __init__(self, open_models: Callable[[], Repository], failures: list[BaseException] | None = None) -> None:
        self.serving = Serving(Settings(runners=1), lambda *_: open_models())
        failed = [] if failures is None else failures
        self.app = Application(self.serving, on_failure=failed.append)
        self.sent: asyncio.Queue[str] = asyncio.Queue()
        self._told: asyncio.Queue[str] = asyncio.Queue()
        self.client = httpx2.AsyncClient(transport=httpx2.ASGITransport(self.app), base_url="http://service")

    async def __aenter__(self) -> Lifespan:
        async def receive() -> dict[str, Any]:
            return {"type": await self._told.get()}

        async def send(message: Any) -> None:
            await self.sent.put(message["type"])

        self._task = asyncio.ensure_future(self.app({"type": "lifespan", "state": {}}, receive, send))
        await self._told.put("lifespan.startup")
        assert await self.sent.get() == "lifespan.startup.complete"
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.client.aclose()
        await self._told.put("lifespan.shutdown")
        assert await self.sent.get() == "lifespan.shutdown.complete"
        await self._task

    async def status(self, path: str) -> int:
        return (await self.client.get(path)).status_code


async def test_a_ready_service_answers_and_counts_calls_of_models_only() -> None:
    async with serving(model(manifest())) as service:
        assert [(await service.client.get(path)).status_code for path in GETS] == [200] * len(GETS)
        figures = await service.figures()
    assert not [name for name, value in figures.items() if name.startswith("lengthwise_requests_total") and value]


async def test_a_service_that_starts_lives_and_is_not_ready() -> None:
    release = threading.Event()

    def slowly() -> Repository:
        release.wait(60)
        return repository(model(manifest()))

    async with Lifespan(slowly) as life:
        try:
            assert await life.status("/livez") == 200
            ready = await life.client.get("/readyz")
            assert (ready.status_code, ready.headers["retry-after"]) == (503, "1")
            assert ready.json()["detail"] == "the server is starting"
            assert await life.status("/healthz") == 503
            answer = await life.client.post("/predict", json={"sequences": [[[1, 2]]]})
            assert (answer.status_code, answer.headers["retry-after"]) == (503, "1")
            assert "examples" not in (await life.client.get("/openapi.json")).text
        finally:
            release.set()
        async with asyncio.timeout(180):
            while await life.status("/readyz") != 200:
                await asyncio.sleep(0)
        assert '"sums/1"' in (await life.client.get("/openapi.json")).text


async def test_a_service_may_end_while_it_starts() -> None:
    release = threading.Event()

    def slowly() -> Repository:
        release.wait(60)
        return repository()

    try:
        async with asyncio.timeout(180), Lifespan(slowly):
            pass
    finally:
        release.set()


async def test_an_unreadable_repository_is_an_error_at_the_start_and_logged(caplog: pytest.LogCaptureFixture) -> None:
    def unreadable() -> Repository:
        raise ConfigurationError("no such folder")

    failures: list[BaseException] = []
    async with Lifespan(unreadable, failures) as life, asyncio.timeout(180):
        while not failures:
            await asyncio.sleep(0)
        assert await life.status("/readyz") == 503
    assert [str(failure) for failure in failures] == ["no such folder"]
    assert "no such folder" in caplog.text


async def test_no_good_model_is_told_with_its_reason() -> None:
    refused = Repository(refused=[Refusal(Key("sums", 1), "its digest differs")])
    async with Lifespan(lambda: refused) as life:
        await until(lambda: life.serving.started)
        ready = await life.client.get("/readyz")
        assert (ready.status_code, ready.headers["retry-after"]) == (503, "5")
        assert ready.json()["detail"] == "no model is ready; /healthz says why"
        health = await life.client.get("/healthz")
        assert health.status_code == 503
        assert health.json()["refused"] == [{"model": "sums/1", "reason": "its digest differs"}]
        assert samples((await life.client.get("/metrics")).text)['lengthwise_ready{model="",version=""}'] == 0


async def test_a_folder_without_any_version_is_told_wherever_readiness_is_asked_for(
    caplog: pytest.LogCaptureFixture,
) -> None:
    nothing = Repository(reason="no NAME/VERSION folder")
    async with Lifespan(lambda: nothing) as life:
        await until(lambda: life.serving.started)
        assert (await life.client.get("/healthz")).json()["reason"] == "no NAME/VERSION folder"
        for answer in (
            await life.client.get("/readyz"),
            await life.client.post("/predict", json={"sequences": [[[1, 2]]]}),
        ):
            assert (answer.status_code, answer.headers["retry-after"]) == (503, "5")
            assert answer.json()["detail"] == "no model is ready: no NAME/VERSION folder"
        assert any(str(life.serving.settings.models) in line for line in caplog.messages)  # what it waits for


async def test_the_root_names_pages_that_are_there() -> None:
    async with serving(model(manifest())) as service:
        places = (await service.client.get("/")).json()
        assert (places.pop("service"), places.pop("predict")) == ("lengthwise", "/predict")
        assert {"limits", "media_types"} <= places.keys()
        assert places.pop("names") == {"sums": {"1": None}}
        del places["limits"], places["media_types"]
        assert sorted(places.values()) == ["/docs", "/healthz", "/openapi.json"]
        for path in places.values():
            assert (await service.client.get(path)).status_code == 200


async def test_the_root_says_the_limits_of_a_request_and_what_a_body_may_be() -> None:
    async with serving(model(manifest()), max_sequences=7) as service:
        root = (await service.client.get("/")).json()
        document = (await service.client.get("/openapi.json")).json()
    assert root["limits"] == {"max_body_bytes": 16_777_216, "max_sequences": 7, "max_queue_cost_steps": 1_000_000}
    assert root["media_types"] == ["application/json", "application/octet-stream"]
    assert [*document["paths"]["/predict"]["post"]["requestBody"]["content"]] == root["media_types"]


async def test_the_root_does_not_name_what_only_the_admin_port_has() -> None:
    async with serving(model(manifest()), admin_port=1) as service:
        assert "health" not in (await service.client.get("/")).json()


async def test_a_service_that_is_ready_says_in_the_log_where_to_try_it(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level("INFO", "lengthwise.app")
    async with Lifespan(lambda: repository(model(manifest()))) as life, asyncio.timeout(180):
        while not life.serving.ready or not (said := [line for line in caplog.messages if line.startswith("try it: ")]):
            await asyncio.sleep(0)
    assert "/docs" in said[0]


async def test_health_says_what_a_model_takes() -> None:
    async with serving(model(manifest(max_length=7, missing="zero"))) as service:
        health = (await service.client.get("/healthz")).json()
    assert (health["ready"], health["starting"], health["draining"], health["refused"]) == (True, False, False, [])
    (described,) = health["models"]
    assert (
        described
        | {
            "model": "sums",
            "version": "1",
            "input": "values",
            "features": 2,
            "labels": ["a", "b", "c"],
            "max_length": 7,
            "missing": "zero",
            "attention": True,
            "queue_sequences": 0,
        }
        == described
    )


@pytest.mark.sampled(3)
@pytest.mark.parametrize(
    "path",
    [
        *("/livez", "/readyz", "/ping", "/healthz", "/metrics", "/predict", "/invocations", "/openapi.json", "/docs"),
        *("/v2", "/v2/health/live"),
        *("/v1/models/sums", "/v1/models/sums:predict", "/v2/models/sums", "/v2/models/sums/infer"),
        *("/v2/models/sums/ready", "/v2/models/sums/versions/1", "/v2/repository/models/sums/unload"),
    ],
)
async def test_a_path_that_ends_with_a_line_feed_is_another_one(path: str) -> None:
    async with serving(model(manifest())) as service:
        for method in ("GET", "POST"):
            for end in ("%0a", "%0A"):
                assert (await service.client.request(method, path + end)).status_code == 404, method


async def test_of_the_admin_port_too() -> None:
    async with serving(model(manifest())) as service:
        admin = httpx2.AsyncClient(transport=httpx2.ASGITransport(make_admin_app(service.serving)), base_url="http://x")
        async with admin:
            assert (await admin.get("/livez")).status_code == 200
            assert {(await admin.get(f"{path}%0a")).status_code for path in ("/livez", "/metrics", "/healthz")} == {404}


async def test_the_ready_gauge_follows_readiness() -> None:
    async with serving(model(manifest())) as service:
        assert (await service.figures())['lengthwise_ready{model="sums",version="1"}'] == 1
        service.serving.batcher.begin_draining()
        assert (await service.figures())['lengthwise_ready{model="sums",version="1"}'] == 0


@pytest.mark.parametrize("path", [*GETS, "/nothing"])
async def test_every_answer_of_a_draining_service_ends_its_connection(path: str) -> None:
    async with serving(model(manifest())) as service:
        service.serving.batcher.begin_draining()
        answer = await service.client.get(path)
    assert answer.headers["connection"] == "close"
    assert answer.status_code == {"/readyz": 503, "/ping": 503, "/healthz": 503, "/nothing": 404}.get(path, 200)


@pytest.mark.parametrize(
    ("method", "path", "status", "detail"),
    [
        ("GET", "/nothing", 404, "nothing is at this path; GET / says what is where"),
        ("GET", "/predict", 405, "this path takes POST"),
        ("DELETE", "/predict", 405, "this path takes POST"),
        ("POST", "/livez", 405, "this path takes GET"),
    ],
)
async def test_what_is_not_there_is_a_problem_too(method: str, path: str, status: int, detail: str) -> None:
    async with serving(model(manifest())) as service:
        answer = await service.client.request(method, path)
    assert answer.status_code == status
    assert answer.headers["content-type"] == "application/problem+json"
    assert (answer.json()["status"], answer.json()["detail"]) == (status, detail)
    assert ("allow" in answer.headers) == (status == 405)


@pytest.mark.parametrize(
    ("field", "says"),
    [
        ("instances", "is of KServe v1: POST /v1/models/NAME:predict takes it"),
        ("inputs", "is of v2: POST /v2/models/NAME/infer takes it"),
        ("dataframe_split", "is of MLflow; here the steps of each row are one of 'sequences'"),
        ("dataframe_records", "is of MLflow; here the steps of each row are one of 'sequences'"),
        ("sequence", "did you mean sequences?"),
        ("data", "unknown field; known are"),
    ],
)
@pytest.mark.parametrize("path", ["/predict", "/invocations"])
async def test_a_body_in_the_form_of_another_server_says_who_takes_it(path: str, field: str, says: str) -> None:
    async with serving(model(manifest())) as service:
        refused = await service.client.post(path, json={field: [[[1, 3]]]})
        assert refused.status_code == 422
        (problem,) = [one for one in refused.json()["errors"] if one["pointer"]]
        assert problem["pointer"] == f"/{field}"
        assert says in problem["detail"]
