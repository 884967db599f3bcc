"""`POST /predict`: the endpoint that gets most requests.

Its body is JSON, or one sequence as a raw tensor (`binary_bodies`). Refusals are `application/problem+json`.
"""

from __future__ import annotations

import re
from functools import partial
from typing import Final

from lengthwise.decoding import json_body
from lengthwise.decoding.calls import Call
from lengthwise.errors import UnsupportedMedia
from lengthwise.protocols import binary_bodies, problems
from lengthwise.protocols.binary_bodies import OCTETS
from lengthwise.protocols.body_deadline import OptionsText
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

MEDIA_TYPES: Final = (JSON[1].decode(), OCTETS.decode())  # of a body
_ARROW: Final = b"application/vnd.apache.arrow.stream"  # read up to 0.2.0


class Predict(Endpoint):
    """The endpoint `POST /predict`."""

    name = "POST /predict"
    path = re.compile(rb"/predict")
    refuse = staticmethod(problems.refusal)

    def check(self, headers: dict[bytes, bytes]) -> None:
        """Accepts JSON, a raw tensor, and a body without a content type.

        Raises:
            UnsupportedMedia: It is another content type.
        """
        kind = media_type(headers)
        if kind in (b"application/json", b"", OCTETS):
            return
        raise UnsupportedMedia(
            "content-type must be application/json, or none (curl: -H 'content-type: application/json'); for the raw "
            "steps of one sequence, application/octet-stream"
            + ("; for many as bytes, /v2/models/NAME/infer with its binary extension" if kind == _ARROW else "")
        )

    def options_of(self, request: Received) -> OptionsText:
        """The options of a binary body are in the query; see `InferenceProtocol.options_of`."""
        is_binary = media_type(request.headers) == OCTETS
        return OptionsText(query=request.query) if is_binary else super().options_of(request)

    def read(self, request: Received, *, fast: bool) -> tuple[Call, Encode] | None:
        """Decodes a body by its media type: fast for a short one, a raw tensor or ordinary JSON."""
        headers, size = request.headers, len(request.body)
        # Most requests write JSON's media type as it is.
        kind = JSON[1] if headers.get(b"content-type") == JSON[1] else media_type(headers)
        if fast and size > LARGE_BODY_BYTES:
            return None
        if kind == OCTETS:
            call, encoded = binary_bodies.read_octets(request, self.serving)
            return call, encoded or partial(encode, call)
        if query := request.scope.get("query_string"):
            binary_bodies.check_beside_json(query)
        decode = json_body.decode_ordinary if fast and size > CAREFUL_BYTES else json_body.decode
        decoded = decode(request.body, self.serving.find, max_sequences=self.serving.settings.max_sequences)
        return None if decoded is None else (decoded, partial(encode, decoded))


def encode(call: Call, answers: list[Answer]) -> tuple[bytes, Headers]:
    """The answer as JSON."""
    return json_body.encode(call, answers), [JSON]
