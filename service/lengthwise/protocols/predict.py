"""The endpoints whose bodies are sequences of any lengths in JSON: `POST /predict`, and KServe's protocol v1.

`POST /predict` gets most requests. Its body is JSON, or one sequence as a raw tensor (`binary_bodies`). Refusals are
`application/problem+json`.

`POST /v1/models/{model}:predict` has the same items under `instances`, for the model of its path; a body may also have
`outputs`, `timeout_ms` and `priority`. Its predictions are those of `/predict`. Clients of TensorFlow Serving send the
paths of versions and aliases (`labels`), and the field `signature_name`, which changes nothing.
"""

from __future__ import annotations

import re
from dataclasses import replace
from functools import partial
from typing import Final

import orjson

from lengthwise.decoding import fast_json, json_body
from lengthwise.decoding.calls import Call
from lengthwise.decoding.validation import BodyLayout
from lengthwise.protocols import binary_bodies, kserve, problems
from lengthwise.protocols.body_deadline import OptionsText
from lengthwise.protocols.endpoint import (
    CAREFUL_BYTES,
    JSON,
    OCTETS,
    Encode,
    Endpoint,
    Headers,
    Received,
    media_type,
)
from lengthwise.runtime.answers import Answer

MEDIA_TYPES: Final = (JSON[1].decode(), OCTETS.decode())  # media types of the body of `POST /predict`
INSTANCES: Final = BodyLayout(
    "instances",
    frozenset({"instances", "outputs", "timeout_ms", "priority", "signature_name"}),
    " (columns as 'inputs' are not read: send 'instances', one for each sequence)",
)

_OF_VERSION: Final = replace(INSTANCES, names_version=True)


class Predict(Endpoint):
    """The endpoint `POST /predict`, with the alias `POST /invocations`."""

    name = "POST /predict"
    path = re.compile(rb"/predict|/invocations")  # the latter is SageMaker's name
    refuse = staticmethod(problems.refusal)
    binary_header = b"content-type"  # every raw body has it: its shape header is checked when the body is read
    other_types = (
        "; for the raw steps of one sequence, application/octet-stream; for many as bytes, /v2/models/NAME/infer with "
        "its binary extension"
    )

    def options_of(self, request: Received) -> OptionsText:
        """The text with the options: the query of the URL for a raw tensor, else the JSON body."""
        is_binary = media_type(request.headers) == OCTETS
        return OptionsText(query=request.query) if is_binary else super().options_of(request)

    def read(self, request: Received, *, fast: bool) -> tuple[Call, Encode] | None:
        """Decodes a body, JSON or raw by its media type; returns its call, and the function that encodes the answer.

        With `fast`, it returns None for a JSON body of more than `CAREFUL_BYTES` that C cannot read.
        """
        headers = request.headers
        # Most requests write JSON's media type as it is.
        if headers.get(b"content-type") != JSON[1] and media_type(headers) == OCTETS:
            call, encode_octets = binary_bodies.read_octets(request, self.serving)
            return call, encode_octets or partial(encode, call)
        if query := request.scope.get("query_string"):
            binary_bodies.refuse_binary_options(query)
        decode = fast_json.read if fast and len(request.body) > CAREFUL_BYTES else json_body.decode
        decoded = decode(request.body, self.serving.find, max_sequences=self.serving.request_limits.sequences)
        return None if decoded is None else (decoded, partial(encode, decoded))


class PredictV1(Endpoint):
    """The endpoint `POST /v1/models/{model}:predict`."""

    name = "POST /v1/models/MODEL:predict"
    path = re.compile(rb"/v1/models/(?P<model>[\w.-]+)(?:/(?:versions|labels)/(?P<version>[\w.-]+))?:predict")
    takes_form_type = True  # TensorFlow Serving reads every body as JSON, so its callers name no type
    refuse = staticmethod(kserve.refusal)

    def read(self, request: Received, *, fast: bool) -> tuple[Call, Encode] | None:
        """Decodes a body for the model of the path; returns its call, and the function that encodes the answer.

        With `fast`, it returns None for a body of more than `CAREFUL_BYTES` that C cannot read.
        """
        path = request.scope["path_params"]
        served = kserve.find(self.serving, path["model"], path.get("version"))
        decode = fast_json.read if fast and len(request.body) > CAREFUL_BYTES else json_body.decode
        call = decode(
            request.body,
            lambda name, version: served,
            max_sequences=self.serving.request_limits.sequences,
            layout=INSTANCES if path.get("version") is None else _OF_VERSION,
        )
        return None if call is None else (call, partial(_encode_v1, call))


def encode(call: Call, answers: list[Answer]) -> tuple[bytes, Headers]:
    """The answer of `POST /predict` as JSON, with its headers; the predictions are in the order of the request."""
    entries = orjson.dumps(json_body.predictions(call, answers), option=orjson.OPT_SERIALIZE_NUMPY)
    return b'%s,"predictions":%s}' % (call.model.manifest.answer_head, entries), [JSON]


def _encode_v1(call: Call, answers: list[Answer]) -> tuple[bytes, Headers]:
    """The answer of protocol v1 as JSON, with its headers."""
    document = {"predictions": json_body.predictions(call, answers)}
    return orjson.dumps(document, option=orjson.OPT_SERIALIZE_NUMPY), [JSON]
