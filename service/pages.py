"""`GET /docs`: the calls of the OpenAPI document, to be read and tried in a browser.

The page is Swagger UI. With the extra `docs` its two files come from this service, so that the page works where there
is no internet; without it the browser gets them from Swagger's usual place.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from functools import partial
from importlib.util import find_spec
from pathlib import Path
from typing import Final

from fastapi.openapi.docs import get_swagger_ui_html
from starlette.requests import Request
from starlette.responses import FileResponse, Response
from starlette.routing import Route

FILES: Final = {"/docs/swagger-ui.js": "swagger-ui-bundle.js", "/docs/swagger-ui.css": "swagger-ui.css"}
"""Where they are served, and their names in the package `fastapi_offline`."""
_NO_ICON: Final = "data:,"


def folder() -> Path | None:
    """Where Swagger's files are installed, or None."""
    found = find_spec("fastapi_offline")
    return None if found is None or found.origin is None else Path(found.origin).parent / "static"


def routes(title: str, openapi: str, files: Path | None) -> list[Route]:
    """The page's routes.

    Args:
        title: Of the page.
        openapi: Path of the document that it shows.
        files: See `folder`.
    """
    show = partial(get_swagger_ui_html, title=title, swagger_favicon_url=_NO_ICON)

    async def page(request: Request) -> Response:
        root = request.scope.get("root_path", "")
        if files is None:
            return show(openapi_url=root + openapi)
        script, style = (root + path for path in FILES)
        return show(openapi_url=root + openapi, swagger_js_url=script, swagger_css_url=style)

    made = [Route("/docs", page, include_in_schema=False)]
    if files is not None:
        made += [Route(path, _file(files / name), include_in_schema=False) for path, name in FILES.items()]
    return made


def _file(path: Path) -> Callable[[Request], Awaitable[Response]]:
    async def answer(_: Request) -> Response:
        return FileResponse(path, headers={"cache-control": "max-age=86400"})

    return answer
