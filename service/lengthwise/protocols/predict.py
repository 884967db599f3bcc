"""`POST /predict`: the endpoint that gets most requests.

Its body is JSON, or one sequence as a raw tensor (`raw_steps`). Refusals are `application/problem+json`.
"""

from __future__ import annotations

from functools import partial

from lengthwise.decoding import json_body
from lengthwise.decoding.calls import Call
from lengthwise.errors import RequestError, UnsupportedMedia
from lengthwise.protocols import problems, raw_steps
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


class Predict(Endpoint):
    """The endpoint `POST /predict`."""

    name = "POST /predict"

    def check(self, headers: dict[bytes, bytes]) -> None:
        """Accepts JSON, a raw tensor, and a body without a content type.

        Raises:
            UnsupportedMedia: The content type is another one.
        """
        if media_type(headers) not in (b"application/json", b"", raw_steps.MEDIA_TYPE):
            raise UnsupportedMedia(
                "content-type must be application/json, or none (curl: -H 'content-type: application/json');"
                " for raw steps, application/octet-stream"
            )

    def decode(self, request: Received) -> tuple[Call, Encode]:
        """Decodes a body, as JSON or as a raw tensor by its media type; see `InferenceProtocol.decode`."""
        if media_type(request.headers) == raw_steps.MEDIA_TYPE:
            return raw_steps.decode(request, self.serving)
        if query := request.scope.get("query_string"):
            raw_steps.check_beside_json(query)
        call = json_body.decode(request.body, self.serving.find, max_sequences=self.serving.settings.max_sequences)
        return call, partial(encode, call)

    def decode_quickly(self, request: Received) -> tuple[Call, Encode] | None:
        """Decodes a body on the event loop if that is quick: a short one, a raw tensor, or ordinary JSON."""
        if CAREFUL_BYTES < len(request.body) <= LARGE_BODY_BYTES:
            if media_type(request.headers) == raw_steps.MEDIA_TYPE:
                return self.decode(request)
            limit = self.serving.settings.max_sequences
            call = json_body.decode_ordinary(request.body, self.serving.find, max_sequences=limit)
            return None if call is None else (call, partial(encode, call))
        return super().decode_quickly(request)

    def refuse(self, error: RequestError) -> tuple[int, bytes, Headers]:
        """Status, body and headers of a refusal; see `Endpoint.refuse`."""
        return problems.refusal(error)


def encode(call: Call, answers: list[Answer]) -> tuple[bytes, Headers]:
    """The answer as JSON."""
    return json_body.encode(call, answers), [JSON]
