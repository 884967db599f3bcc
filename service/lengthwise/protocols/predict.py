"""`POST /predict`: the endpoint that gets most requests.

Its body is JSON, an Arrow stream (`arrow`), or one sequence as a raw tensor (`raw_steps`). Refusals are
`application/problem+json`.
"""

from __future__ import annotations

import re
from functools import partial
from typing import Final

from lengthwise.decoding import arrow_stream, json_body
from lengthwise.decoding.calls import Call
from lengthwise.errors import RequestError, UnsupportedMedia
from lengthwise.protocols import arrow, problems, query_options, raw_steps
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

_ANY: Final = b"*/*"
"""What most programs accept; then the answer is JSON."""


def media_types() -> list[str]:
    """The media types of a body that this installation reads."""
    kinds = [JSON[1], raw_steps.MEDIA_TYPE, *([arrow.MEDIA_TYPE] if arrow_stream.installed() else [])]
    return [kind.decode() for kind in kinds]


class Predict(Endpoint):
    """The endpoint `POST /predict`."""

    name = "POST /predict"
    path = re.compile(rb"/predict")

    def check(self, headers: dict[bytes, bytes]) -> None:
        """Accepts JSON, an Arrow stream, a raw tensor, and a body without a content type.

        Raises:
            UnsupportedMedia: The content type is another one, or Arrow's, and pyarrow is not installed.
        """
        kind = media_type(headers)
        if kind in (b"application/json", b"", raw_steps.MEDIA_TYPE):
            return
        if kind != arrow.MEDIA_TYPE:
            raise UnsupportedMedia(
                "content-type must be application/json, or none (curl: -H 'content-type: application/json');"
                " for an Arrow stream, application/vnd.apache.arrow.stream; for raw steps, application/octet-stream"
            )
        arrow.check()

    def decode(self, request: Received) -> tuple[Call, Encode]:
        """Decodes a body by its media type; see `InferenceProtocol.decode`."""
        kind, accept = _kind(request.headers), request.headers.get(b"accept", _ANY)
        answers_arrow = accept != _ANY and arrow.is_wanted(accept)
        if answers_arrow:
            arrow_stream.load()
        encoded: Encode | None = None
        if kind == raw_steps.MEDIA_TYPE:
            call, encoded = raw_steps.decode(request, self.serving)
        elif kind == arrow.MEDIA_TYPE:
            call = arrow.decode(request, self.serving)
        else:
            _check_query(request)
            call = json_body.decode(request.body, self.serving.find, max_sequences=self.serving.settings.max_sequences)
        return call, encoded or partial(arrow.encode if answers_arrow else encode, call)

    def decode_quickly(self, request: Received) -> tuple[Call, Encode] | None:
        """Decodes a body on the event loop if that is quick: a short one, a raw tensor, ordinary JSON or Arrow."""
        kind, size, accept = _kind(request.headers), len(request.body), request.headers.get(b"accept", _ANY)
        is_arrow, answers_arrow = kind == arrow.MEDIA_TYPE, accept != _ANY and arrow.is_wanted(accept)
        if (is_arrow or answers_arrow) and not arrow_stream.loaded():
            return None  # to import pyarrow takes too long
        if (size <= CAREFUL_BYTES and not is_arrow) or (size <= LARGE_BODY_BYTES and kind == raw_steps.MEDIA_TYPE):
            return self.decode(request)
        call: Call | None = None
        if is_arrow:
            call = arrow.decode_quickly(request, self.serving)
        elif size <= LARGE_BODY_BYTES:
            _check_query(request)
            limit = self.serving.settings.max_sequences
            call = json_body.decode_ordinary(request.body, self.serving.find, max_sequences=limit)
        return None if call is None else (call, partial(arrow.encode if answers_arrow else encode, call))

    def refuse(self, error: RequestError) -> tuple[int, bytes, Headers]:
        """Status, body and headers of a refusal; see `Endpoint.refuse`."""
        return problems.refusal(error)


def _kind(headers: dict[bytes, bytes]) -> bytes:
    """The media type of a body; most requests write JSON's as it is."""
    return JSON[1] if headers.get(b"content-type") == JSON[1] else media_type(headers)


def _check_query(request: Received) -> None:
    """Rejects the options of a binary body in the query of a JSON body."""
    if query := request.scope.get("query_string"):
        query_options.check_beside_json(query)


def encode(call: Call, answers: list[Answer]) -> tuple[bytes, Headers]:
    """The answer as JSON."""
    return json_body.encode(call, answers), [JSON]
