"""The head that a client says again and again, recognised without being parsed again.

A connection that stays open carries one request after another, and their heads are the same bytes but for the digits of
`content-length`. What the HTTP parser has made of such a head once holds for every other number of as many digits as
are allowed here, so the next one is known by two comparisons of bytes. Anything else goes through the parser, always.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Final

MAX_DIGITS: Final = 7
"""Of a content length; what needs more is for the parser."""
_CONTENT_LENGTH: Final = re.compile(rb"\r\ncontent-length: ([0-9]{1,%d})(?=\r\n)" % MAX_DIGITS, re.IGNORECASE)
_END: Final = b"\r\n\r\n"


@dataclass(frozen=True, slots=True)
class KnownHead:
    """A head that was parsed.

    Attributes:
        before: Its bytes up to the content length.
        after: Its bytes from there on, the empty line included.
        headers: What was parsed, by lower-case name, but for the content length.
    """

    before: bytes
    after: bytes
    headers: dict[bytes, bytes]

    @classmethod
    def of(cls, request: bytes, headers: dict[bytes, bytes]) -> KnownHead | None:
        """The head of a request, or None where its body's length does not stand in it once and plainly.

        Args:
            request: Head and body, and nothing else.
            headers: What the parser made of the head, by lower-case name.
        """
        end = request.find(_END) + len(_END)
        lengths = list(_CONTENT_LENGTH.finditer(request, 0, end))
        if len(lengths) != 1:
            return None
        start, stop = lengths[0].span(1)
        digits = request[start:stop]
        if digits != headers.get(b"content-length") or int(digits) != len(request) - end:
            return None
        others = {name: value for name, value in headers.items() if name != b"content-length"}
        return cls(request[:start], request[stop:end], others)

    def body(self, request: bytes, max_bytes: int) -> bytes | None:
        """The body of a request that has this head, is complete, and is followed by nothing; None for any other."""
        before, after = self.before, self.after
        if not request.startswith(before):
            return None
        start = len(before)
        stop = request.find(after, start, start + MAX_DIGITS + len(after))
        digits = request[start:stop]
        if stop < 0 or not digits.isdigit():
            return None
        body = stop + len(after)
        length = len(request) - body
        return request[body:] if length == int(digits) and length <= max_bytes else None
