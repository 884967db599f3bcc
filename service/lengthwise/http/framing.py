"""What makes a request ambiguous, so that it is refused before anything reads it, and the log line about such requests.

Two programs on a request's way that read it differently are what request smuggling needs. What the parser takes and
another program might take otherwise is therefore refused here, by the head alone: RFC 9112, sections 3.2 and 6.1.
"""

from __future__ import annotations

import logging
import re
import time
from typing import Final

log = logging.getLogger("lengthwise.framing")

GIVEN_ONCE: Final = frozenset(
    {
        b"authorization",
        b"content-encoding",
        b"content-length",
        b"content-type",
        b"host",
        b"inference-header-content-length",
        b"transfer-encoding",
        b"x-lengthwise-shape",
    }
)
"""Headers of which a second one would decide who calls, or how the body is read."""
_HOST: Final = re.compile(rb"[A-Za-z0-9._~%!$&'()*+,;=:\[\]-]*")
_BLANKS: Final = b" \t"
_PERIOD_SECONDS: Final = 1.0


def fault(version: str, headers: list[tuple[bytes, bytes]]) -> str | None:
    """Why a head is refused with 400, or None where it is in order.

    Args:
        version: HTTP's, such as `1.1`.
        headers: By lower-case name, in the order in which they came.
    """
    values = dict(headers)
    if len(values) < len(headers):
        seen: set[bytes] = set()
        for name, _ in headers:
            if name in seen and name in GIVEN_ONCE:
                return f"{name.decode()} was given twice"
            seen.add(name)
    if version not in ("1.0", "1.1"):
        return "this is not HTTP/1.0 or HTTP/1.1"
    host = values.get(b"host")
    if host is None:
        if version != "1.0":
            return "host is missing"
    elif _HOST.fullmatch(host.strip(_BLANKS)) is None:
        return "host is not the name of a host"
    coding = values.get(b"transfer-encoding")
    if coding is not None:
        if coding.strip(_BLANKS).lower() != b"chunked":
            return "transfer-encoding must be chunked, or none"
        if version == "1.0":
            return "HTTP/1.0 has no transfer-encoding"
        if b"content-length" in values:
            return "content-length and transfer-encoding were both given"
    return None


class MalformedLog:
    """Writes about malformed requests, one line a second at most, however many there are."""

    def __init__(self) -> None:
        self._next = 0.0
        self._unsaid = 0

    def note(self, detail: str, client: str) -> None:
        """One more was refused.

        Args:
            detail: Why; none of the client's own words.
            client: Its address.
        """
        now = time.monotonic()
        if now < self._next:
            self._unsaid += 1
            return
        before = f" ({self._unsaid} more since the last such line)" if self._unsaid else ""
        log.warning("a malformed request from %s was refused: %s%s", client, detail, before)
        self._next = now + _PERIOD_SECONDS
        self._unsaid = 0
