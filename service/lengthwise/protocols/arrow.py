"""`POST /predict` with `application/vnd.apache.arrow.stream`: many sequences as an Arrow stream, and answers as one.

The options (`model`, `version`, `outputs`, `timeout_ms`, `priority`) are in the query. The answer is JSON, or an Arrow
stream if `accept` asks for one, whatever the request's body is. pyarrow comes with the extra `arrow`; it is imported at
the first such request, in a thread.
"""

from __future__ import annotations

from typing import Final

from lengthwise.decoding import arrow_answers, arrow_body, arrow_stream, options
from lengthwise.decoding.calls import Call
from lengthwise.errors import UnsupportedMedia, how_to_install
from lengthwise.protocols import query_options
from lengthwise.protocols.accept import prefers
from lengthwise.protocols.endpoint import JSON, Headers, Received
from lengthwise.runtime.answers import Answer
from lengthwise.serving import Serving

MEDIA_TYPE: Final = arrow_stream.MEDIA_TYPE
QUICK_BYTES: Final = 262_144
"""Larger bodies are decoded in a thread. Nothing is parsed for each number, so this is more than for JSON."""
_NAME: Final = b"arrow"
_HEADERS: Final = (b"content-type", MEDIA_TYPE)


def check() -> None:
    """Checks that an Arrow stream can be read.

    Raises:
        UnsupportedMedia: pyarrow is not installed.
    """
    if not arrow_stream.installed():
        raise UnsupportedMedia(f"{MEDIA_TYPE.decode()} needs pyarrow on the server: {how_to_install('arrow')}")


def is_wanted(accept: bytes) -> bool:
    """Whether an answer is written as an Arrow stream: this header prefers one, and pyarrow is installed."""
    return _NAME in accept.lower() and prefers(accept, MEDIA_TYPE, JSON[1]) and arrow_stream.installed()


def decode(request: Received, serving: Serving) -> Call:
    """Reads a body.

    Raises:
        InvalidRequest: The stream or the query are wrong.
        RequestError: The model is not known, or not ready; or there are too many sequences.
    """
    call = _read(request, serving, quick=False)
    if call is None:
        raise RuntimeError("only a quick reader returns nothing")
    return call


def decode_quickly(request: Received, serving: Serving) -> Call | None:
    """Like `decode`, for a body that takes little time; None for any other. pyarrow must be loaded."""
    return _read(request, serving, quick=True) if len(request.body) <= QUICK_BYTES else None


def _read(request: Received, serving: Serving, *, quick: bool) -> Call | None:
    asked, _, problems = query_options.read(request.scope.get("query_string", b""), options.FIELDS)
    limit = serving.settings.max_sequences
    return arrow_body.read(request.body, asked, problems, serving.find, max_sequences=limit, quick=quick)


def encode(call: Call, answers: list[Answer]) -> tuple[bytes, Headers]:
    """The answer as an Arrow stream."""
    return arrow_answers.encode(call, answers), [_HEADERS]
