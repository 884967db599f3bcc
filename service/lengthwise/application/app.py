"""The HTTP application: a FastAPI whose lifespan loads the models and drains, and whose routes are the operations.

```python
from lengthwise import Settings, make_app

app = make_app(Settings(models="models"))  # uvicorn module:app
```

Whatever a user adds to an application of FastAPI (middleware, dependencies, instrumentation, routes) sees every call.
`lengthwise serve` answers an ordinary `POST /predict` before the application (`http.fast_request`), but not where the
user has added any of these: see `Application.extended`.
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
from lengthwise.connections.limits import invitation
from lengthwise.errors import ConfigurationError, RequestError, how_to_install
from lengthwise.protocols import kserve, predict, problems
from lengthwise.protocols.body import CLIENT_LEFT, ClientLeft
from lengthwise.protocols.endpoint import Endpoint
from lengthwise.protocols.turns import Turns
from lengthwise.protocols.v2 import Infer
from lengthwise.serving import Serving
from lengthwise.settings import Settings, prepare_grpc

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
RESPONSE_HEADERS: Final = (  # that such a page may read
    "inference-header-content-length",
    "retry-after",
    "server-timing",
    "x-lengthwise-shape",
    "x-request-id",
)
# The path of the console's inference calls on the admin port, which answers no other ones.
CONSOLE_PREDICT: Final = "/console/predict"
_PATCHED_BY_TOOLS: Final = (
    (FastAPI, "__call__"),
    (FastAPI, "build_middleware_stack"),
    (Starlette, "__call__"),
    (fastapi.routing, "get_request_handler"),
    (fastapi.routing, "request_response"),
)  # functions that instrumentation replaces to see calls
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
    return Application(make(), make_serving=make, **options)


class Application(FastAPI):
    """The application around a service.

    Args:
        serving: The service, which the lifespan starts and ends.
        make_serving: Makes another service when the lifespan is entered again; without it that is an error.
        on_failure: Called with the error if the service cannot be started. With it, the application answers while
            models load, with 503 until it is ready. Without it, the lifespan waits until they are loaded, and raises
            the error.
        addresses: Called when the service is ready; returns the addresses to log, `{what it offers: address}`.
        grpc_connections: The largest number of connections over gRPC; None: no limit.
        **options: Of FastAPI.
    """

    def __init__(
        self,
        serving: Serving,
        *,
        make_serving: Callable[[], Serving] | None = None,
        on_failure: Callable[[BaseException], None] | None = None,
        addresses: Callable[[], Mapping[str, str]] = lambda: {"every call, with examples": "/docs"},
        grpc_connections: int | None = None,
        **options: Any,
    ) -> None:
        self._make_serving = make_serving
        self._on_failure = on_failure
        self._addresses = addresses
        self._grpc_connections = grpc_connections
        self._user_lifespan = options.pop("lifespan", None)
        self._has_docs = options.pop("docs_url", "/docs") is not None
        self._entered = False  # the lifespan has begun once
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
        cors = Middleware(
            CORSMiddleware,
            allow_origins=serving.settings.cors_origins,
            allow_methods=("GET", "POST"),
            allow_headers=REQUEST_HEADERS,
            expose_headers=RESPONSE_HEADERS,
        )
        gate = Middleware(Gate, serving=lambda: self.serving, routes=self.router.routes, console=self._console)
        self._own_middleware = [cors, gate] if serving.settings.cors_origins else [gate]
        self.user_middleware += self._own_middleware  # after the user's, so that the user's sees every call
        _answer_errors(self, "GET / says what is where", {*(options.get("exception_handlers") or ())})
        self._add_routes(serving)

    def _add_routes(self, serving: Serving) -> None:
        """Makes `serving` the service of this application, and adds its routes; routes added later are the user's."""
        first_route = len(self.router.routes)
        settings = serving.settings
        self.serving = serving
        # The inference protocols, which share the slots for large bodies.
        large_bodies = Turns()
        self.predict = predict.Predict(serving, large_bodies)
        v1, v2 = predict.PredictV1(serving, large_bodies), Infer(serving, large_bodies)
        self.inference: tuple[Endpoint, ...] = self.predict, v1, v2
        self._rpc = None if settings.grpc_port is None else _grpc_server(serving, large_bodies, self._grpc_connections)
        operations.add_predict(self.router, self.predict)
        operations.add_v1(self.router, v1)
        operations.add_v2(self.router, v2)
        # All other operations; `paths` are those that `GET /` shows.
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
        self._own_routes = self.router.routes[first_route:]
        _match_to_the_end(self.router.routes)

    def _replace_service(self) -> None:
        """Makes a new service in place of one that has ended, with new routes; the user's routes stay.

        Raises:
            RuntimeError: The application has ended, and was made for one service.
        """
        if self._make_serving is None:
            raise RuntimeError("this application has ended: make another one")
        serving = self._make_serving()
        routes, own_ids = self.router.routes, {id(route) for route in self._own_routes}
        users_routes = [route for route in routes if id(route) not in own_ids]
        routes.clear()
        self._add_routes(serving)
        routes += users_routes

    @asynccontextmanager
    async def _lifespan(self) -> AsyncIterator[Any]:
        """Starts the service, runs the user's lifespan within its own, and drains the service in the end."""
        if self._entered:
            self._replace_service()
        self._entered = True
        serving, rpc, on_failure, user_lifespan = self.serving, self._rpc, self._on_failure, self._user_lifespan
        serving.in_lifespan = True

        def started(task: asyncio.Task[None]) -> None:
            """Reports the error of a start that failed."""
            error = None if task.cancelled() else task.exception()
            # A service that is drained while it starts has not failed.
            if error is not None and on_failure is not None and not serving.batcher.draining:
                log.error("the service cannot start: %s", error)
                on_failure(error)

        async def stop() -> None:
            """Ends a start that is not over, and drains the service."""
            starting.cancel()
            await asyncio.wait((starting,))
            await serving.stop()
            if rpc is not None:
                await rpc.stop()

        starting = asyncio.create_task(self._start())
        async with AsyncExitStack() as stack:
            stack.push_async_callback(stop)  # runs last, when the user's lifespan has ended
            if on_failure is None:  # the error is raised here
                await starting
            else:
                starting.add_done_callback(started)
            yield None if user_lifespan is None else await stack.enter_async_context(user_lifespan(self))

    async def _start(self) -> None:
        """Loads the models, and listens for gRPC, if it is on.

        A process that serves alone listens before the models are loaded, and refuses calls until then. One of several
        workers listens when all have loaded them: other workers may be ready earlier, and gRPC cannot leave a
        connection to them.
        """
        serving, rpc, settings = self.serving, self._rpc, self.serving.settings

        async def listen() -> None:
            """Listens for gRPC, if it is on."""
            if rpc is not None and settings.grpc_port is not None:
                await rpc.start(settings.host, settings.grpc_port)
                serving.registry.listeners.append(rpc.report_health)

        if serving.worker is None:
            await listen()
            await serving.start()
        else:
            await serving.start(listen)
        if serving.ready and self._addresses():
            log.info(invitation(self._addresses()))
        if rpc is not None:
            await rpc.report_health()

    def openapi(self) -> dict[str, Any]:
        """The document of `/openapi.json`, made for each request: its examples are those of the models served now."""
        self.openapi_schema = None
        manifests = [served.manifest for served in self.serving.served]
        return document.completed(super().openapi(), manifests, None if self.serving.keys is None else OPEN)

    def extended(self) -> bool:
        """Whether a user added something that has to see every call; then no call is answered before the application.

        That is middleware, dependencies, a subclass, instrumentation, or a route that may answer before this service's.
        """
        return (
            self.user_middleware != self._own_middleware
            or bool(self.dependency_overrides or self.router.dependencies)
            or type(self) is not Application
            or "build_middleware_stack" in vars(self)
            or _is_instrumented()
            or _user_route_comes_first(self._own_routes, self.router.routes)
        )


