"""A refusal as `application/problem+json` (RFC 9457)."""

from __future__ import annotations

import math
from typing import Any

import orjson

from lengthwise.errors import Draining, InvalidRequest, RequestError

MEDIA_TYPE = b"application/problem+json"
CLOSE = (b"connection", b"close")


def document(error: RequestError) -> dict[str, Any]:
    """The body of a refusal: for a bad body, with a pointer to each of the first bad places and their number."""
    made: dict[str, Any] = {"type": "about:blank", "title": error.title, "status": error.status, "detail": error.detail}
    if isinstance(error, InvalidRequest):
        made["errors"] = [{"pointer": problem.pointer, "detail": problem.detail} for problem in error.problems]
        made["errors_total"] = error.total
    return made


def encode(error: RequestError) -> bytes:
    """The same as bytes; text that is no Unicode (from a body with lone surrogates) is written as question marks."""
    try:
        return orjson.dumps(document(error))
    except TypeError:
        return orjson.dumps(_printable(document(error)))


def refusal(error: RequestError) -> tuple[int, bytes, list[tuple[bytes, bytes]]]:
    """Status, body and headers of a refusal."""
    return error.status, encode(error), headers(error)


def headers(error: RequestError) -> list[tuple[bytes, bytes]]:
    """The headers of a refusal: when to come back, and whether this connection ends."""
    made = [(b"content-type", MEDIA_TYPE)]
    if error.retry_after_seconds is not None:
        made.append((b"retry-after", str(max(1, math.ceil(error.retry_after_seconds))).encode()))
    if error.status == 401:
        made.append((b"www-authenticate", b"Bearer"))
    if isinstance(error, Draining) or error.status == 413:
        made.append(CLOSE)
    return made


def _printable(value: Any) -> Any:
    if isinstance(value, str):
        return value.encode("utf-8", "replace").decode()
    if isinstance(value, dict):
        return {name: _printable(entry) for name, entry in value.items()}
    return [_printable(entry) for entry in value] if isinstance(value, list) else value
