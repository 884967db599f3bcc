"""Checks every request before its route: who calls, and that no web page of another site does.

Every path but `/livez`, `/readyz`, `/ping` and the console's page, which asks its user for the key, requires a key
where keys are set. Inference calls pass: `InferenceCall.admit` checks the same, so that refused calls are counted.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Final

from starlette.routing import BaseRoute, Route
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from lengthwise.application.operations import Inference
from lengthwise.application.pages import key_needed, path_of, wants_page
from lengthwise.errors import RequestError, Unauthorized
from lengthwise.protocols import kserve, problems
from lengthwise.serving import Serving

CONSOLE: Final = "/console/"
"""What the paths of the console begin with."""
OPEN: Final = frozenset({"/livez", "/readyz", "/ping"})
NO_LIFESPAN: Final = "the lifespan of the application has not run: FastAPI(lifespan=app.router.lifespan_context)"
_READING: Final = frozenset({"GET", "HEAD", "OPTIONS"})


class Gate:
    """Plain ASGI middleware that refuses requests, and ends connections while the service drains.

    Of the `routes`, those of inference calls check keys and pages themselves.
    """

    def __init__(
        self, app: ASGIApp, *, serving: Callable[[], Serving], routes: Sequence[BaseRoute], console: bool
    ) -> None:
        self.app = app
        self._serving = serving
        self._console = console
        # Not the routes: they keep a service alive, and the lifespan, entered again, has another one.
        self._inference = [
            route.path_regex for route in routes if isinstance(route, Route) and isinstance(route.endpoint, Inference)
        ]

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Passes a request on, or refuses it. HEAD is answered as GET is, by a server that sends no body then."""
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        answer, serving = self.app, self._serving()
        if not serving.in_lifespan:
            serving.registry.explain(NO_LIFESPAN)
        if scope["method"] != "POST" or not any(path.match(path_of(scope)) for path in self._inference):
            try:
                self._check(scope, serving)
            except RequestError as error:
                asks_for_key = isinstance(error, Unauthorized) and wants_page(scope)
                answer = key_needed() if asks_for_key else kserve.response(error, path_of(scope))
        if scope["method"] == "HEAD" and not path_of(scope).startswith(CONSOLE):  # a live view has no end
            scope = {**scope, "method": "GET"}
        await answer(scope, receive, _closing(send, serving))

    def _check(self, scope: Scope, serving: Serving) -> None:
        """Checks the page and the key of a request; raises `RequestError` if it is refused."""
        headers, path = dict(scope["headers"]), path_of(scope)
        # Of the console, what is read takes something too: a view is one of few.
        if scope["method"] in _READING and not path.startswith(CONSOLE):
            serving.web_pages.check_host(headers)
        else:
            serving.web_pages.check(headers)
        if path in OPEN:
            return
        if self._console:
            from lengthwise.console import page

            if page.is_open(path) or (path == "/" and wants_page(scope)):
                return
        serving.check_key(headers)


def _closing(send: Send, serving: Serving) -> Send:
    """A `send` whose answer ends its connection if the service drains by then."""

    async def closing(message: Message) -> None:
        starts = serving.batcher.draining and message["type"] == "http.response.start"
        if starts and problems.CLOSE not in message["headers"]:
            message = {**message, "headers": [*message["headers"], problems.CLOSE]}
        await send(message)

    return closing
