"""Finds ambiguous requests, which are refused before their body is read, and logs them.

Request smuggling needs two programs that read a request differently, such as a proxy and this server. So a request that
the parser accepts, but that another program might read differently, is refused as soon as its header block is complete
(RFC 9112, sections 3.2 and 6.1).
"""

from __future__ import annotations

import logging
import re
import time
from collections.abc import Mapping
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
        b"x-lengthwise-timeout-ms",
    }
)
"""Headers that say who calls, or how the body is read: a second one with the same name is refused."""
_HOST: Final = re.compile(rb"[A-Za-z0-9._~%!$&'()*+,;=:\[\]-]*")
_BLANKS: Final = b" \t"
_PERIOD_SECONDS: Final = 1.0


def fault(version: str, headers: list[tuple[bytes, bytes]]) -> str | None:
    """Why a header block is refused with 400; None where it is not.

    Args:
        version: HTTP's, such as `1.1`.
        headers: The headers, by lower-case name, in the order in which they came.
    """
    values = dict(headers)
    if len(values) < len(headers) and (twice := _given_twice(headers)) is not None:
        return twice
    if version not in ("1.0", "1.1"):
        return "this is not HTTP/1.0 or HTTP/1.1"
    return _host_fault(version, values.get(b"host")) or _coding_fault(version, values)


def _given_twice(headers: list[tuple[bytes, bytes]]) -> str | None:
    seen: set[bytes] = set()
    for name, _ in headers:
        if name in seen and name in GIVEN_ONCE:
            return f"{name.decode()} was given twice"
        seen.add(name)
    return None


def _host_fault(version: str, host: bytes | None) -> str | None:
    if host is None:
        return None if version == "1.0" else "host is missing"
    return None if _HOST.fullmatch(host.strip(_BLANKS)) else "host is not the name of a host"


def _coding_fault(version: str, values: Mapping[bytes, bytes]) -> str | None:
    coding = values.get(b"transfer-encoding")
    if coding is None:
        return None
    if coding.strip(_BLANKS).lower() != b"chunked":
        return "transfer-encoding must be chunked, or none"
    if version == "1.0":
        return "HTTP/1.0 has no transfer-encoding"
    if b"content-length" in values:
        return "content-length and transfer-encoding were both given"
    return None


class MalformedLog:
    """Logs malformed requests, one line a second at most."""

    def __init__(self) -> None:
        self._next = 0.0
        self._unlogged = 0

    def note(self, detail: str, client: str) -> None:
        """Logs that a request was refused.

        Args:
            detail: The reason; it must not contain anything that the client sent.
            client: The address of the client.
        """
        now = time.monotonic()
        if now < self._next:
            self._unlogged += 1
            return
        before = f" ({self._unlogged} more since the last such line)" if self._unlogged else ""
        log.warning("a malformed request from %s was refused: %s%s", client, detail, before)
        self._next = now + _PERIOD_SECONDS
        self._unlogged = 0
