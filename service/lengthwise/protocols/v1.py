"""KServe's protocol v1: `POST /v1/models/{model}:predict`, also for a version or an alias of the model.

The paths of versions and aliases (`labels`), and the field `signature_name`, which changes nothing, are those of
TensorFlow Serving's clients. Its `instances` are the `sequences` of `POST /predict`, of any lengths. A body may also
have `outputs`, `timeout_ms` and `priority`. Its predictions are the objects of `/predict`.
"""

from __future__ import annotations

import re
from functools import partial
from typing import Final

import orjson

from lengthwise.decoding import json_body
from lengthwise.decoding.calls import Call
from lengthwise.decoding.validation import BodyLayout
from lengthwise.errors import UnsupportedMedia
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
from lengthwise.runtime.answers import Answer

# The body; its model stands in the path.
INSTANCES: Final = BodyLayout(
    "instances",
    frozenset({"instances", "outputs", "timeout_ms", "priority", "signature_name"}),
    " (columns as 'inputs' are not read: send 'instances', one for each sequence)",
)


class PredictV1(Endpoint):
    """The endpoint `POST /v1/models/{model}:predict`."""

    name = "POST /v1/models/MODEL:predict"
    path = re.compile(rb"/v1/models/(?P<model>[\w.-]+)(?:/(?:versions|labels)/(?P<version>[\w.-]+))?:predict")
    refuse = staticmethod(kserve.refusal)

    def check(self, headers: dict[bytes, bytes]) -> None:
        """Accepts JSON, and a body without a content type.

        Raises:
            UnsupportedMedia: It is another content type.
        """
        if media_type(headers) not in (b"application/json", b""):
            raise UnsupportedMedia("content-type must be application/json, or none")

    def read(self, request: Received, *, fast: bool) -> tuple[Call, Encode] | None:
        """Decodes a body for the model of the path, whatever it may name: fast for a short one, or ordinary JSON."""
        size = len(request.body)
        if fast and size > LARGE_BODY_BYTES:
            return None
        named = request.scope["path_params"]
        served = kserve.find(self.serving, named["model"], named.get("version"))
        decode = json_body.decode_ordinary if fast and size > CAREFUL_BYTES else json_body.decode
        most = self.serving.settings.max_sequences
        call = decode(request.body, lambda name, version: served, max_sequences=most, layout=INSTANCES)
        return None if call is None else (call, partial(_encode, call))


def _encode(call: Call, answers: list[Answer]) -> tuple[bytes, Headers]:
    document = {"predictions": json_body.predictions(call, answers)}
    return orjson.dumps(document, option=orjson.OPT_SERIALIZE_NUMPY), [JSON]
