"""The HTTP application: routes, the lifespan that starts and drains the service, and one handler for every error.

Most requests are `POST /predict`, so it is answered before the router: `PredictFirst` calls the endpoint directly. The
same endpoint is an ordinary route too, for the middleware that other origins need.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from contextlib import asynccontextmanager
from importlib import metadata
from typing import TYPE_CHECKING, Any, Final

import orjson
from fastapi import FastAPI, Request
from fastapi.openapi.utils import get_openapi
from fastapi.responses import Response
from starlette.exceptions import HTTPException
from starlette.middleware.cors import CORSMiddleware
from starlette.routing import Route
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from lengthwise.console import page, routes
from lengthwise.errors import ConfigurationError, RequestError, how_to_install
from lengthwise.http import health, pages
from lengthwise.http.gate import OPEN, Gate
from lengthwise.protocols import documents, kserve, kserve_documents, predict, problems, v1, v2
from lengthwise.protocols.body import headers_of
from lengthwise.protocols.over_asgi import OverAsgi
from lengthwise.protocols.predict import Predict
from lengthwise.protocols.turns import Turns
from lengthwise.serving import Serving
from lengthwise.settings import Settings

if TYPE_CHECKING:
    from lengthwise.protocols.grpc_server import GrpcServer

log = logging.getLogger("lengthwise.app")

REQUEST_HEADERS: Final = (
    "authorization",
    "content-encoding",
    "content-type",
    "inference-header-content-length",
    "traceparent",
    "tracestate",
    "x-lengthwise-shape",
    "x-lengthwise-timeout-ms",
    "x-request-id",
)
"""Headers that a page of another origin may send."""
RESPONSE_HEADERS: Final = (
    "inference-header-content-length",
    "retry-after",
    "server-timing",
    "x-lengthwise-shape",
    "x-request-id",
)
"""Headers that it may read."""


def make_app(
    serving: Serving,
    *,
    on_failure: Callable[[BaseException], None] | None = None,
    places: Callable[[], Mapping[str, str]] = lambda: {"every call, with examples": "/docs"},
    grpc_connections: int | None = None,
) -> PredictFirst:
    """The application around a service that its lifespan starts and drains.

    Args:
        serving: The service. It loads its models while the application already answers, with 503 until it is ready.
        on_failure: Called if it cannot be started; without it, the failure is only logged.
        places: Addresses to try when it is ready, by what is there.
        grpc_connections: Most connections over gRPC; default: as many as over HTTP.

    Raises:
        ConfigurationError: gRPC is switched on, and not installed.
    """

    @asynccontextmanager
    async def lifespan(_: FastAPI) -> AsyncIterator[None]:
        starting = asyncio.create_task(start())
        starting.add_done_callback(started)
        try:
            yield
        finally:
            starting.cancel()
            await asyncio.wait((starting,))
            await serving.stop()
            if rpc is not None:
                await rpc.stop()

    async def start() -> None:
        if rpc is not None and settings.grpc_port is not None:
            await rpc.start(settings.host, settings.grpc_port)
            serving.registry.listeners.append(rpc.report_health)
        await serving.start()
        if serving.ready:
            log.info("try it: %s", ", ".join(f"{address} ({what})" for what, address in places().items()))
        if rpc is not None:
            await rpc.report_health()

    def started(task: asyncio.Task[None]) -> None:
        error = None if task.cancelled() else task.exception()
        if error is not None and not serving.batcher.draining:  # else it ended before it had started
            log.error("the service cannot start: %s", error)
            if on_failure is not None:
                on_failure(error)

    settings = serving.settings
    large_bodies = Turns()
    rpc = None if settings.grpc_port is None else _grpc_server(serving, large_bodies, grpc_connections)
    app = FastAPI(
        title="Lengthwise",
        summary="Classifies sequences of different lengths; padding never reaches an answer.",
        version=metadata.version("lengthwise"),
        lifespan=lifespan,
        redirect_slashes=False,  # a redirect would name the host that the caller names
        docs_url=None,
        redoc_url=None,
    )
    endpoint = Predict(serving, large_bodies)
    has_console = settings.console and settings.admin_port is None
    paths = {"predict": "/predict", "docs": "/docs", "openapi": "/openapi.json"}
    if settings.admin_port is None:
        paths["health"] = "/healthz"
    app.router.routes.append(Route("/", _index(settings, paths, console=has_console), include_in_schema=False))
    if has_console:
        app.router.routes += routes.routes(serving, health.described, predict="predict")
    app.router.routes.append(Route("/predict", OverAsgi(endpoint), methods=["POST"], include_in_schema=False))
    app.router.routes += v1.routes(serving, large_bodies) + v2.routes(serving, large_bodies)
    app.router.routes += pages.routes("/openapi.json", pages.folder())

    app.include_router(health.probes(serving))
    if settings.admin_port is None:
        app.include_router(health.state(serving))
        app.router.routes += v2.admin_routes(serving)
    _answer_errors(app, "GET / says what is where")

    def openapi() -> dict[str, Any]:
        # Made for each call: its examples are of the models that are served now.
        schema = get_openapi(
            title=app.title, summary=app.summary, version=app.version, routes=app.routes, tags=app.openapi_tags
        )
        manifests = [served.manifest for served in serving.served]
        documents.with_predict(documents.with_figures(schema), manifests)
        kserve_documents.with_kserve(schema, manifests, frozenset(getattr(route, "path", "") for route in app.routes))
        is_health = {
            path: "health" in next(iter(calls.values())).get("tags", ()) for path, calls in schema["paths"].items()
        }
        schema["paths"] = dict(sorted(schema["paths"].items(), key=lambda entry: is_health[entry[0]]))
        return schema if serving.keys is None else documents.with_keys(schema, OPEN)

    app.openapi = openapi  # type: ignore[method-assign]  # FastAPI's documented way to extend the schema
    return PredictFirst(
        _across_origins(Gate(app, serving, app.routes, console=has_console), settings), endpoint, serving
    )


def make_admin_app(serving: Serving) -> ASGIApp:
    """The application of the admin port: the probes, and the metrics, admin calls and console, which are only there.

    The console's own path for its calls is the only one that answers inference.
    """
    app = FastAPI(title="Lengthwise", openapi_url=None, redirect_slashes=False)
    app.include_router(health.probes(serving))
    app.include_router(health.state(serving))
    app.router.routes += v2.admin_routes(serving)
    has_console = serving.settings.console
    if has_console:
        endpoint = Predict(serving, Turns())
        places = {"predict": routes.PREDICT, "health": "/healthz", "metrics": "/metrics"}
        app.router.routes.append(Route("/", _index(serving.settings, places, console=True), include_in_schema=False))
        app.router.routes.append(Route(routes.PREDICT, OverAsgi(endpoint), methods=["POST"], include_in_schema=False))
        app.router.routes += routes.routes(serving, health.described, predict=routes.PREDICT[1:])
    _answer_errors(app, "the admin port has /metrics, /healthz, /livez, /readyz, load and unload")
    return Gate(app, serving, app.routes, console=has_console)


def _index(settings: Settings, places: Mapping[str, str], *, console: bool) -> Callable[[Request], Awaitable[Response]]:
    """The answer to `GET /`: paths and the limits of a request; for a browser, the console, or a page of the paths."""
    keys = settings.api_keys_file is not None  # a link cannot send a key
    links = tuple((path[1:], path) for name, path in places.items() if name != "predict" and not keys)
    limits = {name: getattr(settings, name) for name in documents.LIMITS}

    async def index(request: Request) -> Response:
        if pages.wanted(request.scope):
            if console:
                return page.answer(request, page.page(links))
            return pages.front(request.scope.get("root_path", ""), places)
        found = {"service": "lengthwise", **places, "media_types": predict.media_types(), "limits": limits}
        return _json(found, headers={"vary": "accept"})

    return index


def _across_origins(app: ASGIApp, settings: Settings) -> ASGIApp:
    """The application with the headers that let pages of other origins call it, where the options allow some."""
    if not settings.cors_origins:
        return app
    return CORSMiddleware(
        app,
        allow_origins=settings.cors_origins,
        allow_methods=("GET", "POST"),
        allow_headers=REQUEST_HEADERS,
        expose_headers=RESPONSE_HEADERS,
    )


def _answer_errors(app: FastAPI, elsewhere: str) -> None:
    """Writes every error in the form of the protocol that its path belongs to; 404 says where the paths are listed."""

    @app.exception_handler(RequestError)
    async def refused(request: Request, error: RequestError) -> Response:
        return kserve.response(error, request.scope["path"])

    @app.exception_handler(HTTPException)
    async def unrouted(request: Request, error: HTTPException) -> Response:
        detail, headers = error.detail, dict(error.headers or {})
        if error.status_code == 404:
            detail = f"nothing is at this path; {elsewhere}"
        elif error.status_code == 405 and "Allow" in headers:
            headers["Allow"] = ", ".join(sorted(headers["Allow"].split(", ")))
            detail = f"this path takes {headers['Allow']}"
        if kserve.is_path(request.scope["path"]):
            return _json({"error": detail}, error.status_code, headers)
        headers["content-type"] = problems.MEDIA_TYPE.decode()
        return Response(problems.of_status(error.status_code, detail), error.status_code, headers=headers)


class PredictFirst:
    """Plain ASGI that answers `POST /predict` itself, before any router or middleware.

    A page of another origin is answered by `app`, whose middleware adds the headers that its browser needs.

    Args:
        app: Everything else, and the lifespan.
        predict: The endpoint.
        serving: While it drains, every answer ends its connection, so that no kept-alive client delays the exit.
    """

    def __init__(self, app: ASGIApp, predict: Predict, serving: Serving) -> None:
        self.app = app
        self.predict = predict
        self._predict = OverAsgi(predict)
        self._serving = serving
        self._origins = bool(serving.settings.cors_origins)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answers `POST /predict`, and passes everything else on."""
        direct = scope["type"] == "http" and scope["path"] == "/predict" and scope["method"] == "POST"
        if direct and not (self._origins and b"origin" in headers_of(scope["headers"])):
            await self._predict(scope, receive, send)
        elif scope["type"] == "http":
            await self.app(scope, receive, _closing(send, self._serving))
        else:
            await self.app(scope, receive, send)


def _grpc_server(serving: Serving, large_bodies: Turns, connections: int | None) -> GrpcServer:
    """The server for gRPC, which needs an extra.

    Raises:
        ConfigurationError: The extra is not installed.
    """
    try:
        from lengthwise.protocols.grpc_server import GrpcServer
    except ImportError as error:
        raise ConfigurationError(
            f"--grpc-port needs gRPC, which is not installed ({error.name}): {how_to_install('grpc')}"
        ) from error
    return GrpcServer(serving, large_bodies, connections)


def _closing(send: Send, serving: Serving) -> Send:
    """A `send` whose answer ends its connection if the service drains by then."""

    async def closing(message: Message) -> None:
        starts = serving.batcher.draining and message["type"] == "http.response.start"
        if starts and problems.CLOSE not in message["headers"]:
            message = {**message, "headers": [*message["headers"], problems.CLOSE]}
        await send(message)

    return closing


def _json(content: Any, status: int = 200, headers: Mapping[str, str] | None = None) -> Response:
    return Response(orjson.dumps(content), status, headers, media_type="application/json")
