"""The pages for people: `GET /docs`, which shows and tries the calls of the API, and `GET /` in a browser.

The page of calls is Swagger UI. Its two files come from this service, so it works without internet: the extra `serve`
installs them. Where they are missing, the page says how to install them. No page loads anything from another
host, and the content security policy of each page makes the browser enforce that.
"""

from __future__ import annotations

import base64
import hashlib
from collections.abc import Awaitable, Callable, Mapping
from html import escape
from importlib.util import find_spec
from pathlib import Path
from typing import Any, Final

from starlette.requests import Request
from starlette.responses import FileResponse, HTMLResponse, Response
from starlette.routing import Route
from starlette.types import Scope

from lengthwise.errors import how_to_install
from lengthwise.protocols.body import headers_of
from lengthwise.reports.page import look, table

# Where the files of Swagger UI are served, and their names in the package `fastapi_offline`.
FILES: Final = {"/docs/swagger-ui.js": "swagger-ui-bundle.js", "/docs/swagger-ui.css": "swagger-ui.css"}
START: Final = "/docs/start.js"  # starts Swagger UI; a file of its own, so that no page needs a script within it
PAGES: Final = frozenset({"/", "/docs"})  # the paths with a page for browsers

_TITLE: Final = "Lengthwise"
_MEANINGS: Final = {
    "docs": "every call, to read and to try, with examples of the models that are served",
    "openapi": "the same as an OpenAPI document, for programs",
    "health": "what is served, and what is not and why",
}
_STYLE: Final = look()
_STYLE_DIGEST: Final = base64.b64encode(hashlib.sha256(_STYLE.encode()).digest()).decode()
_BACK: Final = '<p><a href="./">To the first page</a></p>'
_NO_OTHERS: Final = "base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
_PLAIN_POLICY: Final = f"default-src 'none'; img-src data:; style-src 'sha256-{_STYLE_DIGEST}'; {_NO_OTHERS}"
# Swagger UI sets styles on its elements, and its style sheet contains its pictures.
_SWAGGER_POLICY: Final = (
    "default-src 'none'; script-src 'self'; style-src 'self' 'unsafe-inline'; img-src 'self' data:; "
    f"connect-src 'self'; {_NO_OTHERS}"
)
# Swagger UI's style sheet knows no dark colours: all are turned over, but for code, which it shows on black.
_DARK: Final = """
@media (prefers-color-scheme: dark) {
  html { background: #12161c; }
  #swagger-ui { filter: invert(0.9) hue-rotate(180deg); }
  #swagger-ui .highlight-code, #swagger-ui .microlight { filter: invert(1) hue-rotate(180deg); }
}
"""
_START: Final = """\
const place = document.getElementById("swagger-ui");
if (window.SwaggerUIBundle) {
  SwaggerUIBundle({
    url: place.dataset.openapi,
    domNode: place,
    deepLinking: true,
    presets: [SwaggerUIBundle.presets.apis, SwaggerUIBundle.SwaggerUIStandalonePreset],
  });
} else {
  place.textContent = "The script of this page could not be loaded. The calls are in " + place.dataset.openapi;
}
"""


def folder() -> Path | None:
    """Where Swagger's files are installed, or None."""
    package = find_spec("fastapi_offline")
    return None if package is None or package.origin is None else Path(package.origin).parent / "static"


def routes(openapi: str, files: Path | None) -> list[Route]:
    """The page of calls, which shows the document at `openapi`, and what it loads of the `folder`."""

    async def page(request: Request) -> Response:
        root = request.scope.get("root_path", "")
        return _without_files(root + openapi) if files is None else _swagger(root, openapi)

    async def start(_: Request) -> Response:
        return Response(_START, media_type="text/javascript")

    def file(path: Path) -> Callable[[Request], Awaitable[Response]]:
        async def answer(_: Request) -> Response:
            return FileResponse(path, headers={"cache-control": "max-age=86400"})

        return answer

    served: dict[str, Callable[[Request], Awaitable[Response]]] = {"/docs": page}
    if files is not None:
        served |= {START: start, **{path: file(files / name) for path, name in FILES.items()}}
    return [Route(path, answer, include_in_schema=False) for path, answer in served.items()]


def path_of(scope: Scope) -> str:
    """The path of a request within the application, which may be mounted in another one."""
    path, root = str(scope["path"]), str(scope.get("root_path", ""))
    return (path.removeprefix(root) or "/") if root and (path + "/").startswith(f"{root}/") else path


