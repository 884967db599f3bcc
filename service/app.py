"""The HTTP application: routes, the lifespan that starts and drains the service, and one handler for every error.

`POST /predict` carries the load, so it is answered before the router: `Shortcut` hands it straight to the endpoint. The
same endpoint is an ordinary route too, which is where `/docs` and every other caller find it.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncIterator, Callable, Mapping
from contextlib import asynccontextmanager
from importlib import metadata
from typing import TYPE_CHECKING, Any

import orjson
from fastapi import FastAPI, Request
from fastapi.openapi.utils import get_openapi
from fastapi.responses import PlainTextResponse, Response
from starlette.exceptions import HTTPException
from starlette.routing import Route
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from service import documents, kserve, problems, v1, v2
from service.endpoint import LARGE_BODIES_AT_ONCE
from service.errors import ConfigurationError, Draining, NotReady, RequestError
from service.metrics import CONTENT_TYPE
from service.predict import Predict
from service.serving import Served, Serving

if TYPE_CHECKING:
    from service.grpc_server import GrpcServer

log = logging.getLogger("lengthwise.app")


def make_app(serving: Serving, *, on_failure: Callable[[BaseException], None] | None = None) -> Shortcut:
    """The application around a service that its lifespan starts and drains.

    Args:
        serving: The service. It loads its models while the application answers already: 503, until it is ready.
        on_failure: Told when it cannot be started; without it, the failure is only logged.

    Raises:
        ConfigurationError: gRPC is wanted, and not installed.
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
            serving.shelf.listeners.append(rpc.tell)
        await serving.start()
        if rpc is not None:
            await rpc.tell()

    def started(task: asyncio.Task[None]) -> None:
        error = None if task.cancelled() else task.exception()
        if error is not None:
            log.error("the service cannot start: %s", error)
            if on_failure is not None:
                on_failure(error)

    settings = serving.settings
    large_bodies = asyncio.Semaphore(LARGE_BODIES_AT_ONCE)
    rpc = None if settings.grpc_port is None else _grpc_server(serving, large_bodies)
    app = FastAPI(
        title="Lengthwise",
        summary="Classifies sequences of different lengths; padding never reaches an answer.",
        version=metadata.version("lengthwise"),
        lifespan=lifespan,
        redirect_slashes=False,  # a redirect would name the host that the caller names
    )
    predict = Predict(serving, large_bodies)
    app.router.routes.append(Route("/predict", predict, methods=["POST"], include_in_schema=False))
    app.router.routes += v1.routes(serving, large_bodies) + v2.routes(serving, large_bodies)

    @app.get("/livez", tags=["health"], summary="Whether the process lives", response_class=PlainTextResponse)
    async def livez() -> Response:
        return PlainTextResponse("ok")

    @app.get(
        "/readyz",
        tags=["health"],
        summary="Whether a request would be answered",
        response_class=PlainTextResponse,
        responses=documents.NOT_READY,
    )
    async def readyz() -> Response:
        return PlainTextResponse("ok") if serving.ready else _refusal(_why_not_ready(serving), "/readyz")

    @app.get(
        "/healthz",
        tags=["health"],
        summary="What is served, and what is not and why",
        responses={503: {"description": "The same, where nothing is ready", "content": {"application/json": {}}}},
    )
    async def healthz() -> Response:
        return _json(health(serving), status=200 if serving.ready else 503)

    @app.get("/metrics", tags=["health"], summary="Figures for Prometheus", response_class=PlainTextResponse)
    async def metrics() -> Response:
        return Response(serving.metrics.text(), headers={"content-type": CONTENT_TYPE})

    @app.exception_handler(RequestError)
    async def refused(request: Request, error: RequestError) -> Response:
        return _refusal(error, request.scope["path"])

    @app.exception_handler(HTTPException)
    async def unrouted(request: Request, error: HTTPException) -> Response:
        if kserve.speaks(request.scope["path"]):
            return _json({"error": error.detail}, error.status_code, error.headers)
        made = {"type": "about:blank", "title": error.detail, "status": error.status_code, "detail": error.detail}
        headers = dict(error.headers or {}) | {"content-type": problems.MEDIA_TYPE.decode()}
        return Response(orjson.dumps(made), error.status_code, headers=headers)

    def openapi() -> dict[str, Any]:
        # Made at each call: its examples are of the models that are served now.
        schema = get_openapi(
            title=app.title, summary=app.summary, version=app.version, routes=app.routes, tags=app.openapi_tags
        )
        return documents.with_predict(schema, [served.manifest for served in serving.served])

    app.openapi = openapi  # type: ignore[method-assign]  # FastAPI's documented way to extend the schema
    return Shortcut(app, predict, serving)


