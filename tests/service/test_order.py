"""Several requests on one connection: the order of their answers, what is counted, and how the connection ends."""

import asyncio
import itertools
import socket
import struct
from pathlib import Path
from typing import Any

import orjson
import pytest

from lengthwise.connections import closing, unread
from lengthwise.connections.request_limits import RequestLimits
from lengthwise.http import connection as http_connection
from lengthwise.http import timed_connection
from lengthwise.http.connection import MAX_PIPELINED
from lengthwise.http.states import ENDED
from tests.support.http_lines import (
    BEARER,
    CHUNKED,
    GOOD,
    KEY,
    Line,
    Net,
    chunked,
    held,
    net,
    path_of,
    request,
    rest_of,
)
from tests.support.numpy_models import Service, manifest, model, serving
from tests.support.waiting import until

WAYS = pytest.mark.parametrize("way", ["direct", "asgi", "v1"])
"""Past ASGI, through it, and another protocol."""


async def counts(service: Service, total: int) -> dict[str, float]:
    """How many calls have which code, once there are that many."""
    async with asyncio.timeout(180):
        while True:
            found: dict[str, float] = {}
            for name, value in (await service.figures()).items():
                if name.startswith("lengthwise_requests_total") and value:
                    code = name.split('code="')[1][:3]
                    found[code] = found.get(code, 0) + value
            if sum(found.values()) >= total:
                return found
            await asyncio.sleep(0)


