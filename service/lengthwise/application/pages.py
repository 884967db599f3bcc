"""The pages for people: `GET /docs`, which shows and tries the calls of the API, and `GET /` in a browser.

The page of calls is Swagger UI. Its two files come from this service, so it works without internet: the extra `serve`
installs them. Where they are missing, the page says how to install them. No page loads anything from another
host, and the content security policy of each page makes the browser enforce that.
"""

from __future__ import annotations

import base64
import hashlib
from collections.abc import Mapping
from importlib.util import find_spec
from pathlib import Path
from typing import Final

from starlette.requests import Request
from starlette.responses import FileResponse, HTMLResponse, Response
from starlette.routing import Route
from starlette.types import Scope

from lengthwise.errors import how_to_install
from lengthwise.reports.templates import look, render

# Where the files of Swagger UI are served, and their names in the package `fastapi_offline`.
FILES: Final = {"/docs/swagger-ui.js": "swagger-ui-bundle.js", "/docs/swagger-ui.css": "swagger-ui.css"}
START: Final = "/docs/start.js"  # the path of the script that starts Swagger UI
PAGES: Final = frozenset({"/", "/docs"})  # the paths with a page for browsers

_TEMPLATES: Final = Path(__file__).with_name("templates")
_STYLE_DIGEST: Final = base64.b64encode(hashlib.sha256(look().encode()).digest()).decode()
_NOTHING_ELSE: Final = "base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
_PLAIN_POLICY: Final = f"default-src 'none'; img-src data:; style-src 'sha256-{_STYLE_DIGEST}'; {_NOTHING_ELSE}"
# Swagger UI sets styles on its elements, and its style sheet contains its pictures.
_SWAGGER_POLICY: Final = (
    "default-src 'none'; script-src 'self'; style-src 'self' 'unsafe-inline'; img-src 'self' data:; "
    f"connect-src 'self'; {_NOTHING_ELSE}"
)


def folder() -> Path | None:
    """The folder with the files of Swagger UI; None if they are not installed."""
    package = find_spec("fastapi_offline")
    return None if package is None or package.origin is None else Path(package.origin).parent / "static"


def routes(openapi: str, files: Path | None) -> list[Route]:
    """The routes of the page of calls, and of the `files` that it loads.

    `openapi` is the path of the document that it shows.
    """
    file_of_path = (
        {} if files is None else {START: _TEMPLATES / "start.js"} | {path: files / FILES[path] for path in FILES}
    )

    async def page(request: Request) -> Response:
        """Answers `GET /docs`: Swagger UI, or how to install its files."""
        root = request.scope.get("root_path", "")
        if files is None:
            return _page("missing.html", install=how_to_install("serve"), openapi=root + openapi)
        script, style, start = (root + path for path in (*FILES, START))
        return _page(
            "docs.html", policy=_SWAGGER_POLICY, openapi=root + openapi, script=script, style=style, start=start
        )

    async def file(request: Request) -> Response:
        """Answers with a file of Swagger UI, or with the script that starts it."""
        return FileResponse(file_of_path[path_of(request.scope)], headers={"cache-control": "max-age=86400"})

    answers = {"/docs": page, **dict.fromkeys(file_of_path, file)}
    return [Route(path, answer, include_in_schema=False) for path, answer in answers.items()]


def path_of(scope: Scope) -> str:
    """The path of a request within this application, without the prefix where it is mounted in another one."""
    path, root = str(scope["path"]), str(scope.get("root_path", ""))
    return (path.removeprefix(root) or "/") if root and (path + "/").startswith(f"{root}/") else path


def wants_page(scope: Scope) -> bool:
    """Whether a request is a browser's for one of `PAGES`: browsers name HTML in `accept`, programs do not."""
    accept = dict(scope["headers"]).get(b"accept", b"")
    return scope["method"] in ("GET", "HEAD") and path_of(scope) in PAGES and b"text/html" in accept


def front(root: str, paths: Mapping[str, str]) -> Response:
    """The page of `/`.

    `paths` are those of `GET /`, by name; `root` is the prefix that a proxy puts before each path.
    """
    return _page("front.html", root=root, paths=paths)


def key_needed() -> Response:
    """The page for a browser where keys are set, with status 401.

    A browser cannot send a key, so the page shows how a program sends it.
    """
    return _page("key.html", status=401, headers={"www-authenticate": "Bearer"})


def _page(
    name: str,
    *,
    policy: str = _PLAIN_POLICY,
    status: int = 200,
    headers: Mapping[str, str] | None = None,
    **values: object,
) -> Response:
    """Renders a template as a response, with a content security policy and the other headers of every page."""
    fixed = {
        "content-security-policy": policy,
        "referrer-policy": "no-referrer",
        "vary": "accept",
        "x-content-type-options": "nosniff",
    }
    return HTMLResponse(render(_TEMPLATES / name, **values), status, headers={**fixed, **(headers or {})})
