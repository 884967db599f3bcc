"""How long a caller waits, as far as that is known before the body has been read.

A body names its deadline itself (`timeout_ms`), and the default holds only for one that names none. So a body that
waits to be read is not ended by the default while it may name a longer one. The header `x-lengthwise-timeout-ms` says
it at once.
"""

from __future__ import annotations

import re
from typing import Final

from lengthwise.decoding.calls import MAX_TIMEOUT_MS
from lengthwise.errors import InvalidRequest, Problem
from lengthwise.protocols.endpoint import Received

UNKNOWN_SECONDS: Final = 60.0
"""How long a body waits to be read whose deadline is not known before, unless the default is longer."""
_HEADER: Final = re.compile(rb"[0-9]{1,20}(\.[0-9]{1,20})?")
_NAME: Final = b"timeout"
_IN_JSON: Final = re.compile(rb'"timeout_ms"[ \t\r\n]*:[ \t\r\n]*([0-9]{1,20}(?:\.[0-9]{1,20})?)(?=[ \t\r\n,}])')
_IN_QUERY: Final = re.compile(rb"(?:^|&)timeout_ms=([0-9]{1,20}(?:\.[0-9]{1,20})?)(?=&|$)")


def timeout_of(header: bytes) -> float:
    """The milliseconds that the header says.

    Raises:
        InvalidRequest: It is not a number above 0.
    """
    value = float(header) if _HEADER.fullmatch(header) else 0.0
    if not value:
        raise InvalidRequest(
            [Problem("", "the header x-lengthwise-timeout-ms must be a number of milliseconds, above 0")]
        )
    return min(value, MAX_TIMEOUT_MS)


def of(request: Received | None, default_seconds: float) -> tuple[float, bool]:
    """How long a body may wait to be read, in seconds from its arrival, and whether its caller says so.

    Args:
        request: The request; None if its body is not inflated yet.
        default_seconds: How long a caller waits that does not say.
    """
    unknown = max(default_seconds, UNKNOWN_SECONDS), False
    if request is None:
        return unknown
    query = request.scope.get("query_string", b"")
    if _NAME not in query and _NAME not in request.body:
        return default_seconds, False
    # In JSON this can only be a key: a quotation mark within a text is written with a backslash before it.
    named = _IN_QUERY.findall(query) or _IN_JSON.findall(request.body)
    if len(named) != 1 or not float(named[0]):
        return unknown
    return min(float(named[0]), MAX_TIMEOUT_MS) / 1000, True
