"""Requires a key for every path but `/livez`, `/readyz` and the console's page, which asks its user for the key.

Inference calls pass: `InferenceCall.admit` checks their keys, so that refused calls are counted.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final

from starlette.routing import BaseRoute, Match, Route
from starlette.types import ASGIApp, Receive, Scope, Send

from lengthwise.api_keys import Keys
from lengthwise.console import page
from lengthwise.errors import Unauthorized
from lengthwise.http import pages
from lengthwise.protocols import kserve
from lengthwise.protocols.body import headers_of
from lengthwise.protocols.over_asgi import OverAsgi

OPEN: Final = frozenset({"/livez", "/readyz"})


class KeyRequired:
    """Plain ASGI middleware that refuses requests without a key.

    Args:
        app: The application.
        keys: The keys.
        routes: The application's; those of inference calls check keys themselves.
        console: Whether the application serves the console.
    """

    def __init__(self, app: ASGIApp, keys: Keys, routes: Sequence[BaseRoute], *, console: bool) -> None:
        self._app = app
        self._keys = keys
        self._console = console
        self._inference = [
            route for route in routes if isinstance(route, Route) and isinstance(route.endpoint, OverAsgi)
        ]

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Passes a request on, or refuses it."""
        if scope["type"] == "http" and not self._is_open(scope) and not self._is_inference(scope):
            try:
                self._keys.check(headers_of(scope["headers"]).get(b"authorization"))
            except Unauthorized as error:
                refusal = pages.key_needed() if pages.wanted(scope) else kserve.response(error, scope["path"])
                await refusal(scope, receive, send)
                return
        await self._app(scope, receive, send)

    def _is_open(self, scope: Scope) -> bool:
        path = scope["path"]
        if path in OPEN:
            return True
        return self._console and (page.is_open(path) or (path == "/" and pages.wanted(scope)))

    def _is_inference(self, scope: Scope) -> bool:
        return any(route.matches(scope)[0] is Match.FULL for route in self._inference)
