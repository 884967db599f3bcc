"""The operations of KServe's protocols, and `POST /predict`, as routes of the application.

A call's body is not FastAPI's to read: `Inference` hands the request on to the endpoint of its protocol, once FastAPI
has run the dependencies of its route.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import Any, Final

import orjson
from fastapi import APIRouter, Request
from fastapi.responses import Response
from pydantic import BaseModel
from starlette.types import Message, Receive, Scope, Send

from lengthwise.connections.inflight import Hold
from lengthwise.decoding import arrow_stream, json_text
from lengthwise.decoding.calls import Problems, unknown_fields
from lengthwise.errors import InvalidRequest, Problem
from lengthwise.http import bodies, document, schemas
from lengthwise.http.document import JSON, errors
from lengthwise.protocols import binary_bodies, inventory, kserve
from lengthwise.protocols.body import CLIENT_LEFT, ClientLeft, Inflating, headers_of, is_packed, read_body
from lengthwise.protocols.endpoint import LARGE_BODY_BYTES, Endpoint
from lengthwise.protocols.over_asgi import OverAsgi
from lengthwise.protocols.predict import Predict
from lengthwise.protocols.v1 import PredictV1
from lengthwise.protocols.v2 import Infer
from lengthwise.repository.registry import ServedModel
from lengthwise.serving import Serving

_PREDICT: Final = (
    "As JSON; as an Arrow stream with a list column `steps` (and `id`, `step_mask`, `feature_mask`); or as raw steps: "
    "one sequence as little-endian float32 (of a token model int64), with its shape in a header. The options of a "
    "binary body are in the query. The answer is JSON, or an Arrow stream if `accept` asks for one. To raw steps, if "
    "`accept` is `application/octet-stream`, it is the probabilities as float32."
)
_OF_CALLS: Final = (400, *(status for status in document.OF_CALLS if status != 422))
_OF_CHANGES: Final = (400, 403, 404, 413, 415, 503)


class _Answering(Response):
    """The answer that an endpoint writes itself, from the request's messages.

    Args:
        answer: The endpoint.
        receive: Gives the body.
    """

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
    """The route of an inference call.

    Args:
        endpoint: Answers it.
    """

    def __init__(self, endpoint: Endpoint) -> None:
        self._answer = OverAsgi(endpoint)

    async def __call__(self, request: Request) -> Response:
        """What answers the request."""
        return _Answering(self._answer, _receiving(request))


def add_predict(router: APIRouter, predict: Predict) -> None:
    """Adds `POST /predict`."""
    arrow = (arrow_stream.MEDIA_TYPE.decode(),) if arrow_stream.installed() else ()
    binary = (binary_bodies.OCTETS.decode(), *arrow)
    router.add_api_route(
        "/predict",
        Inference(predict),
        methods=["POST"],
        operation_id="predict",
        tags=["predict"],
        summary="Classifies sequences of different lengths",
        description=_PREDICT,
        response_model=schemas.Answer,
        response_description="One prediction for each sequence",
        responses={200: {"content": dict.fromkeys(binary, document.BYTES)}, **document.refusals(*document.OF_CALLS)},
        openapi_extra=document.body("PredictRequest", *binary)
        | document.parameters(header=bodies.RawShape, query=bodies.RawOptions),
    )


def add_v1(router: APIRouter, predict: PredictV1) -> None:
    """Adds KServe's protocol v1."""
    serving = predict.serving
    of_model = document.parameters(path=bodies.OfModel)
    _add_get(
        router,
        "/v1/models",
        ("v1_models", "The models that are served", schemas.ModelNames),
        lambda _: {"models": sorted({served.manifest.name for served in serving.served})},
    )
    router.add_api_route(
        "/v1/models/{model}:predict",
        Inference(predict),
        methods=["POST"],
        operation_id="v1_predict",
        tags=["v1"],
        summary="Classifies sequences of different lengths (KServe v1)",
        response_model=schemas.V1Answer,
        responses=errors(*_OF_CALLS),
        openapi_extra=document.body("V1Request") | of_model,
    )
    _add_get(
        router,
        "/v1/models/{model}",
        ("v1_model", "Whether a model is ready", schemas.ModelState),
        lambda request: _state(serving, request),
        errors(404, answer=schemas.ModelState),
        of_model,
    )


