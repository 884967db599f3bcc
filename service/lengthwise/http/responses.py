"""An HTTP/1.1 response as bytes, for what is written past ASGI."""

from __future__ import annotations

from http import HTTPStatus
from typing import Final

STATUS_LINES: Final = {status.value: b"HTTP/1.1 %d %s\r\n" % (status, status.phrase.encode()) for status in HTTPStatus}


def header_lines(headers: list[tuple[bytes, bytes]]) -> bytes:
    """Headers as they are written, each on a line."""
    return b"".join([b"%s: %s\r\n" % header for header in headers])


def response(status: int, default_lines: bytes, headers: list[tuple[bytes, bytes]], body: bytes) -> bytes:
    """A whole response.

    Args:
        status: Its status.
        default_lines: The header lines that every response has, such as the date.
        headers: Its other headers, but for `content-length`.
        body: Its body.
    """
    return b"%s%s%scontent-length: %d\r\n\r\n%s" % (
        STATUS_LINES[status],
        default_lines,
        header_lines(headers),
        len(body),
        body,
    )


def ending(written: bytes) -> bytes:
    """A whole response without `connection`, as one that ends its connection."""
    return written.replace(b"\r\n", b"\r\nconnection: close\r\n", 1)


class DefaultHeaderLines:
    """The headers of every response as they are written. uvicorn makes a new list of them every second."""

    def __init__(self) -> None:
        self._last: tuple[object, bytes] = (None, b"")

    def of(self, headers: list[tuple[bytes, bytes]]) -> bytes:
        """The lines of a list, which is not changed afterwards; those of the last list are kept."""
        last, lines = self._last
        if last is not headers:
            lines = header_lines(headers)
            self._last = headers, lines  # one assignment, because runner threads read it too
        return lines
