"""The operations of KServe's protocols, and `POST /predict`, as routes of the application.

FastAPI does not read the body of an inference call: it runs the dependencies of the route, and then `Inference` hands
the request over to the endpoint of its protocol, which reads the body and writes the answer.
"""

from __future__ import annotations

import inspect
from collections.abc import Awaitable, Callable
from functools import partial
from typing import Any, Final

from fastapi import APIRouter, Request
from fastapi.responses import Response
from starlette.types import Message, Receive, Scope, Send

from lengthwise.application import document
from lengthwise.connections.inflight import Hold
from lengthwise.decoding import json_text
from lengthwise.decoding.calls import Problems, unknown_fields
from lengthwise.errors import InvalidRequest, Problem
from lengthwise.protocols import inventory, kserve
from lengthwise.protocols.body import Inflating, is_packed, read_body
from lengthwise.protocols.endpoint import Endpoint
from lengthwise.protocols.over_asgi import OverAsgi
from lengthwise.protocols.predict import Predict, PredictV1
from lengthwise.protocols.v2 import Infer
from lengthwise.serving import Serving

_V1_PATHS: Final = {
    "v1_version": "/v1/models/{model}/versions/{version}",
    "v1_label": "/v1/models/{model}/labels/{version}",
    "v1": "/v1/models/{model}",
}  # by the prefix of their operation ids


class _Answering(Response):
    """A response that an endpoint writes itself: it reads the request with `receive`, and answers it."""

    def __init__(self, answer: OverAsgi, receive: Receive) -> None:
        super().__init__()
        self._answer = answer
        self._receive = receive

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Writes the answer of the endpoint, and then runs the background work of a dependency."""
        await self._answer(scope, self._receive, send)
        if self.background is not None:
            await self.background()


def _receiving(request: Request) -> Receive:
    """The `receive` of a request, from the beginning of its body on.

    If a dependency has read the body, it is returned once more, and then the messages that follow.
    """
    body, receive = vars(request).get("_body"), request.receive
    if body is None:
        return receive
    messages: list[Message] = [{"type": "http.request", "body": body, "more_body": False}]

    async def replayed() -> Message:
        """The body that was read; after that, the next message."""
        return messages.pop() if messages else await receive()

    return replayed


class Inference:
    """The route of an inference call: FastAPI calls it as the function of the path, and `endpoint` answers."""

    def __init__(self, endpoint: Endpoint) -> None:
        self._answer = OverAsgi(endpoint)

    async def __call__(self, request: Request) -> Response:
        """The response that will read and answer the request."""
        return _Answering(self._answer, _receiving(request))


def add_predict(router: APIRouter, endpoint: Predict) -> None:
    """Adds `POST /predict`, and `POST /invocations`, which is SageMaker's name of it."""
    router.post("/predict", **document.operation("predict"))(Inference(endpoint))
    router.post("/invocations", **document.operation("predict", "invocations"))(Inference(endpoint))


def add_v1(router: APIRouter, endpoint: PredictV1) -> None:
    """Adds the operations of KServe's protocol v1: the models, their states, and their predictions."""
    serving = endpoint.serving
    _add_get(
        router,
        "/v1/models",
        lambda _: {"models": sorted({served.manifest.name for served in serving.served})},
        "v1_models",
    )
    for name, path in _V1_PATHS.items():
        router.post(f"{path}:predict", **document.operation(f"{name}_predict"))(Inference(endpoint))
        _add_get(router, path, partial(_state, serving), f"{name}_model")


def add_v2(router: APIRouter, infer: Infer) -> None:
    """Adds the operations of the Open Inference Protocol (KServe's v2), and of its repository extension the index."""
    serving, add = infer.serving, partial(_add_get, router)
    add("/v2", lambda _: inventory.server(), "v2_server")
    add("/v2/health/live", lambda _: {"live": serving.alive}, "v2_live")
    add("/v2/health/ready", lambda _: {"ready": serving.ready}, "v2_ready")
    if serving.worker is not None:
        serving.worker.handlers["statistics"] = partial(inventory.statistics_of_process, serving)
    # Before the routes of models, one of which also matches this path.
    add("/v2/models/stats", lambda _: inventory.statistics(serving, None, None), "v2_statistics")
    _add_models(router, infer, "/v2/models/{model}", "v2_model")
    _add_models(router, infer, "/v2/models/{model}/versions/{version}", "v2_version")

    @router.post("/v2/repository/index", **document.operation("v2_index"))
    async def index(request: Request) -> Response:
        body = await _json_body(serving, request, "ready", bool, 'the body must be empty, or {"ready": true or false}')
        return document.answer(inventory.index(serving, ready=body.get("ready", False)))


