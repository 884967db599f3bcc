"""Recognises a header block that a client sends again, so that it is not parsed again.

A connection that stays open carries one request after another. Their header blocks are the same bytes, but for the
digits of `content-length`, so the result of parsing the first one is right for the others, and two comparisons of bytes
recognise them. Every other header block goes through the parser.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Final

MAX_DIGITS: Final = 7
"""Most digits of a content length; a request with more goes through the parser."""
_CONTENT_LENGTH: Final = re.compile(rb"\r\ncontent-length: ([0-9]{1,%d})(?=\r\n)" % MAX_DIGITS, re.IGNORECASE)
_END: Final = b"\r\n\r\n"


@dataclass(frozen=True, slots=True)
class KnownHead:
    """A header block that was parsed.

    Attributes:
        before: Its bytes before the digits of the content length.
        after: Its bytes after them, with the empty line.
        headers: The headers, by lower-case name, without the content length.
        query: The query of the URL.
    """

    before: bytes
    after: bytes
    headers: dict[bytes, bytes]
    query: bytes

    @classmethod
    def of(cls, request: bytes, headers: dict[bytes, bytes], query: bytes = b"") -> KnownHead | None:
        """The header block of a request; None where the content length is not in it exactly once and plainly.

        Args:
            request: Its header block and its body, and nothing else.
            headers: As they were parsed, by lower-case name.
            query: As it was parsed.
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
        return cls(request[:start], request[stop:end], others, query)

    def body(self, request: bytes, max_bytes: int) -> bytes | None:
        """The body of a whole request with this header block; None for any other request."""
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
