"""What an idle connection keeps of its last request: nothing, whatever that was, but a small header block."""

import gc
from pathlib import Path

import orjson
import pytest

from lengthwise.http.asgi_request import AsgiRequest
from lengthwise.http.fast_request import FastRequest
from lengthwise.http.request_reader import Head
from lengthwise.protocols.call import InferenceCall
from tests.support.http_lines import CHUNKED, KEY, Line, Net, chunked, net, request
from tests.support.numpy_models import manifest, model, serving
from tests.support.waiting import until

LIVEZ = b"GET /livez HTTP/1.1\r\nhost: x\r\n\r\n"
SENT = {
    "a request past ASGI": (request("direct"), [200]),
    "a request through ASGI": (request("asgi"), [200]),
    "a request with a known header block": (request("direct"), [200, 200, 200]),
    "a body in chunks, with trailers": (chunked("direct", b"a: b\r\n"), [200]),
    "a probe": (LIVEZ, [200]),
    "a wrong body": (request("direct", body=b"{}"), [422]),
    "a large wrong body": (request("direct", body=orjson.dumps({"sequences": [[["a"] * 2] * 2000]})), [422]),
    "a path that is none": (LIVEZ.replace(b"livez", b"nowhere"), [404]),
    "requests at once": (request("direct") + request("asgi") + LIVEZ, [200, 200, 200]),
    "an empty line behind the body": (request("asgi") + b"\r\n", [200]),
    "a part of the next request": (request("asgi") + b"GET /li", [200]),
    "another protocol": (LIVEZ.replace(b"\r\n\r\n", b"\r\nconnection: upgrade\r\nupgrade: h2c\r\n\r\n"), [200]),
}
"""What is sent, and the answers; where they are more than the requests, it is sent again for each."""


def kept() -> list[object]:
    """The requests that anything refers to; no cycle of references hides one."""
    kinds = AsgiRequest | FastRequest | InferenceCall
    return [one for one in gc.get_objects() if issubclass(type(one), kinds)]  # not isinstance: torch has one that warns


def heads() -> int:
    """How many parsed header blocks have a header."""
    return sum(bool(one.headers) for one in gc.get_objects() if type(one) is Head)


@pytest.mark.sampled(6)
@pytest.mark.parametrize(("sent", "statuses"), SENT.values(), ids=SENT.keys())
async def test_an_idle_connection_keeps_no_request(line: Line, sent: bytes, statuses: list[int]) -> None:
    requests = sent.count(b" HTTP/1.1")
    for number, status in enumerate(statuses):
        if number % requests == 0:
            line.writer.write(sent)
        assert (await line.answer())[0] == status
    gc.collect()
    await until(lambda: not kept() and not heads())


async def test_a_request_that_was_refused_before_its_body_came_is_dropped_with_that(keys: Path) -> None:
    async with serving(model(manifest()), api_keys_file=keys) as service, net(service) as made:
        line = await made.line()
        line.writer.write(CHUNKED % b"/predict")
        assert (await line.answer())[0] == 401
        line.writer.write(b"1\r\na\r\n0\r\n\r\n")
        await until(lambda: not kept() and not heads())
        line.writer.write(request("direct", f"authorization: Bearer {KEY}"))
        assert (await line.answer())[0] == 200


async def test_a_connection_that_dropped_its_request_is_closed_after_long_idling(made: Net) -> None:
    line = await made.line()
    line.writer.write(request("asgi"))
    assert (await line.answer())[0] == 200
    (connection,) = made.state.connections
    await until(lambda: not kept())
    connection.keep_alive_seconds = 0
    connection.keep_alive_is_over()
    assert await line.reader.read() == b""


async def test_a_connection_that_was_answered_before_its_body_ended_ends_when_idle(keys: Path) -> None:
    async with serving(model(manifest()), api_keys_file=keys) as service, net(service) as made:
        line = await made.line()
        line.writer.write(CHUNKED % b"/predict")
        assert (await line.answer())[0] == 401
        (connection,) = made.state.connections
        connection.keep_alive_seconds = 0
        connection.keep_alive_is_over()  # its body is being read
        assert not connection.transport.is_closing()
        timer = vars(connection)["_keep_alive_timer"]
        line.writer.write(b"1\r\na\r\n0\r\n\r\n")
        await until(lambda: not kept() and not heads())
        assert vars(connection)["_keep_alive_timer"] is timer
        assert not timer.cancelled()  # it still ends the connection
        connection.keep_alive_is_over()
        assert await line.reader.read() == b""