class Shortcut:
    """Plain ASGI that answers `POST /predict` itself, before any router or middleware.

    Args:
        app: Everything else, and the lifespan.
        predict: The endpoint.
        serving: While it drains, every answer ends its connection, so that no kept-alive poller holds the exit.
    """

    def __init__(self, app: FastAPI, predict: ASGIApp, serving: Serving) -> None:
        self.app = app
        self._predict = predict
        self._serving = serving

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Hands the request to whom it is for."""
        if scope["type"] == "http" and scope["path"] == "/predict" and scope["method"] == "POST":
            await self._predict(scope, receive, send)
        elif scope["type"] == "http" and self._serving.batcher.draining:
            await self.app(scope, receive, _closing(send))
        else:
            await self.app(scope, receive, send)


def _grpc_server(serving: Serving, large_bodies: asyncio.Semaphore) -> GrpcServer:
    """The server for gRPC, which an extra brings.

    Raises:
        ConfigurationError: The extra is not installed.
    """
    try:
        from service.grpc_server import GrpcServer
    except ImportError as error:
        raise ConfigurationError(
            f"--grpc-port needs gRPC, which is not installed ({error.name}): pip install 'lengthwise[grpc]'"
        ) from error
    return GrpcServer(serving, large_bodies)


def _closing(send: Send) -> Send:
    """A `send` whose answer ends its connection."""

    async def closing(message: Message) -> None:
        if message["type"] == "http.response.start" and problems.CLOSE not in message["headers"]:
            message = {**message, "headers": [*message["headers"], problems.CLOSE]}
        await send(message)

    return closing


def health(serving: Serving) -> dict[str, Any]:
    """What `/healthz` says: for people, and for tools that ask what a model takes."""
    return {
        "ready": serving.ready,
        "draining": serving.batcher.draining,
        "version": metadata.version("lengthwise"),
        "models": [_described(served) for served in serving.served],
        "refused": [{"model": refusal.path, "reason": refusal.reason} for refusal in serving.repository.refused],
    }


def _described(served: Served) -> dict[str, Any]:
    manifest = served.manifest
    return {
        "model": manifest.name,
        "version": str(manifest.version),
        "input": manifest.input.kind,
        "features": manifest.input.features,
        "vocabulary": manifest.input.vocabulary,
        "labels": manifest.labels,
        "task": manifest.task,
        "max_length": manifest.max_length,
        "long": manifest.long,
        "missing": manifest.missing,
        "attention": manifest.graph.attention is not None,
        "provider": served.model.session.provider,
        "promises": [promise.model_dump() for promise in manifest.promises],
        "queue_sequences": len(served.lane.pool),
    }


def _why_not_ready(serving: Serving) -> RequestError:
    if serving.batcher.draining:
        return Draining("the server is shutting down", retry_after_seconds=1)
    if not serving.started:
        return NotReady("the server is starting", retry_after_seconds=1)
    return NotReady("no model is ready; /healthz says why", retry_after_seconds=5)


def _refusal(error: RequestError, path: str) -> Response:
    status, body, headers = kserve.refusal(error) if kserve.speaks(path) else problems.refusal(error)
    return Response(body, status, headers={name.decode(): value.decode() for name, value in headers})


def _json(content: Any, status: int = 200, headers: Mapping[str, str] | None = None) -> Response:
    return Response(orjson.dumps(content), status, headers, media_type="application/json")
