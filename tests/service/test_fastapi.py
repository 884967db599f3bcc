"""The application as users of FastAPI know theirs: served by any server, mounted, given what sees every call."""

import asyncio
import gc
import weakref
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import httpx2
import numpy as np
import pytest
import uvicorn
from fastapi import Depends, FastAPI, Header, HTTPException, Request, Response
from starlette import exceptions
from starlette.routing import Route
from starlette.types import ASGIApp, Receive, Scope, Send

import lengthwise
from lengthwise.application.app import Application
from lengthwise.application.gate import NO_LIFESPAN
from lengthwise.errors import ConfigurationError
from lengthwise.serving import Serving
from lengthwise.settings import Settings
from tests.support.http_lines import BEARER, GOOD, net
from tests.support.numpy_models import Service, held_batch, manifest, model, repository, samples, serving
from tests.support.used_metrics import page_of
from tests.support.waiting import wait_until

BODY = {"sequences": [[[0.5] * 12] * 3]}


class Counting:
    """Middleware that counts what it sees."""

    seen = 0

    def __init__(self, app: ASGIApp) -> None:
        self.app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        type(self).seen += scope["type"] == "http"
        await self.app(scope, receive, send)


async def noted(request: Request) -> None:
    """A dependency that looks at nothing."""


async def refused() -> None:
    raise HTTPException(402, "pay first")


def client(app: ASGIApp) -> httpx2.AsyncClient:
    return httpx2.AsyncClient(transport=httpx2.ASGITransport(app), base_url="http://service")


@pytest.fixture(scope="module")
def app() -> FastAPI:
    return lengthwise.make_app(lengthwise.Settings(runners=1))


async def test_under_plain_uvicorn_it_loads_answers_and_drains(app: FastAPI) -> None:
    server = uvicorn.Server(uvicorn.Config(app, port=0, log_config=None))
    serving = asyncio.create_task(server.serve())
    while not server.started:
        await asyncio.sleep(0)
    port = server.servers[0].sockets[0].getsockname()[1]
    async with httpx2.AsyncClient(base_url=f"http://127.0.0.1:{port}") as caller:
        assert (await caller.get("/readyz")).status_code == 200
        answered = await caller.post("/predict", json=BODY)
        assert (answered.status_code, answered.json()["model"]) == (200, "japanese-vowels")
        head = await caller.head("/v2")
        assert (head.status_code, head.content) == (200, b"")
    server.should_exit = True
    await serving
    assert isinstance(app, Application)
    assert app.serving.batcher.draining


@pytest.mark.long
def test_in_a_test_client_each_block_starts_it_anew_and_its_users_routes_stay(app: FastAPI) -> None:
    from starlette.testclient import TestClient

    @app.get("/mine")
    async def mine() -> str:
        return "here"

    for _ in range(2):
        with TestClient(app) as caller:
            assert caller.post("/predict", json=BODY).status_code == 200
            assert caller.get("/mine").json() == "here"
            assert "/mine" in caller.get("/openapi.json").json()["paths"]


async def test_a_start_that_fails_is_the_lifespans_error() -> None:
    def unreadable(*_: Any) -> Any:
        raise ConfigurationError("no such folder")

    made = Application(Serving(Settings(runners=1), unreadable))
    for error in (ConfigurationError, RuntimeError):  # nobody told it how to make another service
        with pytest.raises(error):
            async with made.router.lifespan_context(made):
                pytest.fail("it has started")


async def test_a_users_lifespan_runs_while_models_are_loaded_and_may_fail() -> None:
    ready: list[bool] = []

    @asynccontextmanager
    async def own(inner: FastAPI) -> AsyncIterator[dict[str, str]]:
        assert isinstance(inner, Application)
        ready.append(inner.serving.ready)
        yield {"found": "it"}
        ready.append(inner.serving.ready)
        raise BrokenPipeError

    made = served(lifespan=own)
    with pytest.raises(BrokenPipeError):
        async with made.router.lifespan_context(made) as state:
            assert state == {"found": "it"}
    assert (ready, made.serving.ready, made.serving.batcher.draining) == ([True, True], False, True)


