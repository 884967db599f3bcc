"""Which ambiguous requests are refused before their body is read, and logged.

Request smuggling needs two programs that read a request differently, such as a proxy and this server. So a request that
the parser accepts, but that another program might read differently, is refused as soon as its header block is complete
(RFC 9112, sections 3.2 and 6.1).
"""

from __future__ import annotations

import logging
import re
import time
from typing import Final

log = logging.getLogger("lengthwise.framing")


# Headers that say who calls, or how the body is read: a second one with the same name is refused.
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
_HOST: Final = re.compile(rb"[A-Za-z0-9._~%!$&'()*+,;=:\[\]-]*")
_BLANKS: Final = b" \t"
_PERIOD_SECONDS: Final = 1.0


def fault(version: str, headers: list[tuple[bytes, bytes]]) -> str | None:
    """Why a header block is refused with 400; None if it is not refused. The names of `headers` are in lower case."""
    values = dict(headers)
    host, coding = values.get(b"host"), values.get(b"transfer-encoding")
    is_host = host is not None and _HOST.fullmatch(host.strip(_BLANKS)) is not None
    if is_host and version == "1.1" and coding is None and len(values) == len(headers):  # nearly every request
        return None
    repeated = [
        name.decode() for name in values if name in GIVEN_ONCE and sum(name == other for other, _ in headers) > 1
    ]
    faults = (
        (repeated, f"{''.join(repeated[:1])} was given twice"),
        (version not in ("1.0", "1.1"), "this is not HTTP/1.0 or HTTP/1.1"),
        (host is None and version == "1.1", "host is missing"),
        (host is not None and not is_host, "host is not the name of a host"),
        (
            coding is not None and coding.strip(_BLANKS).lower() != b"chunked",
            "transfer-encoding must be chunked, or none",
        ),
        (coding is not None and version == "1.0", "HTTP/1.0 has no transfer-encoding"),
        (coding is not None and b"content-length" in values, "content-length and transfer-encoding were both given"),
    )
    return next((message for is_wrong, message in faults if is_wrong), None)


class MalformedLog:
    """Logs malformed requests, at most one line a second, which counts those that were not logged since the last."""

    def __init__(self) -> None:
        self._next = 0.0  # when the next line may be logged, on the clock of `time.monotonic`
        self._unlogged = 0  # requests since the last line

    def note(self, detail: str, client: str) -> None:
        """Logs that a request of `client` was refused. `detail` must have no text that the client sent."""
        now = time.monotonic()
        if now < self._next:
            self._unlogged += 1
            return
        unlogged_text = f" ({self._unlogged} more since the last such line)" if self._unlogged else ""
        log.warning("a malformed request from %s was refused: %s%s", client, detail, unlogged_text)
        self._next = now + _PERIOD_SECONDS
        self._unlogged = 0
