"""The gate checks every request before its route: who calls, and whether a web page may.

Where keys are set, every path needs one but `/livez`, `/readyz`, `/ping` and the console's page, which asks its user
for the key. Inference calls pass the gate: `InferenceCall.admit` checks the same, so that refused calls are counted.
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

CONSOLE: Final = "/console/"  # the prefix of the console's paths
OPEN: Final = frozenset({"/livez", "/readyz", "/ping"})  # paths that need no key
NO_LIFESPAN: Final = "the lifespan of the application has not run: FastAPI(lifespan=app.router.lifespan_context)"
_SAFE_METHODS: Final = frozenset({"GET", "HEAD", "OPTIONS"})


class Gate:
    """Plain ASGI middleware that refuses requests, and ends connections while the service drains.

    `serving` returns the present service; `routes` are those of the application; `console`: it has the console.
    """

    def __init__(
        self, app: ASGIApp, *, serving: Callable[[], Serving], routes: Sequence[BaseRoute], console: bool
    ) -> None:
        self.app = app
        self._serving = serving
        self._console = console
        # Only the patterns of their paths: the routes would keep an ended service in memory.
        self._inference_paths = [
            route.path_regex for route in routes if isinstance(route, Route) and isinstance(route.endpoint, Inference)
        ]

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Passes a request on, or refuses it. A HEAD request is passed on as GET; the server then sends no body."""
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        answer, serving = self.app, self._serving()
        if not serving.in_lifespan:  # then no model is loaded, and refusals say why
            serving.registry.set_reason(NO_LIFESPAN)
        if scope["method"] != "POST" or not any(path.match(path_of(scope)) for path in self._inference_paths):
            try:
                self._check(scope, serving)
            except RequestError as error:  # then the refusal is the answer
                asks_for_key = isinstance(error, Unauthorized) and wants_page(scope)
                answer = key_needed() if asks_for_key else kserve.response(error, path_of(scope))
        # A live view of the console never ends, so there HEAD is not answered as GET.
        if scope["method"] == "HEAD" and not path_of(scope).startswith(CONSOLE):
            scope = {**scope, "method": "GET"}
        await answer(scope, receive, _closing(send, serving))

    def _check(self, scope: Scope, serving: Serving) -> None:
        """Checks the page and the key of a request; raises `RequestError` if the request is refused."""
        headers, path = dict(scope["headers"]), path_of(scope)
        # Reading from the console is checked as strictly as a change, because it takes one of a few live views.
        if scope["method"] in _SAFE_METHODS and not path.startswith(CONSOLE):
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
    """A `send` that adds `connection: close` to an answer that begins while the service drains."""

    async def closing(message: Message) -> None:
        starts = serving.batcher.draining and message["type"] == "http.response.start"
        if starts and problems.CLOSE not in message["headers"]:
            message = {**message, "headers": [*message["headers"], problems.CLOSE]}
        await send(message)

    return closing
