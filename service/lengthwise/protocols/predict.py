"""`POST /predict`: the endpoint that gets most requests.

Its body is JSON, an Arrow stream, or one sequence as a raw tensor (`binary_bodies`). Refusals are
`application/problem+json`.
"""

from __future__ import annotations

import re
from functools import partial
from typing import Final

from lengthwise.decoding import arrow_stream, json_body
from lengthwise.decoding.calls import Call
from lengthwise.errors import UnsupportedMedia, how_to_install
from lengthwise.protocols import binary_bodies, problems
from lengthwise.protocols.binary_bodies import ARROW, OCTETS
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

_ANY: Final = b"*/*"  # what most programs accept; then the answer is JSON


def media_types() -> list[str]:
    """The media types of a body that this installation reads."""
    kinds = [JSON[1], OCTETS, *([ARROW] if arrow_stream.installed() else [])]
    return [kind.decode() for kind in kinds]


class Predict(Endpoint):
    """The endpoint `POST /predict`."""

    name = "POST /predict"
    path = re.compile(rb"/predict")
    refuse = staticmethod(problems.refusal)

    def check(self, headers: dict[bytes, bytes]) -> None:
        """Accepts JSON, an Arrow stream where pyarrow is installed, a raw tensor, and a body without a content type.

        Raises:
            UnsupportedMedia: It is another content type, or pyarrow is not installed.
        """
        kind = media_type(headers)
        if kind in (b"application/json", b"", OCTETS):
            return
        if kind != ARROW:
            raise UnsupportedMedia(
                "content-type must be application/json, or none (curl: -H 'content-type: application/json');"
                " for an Arrow stream, application/vnd.apache.arrow.stream; for raw steps, application/octet-stream"
            )
        if not arrow_stream.installed():
            raise UnsupportedMedia(f"{ARROW.decode()} needs pyarrow on the server: {how_to_install('arrow')}")

    def options_of(self, request: Received) -> OptionsText:
        """The options of a binary body are in the query; see `InferenceProtocol.options_of`."""
        binary = media_type(request.headers) in (OCTETS, ARROW)
        return OptionsText(query=request.query) if binary else super().options_of(request)

    def read(self, request: Received, *, quick: bool) -> tuple[Call, Encode] | None:
        """Decodes a body by its media type: quickly a short one, a raw tensor, ordinary JSON or Arrow."""
        headers, size = request.headers, len(request.body)
        # Most requests write JSON's media type as it is.
        kind = JSON[1] if headers.get(b"content-type") == JSON[1] else media_type(headers)
        accept = headers.get(b"accept", _ANY)
        answers_arrow = accept != _ANY and binary_bodies.wants_arrow(accept)
        if answers_arrow or kind == ARROW:
            if quick and not arrow_stream.loaded():
                return None  # to import pyarrow takes too long
            arrow_stream.load()
        call: Call | None = None
        encoded: Encode | None = None
        if kind == ARROW:
            call = binary_bodies.read_arrow(request, self.serving, quick=quick)
        elif quick and size > LARGE_BODY_BYTES:
            return None
        elif kind == OCTETS:
            call, encoded = binary_bodies.read_octets(request, self.serving)
        else:
            if query := request.scope.get("query_string"):
                binary_bodies.check_beside_json(query)
            decode = json_body.decode_ordinary if quick and size > CAREFUL_BYTES else json_body.decode
            call = decode(request.body, self.serving.find, max_sequences=self.serving.settings.max_sequences)
        if call is None:
            return None
        return call, encoded or partial(binary_bodies.encode_arrow if answers_arrow else encode, call)


def encode(call: Call, answers: list[Answer]) -> tuple[bytes, Headers]:
    """The answer as JSON."""
    return json_body.encode(call, answers), [JSON]
