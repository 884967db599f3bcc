"""The HTTP application: a FastAPI whose lifespan loads the models and drains, and whose routes are the operations.

```python
from lengthwise import Settings, make_app

app = make_app(Settings(models="models"))  # uvicorn module:app
```

Whatever an application of FastAPI can be given (middleware, dependencies, instrumentation, routes) sees every call.
`lengthwise serve` answers an ordinary `POST /predict` before the application (`http.fast_request`), but not where it
was given any of these: see `Application.extended`.
"""

from __future__ import annotations

import asyncio
import inspect
import logging
import os
import re
import sys
from collections.abc import AsyncIterator, Callable, Container, Iterable, Mapping, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from functools import partial
from importlib import metadata
from types import FunctionType
from typing import TYPE_CHECKING, Any, Final

import fastapi.routing
import starlette
from fastapi import APIRouter, FastAPI, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import Response
from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.middleware import Middleware
from starlette.middleware.cors import CORSMiddleware
from starlette.routing import BaseRoute, Route

from lengthwise.application import document, health, operations, pages
from lengthwise.application.gate import OPEN, Gate
from lengthwise.errors import ConfigurationError, RequestError, how_to_install
from lengthwise.protocols import kserve, predict, problems
from lengthwise.protocols.body import CLIENT_LEFT, ClientLeft
from lengthwise.protocols.endpoint import Endpoint
from lengthwise.protocols.turns import Turns
from lengthwise.protocols.v2 import Infer
from lengthwise.serving import Serving
from lengthwise.settings import Settings, prefer_polling_by_callers

if TYPE_CHECKING:
    from lengthwise.grpc.server import GrpcServer

log = logging.getLogger("lengthwise.app")

