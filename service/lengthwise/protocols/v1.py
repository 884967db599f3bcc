"""KServe's protocol v1: `POST /v1/models/{model}:predict`, and the list of models.

Its `instances` are the `sequences` of `POST /predict`, of any lengths. A body may also have `outputs`, `timeout_ms` and
`priority`. Its predictions are the objects of `/predict`.
"""

from __future__ import annotations

from functools import partial
from typing import Final

import orjson
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from lengthwise.decoding import json_body
from lengthwise.decoding.calls import Call, Find
from lengthwise.decoding.validation import BodyLayout
from lengthwise.errors import RequestError, UnsupportedMedia
from lengthwise.protocols import kserve
from lengthwise.protocols.endpoint import (
    CAREFUL_BYTES,
    JSON,
    LARGE_BODY_BYTES,
    Encode,
    Endpoint,
    Headers,
    Received,
    media_type,
)
from lengthwise.protocols.over_asgi import OverAsgi
from lengthwise.protocols.turns import Turns
from lengthwise.runtime.answers import Answer
from lengthwise.serving import Serving

INSTANCES: Final = BodyLayout("instances", frozenset({"instances", "outputs", "timeout_ms", "priority"}))
"""The body; its model stands in the path."""


class PredictV1(Endpoint):
    """The endpoint `POST /v1/models/{model}:predict`."""

    name = "POST /v1/models/MODEL:predict"

    def check(self, headers: dict[bytes, bytes]) -> None:
        """Accepts JSON, and a body without a content type.

        Raises:
            UnsupportedMedia: The content type is another one.
        """
        if media_type(headers) not in (b"application/json", b""):
            raise UnsupportedMedia("content-type must be application/json, or none")

    def decode(self, request: Received) -> tuple[Call, Encode]:
        """Decodes a body; see `InferenceProtocol.decode`."""
        limit = self.serving.settings.max_sequences
        call = json_body.decode(request.body, self._find(request), max_sequences=limit, layout=INSTANCES)
        return call, partial(_encode, call)

    def decode_quickly(self, request: Received) -> tuple[Call, Encode] | None:
        """Decodes a body on the event loop if that is quick: a short one, or ordinary JSON."""
        if CAREFUL_BYTES < len(request.body) <= LARGE_BODY_BYTES:
            limit = self.serving.settings.max_sequences
            call = json_body.decode_ordinary(request.body, self._find(request), max_sequences=limit, layout=INSTANCES)
            return None if call is None else (call, partial(_encode, call))
        return super().decode_quickly(request)

    def _find(self, request: Received) -> Find:
        """Finds the model of the path, whatever a body may name."""
        served = kserve.find(self.serving, request.scope["path_params"]["model"], None)
        return lambda name, version: served

    def refuse(self, error: RequestError) -> tuple[int, bytes, Headers]:
        """Status, body and headers of a refusal; see `Endpoint.refuse`."""
        return kserve.refusal(error)


def routes(serving: Serving, large_bodies: Turns) -> list[Route]:
    """The protocol's routes."""

    async def models(_: Request) -> Response:
        names = sorted({served.manifest.name for served in serving.served})
        return _json({"models": names})

    async def model(request: Request) -> Response:
        served = kserve.find(serving, request.path_params["model"], None)
        ready = serving.answers(served)
        return _json({"name": served.manifest.name, "ready": ready}, 200 if ready else 503)

    return [
        Route("/v1/models", models),
        Route("/v1/models/{model}:predict", OverAsgi(PredictV1(serving, large_bodies)), methods=["POST"]),
        Route("/v1/models/{model}", model),
    ]


def _encode(call: Call, answers: list[Answer]) -> tuple[bytes, Headers]:
    document = {"predictions": json_body.predictions(call, answers)}
    return orjson.dumps(document, option=orjson.OPT_SERIALIZE_NUMPY), [JSON]


def _json(content: object, status: int = 200) -> Response:
    return Response(orjson.dumps(content), status, media_type="application/json")