def add_v2(router: APIRouter, infer: Infer) -> None:
    """Adds the Open Inference Protocol (KServe's v2), with the index of its repository extension."""
    serving = infer.serving
    hangs: dict[int | str, Any] = {503: {"model": schemas.Live, "description": "A run hangs: only a new process helps"}}
    server = ("v2_server", "The server's metadata", schemas.ServerMetadata)
    _add_get(router, "/v2", server, lambda _: inventory.server())
    live = ("v2_live", "Whether the process lives", schemas.Live)
    _add_get(router, "/v2/health/live", live, lambda _: {"live": serving.alive}, hangs)
    ready = ("v2_ready", "Whether a request would be answered", schemas.Ready)
    _add_get(router, "/v2/health/ready", ready, lambda _: {"ready": serving.ready}, errors(answer=schemas.Ready))
    # Before those of models: the statistics of a model with the name `stats` are under its version.
    every = ("v2_statistics", "The statistics of all models that are served", schemas.Statistics)
    _add_get(router, "/v2/models/stats", every, lambda _: inventory.statistics(serving, None, None))
    of_version = document.parameters(path=bodies.OfVersion)
    _add_models(router, infer, "/v2/models/{model}", "v2_model", document.parameters(path=bodies.OfModel), 404)
    _add_models(router, infer, "/v2/models/{model}/versions/{version}", "v2_version", of_version, 400, 404)

    @router.post(
        "/v2/repository/index",
        operation_id="v2_index",
        tags=["repository"],
        summary="Every version that is served or refused, with the reason",
        response_model=list[schemas.IndexEntry],
        responses=errors(400, 413, 415),
        openapi_extra=document.body("IndexRequest", required=False),
    )
    async def index(request: Request) -> Response:
        sent = await _document(serving, request, {"ready": bool}, 'the body must be empty, or {"ready": true or false}')
        return _left() if sent is None else _json(inventory.index(serving, ready=sent.get("ready", False)))


def _add_models(
    router: APIRouter, infer: Infer, path: str, name: str, parameters: dict[str, Any], *refused: int
) -> None:
    """Adds the operations of a model, or of one of its versions."""
    serving = infer.serving

    def add(end: str, called: str, summary: str, answer: type[BaseModel], make: Callable[[Request], Any]) -> None:
        state = answer if answer is schemas.ModelState else None
        told = (f"{name}_{called}", summary, answer)
        _add_get(router, path + end, told, make, errors(*refused, 503, answer=state), parameters)

    def metadata(request: Request) -> Any:
        return inventory.model(serving, _model_of(serving, request))

    def config(request: Request) -> Any:
        return inventory.config(serving, _model_of(serving, request))

    def stats(request: Request) -> Any:
        return inventory.statistics(serving, request.path_params["model"], request.path_params.get("version"))

    add("", "metadata", "A model's metadata, with -1 for a free axis", schemas.ModelMetadata, metadata)
    add("/config", "config", "A model's configuration, in Triton's format", schemas.ModelConfig, config)
    add("/stats", "stats", "A model's statistics, in Triton's format", schemas.Statistics, stats)
    add("/ready", "ready", "Whether a model is ready", schemas.ModelState, lambda request: _state(serving, request))
    length = document.parameters(header=bodies.HeaderLength)["parameters"]
    octets = "application/octet-stream"
    router.add_api_route(
        f"{path}/infer",
        Inference(infer),
        methods=["POST"],
        operation_id=f"{name}_infer",
        tags=["v2"],
        summary="Classifies padded sequences (Open Inference Protocol v2)",
        response_model=schemas.InferAnswer,
        responses={200: {"content": {octets: document.BYTES}}, **errors(*_OF_CALLS)},
        openapi_extra=document.body("InferRequest", octets) | {"parameters": [*parameters["parameters"], *length]},
    )