def _add_models(router: APIRouter, infer: Infer, path: str, name: str) -> None:
    """Adds the operations at `path`, of a model or of one of its versions; `name` is the prefix of their ids."""
    serving = infer.serving

    def metadata(request: Request) -> Any:
        """The model's metadata, with the names of its features and of its static values where they have any."""
        served = _model_of(serving, request)
        step_input = served.manifest.input
        named = {"names": step_input.names, "static": step_input.static_names}
        names = {name: texts for name, texts in named.items() if texts}
        return inventory.model(serving, served) | ({"parameters": names} if names else {})

    contents_of_get: dict[str, Callable[[Request], Any]] = {
        "config": lambda request: inventory.config(serving, _model_of(serving, request)),
        "stats": lambda request: inventory.statistics(
            serving, request.path_params["model"], request.path_params.get("version")
        ),
        "ready": partial(_state, serving),
    }
    _add_get(router, path, metadata, f"{name}_metadata")
    for part, content in contents_of_get.items():
        _add_get(router, f"{path}/{part}", content, f"{name}_{part}")
    router.post(f"{path}/infer", **document.operation(f"{name}_infer"))(Inference(infer))


def add_changes(router: APIRouter, serving: Serving) -> None:
    """Adds the operations that load and unload models."""

    def add(name: str, apply: Callable[[Serving, str, dict[str, Any]], Awaitable[None]]) -> None:
        """Adds the operation `name`; `apply` makes its change, from the model's name and the parameters."""

        @router.post(f"/v2/repository/models/{{model}}/{name}", **document.operation(f"v2_{name}"))
        async def change(request: Request) -> Response:
            body = await _json_body(
                serving, request, "parameters", dict, 'the body must be empty, or {"parameters": {...}}'
            )
            await apply(serving, request.path_params["model"], body.get("parameters", {}))
            return document.answer({})

    add("load", inventory.load)
    add("unload", inventory.unload)


def _add_get(router: APIRouter, path: str, content_of: Callable[[Request], Any], name: str) -> None:
    """Adds a GET of KServe's protocols.

    `content_of` returns the answer of a request, or an awaitable of it. If its `ready` or `live` is false, the status
    is 503. `name` is the id of the operation.
    """

    @router.get(path, **document.operation(name))
    async def answer(request: Request) -> Response:
        content = content_of(request)
        if inspect.isawaitable(content):
            content = await content
        return document.answer(content, 503 if False in (content.get("ready"), content.get("live")) else 200)


def _state(serving: Serving, request: Request) -> dict[str, Any]:
    """Whether the model of a request's path is ready."""
    served = _model_of(serving, request)
    return {"name": served.manifest.name, "ready": serving.answers(served)}


def _model_of(serving: Serving, request: Request) -> Any:
    return kserve.find(serving, request.path_params["model"], request.path_params.get("version"))


async def _json_body(serving: Serving, request: Request, field: str, kind: type, expected: str) -> Any:
    """The body of a request, a JSON object with at most one `field` of the type `kind`; {} for an empty body.

    `expected` is the message for anything else.

    Raises:
        InvalidRequest: The body is not such an object, or has other fields.
    """
    max_bytes = serving.request_limits.control_body_bytes
    headers = dict(request.scope["headers"])
    hold = Hold(serving.inflight)
    try:
        body = await read_body(_receiving(request), headers, max_bytes, hold)
        if is_packed(headers):
            inflating = Inflating(body, max_bytes, hold)
            await inflating.fits(max_bytes)
            body = inflating.content()
        content = json_text.parse(body) if body.strip() else {}
    finally:
        hold.close()
    if not isinstance(content, dict) or not isinstance(content.get(field, kind()), kind):
        raise InvalidRequest([Problem("", expected)])
    problems = Problems()
    unknown_fields(content, frozenset({field}), "", problems)
    problems.require_none()
    return content
