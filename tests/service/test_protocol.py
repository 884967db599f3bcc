"""The limits of one HTTP connection, over real sockets."""

import asyncio

import pytest

from lengthwise.http import connection
from lengthwise.http.request_reader import MAX_HEADER_BYTES
from tests.support.bounded_server import answer, served


async def test_an_ordinary_request_is_answered_and_so_is_the_next_on_the_same_connection() -> None:
    async with served() as talk:
        reader, writer = await talk()
        for body in (b"x" * 4 * MAX_HEADER_BYTES, b"abc", b"", b"x" * 100_000):  # not taken for large heads
            writer.write(b"POST / HTTP/1.1\r\nhost: x\r\ncontent-length: %d\r\n\r\n%s" % (len(body), body))
            assert await answer(reader) == (200, b"%d" % len(body))


@pytest.mark.parametrize(
    "head",
    [
        b"GET / HTTP/1.1\r\nhost: x\r\nlong: " + b"a" * MAX_HEADER_BYTES + b"\r\n\r\n",
        b"GET /" + b"a" * MAX_HEADER_BYTES + b" HTTP/1.1\r\nhost: x\r\n\r\n",
        b"GET / HTTP/1.1\r\nhost: x\r\n" + b"a: b\r\n" * 6000 + b"\r\n",
        b"GET / HTTP/1.1\r\nhost: x\r\nnever-ends: " + b"a" * (2 * MAX_HEADER_BYTES),
    ],
    ids=["one long header", "a long path", "many headers", "a header without an end"],
)
async def test_a_large_head_is_431_and_ends_the_connection(head: bytes) -> None:
    async with served() as talk:
        reader, writer = await talk()
        writer.write(head)
        status, _ = await answer(reader)
        assert status == 431
        assert await reader.read() == b""


async def test_a_connection_that_says_nothing_is_closed_without_a_word() -> None:
    async with served(header_timeout_seconds=0.05) as talk:
        reader, _ = await talk()
        assert await reader.read() == b""


async def test_a_body_that_keeps_coming_is_waited_for(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(connection, "BODY_PERIOD_SECONDS", 1.0)
    monkeypatch.setattr(connection, "MIN_BODY_BYTES_PER_SECOND", 1)
    async with served() as talk:
        reader, writer = await talk()
        writer.write(b"POST / HTTP/1.1\r\nhost: x\r\ncontent-length: 300\r\n\r\n")
        loop = asyncio.get_running_loop()
        for place in range(3):
            waited = loop.create_future()
            loop.call_later(0.4, waited.set_result, None)
            await waited
            writer.write(b"%d" % place * 100)
            await writer.drain()
        assert await answer(reader) == (200, b"300")