async def test_mounted_it_says_that_its_lifespan_is_missing_or_answers_as_it_does_alone(
    keys: Path, caplog: pytest.LogCaptureFixture
) -> None:
    inner = served(keys)
    outer = FastAPI(lifespan=inner.router.lifespan_context)
    outer.mount("/models", inner)
    async with client(outer) as caller:
        for call in (("GET", "/models/readyz"), ("POST", "/models/predict"), ("GET", "/models/healthz")):
            assert NO_LIFESPAN in (await caller.request(*call, content=GOOD, headers=BEARER)).text
    assert caplog.messages.count(NO_LIFESPAN) == 1
    async with outer.router.lifespan_context(outer), client(outer) as caller:
        assert (await caller.post("/models/predict", content=GOOD)).status_code == 401
        assert (await caller.post("/models/predict", content=GOOD, headers=BEARER)).status_code == 200
        assert (await caller.get("/models/livez")).status_code == 200
        assert (await caller.get("/models/v2")).json().keys() == {"error"}
        assert (await caller.get("/models/v2", headers=BEARER)).json()["name"] == "lengthwise"
        assert (await caller.get("/models/v1/nothing", headers=BEARER)).json().keys() == {"error"}
        nothing = (await caller.get("/models/nothing", headers=BEARER)).headers
        assert nothing["content-type"] == "application/problem+json"
        document = (await caller.get("/models/openapi.json", headers=BEARER)).json()
        assert document["servers"] == [{"url": "/models"}]


async def test_a_dependency_is_asked_before_every_call_and_can_be_overridden() -> None:
    made = served(dependencies=[Depends(refused)])
    calls = [("POST", "/predict"), ("POST", "/v1/models/sums:predict"), ("POST", "/v2/models/sums/infer")]
    calls += [("GET", "/healthz"), ("GET", "/v2/models/sums"), ("POST", "/v2/repository/models/sums/unload")]
    async with made.router.lifespan_context(made), client(made) as caller:
        assert {(await caller.request(*call, content=GOOD)).status_code for call in calls} == {402}
        made.dependency_overrides[refused] = noted
        assert (await caller.post("/predict", content=GOOD)).status_code == 200


def _instrumented(service: Service, monkeypatch: pytest.MonkeyPatch) -> None:
    """As OpenTelemetry's instrumentation of an application does."""
    build = service.app.build_middleware_stack
    monkeypatch.setattr(service.app, "build_middleware_stack", lambda: Counting(build()))


def _patched(_: Service, monkeypatch: pytest.MonkeyPatch) -> None:
    """As Sentry does for the whole process."""
    called = FastAPI.__call__

    async def counted(self: FastAPI, scope: Scope, receive: Receive, send: Send) -> None:
        Counting.seen += scope["type"] == "http"
        await called(self, scope, receive, send)

    monkeypatch.setattr(FastAPI, "__call__", counted)


EXTENDED: dict[str, Callable[[Service, pytest.MonkeyPatch], None]] = {
    "middleware": lambda service, _: service.app.add_middleware(Counting),
    "an instrumented application": _instrumented,
    "an instrumented process": _patched,
}


@pytest.mark.parametrize("extend", EXTENDED.values(), ids=EXTENDED)
async def test_what_it_was_given_sees_a_call_that_would_go_past_it(
    extend: Callable[[Service, pytest.MonkeyPatch], None], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Counting, "seen", 0)
    async with serving(model(manifest())) as service:
        extend(service, monkeypatch)
        async with net(service) as made:
            line = await made.line()
            for _ in range(3):
                assert (await line.ask(GOOD))[0] == 200
    assert Counting.seen == 3


async def signed(request: Request) -> None:
    """A dependency that reads the body, as one that checks a signature."""
    assert await request.body()


async def named(x_token: str = Header()) -> None:
    """A dependency with a parameter of its own."""


async def no_path(_: Request, error: Exception) -> Response:
    return Response("mine", 404)


async def test_a_dependency_may_read_the_body() -> None:
    app = served(dependencies=[Depends(signed)])
    async with app.router.lifespan_context(app), client(app) as caller:
        for path, body, status in (
            ("/predict", {"sequences": [[[0.5, 0.5]] * 3]}, 200),
            ("/v1/models/sums:predict", {"instances": [[[0.5, 0.5]] * 3]}, 200),
            ("/v2/repository/index", {"ready": True}, 200),
            ("/v2/repository/models/sums/unload", {"parameters": {}}, 403),
        ):
            assert (await asyncio.wait_for(caller.post(path, json=body), 30)).status_code == status


async def test_the_document_has_the_parameters_of_its_users_routes() -> None:
    app = served()
    app.add_api_route("/mine/{place}", lambda place: place)
    async with app.router.lifespan_context(app):
        document = app.openapi()
    assert [one["name"] for one in document["paths"]["/mine/{place}"]["get"]["parameters"]] == ["place"]
    assert document["paths"]["/v2/models/{model}"]["get"]["parameters"][0]["examples"].keys() == {"sums"}


async def test_the_routes_of_an_ended_service_are_freed_when_the_next_starts() -> None:
    app = served()
    ended = weakref.ref(next(route for route in app.routes if getattr(route, "path", None) == "/predict"))
    for _ in range(2):
        async with app.router.lifespan_context(app), client(app) as caller:
            assert (await caller.post("/predict", content=GOOD)).status_code == 200
    gc.collect()
    assert ended() is None


