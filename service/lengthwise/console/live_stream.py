"""The live view over HTTP: server-sent events, one for each frame, until the viewer leaves or the service drains.

A view lasts `VIEW_SECONDS`; then the page opens the next one. Whoever does not read does not ask: no other sign tells
the server, because a quiet service writes so little that the viewer's system can keep it for hours.
"""

from __future__ import annotations

import asyncio
from typing import Final

from starlette.responses import Response
from starlette.types import Receive, Scope, Send

from lengthwise.connections.unread import PATIENCE_SECONDS
from lengthwise.console.live import LiveView, Viewer

VIEW_SECONDS: Final = PATIENCE_SECONDS
MEDIA_TYPE: Final = "text/event-stream"
_HEAD: Final = {
    "type": "http.response.start",
    "status": 200,
    "headers": [
        (b"content-type", MEDIA_TYPE.encode()),
        (b"cache-control", b"no-store"),
        (b"connection", b"close"),  # a view that ended leaves no idle connection that delays the end of the service
        (b"x-accel-buffering", b"no"),  # nginx would collect the frames
        (b"x-content-type-options", b"nosniff"),
    ],
}


class LiveStream(Response):
    """The response with the frames of a viewer, who leaves when it ends."""

    media_type = MEDIA_TYPE

    def __init__(self, live: LiveView, viewer: Viewer) -> None:
        super().__init__()
        self._live = live
        self._viewer = viewer

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Sends frames until the view has ended."""
        watch = asyncio.ensure_future(_end_with_client(receive, self._viewer))
        why = b"draining"
        try:
            await send(_HEAD)
            async with asyncio.timeout(VIEW_SECONDS):
                await self._send_frames(send)
        except TimeoutError:
            why = b"renew"
        finally:
            self._live.leave(self._viewer)
            watch.cancel()
        await send({"type": "http.response.body", "body": b"event: end\ndata: %s\n\n" % why, "more_body": False})

    async def _send_frames(self, send: Send) -> None:
        viewer = self._viewer
        await send(_part(b": one event a frame\n\n"))
        while (frame := await viewer.next()) is not None:
            missed, viewer.missed = viewer.missed, 0
            before = b"event: missed\ndata: %d\n\n" % missed if missed else b""
            await send(_part(b"%sevent: frame\ndata: %s\n\n" % (before, frame)))


def _part(data: bytes) -> dict[str, object]:
    return {"type": "http.response.body", "body": data, "more_body": True}


async def _end_with_client(receive: Receive, viewer: Viewer) -> None:
    while (await receive())["type"] != "http.disconnect":
        pass
    viewer.end()