REQUEST_HEADERS: Final = (  # that a page of another origin may send
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
RESPONSE_HEADERS: Final = (  # that it may read
    "inference-header-content-length",
    "retry-after",
    "server-timing",
    "x-lengthwise-shape",
    "x-request-id",
)
CONSOLE_PREDICT: Final = "/console/predict"  # where the console sends its calls on the admin port, which has no others
_CALLED: Final = (
    (FastAPI, "__call__"),
    (FastAPI, "build_middleware_stack"),
    (Starlette, "__call__"),
    (fastapi.routing, "get_request_handler"),
    (fastapi.routing, "request_response"),
)  # what instrumentation replaces to see calls


_FRAMEWORKS: Final = tuple(os.path.join(folder, "") for package in (fastapi, starlette) for folder in package.__path__)


def make_app(settings: Settings | None = None, **options: Any) -> FastAPI:
    """An application that serves models: for `uvicorn module:app`, for Starlette's `TestClient`, or to be mounted.

    Its lifespan returns when the models are loaded, and ends when the accepted calls are answered; it may be entered
    again. Where the application is mounted, the outer one runs it: `FastAPI(lifespan=app.router.lifespan_context)`.
    Limits of connections, TLS, signals and the admin port are those of the server, not of the application.

    Args:
        settings: The options of `lengthwise serve`; default: those of the environment.
        **options: Of FastAPI, such as `dependencies`, `middleware` and `root_path`. A `lifespan` runs within its own.

    Raises:
        ConfigurationError: The keys cannot be read, the provider is not available, or an extra is not installed.
        TypeError: The settings are something else, such as the path of a folder.
    """  # noqa: DOC502 - what it calls raises them
    if not isinstance(settings, Settings | None):
        raise TypeError(f"settings must be Settings(models=...), got a {type(settings).__name__}")
    make = partial(Serving, settings or Settings())
    return Application(make(), renew=make, **options)


class Application(FastAPI):
    """The application around a service; `renew` makes another one when the lifespan is entered again.

    With `on_failure`, which is called if the service cannot be started, it answers while models load, with 503 until it
    is ready; without it the lifespan waits until they are loaded, and raises the error. `addresses`: those to log when
    it is ready, keyed by what they offer.
    """

    def __init__(
        self,
        serving: Serving,
        *,
        renew: Callable[[], Serving] | None = None,
        on_failure: Callable[[BaseException], None] | None = None,
        addresses: Callable[[], Mapping[str, str]] = lambda: {"every call, with examples": "/docs"},
        grpc_connections: int | None = None,
        **options: Any,
    ) -> None:
        self._renew = renew
        self._on_failure = on_failure
        self._addresses = addresses
        self._grpc_connections = grpc_connections
        self._within = options.pop("lifespan", None)
        self._has_docs = options.pop("docs_url", "/docs") is not None
        self._entered = False
        self._own_routes: list[BaseRoute] = []
        self._console = serving.settings.console and serving.settings.admin_port is None
        fixed: dict[str, Any] = {
            "title": "Lengthwise",
            "summary": "Classifies sequences of different lengths; padding never reaches an answer.",
            "version": metadata.version("lengthwise"),
            "redirect_slashes": False,  # a redirect would name the host that the caller names
            "docs_url": None,
            "redoc_url": None,
        }
        super().__init__(lifespan=lambda _: self._lifespan(), **fixed | options)
        across = Middleware(
            CORSMiddleware,
            allow_origins=serving.settings.cors_origins,
            allow_methods=("GET", "POST"),
            allow_headers=REQUEST_HEADERS,
            expose_headers=RESPONSE_HEADERS,
        )
        gate = Middleware(Gate, serving=lambda: self.serving, routes=self.router.routes, console=self._console)
        self._own_middleware = [across, gate] if serving.settings.cors_origins else [gate]
        self.user_middleware += self._own_middleware  # behind those of its user
        _answer_errors(self, "GET / says what is where", {*(options.get("exception_handlers") or ())})
        self._serve(serving)

    def _serve(self, serving: Serving) -> None:
        """Adds the routes of a service; those that are added afterwards are its user's."""
        before = len(self.router.routes)
        settings = serving.settings
        self.serving = serving
        large_bodies = Turns()
        self.predict = predict.Predict(serving, large_bodies)
        v1, v2 = predict.PredictV1(serving, large_bodies), Infer(serving, large_bodies)
        self.inference: tuple[Endpoint, ...] = self.predict, v1, v2
        self._rpc = None if settings.grpc_port is None else _grpc_server(serving, large_bodies, self._grpc_connections)
        operations.add_predict(self.router, self.predict)
        operations.add_v1(self.router, v1)
        operations.add_v2(self.router, v2)
        paths = {"predict": "/predict"}
        if self.openapi_url is not None:
            paths |= {"docs": "/docs"} if self._has_docs else {}
            paths["openapi"] = self.openapi_url
        if settings.admin_port is None:
            operations.add_changes(self.router, serving)
        health.add_probes(self.router, serving)
        if settings.admin_port is None:
            health.add_state(self.router, serving)
            paths["health"] = "/healthz"
        _add_index(self.router, serving, paths, console=self._console)
        if self._console:
            from lengthwise.console import routes

            self.router.routes += routes.routes(serving, health.described, predict="predict")
        if self._has_docs and self.openapi_url is not None:
            self.router.routes += pages.routes(self.openapi_url, pages.folder())
        self._own_routes = self.router.routes[before:]
        _match_to_the_end(self.router.routes)

    def _begin_again(self) -> None:
        """Replaces a service that has ended by a new one; the user's routes stay.

        Raises:
            RuntimeError: The application has ended, and was made for one service.
        """
        if self._renew is None:
            raise RuntimeError("this application has ended: make another one")
        serving = self._renew()
        routes, own = self.router.routes, {id(route) for route in self._own_routes}
        users_routes = [route for route in routes if id(route) not in own]
        routes.clear()
        self._serve(serving)
        routes += users_routes

    @asynccontextmanager
    async def _lifespan(self) -> AsyncIterator[Any]:
        """Starts the service, and drains it in the end."""
        if self._entered:
            self._begin_again()
        self._entered = True
        serving, rpc, failed = self.serving, self._rpc, self._on_failure
        serving.in_lifespan = True

        def started(task: asyncio.Task[None]) -> None:
            error = None if task.cancelled() else task.exception()
            if error is not None and failed is not None and not serving.batcher.draining:  # else it ended before
                log.error("the service cannot start: %s", error)
                failed(error)

        starting = asyncio.create_task(self._start())
        async with AsyncExitStack() as stack:
            try:
                if failed is None:
                    await starting
                else:
                    starting.add_done_callback(started)
                yield None if self._within is None else await stack.enter_async_context(self._within(self))
            finally:
                try:
                    await stack.aclose()
                finally:
                    starting.cancel()
                    await asyncio.wait((starting,))
                    await serving.stop()
                    if rpc is not None:
                        await rpc.stop()

    async def _start(self) -> None:
        """Loads the models, and listens for gRPC: before the models are loaded, or as a worker after that."""
        serving, rpc, settings = self.serving, self._rpc, self.serving.settings

        async def listen() -> None:
            if rpc is not None and settings.grpc_port is not None:
                await rpc.start(settings.host, settings.grpc_port)
                serving.registry.listeners.append(rpc.report_health)

        if serving.worker is None:
            await listen()
            await serving.start()
        else:  # others may be ready before it, and gRPC cannot leave connections to them
            await serving.start(listen)
        if serving.ready and self._addresses():
            log.info("try it: %s", ", ".join(f"{address} ({what})" for what, address in self._addresses().items()))
        if rpc is not None:
            await rpc.report_health()

    def openapi(self) -> dict[str, Any]:
        """The document of `/openapi.json`, made for each call: its examples are of the models that are served now."""
        self.openapi_schema = None
        manifests = [served.manifest for served in self.serving.served]
        return document.completed(super().openapi(), manifests, None if self.serving.keys is None else OPEN)

    def extended(self) -> bool:
        """Whether a user added something that has to see every call: middleware, dependencies or instrumentation."""
        return (
            self.user_middleware != self._own_middleware
            or bool(self.dependency_overrides or self.router.dependencies)
            or type(self) is not Application
            or "build_middleware_stack" in vars(self)
            or _is_instrumented()
            or _is_preceded(self._own_routes, self.router.routes)
        )


def make_admin_app(serving: Serving) -> FastAPI:
    """The application of the admin port: the probes, and the metrics, admin calls and console, which are only there.

    The console's own path for its calls is the only one that answers inference.
    """
    app = FastAPI(title="Lengthwise", openapi_url=None, redirect_slashes=False)
    app.add_middleware(Gate, serving=lambda: serving, routes=app.router.routes, console=serving.settings.console)
    health.add_probes(app.router, serving)
    health.add_state(app.router, serving)
    operations.add_changes(app.router, serving)
    if serving.settings.console:
        from lengthwise.console import routes

        paths = {"predict": CONSOLE_PREDICT, "health": "/healthz", "metrics": "/metrics"}
        _add_index(app.router, serving, paths, console=True)
        app.router.add_api_route(
            CONSOLE_PREDICT,
            operations.Inference(predict.Predict(serving, Turns())),
            methods=["POST"],
            include_in_schema=False,
        )
        app.router.routes += routes.routes(serving, health.described, predict=CONSOLE_PREDICT[1:])
    _match_to_the_end(app.router.routes)
    _answer_errors(app, "the admin port has /metrics, /healthz, /livez, /readyz, load and unload")
    return app


def _match_to_the_end(routes: Iterable[BaseRoute]) -> None:
    """Makes routes match whole paths, and only names that models may have.

    The `$` of Starlette also matches before a line feed at the end, `%0a`. And a part of a path would match the colon
    of `/v1/models/M:predict`, whose other methods then were calls of a model `M:predict`.
    """
    for route in routes:
        if isinstance(route, Route):
            pattern = route.path_regex.pattern.replace("[^/]", r"[^/:\n]")
            route.path_regex = re.compile(pattern.removesuffix("$") + r"\Z")


def _add_index(router: APIRouter, serving: Serving, paths: Mapping[str, str], *, console: bool) -> None:
    """Adds `GET /`: paths, limits and names; for a browser, the console, or a page of the paths."""
    settings = serving.settings
    keys = settings.api_keys_file is not None  # a link cannot send a key
    links = tuple((path[1:], path) for name, path in paths.items() if name != "predict" and not keys)
    limits = {name: getattr(settings, name) for name in document.LIMITS}

    @router.get("/", **document.operation("index"))
    async def index(request: Request) -> Response:
        """Answers `GET /`: a page for a browser, else JSON."""
        if pages.wants_page(request.scope):
            if console:
                from lengthwise.console import page

                return page.answer(request, page.page(links))
            return pages.front(request.scope.get("root_path", ""), paths)
        content: dict[str, Any] = {
            "service": "lengthwise",
            **paths,
            "media_types": predict.MEDIA_TYPES,
            "limits": limits,
        }
        names: dict[str, dict[str, Any]] = {}
        for manifest in (served.manifest for served in serving.served):
            names.setdefault(manifest.name, {})[str(manifest.version)] = manifest.input.names
        return document.answer({**content, "names": names}, headers={"vary": "accept"})


def _answer_errors(app: FastAPI, elsewhere: str, handled: Container[object] = ()) -> None:
    """Writes every error in the form of the protocol that its path belongs to, but for those that its user answers.

    404 says what is `elsewhere`.
    """

    def refusal(request: Request, status: int, detail: str, headers: dict[str, str]) -> Response:
        if kserve.is_path(pages.path_of(request.scope)):
            return document.answer({"error": detail}, status, headers)
        headers["content-type"] = problems.MEDIA_TYPE.decode()
        return Response(problems.of_status(status, detail), status, headers=headers)

    @app.exception_handler(RequestError)
    async def refused(request: Request, error: RequestError) -> Response:
        return kserve.response(error, pages.path_of(request.scope))

    async def wrong_parameter(request: Request, error: RequestValidationError) -> Response:
        problems_of_parameters = (f"{'/'.join(map(str, one['loc']))}: {one['msg']}" for one in error.errors())
        return refusal(request, 422, "; ".join(problems_of_parameters), {})

    async def unrouted(request: Request, error: HTTPException) -> Response:
        """Answers 404 and 405 of the router, and every other `HTTPException`."""
        detail, headers = error.detail, dict(error.headers or {})
        if error.status_code == 404 and detail == "Not Found":
            detail = f"nothing is at this path; {elsewhere}"
        elif error.status_code == 405 and "Allow" in headers:
            headers["Allow"] = ", ".join(sorted(headers["Allow"].split(", ")))
            detail = f"this path takes {headers['Allow']}"
        return refusal(request, error.status_code, detail, headers)

    app.add_exception_handler(ClientLeft, _left)
    for kind, answer in ((HTTPException, unrouted), (RequestValidationError, wrong_parameter)):
        if kind not in handled:
            app.add_exception_handler(kind, answer)  # type: ignore[arg-type]  # Starlette's type takes any error


async def _left(*_: object) -> Response:
    return Response(status_code=CLIENT_LEFT)


def _grpc_server(serving: Serving, large_bodies: Turns, connections: int | None) -> GrpcServer:
    """The server for gRPC.

    Raises:
        ConfigurationError: The extra `grpc` is not installed, or protobuf is too old.
    """
    prefer_polling_by_callers()
    try:
        from lengthwise.grpc.server import GrpcServer
    except ImportError as error:
        raise ConfigurationError(
            f"--grpc-port needs gRPC, which is not installed ({error.name}): {how_to_install('grpc')}"
        ) from error
    except Exception as error:  # protobuf's VersionError, a class that an old one does not have
        versions = re.search(r"gencode (\S+) runtime (\d[\d.]*\d)", str(error))
        if versions is None:
            raise
        raise ConfigurationError(
            f"protobuf {versions[2]} is too old for gRPC: pip install 'protobuf>={versions[1]}'"
        ) from error
    return GrpcServer(serving, large_bodies, connections)


def _is_instrumented() -> bool:
    """Whether a tool has patched FastAPI or Starlette to see every call, as OpenTelemetry does."""
    for owner, name in _CALLED:
        called = getattr(owner, name)
        # A proxy has the file of what it stands for, a function around another one its own.
        if type(called) is not FunctionType or not inspect.getfile(called).startswith(_FRAMEWORKS):
            return True
    # Where OpenTelemetry's tracing is set up for all libraries, FastAPI itself makes spans.
    trace = sys.modules.get("opentelemetry.trace")
    return trace is not None and not isinstance(trace.get_tracer_provider(), trace.ProxyTracerProvider)


def _is_preceded(own: Sequence[BaseRoute], routes: Sequence[BaseRoute]) -> bool:
    """Whether another route of `routes` may answer a POST before the last of `own` does, or one of `own` is gone."""
    ours = {id(route) for route in own}
    indices = [number for number, route in enumerate(routes) if id(route) in ours]
    if len(indices) < len(ours):
        return True
    others = (route for route in routes[: indices[-1]] if id(route) not in ours)
    return any("POST" in (getattr(route, "methods", None) or ("POST",)) for route in others)
