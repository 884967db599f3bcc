"""What is checked of every request before its route: who calls, and that no web page of another site does.

Every path but `/livez`, `/readyz` and the console's page, which asks its user for the key, requires a key where keys
are set. Inference calls pass: `InferenceCall.admit` checks the same, so that refused calls are counted.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final

from starlette.routing import BaseRoute, Match, Route
from starlette.types import ASGIApp, Receive, Scope, Send

from lengthwise.console import page
from lengthwise.errors import RequestError, Unauthorized
from lengthwise.http import pages
from lengthwise.protocols import kserve
from lengthwise.protocols.body import headers_of
from lengthwise.protocols.over_asgi import OverAsgi
from lengthwise.serving import Serving

OPEN: Final = frozenset({"/livez", "/readyz"})
_READING: Final = frozenset({"GET", "HEAD", "OPTIONS"})


class Gate:
    """Plain ASGI middleware that refuses requests.

    Args:
        app: The application.
        serving: Has the keys, and the rules for web pages.
        routes: The application's; those of inference calls check keys and pages themselves.
        console: Whether the application serves the console.
    """

    def __init__(self, app: ASGIApp, serving: Serving, routes: Sequence[BaseRoute], *, console: bool) -> None:
        self.app = app
        self.routes = routes
        self._keys = serving.keys
        self._web_pages = serving.web_pages
        self._console = console
        self._inference = [
            route for route in routes if isinstance(route, Route) and isinstance(route.endpoint, OverAsgi)
        ]

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Passes a request on, or refuses it."""
        if scope["type"] == "http" and not self._is_inference(scope):
            try:
                self._check(scope)
            except RequestError as error:
                asks_for_key = isinstance(error, Unauthorized) and pages.wanted(scope)
                refusal = pages.key_needed() if asks_for_key else kserve.response(error, scope["path"])
                await refusal(scope, receive, send)
                return
        await self.app(scope, receive, send)

    def _check(self, scope: Scope) -> None:
        headers, path = headers_of(scope["headers"]), scope["path"]
        # Of the console, what is read takes something too: a view is one of few.
        if scope["method"] in _READING and not path.startswith(page.PREFIX):
            self._web_pages.check_host(headers)
        else:
            self._web_pages.check(headers)
        if self._keys is not None and not self._is_open(scope):
            self._keys.check(headers.get(b"authorization"))

    def _is_open(self, scope: Scope) -> bool:
        path = scope["path"]
        if path in OPEN:
            return True
        return self._console and (page.is_open(path) or (path == "/" and pages.wanted(scope)))

    def _is_inference(self, scope: Scope) -> bool:
        return any(route.matches(scope)[0] is Match.FULL for route in self._inference)