def make_admin_app(serving: Serving) -> FastAPI:
    """The application of the admin port: probes, metrics, admin calls and the console, which only this port has.

    The only path that answers inference is the one of the console's own calls.
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
    r"""Makes routes match whole paths, and only names that a model may have.

    - Starlette's `$` also matches before a line feed at the end of a path (`%0a`): `\Z` does not.
    - A name in a path may have no colon: else a GET of `/v1/models/M:predict` would ask for a model named `M:predict`.
    """
    for route in routes:
        if isinstance(route, Route):
            pattern = route.path_regex.pattern.replace("[^/]", r"[^/:\n]")
            route.path_regex = re.compile(pattern.removesuffix("$") + r"\Z")


def _add_index(router: APIRouter, serving: Serving, paths: Mapping[str, str], *, console: bool) -> None:
    """Adds `GET /`, which answers with the paths, limits and names of features; a browser gets a page."""
    settings = serving.settings
    keys = settings.api_keys_file is not None  # then there are no links, which cannot send a key
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
        names: dict[str, dict[str, Any]] = {}
        for manifest in (served.manifest for served in serving.served):
            names.setdefault(manifest.name, {})[str(manifest.version)] = manifest.input.names
        return document.answer(
            {
                "service": "lengthwise",
                **paths,
                "media_types": predict.MEDIA_TYPES,
                "limits": limits,
                "names": names,
            },
            headers={"vary": "accept"},
        )


def _answer_errors(app: FastAPI, elsewhere: str, handled: Container[object] = ()) -> None:
    """Adds handlers that write every error in the form of the protocol of its path, KServe's or problem+json.

    Errors of the kinds in `handled`, for which the user has handlers, are left to these. `elsewhere` tells the client
    of a 404 what there is.
    """

    def refusal(request: Request, status: int, detail: str, headers: dict[str, str]) -> Response:
        """Makes the response for an error that is no `RequestError`, in the form of the path's protocol.

        It has the `headers`, to which a content type may be added.
        """
        if kserve.is_path(pages.path_of(request.scope)):
            return document.answer({"error": detail}, status, headers)
        headers["content-type"] = problems.MEDIA_TYPE.decode()
        return Response(problems.of_status(status, detail), status, headers=headers)

    @app.exception_handler(RequestError)
    async def refused(request: Request, error: RequestError) -> Response:
        return kserve.response(error, pages.path_of(request.scope))

    async def wrong_parameter(request: Request, error: RequestValidationError) -> Response:
        """Answers 422 for a parameter that FastAPI refuses."""
        parameters = (f"{'/'.join(map(str, problem['loc']))}: {problem['msg']}" for problem in error.errors())
        return refusal(request, 422, "; ".join(parameters), {})

    async def unrouted(request: Request, error: HTTPException) -> Response:
        """Answers 404 and 405 of the router, and every other `HTTPException`."""
        detail, headers = error.detail, dict(error.headers or {})
        if error.status_code == 404 and detail == "Not Found":
            detail = f"nothing is at this path; {elsewhere}"
        elif error.status_code == 405 and "Allow" in headers:
            headers["Allow"] = ", ".join(sorted(headers["Allow"].split(", ")))
            detail = f"this path takes {headers['Allow']}"
        return refusal(request, error.status_code, detail, headers)

    app.add_exception_handler(ClientLeft, _client_left)
    for kind, answer in ((HTTPException, unrouted), (RequestValidationError, wrong_parameter)):
        if kind not in handled:
            app.add_exception_handler(kind, answer)  # type: ignore[arg-type]  # Starlette's type takes any error


async def _client_left(*_: object) -> Response:
    return Response(status_code=CLIENT_LEFT)


def _grpc_server(serving: Serving, large_bodies: Turns, connections: int | None) -> GrpcServer:
    """The server for gRPC; `connections` is the largest number of its connections.

    Raises:
        ConfigurationError: The extra `grpc` is not installed, or protobuf is too old.
    """
    prepare_grpc()
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
    for owner, name in _PATCHED_BY_TOOLS:
        function = getattr(owner, name)
        # A proxy claims the file of the function that it wraps, so its type is checked too.
        if type(function) is not FunctionType or not inspect.getfile(function).startswith(_FRAMEWORKS):
            return True
    # Where OpenTelemetry's tracing is set up for all libraries, FastAPI itself makes spans.
    trace = sys.modules.get("opentelemetry.trace")
    return trace is not None and not isinstance(trace.get_tracer_provider(), trace.ProxyTracerProvider)


def _user_route_comes_first(own: Sequence[BaseRoute], routes: Sequence[BaseRoute]) -> bool:
    """True if a route of the user could answer a POST before this service's routes, or if one of these was removed.

    `own` are the routes of this service, `routes` all of the application, in the order in which they are tried.
    """
    own_ids = {id(route) for route in own}
    indices = [number for number, route in enumerate(routes) if id(route) in own_ids]
    if len(indices) < len(own_ids):
        return True
    users_routes = (route for route in routes[: indices[-1]] if id(route) not in own_ids)
    # A route without methods, such as a mount, may answer any of them.
    return any("POST" in (getattr(route, "methods", None) or ("POST",)) for route in users_routes)