@pytest.fixture(autouse=True)
def _half_closed_for_long(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(http_connection, "HALF_CLOSED_SECONDS", 60)  # a busy machine may take long to answer


def connection_of(made: Net) -> Any:
    (connection,) = made.state.connections
    return connection


BROKEN = {
    "a malformed chunk": CHUNKED % b"/predict" + b"ZZ\r\n",
    "no request": b"nonsense\r\n\r\n",
    "no host": b"GET /livez HTTP/1.1\r\n\r\n",
    "two hosts": b"GET /livez HTTP/1.1\r\nhost: x\r\nhost: y\r\n\r\n",
    "a tunnel": b"CONNECT x:1 HTTP/1.1\r\nhost: x\r\n\r\n",
    "a bad path": b"GET :// HTTP/1.1\r\nhost: x\r\n\r\n",
    "a large head": b"GET /livez HTTP/1.1\r\nhost: x\r\nlong: " + b"a" * 40_000 + b"\r\n\r\n",
    "a long path": b"GET /" + b"a" * RequestLimits.header_bytes + b" HTTP/1.1\r\nhost: x\r\n\r\n",
    "many headers": b"GET /livez HTTP/1.1\r\nhost: x\r\n" + b"a: b\r\n" * 6000 + b"\r\n",
    "more headers than are taken": b"GET /livez HTTP/1.1\r\nhost: x\r\n" + b"a:\r\n" * RequestLimits.fields + b"\r\n",
    "large trailers": chunked("direct", b"a: " + b"b" * RequestLimits.header_bytes + b"\r\n"),
    "many trailers": chunked("direct", b"a: b\r\n" * 6000),
}


@pytest.mark.sampled(4)
@WAYS
@pytest.mark.parametrize("broken", BROKEN.values(), ids=BROKEN.keys())
async def test_a_refusal_comes_behind_the_answer_to_the_request_before_it(line: Line, way: str, broken: bytes) -> None:
    line.writer.write(request(way, "x-request-id: first") + request(way, "x-request-id: second") + broken)
    for name in ("first", "second"):
        status, headers, _ = await line.answer()
        assert (status, headers["x-request-id"]) == (200, name)
    assert (await line.answer())[0] in (400, 431)
    assert await rest_of(line) == b""


@WAYS
async def test_a_malformed_body_is_counted_by_its_status_first_and_pipelined(made: Net, way: str) -> None:
    for before in (b"", request(way)):
        line = await made.line()
        line.writer.write(before + CHUNKED % path_of(way) + b"ZZ\r\n")
        if before:
            assert (await line.answer())[0] == 200
        assert (await line.answer())[0] == 400
        assert await rest_of(line) == b""
    assert await counts(made.service, 3) == {"200": 1, "400": 2}


async def test_a_malformed_body_that_was_answered_gets_no_second_answer(keys: Path) -> None:
    async with serving(model(manifest()), api_keys_file=keys) as service, net(service) as made:
        line = await made.line()
        line.writer.write(CHUNKED % b"/predict")
        assert (await line.answer())[0] == 401
        line.writer.write(b"ZZ\r\n")
        assert await rest_of(line) == b""
        figures = (await service.client.get("/metrics", headers=BEARER)).text
        assert 'code="401",key="-",model="",version=""} 1.0' in figures
        assert 'code="400",key="-",model="",version=""} 1.0' not in figures


@pytest.mark.sampled(5)
@WAYS
@pytest.mark.parametrize("count", [MAX_PIPELINED + 2, MAX_PIPELINED + 3, 3 * MAX_PIPELINED])
async def test_past_the_longest_pipeline_the_accepted_requests_are_answered(
    made: Net, line: Line, way: str, count: int
) -> None:
    line.writer.write(b"".join(request(way, f"x-request-id: {number}") for number in range(count)))
    told = []
    for _ in range(min(count, MAX_PIPELINED + 2)):
        status, headers, _ = await line.answer()
        assert status == 200
        told.append(headers["x-request-id"])
    assert told == [str(number) for number in range(len(told))]
    if count > len(told):
        assert headers["connection"] == "close"
        assert await rest_of(line) == b""
    assert await counts(made.service, len(told)) == {"200": len(told)}


async def test_empty_lines_between_known_requests_do_not_add_up(made: Net, line: Line) -> None:
    for _ in range(20):
        line.writer.write(request("direct"))
        assert (await line.answer())[0] == 200
        line.writer.write(b"\r\n" * 1000)
        await line.writer.drain()
        connection = connection_of(made)
        await until(lambda connection=connection: connection.bytes_since_progress >= 2000)


# Trailers


@WAYS
async def test_trailers_are_no_headers(keys: Path, way: str) -> None:
    async with serving(model(manifest()), api_keys_file=keys) as service, net(service) as made:
        line = await made.line()
        line.writer.write(chunked(way, f"authorization: Bearer {KEY}\r\nx-request-id: mine\r\n".encode()))
        line.writer.write(request(way))  # nor are they those of the next request
        line.writer.write(request(way, f"authorization: Bearer {KEY}"))
        for status in (401, 401, 200):
            told, headers, _ = await line.answer()
            assert told == status
            assert headers["x-request-id"] != "mine"


@pytest.mark.parametrize(
    ("head", "trailers", "status"),
    [(20_000, 10_000, 200), (20_000, 20_000, 431), (1000, 30_000, 200), (100, 33_000, 431)],
)
async def test_head_and_trailers_are_bounded_together(line: Line, head: int, trailers: int, status: int) -> None:
    sent = chunked("direct", b"t: " + b"t" * trailers + b"\r\n")
    line.writer.write(sent.replace(b"host: x", b"host: x\r\nh: " + b"h" * head))
    assert (await line.answer())[0] == status


@WAYS
@pytest.mark.parametrize(("trailers", "status"), [(0, 200), (20, 200), (21, 431)])
async def test_the_number_of_headers_and_trailers_is_bounded_together(
    line: Line, way: str, trailers: int, status: int
) -> None:
    headers = b"h:\r\n" * (RequestLimits.fields - 22 + (20 if not trailers else 0))
    sent = chunked(way, b"t:\r\n" * trailers).replace(b"host: x\r\n", b"host: x\r\n" + headers)
    for _ in range(2):  # those of one request do not count for the next
        line.writer.write(sent)
        told, answered, _ = await line.answer()
        assert told == status
        if status != 200:
            assert answered["connection"] == "close"
            break


async def test_headers_are_counted_as_they_arrive(line: Line) -> None:
    line.writer.write(b"GET /livez HTTP/1.1\r\nhost: x\r\n" + b"a:\r\n" * (RequestLimits.fields + 2))
    assert (await line.answer())[0] == 431


# Bodies that are slow


async def test_a_body_that_waits_unread_behind_another_request_is_not_late(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(http_connection, "BODY_PERIOD_SECONDS", 0.05)
    async with held() as (made, release, running):
        line = await made.line()
        body = GOOD + b" " * 300_000
        line.writer.write(request("direct", "x-request-id: first"))
        await running.wait()
        line.writer.write(request("asgi", "x-request-id: second", body=body)[:-290_000])
        connection = connection_of(made)
        looks = 0
        check = connection.check_body

        def counted() -> None:
            nonlocal looks
            looks += 1
            check()

        monkeypatch.setattr(connection, "check_body", counted)
        await until(lambda: looks >= 4)
        release.set()
        assert (await line.answer())[1]["x-request-id"] == "first"
        monkeypatch.setattr(http_connection, "BODY_PERIOD_SECONDS", 30)
        line.writer.write(body[-290_000:])
        status, headers, _ = await line.answer()
        assert (status, headers["x-request-id"]) == (200, "second")


@WAYS
@pytest.mark.parametrize("before", [0, 1])
async def test_a_body_that_drips_is_408_behind_the_answer_before_it(
    made: Net, line: Line, monkeypatch: pytest.MonkeyPatch, way: str, before: int
) -> None:
    monkeypatch.setattr(http_connection, "BODY_PERIOD_SECONDS", 0.05)
    line.writer.write(request(way) * before + request(way)[:-5])
    assert [(await line.answer())[0] for _ in range(before + 1)] == [200] * before + [408]
    assert await rest_of(line) == b""
    assert await counts(made.service, before + 1) == {"408": 1} | ({"200": 1} if before else {})


async def test_a_head_without_an_end_is_431(line: Line) -> None:
    line.writer.write(b"GET / HTTP/1.1\r\nhost: x\r\nnever-ends: " + b"a" * (2 * RequestLimits.header_bytes))
    assert (await line.answer())[0] == 431
    assert await rest_of(line) == b""


HALF_A_HEAD = b"POST /predict HTTP/1.1\r\nhost: x\r\nx-slow: "


@pytest.mark.parametrize(("sent", "told"), [(b"", b""), (HALF_A_HEAD, b"HTTP/1.1 408")])
async def test_a_connection_that_says_nothing_or_half_a_head_is_ended_in_time(
    service: Service, sent: bytes, told: bytes
) -> None:
    async with net(service, header_timeout_seconds=0.05) as made:
        line = await made.line()
        line.writer.write(sent)
        assert (await rest_of(line))[:12] == told


async def test_a_body_that_keeps_coming_is_waited_for(line: Line, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(http_connection, "BODY_PERIOD_SECONDS", 1.0)
    monkeypatch.setattr(http_connection, "MIN_BODY_BYTES_PER_SECOND", 1)
    line.writer.write(request("direct", body=GOOD + b" " * 300)[:-300])
    for _ in range(3):
        await asyncio.sleep(0.4)
        line.writer.write(b" " * 100)
        await line.writer.drain()
    assert (await line.answer())[0] == 200


# Clients that send no more, that left, that do not read


@pytest.mark.sampled(2)
@WAYS
async def test_a_client_that_sends_no_more_before_its_answer_is_there_gets_it(way: str) -> None:
    async with held() as (made, release, running):
        line = await made.line()
        line.writer.write(request(way))
        line.writer.write_eof()
        await running.wait()
        await until(lambda: connection_of(made).state in ENDED)
        release.set()
        assert (await line.answer())[0] == 200
        assert await rest_of(line) == b""


@WAYS
async def test_a_client_of_http_1_0_is_told_no_100(line: Line, way: str) -> None:
    line.writer.write(request(way, "expect: 100-continue").replace(b"HTTP/1.1", b"HTTP/1.0", 1))
    assert (await line.answer())[0] == 200
    assert await rest_of(line) == b""


@WAYS
async def test_wrong_requests_in_one_read_do_not_hold_the_event_loop_together(made: Net, way: str) -> None:
    line, loop, answered = await made.line(), asyncio.get_running_loop(), [0]

    def look() -> None:
        answered.append(made.state.total_requests)
        ticking[0] = loop.call_soon(look)

    ticking = [loop.call_soon(look)]
    line.writer.write(request(way, body=b'{"wrong": []}') * MAX_PIPELINED)
    statuses = [(await line.answer())[0] for _ in range(MAX_PIPELINED)]
    ticking[0].cancel()
    assert set(statuses) <= {400, 422}
    assert max(after - before for before, after in itertools.pairwise(answered)) <= 2


@pytest.mark.sampled(2)
@WAYS
@pytest.mark.parametrize("before", [0, 1])
async def test_a_client_that_stops_midway_is_answered_and_frees_its_slot(
    made: Net, line: Line, monkeypatch: pytest.MonkeyPatch, way: str, before: int
) -> None:
    monkeypatch.setattr(closing, "LINGER_SECONDS", 600)
    monkeypatch.setattr(http_connection, "HALF_CLOSED_SECONDS", 3)  # by ASGI it is waited for
    line.writer.write(request(way) * before + request(way)[:-3])
    line.writer.write_eof()
    assert [(await line.answer())[0] for _ in range(before)] == [200] * before
    assert await rest_of(line) == b""
    await until(lambda: not made.state.connections)
    assert await counts(made.service, before + 1) == {"499": 1} | ({"200": 1} if before else {})


@WAYS
async def test_a_refused_client_that_goes_on_sending_is_read_until_it_ends_its_side(
    made: Net, line: Line, way: str
) -> None:
    line.writer.write(request(way) + b"nonsense\r\n\r\n")
    for _ in range(50):
        line.writer.write(b"x" * 100_000)
        await line.writer.drain()
    assert [(await line.answer())[0], (await line.answer())[0]] == [200, 400]
    assert await line.reader.read() == b""
    connection = connection_of(made)
    assert connection.transport.is_closing()
    assert not connection.owes
    line.writer.close()
    await until(lambda: not made.state.connections)


@WAYS
async def test_a_client_that_sends_no_more_is_not_waited_for_for_ever(
    monkeypatch: pytest.MonkeyPatch, way: str
) -> None:
    monkeypatch.setattr(http_connection, "HALF_CLOSED_SECONDS", 0.05)
    async with held() as (made, _, running):
        first, line = await made.line(), await made.line()
        first.writer.write(request("direct"))
        await running.wait()
        line.writer.write(request(way))
        line.writer.write_eof()
        assert await counts(made.service, 1) == {"499": 1}
        assert await rest_of(line) == b""


@WAYS
async def test_a_client_that_leaves_with_pipelined_requests_is_counted_once_as_gone(way: str) -> None:
    async with held() as (made, release, running):
        line = await made.line()
        line.writer.write(request(way) * 3)
        await running.wait()
        connection = line.writer.get_extra_info("socket")
        connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        line.writer.transport.abort()
        await asyncio.sleep(0)
        release.set()
        assert await counts(made.service, 1) == {"499": 1}
        await until(lambda: not made.state.connections)
        assert made.service.serving.inflight.bytes == 0


async def test_the_heads_of_requests_that_wait_on_a_connection_are_bytes_in_memory() -> None:
    async with held() as (made, release, running):
        line, inflight = await made.line(), made.service.serving.inflight
        line.writer.write(request("direct"))
        await running.wait()
        before, head = inflight.bytes, b"GET /livez HTTP/1.1\r\nhost: x\r\nx: " + b"x" * 10_000 + b"\r\n\r\n"
        line.writer.write(head * 8)
        await until(lambda: inflight.bytes >= before + 8 * 10_000)
        release.set()
        assert [(await line.answer())[0] for _ in range(9)] == [200] * 9
        await until(lambda: inflight.bytes == 0)


@WAYS
async def test_an_answer_that_the_connection_cannot_take_is_not_counted_as_given(way: str) -> None:
    async with held() as (made, release, running):
        line = await made.line()
        line.writer.write(request(way))
        await running.wait()
        connection_of(made).transport.close()
        release.set()
        assert await counts(made.service, 1) == {"499": 1}


def large_answer(way: str) -> bytes:
    """A request whose answer is larger than what sockets hold here."""
    steps = [[[1, 3]]] * 500
    body = orjson.dumps({"instances": steps}) if way == "v1" else orjson.dumps({"sequences": steps})
    return request(way, body=body)


async def narrow(made: Net) -> socket.socket:
    """A connection whose sockets hold little."""
    client = socket.socket()
    client.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 2048)
    client.setblocking(False)
    await asyncio.get_running_loop().sock_connect(client, ("127.0.0.1", made.port))
    await until(lambda: made.state.connections)
    there = connection_of(made).transport.get_extra_info("socket")
    there.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 4096)
    return client


async def unread_there(made: Net) -> Any:
    """The connection, once answers wait in it."""
    await until(lambda: any(c.transport.get_write_buffer_size() for c in made.state.connections))
    return next(c for c in made.state.connections if c.transport.get_write_buffer_size())


@pytest.mark.sampled(3)
@WAYS
async def test_a_client_that_does_not_read_is_disconnected(
    monkeypatch: pytest.MonkeyPatch, made: Net, way: str
) -> None:
    monkeypatch.setattr(timed_connection, "PATIENCE_SECONDS", 0.2)
    with await narrow(made) as client:
        await asyncio.get_running_loop().sock_sendall(client, large_answer(way) * 10)
        await unread_there(made)
        await until(lambda: not made.state.connections)


async def test_a_client_that_leaves_a_small_part_unread_is_disconnected_too(
    monkeypatch: pytest.MonkeyPatch, made: Net
) -> None:
    monkeypatch.setattr(timed_connection, "PATIENCE_SECONDS", 0.2)
    loop = asyncio.get_running_loop()
    with await narrow(made) as client:
        connection = connection_of(made)
        while not connection.transport.get_write_buffer_size():
            await loop.sock_sendall(client, request("direct"))
            await asyncio.sleep(0.001)
        assert not connection.flow.write_paused  # less than what pauses
        while connection.is_answering():
            await asyncio.sleep(0.001)
        connection.keep_alive_seconds = 0
        connection.keep_alive_is_over()
        assert connection.transport.is_closing()
        await until(lambda: not made.state.connections)


async def test_a_client_that_reads_slowly_keeps_its_connection(monkeypatch: pytest.MonkeyPatch, made: Net) -> None:
    monkeypatch.setattr(timed_connection, "PATIENCE_SECONDS", 0.4)
    loop = asyncio.get_running_loop()
    with await narrow(made) as client:
        await loop.sock_sendall(client, large_answer("asgi") * 10)
        connection = await unread_there(made)
        looks = 0
        look = unread.unread_bytes

        def counted(transport: asyncio.Transport) -> int:
            nonlocal looks
            looks += 1
            return look(transport)

        monkeypatch.setattr(unread, "unread_bytes", counted)
        while looks < 12:  # three times as long as it may take nothing
            assert await loop.sock_recv(client, 2048)
            await asyncio.sleep(0.005)
        assert connection in made.state.connections
    await until(lambda: not made.state.connections)