async def test_errors_of_what_it_was_given_have_the_form_of_the_protocol() -> None:
    app = served(dependencies=[Depends(named)], exception_handlers={exceptions.HTTPException: no_path})
    async with app.router.lifespan_context(app), client(app) as caller:
        refused = await caller.post("/predict", json=BODY)
        assert (refused.status_code, refused.json()["detail"]) == (422, "header/x-token: Field required")
        assert (await caller.post("/v2/models/sums/infer", json={})).json().keys() == {"error"}
        assert (await caller.get("/nowhere")).text == "mine"


async def test_a_service_that_cannot_be_made_again_leaves_the_routes(keys: Path) -> None:
    app = served(keys)
    app.add_api_route("/mine", lambda: "here")
    for _ in range(2):
        async with app.router.lifespan_context(app):
            pass
        found = keys.read_text()
        keys.unlink()
        with pytest.raises(ConfigurationError):
            async with app.router.lifespan_context(app):
                pass
        keys.write_text(found)
    assert "/mine" in {getattr(route, "path", None) for route in app.routes}


@pytest.mark.parametrize("path", ["/predict", "/v1/models/{model}:predict", "/v2/models/mine/infer"])
def test_a_route_of_its_user_for_the_same_call_is_not_gone_past(path: str) -> None:
    app = served()
    app.router.routes.insert(0, Route("/hello", no_path))
    app.add_route(path, no_path, methods=["POST"])  # behind ours: never asked
    assert not app.extended()
    app.router.routes.insert(1, Route(path, no_path, methods=["POST"]))
    assert app.extended()
    app = served()  # with one that its user took away
    app.router.routes[:] = [one for one in app.routes if getattr(one, "path", "") != "/v1/models/{model}:predict"]
    assert app.extended()


async def test_its_pages_can_be_switched_off() -> None:
    app = served(openapi_url=None)
    async with app.router.lifespan_context(app), client(app) as caller:
        assert {(await caller.get(path)).status_code for path in ("/docs", "/openapi.json")} == {404}
        assert not {"docs", "openapi"} & (await caller.get("/")).json().keys()


async def test_a_route_around_the_model_batches_and_refuses_as_the_model_does() -> None:
    """As docs/own-code.md has it: a client of the application in the same process, and its handlers of errors."""
    release, running, wait = held_batch()
    settings = Settings(runners=1, max_batch_cost_steps=64, max_queue_cost_steps=64)
    inner = Application(Serving(settings, lambda *_: repository(model(manifest(), wait))))
    outer = FastAPI(lifespan=inner.router.lifespan_context, exception_handlers=inner.exception_handlers)
    own = lengthwise.AsyncClient("http://model", transport=httpx2.ASGITransport(inner), retries=0)

    @outer.post("/mine")
    async def mine(steps: int, seconds: float = 60) -> str:
        [prediction] = await own.predict([np.ones((steps, 2))], timeout=seconds)
        return prediction.label

    outer.mount("/", inner)
    async with outer.router.lifespan_context(outer), client(outer) as caller:
        first = asyncio.create_task(caller.post("/mine?steps=3"))
        await running.wait()
        late = await caller.post("/mine?steps=3&seconds=0.05")
        waiting = [asyncio.create_task(caller.post("/mine?steps=4")) for _ in range(4)]
        queues = inner.serving.batcher.queues
        await asyncio.to_thread(wait_until, lambda: sum(len(queue.pending) for queue in queues) == 4)
        full = await caller.post("/mine?steps=60")
        wrong = await caller.post("/predict", json={"sequences": []})
        release.set()
        answers = [await one for one in (first, *waiting)]
    assert [one.status_code for one in answers] == [200] * 5
    assert (late.status_code, late.json()["title"]) == (504, "Deadline exceeded")
    assert (full.status_code, int(full.headers["retry-after"]) >= 1) == (429, True)
    assert (wrong.status_code, wrong.headers["content-type"]) == (422, "application/problem+json")
    figures = samples(page_of(inner.serving.metrics).decode())
    batches = sum(value for name, value in figures.items() if name.startswith("lengthwise_batch_rows_count"))
    assert batches == 2  # the four ran together


def test_settings_are_no_path() -> None:
    with pytest.raises(TypeError):
        lengthwise.make_app("models")  # type: ignore[arg-type]


def served(keys: Any = None, **options: Any) -> Application:
    """An application that serves the small model."""
    settings = Settings(runners=1, api_keys_file=keys)

    def make() -> Serving:
        return Serving(settings, lambda *_: repository(model(manifest())))

    return Application(make(), make_serving=make, **options)
