"""The operations of KServe's protocols, and `POST /predict`, as routes of the application.

A call's body is not FastAPI's to read: `Inference` hands the request on to the endpoint of its protocol, once FastAPI
has run the dependencies of its route.
"""

from __future__ import annotations

import inspect
from collections.abc import Awaitable, Callable
from functools import partial
from typing import Any, Final

from fastapi import APIRouter, Request
from fastapi.responses import Response
from pydantic import BaseModel
from starlette.types import Message, Receive, Scope, Send

from lengthwise.application import bodies, document, schemas
from lengthwise.application.document import Responses, errors, operation
from lengthwise.connections.inflight import Hold
from lengthwise.decoding import json_text
from lengthwise.decoding.calls import Problems, unknown_fields
from lengthwise.errors import InvalidRequest, Problem
from lengthwise.protocols import inventory, kserve
from lengthwise.protocols.body import Inflating, is_packed, read_body
from lengthwise.protocols.endpoint import LARGE_BODY_BYTES, Endpoint
from lengthwise.protocols.over_asgi import OverAsgi
from lengthwise.protocols.predict import Predict, PredictV1
from lengthwise.protocols.v2 import Infer
from lengthwise.serving import Serving

_PREDICT: Final = (
    "As JSON, or as raw steps: one sequence as little-endian float32 (of a token model int64), with its shape in a "
    "header and its options in the query. The answer is JSON; to raw steps, if `accept` is `application/octet-stream`, "
    "it is the probabilities as float32."
)
_V1_PATHS: Final = {
    "/v1/models/{model}/versions/{version}": ("v1_version", (400, 404)),
    "/v1/models/{model}/labels/{version}": ("v1_label", (400, 404)),
    "/v1/models/{model}": ("v1", (404,)),
}  # the names of their operations, and what GET may refuse
_OF_CALLS: Final = (400, *(status for status in document.OF_CALLS if status != 422))


class _Answering(Response):
    """The answer that an endpoint writes itself, from the request's messages."""

    def __init__(self, answer: OverAsgi, receive: Receive) -> None:
        super().__init__()
        self._answer = answer
        self._receive = receive

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answers."""
        await self._answer(scope, self._receive, send)
        if self.background is not None:  # of a dependency
            await self.background()


def _receiving(request: Request) -> Receive:
    """The `receive` of a request; one that gives the body once more, and then what comes, if a dependency read it."""
    body, receive = vars(request).get("_body"), request.receive
    if body is None:
        return receive
    messages: list[Message] = [{"type": "http.request", "body": body, "more_body": False}]

    async def replayed() -> Message:
        return messages.pop() if messages else await receive()

    return replayed


class Inference:
    """The route of an inference call, which an endpoint answers."""

    def __init__(self, endpoint: Endpoint) -> None:
        self._answer = OverAsgi(endpoint)

    async def __call__(self, request: Request) -> Response:
        """What answers the request."""
        return _Answering(self._answer, _receiving(request))


def add_predict(router: APIRouter, endpoint: Predict) -> None:
    """Adds `POST /predict`."""
    shape = "Required with raw steps: `STEPS,FEATURES`, or of a token model `STEPS`."
    openapi = operation(
        "predict",
        "Classifies sequences of different lengths",
        schemas.Answer,
        document.refusals(*document.OF_CALLS),
        body=bodies.PredictRequest,
        binary=("application/octet-stream",),
        parameters=(
            document.header("x-lengthwise-shape", "^[0-9]+(,[0-9]+)?$", shape),
            *document.query(bodies.RawOptions),
        ),
    )
    description = "One prediction for each sequence"
    router.post("/predict", description=_PREDICT, response_description=description, **openapi)(Inference(endpoint))


def add_v1(router: APIRouter, endpoint: PredictV1) -> None:
    """Adds KServe's protocol v1."""
    serving = endpoint.serving

    def models(_: Request) -> Any:
        return {"models": sorted({served.manifest.name for served in serving.served})}

    _add_get(router, "/v1/models", models, "v1_models", "The models that are served", schemas.ModelNames)
    what, refused = "Classifies sequences of different lengths (KServe v1)", errors(*_OF_CALLS)
    for path, (name, refused_state) in _V1_PATHS.items():
        openapi = operation(f"{name}_predict", what, schemas.V1Answer, refused, body=bodies.V1Request) | {
            "tags": ["v1"]
        }
        router.post(f"{path}:predict", **openapi)(Inference(endpoint))
        _add_state(router, serving, path, f"{name}_model", *refused_state)


def add_v2(router: APIRouter, infer: Infer) -> None:
    """Adds the Open Inference Protocol (KServe's v2), with the index of its repository extension."""
    serving, add = infer.serving, partial(_add_get, router)
    hangs: Responses = {503: {"model": schemas.Live, "description": "A run hangs: only a new process helps"}}
    add("/v2", lambda _: inventory.server(), "v2_server", "The server's metadata", schemas.ServerMetadata)
    live = "Whether the process lives"
    add("/v2/health/live", lambda _: {"live": serving.alive}, "v2_live", live, schemas.Live, hangs)
    ready, refused = "Whether a request would be answered", errors(answer=schemas.Ready)
    add("/v2/health/ready", lambda _: {"ready": serving.ready}, "v2_ready", ready, schemas.Ready, refused)
    if serving.worker is not None:
        serving.worker.handlers["statistics"] = partial(_statistics, serving)
    # Before those of models: the statistics of a model with the name `stats` are under its version.
    every, form = "The statistics of all models that are served", schemas.Statistics
    add("/v2/models/stats", lambda _: inventory.statistics(serving, None, None), "v2_statistics", every, form)
    _add_models(router, infer, "/v2/models/{model}", "v2_model", 404)
    _add_models(router, infer, "/v2/models/{model}/versions/{version}", "v2_version", 400, 404)

    what, answer = "Every version that is served or refused, with the reason", list[schemas.IndexEntry]
    openapi = operation(
        "v2_index", what, answer, errors(400, 413, 415), tag="repository", body=bodies.IndexRequest, required=False
    )

    @router.post("/v2/repository/index", **openapi)
    async def index(request: Request) -> Response:
        sent = await _document(serving, request, "ready", bool, 'the body must be empty, or {"ready": true or false}')
        return document.answer(inventory.index(serving, ready=sent.get("ready", False)))


