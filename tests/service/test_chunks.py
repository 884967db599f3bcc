"""Bodies in many small chunks: parsed a little in each turn of the event loop, and otherwise like any body."""

import asyncio
from typing import Any

import orjson
import pytest

from lengthwise.http import connection
from lengthwise.http.connection import Connection
from lengthwise.http.request_reader import MOST_PARTS, PIECE_BYTES, RequestReader
from lengthwise.http.timed_connection import UNPARSED
from tests.support.http_lines import CHUNKED, GOOD, V1, Line, Net
from tests.support.numpy_models import Service, idle
from tests.support.waiting import until

BODY = orjson.dumps({"sequences": [[[1, 3]] * 9]}) + b" " * 60_000


def in_chunks(body: bytes, path: bytes = b"/predict", size: int = 1) -> bytes:
    parts = (body[start : start + size] for start in range(0, len(body), size))
    return CHUNKED % path + b"".join(b"%x\r\n%s\r\n" % (len(part), part) for part in parts) + b"0\r\n\r\n"


@pytest.fixture
def parsed(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """The sizes of what was parsed, with a 0 for each turn of the event loop that began."""
    sizes: list[int] = []
    feed = RequestReader.feed

    def watched(self: RequestReader, data: bytes) -> None:
        if sizes[-1:] != [0]:
            asyncio.get_running_loop().call_soon(sizes.append, 0)
        sizes.append(len(data))
        feed(self, data)

    monkeypatch.setattr(RequestReader, "feed", watched)
    return sizes


@pytest.mark.parametrize("size", [1, 7, 5000])
async def test_a_little_is_parsed_in_a_turn_and_the_answer_is_that_of_the_body(
    service: Service, line: Line, parsed: list[int], size: int
) -> None:
    line.writer.write(in_chunks(BODY, size=size))
    status, _, answer = await line.answer()
    assert status == 200
    assert max(parsed) <= PIECE_BYTES
    whole = (await line.ask(BODY))[2]
    assert answer == whole
    most = MOST_PARTS * len(b"1\r\n" + bytes(size) + b"\r\n") + 3 * PIECE_BYTES
    turn = 0
    for now in parsed[: len(in_chunks(BODY, size=size)) // PIECE_BYTES]:
        turn = turn + now if now else 0
        assert turn <= most
    assert idle(await service.figures())


async def test_what_stands_behind_such_a_body_is_read_in_its_order(
    service: Service, line: Line, parsed: list[int]
) -> None:
    v1 = orjson.dumps({"instances": [[[1, 3]]]}) + b" " * 9000
    line.writer.write(in_chunks(BODY))
    line.send(GOOD)
    line.writer.write(in_chunks(v1, V1.encode()))
    line.send(b"{}")
    assert [(await line.answer())[0] for _ in range(4)] == [200, 200, 200, 422]
    assert idle(await service.figures())


async def test_a_head_behind_such_a_body_is_not_taken_for_that_of_a_later_request(line: Line) -> None:
    line.writer.write(in_chunks(BODY, b"/nowhere"))  # answered before it is read to its end
    line.send(GOOD, "x-request-id: first")
    assert (await line.answer())[0] == 404
    names = [(await line.answer())[1]["x-request-id"]]
    for name in ("second", "second", "third"):
        names.append((await line.ask(GOOD, f"x-request-id: {name}"))[1]["x-request-id"])
    assert names == ["first", "second", "second", "third"]


async def test_a_client_that_sends_no_more_is_answered(line: Line, parsed: list[int]) -> None:
    line.writer.write(in_chunks(BODY))
    line.writer.write_eof()
    assert (await line.answer())[0] == 200
    assert await line.reader.read() == b""


@pytest.mark.parametrize("leaves", [True, False])
async def test_a_body_that_is_cut_or_wrong_in_the_middle_ends_like_any_other(
    service: Service, made: Net, line: Line, parsed: list[int], leaves: bool
) -> None:
    line.writer.write(in_chunks(BODY)[:-7] + (b"" if leaves else b"no chunk" * 9000))
    if leaves:
        await line.writer.drain()
        line.writer.transport.abort()
    else:
        assert (await line.answer())[0] == 400
    await until(lambda: not (made.state.connections))
    assert service.serving.inflight.bytes == 0


async def test_other_bodies_are_parsed_at_once(line: Line, monkeypatch: pytest.MonkeyPatch) -> None:
    turns: list[Any] = []
    rest = connection.Connection.data_received

    def counted(self: Connection, data: bytes) -> None:
        rest(self, data)
        turns.append(UNPARSED in self.flow.reasons)

    monkeypatch.setattr(connection.Connection, "data_received", counted)
    assert (await line.ask(BODY))[0] == 200
    assert not any(turns)
