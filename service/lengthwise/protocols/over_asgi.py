"""Inference calls over ASGI: reads a request's messages, and writes the head and the body of its answer.

It is a plain ASGI callable, without a request object. The steps of a call are in `lengthwise.protocols.call`.
"""

from __future__ import annotations

import asyncio
import time
from typing import TypeAlias, cast

from starlette.types import Receive, Scope, Send

from lengthwise.batching.queues import Timing
from lengthwise.protocols.body import (
    CLIENT_LEFT,
    ClientLeft,
    Inflating,
    is_packed,
    read_body,
    status_sent,
    trailer_bytes,
)
from lengthwise.protocols.call import InferenceCall, server_timing
from lengthwise.protocols.endpoint import Decoded, Endpoint, Headers, Received
from lengthwise.protocols.turns import believed_bytes

Response: TypeAlias = tuple[int, bytes, Headers]
"""Status, body and headers of a response, without the headers that every response has."""


class OverAsgi:
    """The inference calls of one endpoint, as an ASGI application."""

    def __init__(self, endpoint: Endpoint) -> None:
        self._endpoint = endpoint

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answers one request: with its answer, or with a refusal; with nothing if the client has left.

        Raises:
            CancelledError: The task was cancelled, and nobody waits for an answer.
        """
        call = InferenceCall(self._endpoint, dict(scope["headers"]), scope.get("client"))
        try:
            try:
                call.admit()
                response = await self._answer(call, scope, receive)
                call.hold.holds(len(response[1]))
            except (Exception, asyncio.CancelledError) as error:
                refusal = call.fail(error)
                if refusal is None:  # the client has left, or the task was cancelled
                    call.close(status_sent(scope, CLIENT_LEFT), delivered=False)
                    if isinstance(error, ClientLeft):
                        return
                    raise
                response = self._endpoint.refuse(refusal)
            await self._send(call, response, scope, send)
        finally:
            call.hold.close()

    async def _answer(self, call: InferenceCall, scope: Scope, receive: Receive) -> Response:
        """Reads the body, submits the call, and waits for its answer; if the client leaves, withdraws the call."""

        def write(encoded: tuple[bytes, Headers], timing: Timing) -> Response:
            body, headers = encoded
            return 200, body, [*headers, server_timing(call.decode_seconds, timing)]

        async def watch() -> None:
            """Withdraws the call when the client leaves."""
            while (await receive())["type"] != "http.disconnect":
                pass
            call.withdraw()

        max_bytes = self._endpoint.serving.request_limits.body_bytes
        body = [await read_body(receive, call.headers, max_bytes, call.hold, late_at=call.deadline)]
        watching = asyncio.ensure_future(watch())
        try:
            call.submit(await self._decode(call, scope, body.pop()), write)  # only there the body is kept
            return cast("Response", await call.answer())
        finally:
            watching.cancel()

    async def _decode(self, call: InferenceCall, scope: Scope, body: bytes) -> Decoded:
        """Inflates and decodes the body of a call; its bytes are freed with the return.

        A small body is inflated and decoded on the event loop. A large one waits for a decoding slot, and a thread
        decodes it; a compressed large one keeps the slot for inflating and decoding, or waits again if it has more
        bytes than were believed.
        """
        headers, hold, max_bytes = call.headers, call.hold, self._endpoint.serving.request_limits.body_bytes
        call.begin_decoding()
        if is_packed(headers):
            inflating = Inflating(body, max_bytes, hold)
            inflated = inflating.at_once()
            if inflated is None:  # a large one
                beginning = Received(scope, headers, inflating.content())
                likely = min(max(len(body), inflating.size, trailer_bytes(body)), max_bytes)
                size = believed_bytes(len(body), max_bytes, likely)
                while True:
                    async with call.decoding_slot(size, beginning, likely=likely, whole=False) as reading:
                        call.begin_decoding()  # again: the wait for the slot is not decoding
                        try:
                            is_whole = await inflating.fits(size)
                        finally:  # also of a body that is not inflated to its end
                            reading.size = inflating.size
                        if is_whole:
                            body = await asyncio.to_thread(inflating.content)
                            del inflating
                            hold.holds(len(body))
                            return await call.decode_in_thread(Received(scope, headers, body))
                        reading.size = 0
                    # It may wait long, and takes less memory as it came.
                    inflating = Inflating(body, max_bytes, hold)
                    hold.set(len(body) + len(beginning.body))
                    likely, size = size, believed_bytes(size, max_bytes)
            body = inflated
            hold.holds(len(body))
        request = Received(scope, headers, body)
        decoded = call.decode_at_once(request)
        return await call.decode_slowly(request) if decoded is None else decoded

    async def _send(self, call: InferenceCall, response: Response, scope: Scope, send: Send) -> None:
        """Sends an answer, and closes the call with the status that the client got."""
        status, body, headers = response
        headers += [(b"content-length", str(len(body)).encode()), (b"x-request-id", call.request_id)]
        end_time = time.monotonic()  # the time of sending is not part of the call
        try:
            await send({"type": "http.response.start", "status": status, "headers": headers})
            await send({"type": "http.response.body", "body": body})
        finally:  # only now it is known whether the answer was sent
            status_of_client = status_sent(scope, status)
            call.close(status_of_client, delivered=status_of_client == status, ended=end_time)