def _add_models(router: APIRouter, infer: Infer, path: str, name: str, *refused: int) -> None:
    """Adds the operations of a model, or of one of its versions."""
    serving, responses = infer.serving, errors(*refused, 503)

    def add(end: str, make: Callable[[Request], Any], summary: str, answer: type[BaseModel]) -> None:
        _add_get(router, path + end, make, f"{name}_{end[1:] or 'metadata'}", summary, answer, responses)

    def metadata(request: Request) -> Any:
        served = _model_of(serving, request)
        names = served.manifest.input.names
        return inventory.model(serving, served) | ({} if names is None else {"parameters": {"names": names}})

    def config(request: Request) -> Any:
        return inventory.config(serving, _model_of(serving, request))

    def stats(request: Request) -> Any:
        return inventory.statistics(serving, request.path_params["model"], request.path_params.get("version"))

    add("", metadata, "A model's metadata, with -1 for a free axis", schemas.ModelMetadata)
    add("/config", config, "A model's configuration, in Triton's format", schemas.ModelConfig)
    add("/stats", stats, "A model's statistics, in Triton's format", schemas.Statistics)
    _add_state(router, serving, f"{path}/ready", f"{name}_ready", *refused)
    length = "Bytes of the JSON, if raw tensors follow it; required with application/octet-stream."
    call = operation(
        f"{name}_infer",
        "Classifies padded sequences (Open Inference Protocol v2)",
        schemas.InferAnswer,
        errors(*_OF_CALLS),
        body=bodies.InferRequest,
        binary=("application/octet-stream",),
        parameters=(document.header("Inference-Header-Content-Length", "^[0-9]{1,19}$", length),),
    )
    router.post(f"{path}/infer", **call | {"tags": ["v2"]})(Inference(infer))


def add_changes(router: APIRouter, serving: Serving) -> None:
    """Adds the operations that change what is served."""
    Apply = Callable[[Serving, str, dict[str, Any]], Awaitable[None]]

    def add(name: str, summary: str, body: type[BaseModel], apply: Apply) -> None:
        summary, refused = f"{summary}; refused without --admin-calls", errors(400, 403, 404, 413, 415, 503)
        openapi = operation(
            f"v2_{name}", summary, schemas.Nothing, refused, tag="repository", body=body, required=False
        )

        @router.post(f"/v2/repository/models/{{model}}/{name}", **openapi)
        async def change(request: Request) -> Response:
            expected = 'the body must be empty, or {"parameters": {...}}'
            sent = await _document(serving, request, "parameters", dict, expected)
            await apply(serving, request.path_params["model"], sent.get("parameters", {}))
            return document.answer({})

    add("load", "Loads a model, or its new versions", bodies.LoadRequest, inventory.load)
    add("unload", "Stops serving a model", bodies.UnloadRequest, inventory.unload)


def _add_get(
    router: APIRouter,
    path: str,
    make: Callable[[Request], Any],
    name: str,
    summary: str,
    answer: type[BaseModel],
    refused: Responses | None = None,
) -> None:
    """Adds a GET of KServe's protocols; what it answers has the status 503 if it says that something is not ready."""

    @router.get(path, **operation(name, summary, answer, refused))
    async def answered(request: Request) -> Response:
        made = make(request)
        found = await made if inspect.isawaitable(made) else made
        return document.answer(found, 503 if False in (found.get("ready"), found.get("live")) else 200)


async def _statistics(serving: Serving, name: str | None, version: str | None) -> Any:
    return inventory.statistics_of_process(serving, name, version)


def _add_state(router: APIRouter, serving: Serving, path: str, name: str, *refused: int) -> None:
    def state(request: Request) -> Any:
        served = _model_of(serving, request)
        return {"name": served.manifest.name, "ready": serving.answers(served)}

    answer = schemas.ModelState
    _add_get(router, path, state, name, "Whether a model is ready", answer, errors(*refused, answer=answer))


def _model_of(serving: Serving, request: Request) -> Any:
    return kserve.find(serving, request.path_params["model"], request.path_params.get("version"))


async def _document(serving: Serving, request: Request, field: str, kind: type, expected: str) -> Any:
    """A body as JSON, with this field at most; an empty one as an empty object.

    Raises:
        InvalidRequest: The body is not such an object, or has other fields.
    """
    max_bytes = min(LARGE_BODY_BYTES, serving.settings.max_body_bytes)  # it is read on the event loop
    headers = dict(request.scope["headers"])
    hold = Hold(serving.inflight)
    try:
        body = await read_body(_receiving(request), headers, max_bytes, hold)
        if is_packed(headers):
            inflating = Inflating(body, max_bytes, hold)
            body = inflating.at_once() or await inflating.inflated()
        sent = json_text.parse(body) if body.strip() else {}
    finally:
        hold.close()
    if not isinstance(sent, dict) or not isinstance(sent.get(field, kind()), kind):
        raise InvalidRequest([Problem("", expected)])
    problems = Problems()
    unknown_fields(sent, frozenset({field}), "", problems)
    problems.require_none()
    return sent