def wanted(scope: Scope) -> bool:
    """Whether a request is a browser's for one of `PAGES`: browsers name HTML in `accept`, programs do not."""
    accept = headers_of(scope["headers"]).get(b"accept", b"")
    return scope["method"] in ("GET", "HEAD") and path_of(scope) in PAGES and b"text/html" in accept


def front(root: str, places: Mapping[str, str]) -> Response:
    """The page of `/`: paths by the names that `GET /` gives them; `root` is what a proxy puts before every path."""
    links = "".join(
        f'<li><a href="{escape(root + path)}">{escape(path)}</a>: {_MEANINGS[name]}</li>'
        for name, path in places.items()
        if name in _MEANINGS
    )
    return _plain(
        f"<p>This server answers <code>POST {escape(root + places['predict'])}</code>: it classifies sequences of "
        f"different lengths.</p><ul>{links}</ul>",
    )


def comparison(document: Mapping[str, Any]) -> Response:
    """The page of `/shadow`: for each version, how the candidate's answers compare with its own."""
    if document["candidate"] is None:
        return _plain(
            "<p>No shadow is set: <code>lengthwise serve --shadow NAME/VERSION</code> compares a version.</p>" + _BACK
        )
    parts = [f"<h2>{escape(document['candidate'])}, a shadow of a share of {document['share']:g}</h2>"]
    if not document["versions"]:
        parts.append("<p>Nothing was compared yet.</p>")
    for version, found in document["versions"].items():
        count = max(1, found["sequences"])
        ratio = "unknown" if found["cost_ratio"] is None else f"{found['cost_ratio']:.2f}"
        rows = [(entry["primary"], entry["candidate"], entry["sequences"]) for entry in found["answers"]]
        rows = [row for row in rows if row[0] != row[1]]
        parts.append(
            f"<h3>beside version {escape(version)}</h3><p>{found['sequences']} sequences, "
            f"{found['disagreements']} other answers ({found['disagreements'] / count:.2%}), "
            f"{found['refused']} refused; largest difference of a probability {found['largest_difference']:.3g}; "
            f"time of a sequence alone, over that of the version that answered: {ratio}.</p>"
            + (table(rows, ("sent", "shadow", "sequences")) if rows else "")
        )
    return _plain("".join([*parts, _BACK]))


def key_needed() -> Response:
    """The page for a browser where keys are set: a browser cannot send a key, so the page shows how a program does."""
    return _plain(
        "<p>This server needs a key, which a browser cannot send by itself. With a key of yours:</p>"
        "<pre>curl -H 'authorization: Bearer KEY' URL/openapi.json</pre>"
        "<p>That document has every call. To try the calls in a browser, start a server without keys on your own "
        "machine (<code>lengthwise serve</code>) and open its <code>/docs</code>.</p>",
        status=401,
        headers={"www-authenticate": "Bearer"},
    )


def _swagger(root: str, openapi: str) -> Response:
    script, style = (escape(root + path) for path in FILES)
    document = escape(root + openapi)
    return _page(
        f'<link rel="stylesheet" href="{style}">\n<style>{_DARK}</style>',
        f'<div id="swagger-ui" data-openapi="{document}">Loading the calls. If this text stays, the browser could not '
        f'run the script of this page: <a href="{document}">{document}</a> has the calls too.</div>\n'
        f'<script src="{script}"></script>\n<script src="{escape(root + START)}"></script>',
        policy=_SWAGGER_POLICY,
    )


def _without_files(openapi: str) -> Response:
    return _plain(
        "<p>The files of this page (Swagger UI) are not installed. To install them: "
        f"<code>{escape(how_to_install('serve'))}</code></p>"
        f'<p>Every call, with examples, is in <a href="{escape(openapi)}">{escape(openapi)}</a>.</p>',
    )


def _plain(body: str, *, status: int = 200, headers: Mapping[str, str] | None = None) -> Response:
    """A page without scripts."""
    text = f"<h1>{_TITLE}</h1>\n{body}"
    return _page(f"<style>{_STYLE}</style>", text, policy=_PLAIN_POLICY, status=status, headers=headers)


def _page(
    head: str, body: str, *, policy: str, status: int = 200, headers: Mapping[str, str] | None = None
) -> Response:
    text = (
        '<!doctype html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
        f'<link rel="icon" href="data:,">\n{head}\n<title>{_TITLE}</title>\n</head>\n'
        f"<body>\n{body}\n</body>\n</html>\n"
    )
    fixed = {
        "content-security-policy": policy,
        "referrer-policy": "no-referrer",
        "vary": "accept",
        "x-content-type-options": "nosniff",
    }
    return HTMLResponse(text, status, headers={**fixed, **(headers or {})})
