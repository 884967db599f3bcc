"""A refusal as `application/problem+json` (RFC 9457): of a call, of a path, or of a whole connection."""

from __future__ import annotations

import json
import math
from http import HTTPStatus
from typing import Any

import orjson

from lengthwise.errors import Draining, InvalidRequest, RequestError

MEDIA_TYPE = b"application/problem+json"
CLOSE = (b"connection", b"close")


def document(error: RequestError) -> dict[str, Any]:
    """The body of a refusal as a dict; of an `InvalidRequest` with its first problems, and their total number."""
    body = _document(error.status, error.title, error.detail)
    if isinstance(error, InvalidRequest):
        body["errors"] = [{"pointer": problem.pointer, "detail": problem.detail} for problem in error.problems]
        body["errors_total"] = error.total
    return body


def encode(error: RequestError) -> bytes:
    """The document of a refusal as JSON; lone surrogates, which a body may contain, become question marks."""
    try:
        return orjson.dumps(document(error))
    except TypeError:
        return json.dumps(document(error), ensure_ascii=False).encode("utf-8", "replace")


def refusal(error: RequestError) -> tuple[int, bytes, list[tuple[bytes, bytes]]]:
    """The status, the body and the headers of a refusal."""
    return error.status, encode(error), headers(error)


def of_status(status: int, detail: str = "") -> bytes:
    """The body of a refusal that has a status but no `RequestError`: by the router, or by the connection.

    `detail` is a sentence for the client; default: the phrase of the status.
    """
    phrase = HTTPStatus(status).phrase
    return orjson.dumps(_document(status, phrase, detail or phrase))


def last_refusal(status: int, detail: str = "") -> tuple[int, bytes, list[tuple[bytes, bytes]]]:
    """The status, the body and the headers of a refusal after which the connection ends.

    With status 503 they have `Retry-After: 1`.
    """
    lines = [(b"content-type", MEDIA_TYPE), CLOSE]
    if status == HTTPStatus.SERVICE_UNAVAILABLE:
        lines.append((b"retry-after", b"1"))
    return status, of_status(status, detail), lines


def headers(error: RequestError) -> list[tuple[bytes, bytes]]:
    """The headers of a refusal; they say when to try again, which key is needed, and whether the connection ends."""
    lines = [(b"content-type", MEDIA_TYPE)]
    if error.retry_after_seconds is not None:
        lines.append((b"retry-after", str(max(1, math.ceil(error.retry_after_seconds))).encode()))
    if error.status == 401:
        lines.append((b"www-authenticate", b"Bearer"))
    if isinstance(error, Draining) or error.status == 413:
        lines.append(CLOSE)
    return lines


def _document(status: int, title: str, detail: str) -> dict[str, Any]:
    """The members of RFC 9457 that every refusal has."""
    return {"type": "about:blank", "title": title, "status": status, "detail": detail}
