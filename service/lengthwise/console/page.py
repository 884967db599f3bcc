"""The page of the console and the files that it loads.

It has no inline script or style and loads nothing from another host, so its content security policy can be strict.
"""

from __future__ import annotations

import hashlib
import re
from functools import cache
from pathlib import Path
from typing import Final, NamedTuple

from starlette.requests import Request
from starlette.responses import Response

from lengthwise.reports.templates import LOOK, render

PREFIX: Final = "/console/"  # of the paths of the files
POLICY: Final = (
    "default-src 'none'; script-src 'self'; style-src 'self'; connect-src 'self'; img-src 'self' data:; "
    "base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
)
_STATIC: Final = Path(__file__).with_name("static")
_MEDIA_TYPES: Final = {
    ".css": "text/css; charset=utf-8",
    ".html": "text/html; charset=utf-8",
    ".js": "text/javascript; charset=utf-8",
    ".svg": "image/svg+xml",
}
_PAGE: Final = "index.html"
_COMMENT_LINE: Final = re.compile(rb"^ *(?://.*|/\*.*\*/)\n", re.MULTILINE)  # of a script


class PageFile(NamedTuple):
    """A file as it is served; its ETag is a digest of the content."""

    content: bytes
    media_type: str
    etag: str


@cache
def files() -> dict[str, PageFile]:
    """The files that the page loads, by name; scripts without lines of comments, which a browser need not fetch."""
    paths = [LOOK, *(path for path in _STATIC.iterdir() if path.name != _PAGE)]
    contents = {path: path.read_bytes() for path in paths}
    contents |= {path: _COMMENT_LINE.sub(b"", text) for path, text in contents.items() if path.suffix == ".js"}
    return {path.name: _page_file(content, path.suffix) for path, content in contents.items()}


@cache
def page(links: tuple[tuple[str, str], ...]) -> PageFile:
    """The page of the console; its last line has `links`, each a relative address and its text."""
    return _page_file(render(_STATIC / _PAGE, links=links).encode(), ".html")


def is_open(path: str) -> bool:
    """Whether a path is that of a file of the page. Files need no key: without them, the page could not ask for one."""
    return path.startswith(PREFIX) and path.removeprefix(PREFIX) in files()


def answer(request: Request, file: PageFile) -> Response:
    """The response with a file; status 304 without it, if the browser has it already."""
    headers = {
        "cache-control": "no-cache",  # the browser asks each time, so that a new release is seen at once
        "content-security-policy": POLICY,
        "cross-origin-opener-policy": "same-origin",
        "cross-origin-resource-policy": "same-origin",
        "etag": file.etag,
        "referrer-policy": "no-referrer",
        "x-content-type-options": "nosniff",
    }
    if file.media_type.startswith("text/html"):
        headers["vary"] = "accept"
    if file.etag in [tag.strip().removeprefix("W/") for tag in request.headers.get("if-none-match", "").split(",")]:
        return Response(status_code=304, headers=headers)
    return Response(file.content, headers={**headers, "content-type": file.media_type})


def _page_file(content: bytes, suffix: str) -> PageFile:
    """The file for some content; its media type is that of the suffix."""
    return PageFile(content, _MEDIA_TYPES[suffix], f'"{hashlib.sha256(content).hexdigest()[:32]}"')