def add_changes(router: APIRouter, serving: Serving) -> None:
    """Adds the operations that change what is served."""

    def add(name: str, summary: str, apply: Callable[[Serving, str, dict[str, Any]], Awaitable[None]]) -> None:
        @router.post(
            f"/v2/repository/models/{{model}}/{name}",
            operation_id=f"v2_{name}",
            tags=["repository"],
            summary=f"{summary}; refused without --admin-calls",
            response_model=schemas.Nothing,
            responses=errors(*_OF_CHANGES),
            openapi_extra=document.body(f"{name.title()}Request", required=False)
            | document.parameters(path=bodies.OfModel),
        )
        async def change(request: Request) -> Response:
            expected = 'the body must be empty, or {"parameters": {...}}'
            sent = await _document(serving, request, {"parameters": dict}, expected)
            if sent is None:
                return _left()
            await apply(serving, request.path_params["model"], sent.get("parameters", {}))
            return _json({})

    add("load", "Loads a model, or its new versions", inventory.load)
    add("unload", "Stops serving a model", inventory.unload)


def _add_get(
    router: APIRouter,
    path: str,
    told: tuple[str, str, type[BaseModel]],
    make: Callable[[Request], Any],
    refusals: dict[int | str, dict[str, Any]] | None = None,
    extra: dict[str, Any] | None = None,
) -> None:
    """Adds a GET of KServe's protocols; what it answers has the status 503 if it says that something is not ready.

    Args:
        router: The application's.
        path: The path.
        told: The id of the operation, which begins with its tag, its summary, and the form of its answer.
        make: Makes the answer.
        refusals: The other statuses.
        extra: Its parameters.
    """
    name, summary, answer = told

    async def answered(request: Request) -> Response:
        found = make(request)
        return _json(found, 503 if False in (found.get("ready"), found.get("live")) else 200)

    router.add_api_route(
        path,
        answered,
        operation_id=name,
        tags=[name.partition("_")[0]],
        summary=summary,
        response_model=answer,
        responses=refusals,
        openapi_extra=extra,
    )


def _state(serving: Serving, request: Request) -> dict[str, Any]:
    served = _model_of(serving, request)
    return {"name": served.manifest.name, "ready": serving.answers(served)}


def _model_of(serving: Serving, request: Request) -> ServedModel:
    return kserve.find(serving, request.path_params["model"], request.path_params.get("version"))


async def _document(serving: Serving, request: Request, fields: dict[str, type], expected: str) -> Any:
    """A body as JSON, with these fields at most; an empty one as an empty object; None if the client left.

    Raises:
        RequestError: The body is too large, or not JSON, or not what is expected.
    """
    max_bytes = min(LARGE_BODY_BYTES, serving.settings.max_body_bytes)  # it is read on the event loop
    headers = headers_of(request.scope["headers"])
    hold = Hold(serving.inflight)
    try:
        body = await read_body(_receiving(request), headers, max_bytes, hold)
        if is_packed(headers):
            inflating = Inflating(body, max_bytes, hold)
            body = inflating.at_once() or await inflating.inflated()
        sent = json_text.parse(body) if body.strip() else {}
    except ClientLeft:
        return None
    finally:
        hold.close()
    if not isinstance(sent, dict) or not all(
        isinstance(sent[name], kind) for name, kind in fields.items() if name in sent
    ):
        raise InvalidRequest([Problem("", expected)])
    problems = Problems()
    unknown_fields(sent, frozenset(fields), "", problems)
    if problems.total:
        raise InvalidRequest(problems.first, total=problems.total)
    return sent


def _left() -> Response:
    return Response(status_code=CLIENT_LEFT)


def _json(content: object, status: int = 200) -> Response:
    return Response(orjson.dumps(content), status, media_type=JSON)
