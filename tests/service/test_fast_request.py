"""The way past ASGI: the same answers, refusals and counts as the way through it, over real sockets."""

import asyncio
import gc
import gzip
import select
import threading
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from pathlib import Path
from typing import Any

import numpy as np
import orjson
import pytest

from lengthwise.batching.queues import PendingRequest, QueuedSequence
from lengthwise.decoding import fast_json, validation
from lengthwise.decoding.calls import Call
from lengthwise.http import fast_request
from lengthwise.http.asgi_request import AsgiRequest
from lengthwise.http.connection import Connection
from lengthwise.http.fast_request import FastRequest
from lengthwise.http.request_reader import RequestReader
from lengthwise.protocols.call import InferenceCall
from lengthwise.protocols.endpoint import CAREFUL_BYTES, LARGE_BODY_BYTES, Received
from lengthwise.protocols.turns import LARGE_BODIES_AT_ONCE
from lengthwise.telemetry.call_record import CallRecord
from tests.support.bad_bodies import BAD_BODIES
from tests.support.http_lines import GOOD, KEY, UPGRADE, Line, Net, chunked, held, net, rest_of
from tests.support.numpy_models import BLIND, NOT_FINITE, Service, idle, manifest, model, serving
from tests.support.waiting import until

BAD = orjson.dumps({"sequences": [[[1]]]})


@pytest.fixture
def parsed(monkeypatch: pytest.MonkeyPatch) -> list[bytes]:
    """What the HTTP parser is given."""
    given: list[bytes] = []
    feed = RequestReader.feed

    def note(self: RequestReader, data: bytes) -> None:
        given.append(data)
        feed(self, data)

    monkeypatch.setattr(RequestReader, "feed", note)
    return given


async def test_a_repeated_header_block_is_parsed_once(
    service: Service, made: Net, line: Line, parsed: list[bytes]
) -> None:
    bodies = [GOOD, GOOD.replace(b"3", b"30000"), b'{"sequences": 3}', GOOD]
    answers = [await line.ask(body, "x-request-id: mine", "content-type: application/json") for body in bodies]
    assert len(parsed) == 1
    assert [status for status, _, _ in answers] == [200, 200, 422, 200]
    for body, (status, headers, payload) in zip(bodies, answers, strict=True):
        # A block that no request had before is parsed.
        new = f"x-new: {len(parsed)}"
        alone = await (await made.line()).ask(body, "x-request-id: mine", "content-type: application/json", new)
        unlike = {"server-timing", "date"}
        assert (status, payload) == (alone[0], alone[2])
        assert {k: v for k, v in headers.items() if k not in unlike} == {
            k: v for k, v in alone[1].items() if k not in unlike
        }
    assert len(parsed) == 1 + len(bodies)
    figures = await service.figures()
    assert figures['lengthwise_requests_total{code="200",key="-",model="sums",version="1"}'] == 6


async def test_a_head_that_differs_is_parsed_and_then_known_itself(line: Line, parsed: list[bytes]) -> None:
    for name in ("a", "a", "b", "b", "a"):
        status, headers, _ = await line.ask(GOOD, f"x-request-id: {name}")
        assert (status, headers["x-request-id"]) == (200, name)
    assert len(parsed) == 2


async def test_a_header_block_is_known_on_every_connection(made: Net, parsed: list[bytes]) -> None:
    for _ in range(3):
        assert (await (await made.line()).ask(GOOD))[0] == 200
    assert len(parsed) == 1


async def test_a_known_head_is_no_head_inside_of_another_request(line: Line) -> None:
    head = f"POST /predict HTTP/1.1\r\nhost: x\r\ncontent-length: {len(GOOD)}\r\n\r\n".encode()
    line.writer.write(head + GOOD)
    assert (await line.answer())[0] == 200
    # The start of a request comes with the one before it; what follows is its body, however it looks.
    inside = b'{"sequences": ' + head + GOOD
    line.writer.write(
        head + GOOD + f"POST /predict HTTP/1.1\r\nhost: x\r\ncontent-length: {len(inside)}\r\n\r\n".encode()
        + inside[:14]
    )  # fmt: skip
    assert (await line.answer())[0] == 200
    line.writer.write(inside[14:])
    assert (await line.answer())[0] == 422
    assert (await line.ask(GOOD))[0] == 200


async def test_a_known_head_is_still_asked_for_its_key(keys: Path) -> None:
    async with serving(model(manifest()), api_keys_file=keys) as service, net(service) as made:
        line = await made.line()
        for key, status in ((KEY, 200), ("bad-key-of-sixteen-", 401), ("bad-key-of-sixteen-", 401)):
            assert (await line.ask(GOOD, f"authorization: Bearer {key}"))[0] == status


@pytest.mark.parametrize("direct", [True, False], ids=["past ASGI", "through ASGI"])
async def test_a_request_that_came_while_the_process_was_stopped_is_answered(
    service: Service, monkeypatch: pytest.MonkeyPatch, direct: bool
) -> None:
    async with net(service, direct=direct) as made:
        line = await made.line()
        assert (await line.ask(GOOD))[0] == 200
        (connection,) = made.state.connections
        line.send(GOOD)
        connected = connection.transport.get_extra_info("socket")
        select.select([connected], [], [], 60)  # it has arrived, and the event loop has not seen it yet
        monkeypatch.setattr(connection, "keep_alive_seconds", 0)
        connection.keep_alive_is_over()
        assert not connection.transport.is_closing()
        monkeypatch.undo()
        assert (await line.answer())[0] == 200


async def test_a_connection_stays_while_it_is_used_and_ends_when_it_is_not(
    made: Net, line: Line, monkeypatch: pytest.MonkeyPatch
) -> None:
    now, passed = asyncio.get_running_loop().time, 0.0
    monkeypatch.setattr(asyncio.get_running_loop(), "time", lambda: now() + passed)
    assert (await line.ask(GOOD))[0] == 200
    (connection,) = made.state.connections
    passed += connection.keep_alive_seconds - 2
    assert (await line.ask(GOOD))[0] == 200
    passed += 2.5
    await asyncio.sleep(0.01)  # the timer of the first answer is over
    assert not connection.transport.is_closing()
    passed += connection.keep_alive_seconds
    assert await rest_of(line) == b""


def v2_body(**more: Any) -> bytes:
    tensor = {"name": "values", "datatype": "FP32", "shape": [1, 2, 2], "data": [1, 3, 2, 5]}
    return orjson.dumps({"inputs": [tensor | more]})


HEAD = orjson.dumps({"inputs": [{"name": "values", "datatype": "FP32", "shape": [1, 2, 2],
                                 "parameters": {"binary_data_size": 16}}]})  # fmt: skip
BINARY = ("content-type: application/octet-stream", f"inference-header-content-length: {len(HEAD)}")
V1, V2 = "/v1/models/{}:predict", "/v2/models/{}/infer"


RAW = np.array([[1, 3], [2, 5]], "<f4").tobytes()
AS_RAW = ("content-type: application/octet-stream", "x-lengthwise-shape: 2,2")


@pytest.mark.sampled(3)
@pytest.mark.parametrize(
    ("path", "headers", "body", "status"),
    [
        (V1.format("sums"), (), orjson.dumps({"instances": [[[1, 3]]]}), 200),
        (V1.format("sums"), (), b"{}", 400),
        (V1.format("other"), (), orjson.dumps({"instances": [[[1, 3]]]}), 404),
        (V2.format("sums"), (), v2_body(), 200),
        (V2.format("sums"), (), v2_body(data=[1, 3, 2]), 400),
        (V2.format("sums"), ("content-type: text/plain",), v2_body(), 415),
        (V2.format("sums"), BINARY, HEAD + np.arange(4, dtype="<f4").tobytes(), 200),
        (V2.format("sums"), BINARY, HEAD, 400),
        (V2.format("sums/versions/1"), (), v2_body(), 200),
        (V2.format("sums/versions/7"), (), v2_body(), 404),
        (V2.format("sums/versions/x.y"), (), v2_body(), 400),
        ("/predict?model=sums&version=1", AS_RAW, RAW, 200),
        ("/predict?model=sums&timeout_ms=60000&priority=3&id=a%20b", AS_RAW, RAW, 200),
        ("/predict?", AS_RAW, RAW, 200),
        ("/predict?version=9", AS_RAW, RAW, 404),
        ("/predict?model=other", AS_RAW, RAW, 404),
        ("/predict?priority=99&outputs=attention&nothing", AS_RAW, RAW, 422),
        ("/predict?%ff", AS_RAW, RAW, 422),
        ("/predict?x=1", (), GOOD, 200),
        ("/predict?version=1", (), GOOD, 422),
        ("/predict?model=sums", (), GOOD[:-1] + b" " * CAREFUL_BYTES + b"}", 422),
    ],
)
async def test_a_path_and_its_query_mean_the_same_on_both_ways(
    service: Service, path: str, headers: tuple[str, ...], body: bytes, status: int
) -> None:
    found = []
    for direct in (True, False):
        async with net(service, direct=direct) as made:
            line = await made.line()
            for _ in range(2):  # the second time its header block and its JSON are known
                line.send(body, *headers, path=path)
                found.append(await line.answer())
            line.send(RAW, *AS_RAW)  # the query is not remembered
            assert (await line.answer())[0] == 200
            assert made.by_asgi == (0 if direct else 3)
    assert [one[0] for one in found] == [status] * 4
    assert len({one[2] for one in found}) == 1
    assert len({frozenset(set(one[1]) - {"date"}) for one in found}) == 1


async def test_every_answer_has_the_date_of_its_second(made: Net, line: Line) -> None:
    dates = []
    for second in (b"Sat, 21 Nov 2026 08:00:00 GMT", b"Sat, 21 Nov 2026 08:00:01 GMT"):
        made.state.default_headers = [(b"date", second), (b"server", b"mine")]
        for _ in range(2):
            _, headers, _ = await line.ask(GOOD)
            dates.append((headers["date"], headers["server"]))
    assert [date[-6:] for date, _ in dates] == ["00 gmt", "00 gmt", "01 gmt", "01 gmt"]
    assert {server for _, server in dates} == {"mine"}


BODIES = [
    GOOD,
    orjson.dumps({"sequences": [[[1, 1]], [[NOT_FINITE, NOT_FINITE]]]}),
    orjson.dumps({"sequences": [[[1, 1]], [[BLIND, BLIND]]], "outputs": ["attention"]}),
    *(bad.body for bad in BAD_BODIES if len(bad.body) < LARGE_BODY_BYTES),
]


async def test_both_ways_give_the_same_answer_and_the_same_headers(service: Service) -> None:
    async with net(service) as quick, net(service, direct=False) as through:
        for body in BODIES:
            lines = [await made.line() for made in (quick, through)]
            answers = [await line.ask(body) for line in lines]
            for line in lines:  # more connections than these are refused
                line.writer.close()
            (status, headers, content), (asgi_status, asgi_headers, asgi_content) = answers
            assert (status, content) == (asgi_status, asgi_content), body
            assert set(headers) - {"date"} == set(asgi_headers) - {"date"}, body
        assert (quick.by_asgi, through.by_asgi) == (0, len(BODIES))


@pytest.mark.sampled(2)
@pytest.mark.parametrize(
    ("headers", "options", "body"),
    [
        (("content-encoding: gzip",), {}, gzip.compress(GOOD, mtime=0)),
        (("expect: 100-continue",), {}, GOOD),
        (("connection: close",), {}, GOOD),
        ((), {"version": "1.0"}, GOOD),
        ((), {"path": "/predict?x=1#there"}, GOOD),
        ((), {"path": "/v1/models/s%75ms:predict"}, orjson.dumps({"instances": [[[1, 3]]]})),
        ((), {}, GOOD[:-1] + b" " * LARGE_BODY_BYTES + b"}"),
        ((), {}, None),
    ],
    ids=["gzip", "expect", "close", "HTTP/1.0", "a fragment", "another path", "a large body", "chunks"],
)
async def test_what_is_not_ordinary_goes_through_asgi(
    made: Net, line: Line, headers: tuple[str, ...], options: dict[str, str], body: bytes | None
) -> None:
    if body is None:
        line.writer.write(chunked("direct"))
    else:
        line.send(body, *headers, **options)
    if "expect: 100-continue" in headers:
        assert (await line.reader.readuntil(b"\r\n\r\n")).startswith(b"HTTP/1.1 100")
    assert (await line.answer())[0] == 200
    assert made.by_asgi == 1


async def test_a_body_in_pieces_is_put_together(made: Net, line: Line) -> None:
    line.writer.write(b"POST /predict HTTP/1.1\r\nhost: x\r\ncontent-length: %d\r\n\r\n" % len(GOOD))
    for start in range(0, len(GOOD), 5):
        line.writer.write(GOOD[start : start + 5])
        await line.writer.drain()
        await asyncio.sleep(0)
    assert (await line.answer())[0] == 200
    assert made.by_asgi == 0


@pytest.mark.parametrize("headers", [(), ("origin: http://x",)], ids=["direct", "by ASGI"])
async def test_a_client_that_leaves_is_counted_and_its_sequences_not_run_and_nothing_kept(
    headers: tuple[str, ...],
) -> None:
    async with held() as (made, release, running), nothing_kept(made):
        first, second = await made.line(), await made.line()
        first.send(GOOD)
        await running.wait()
        second.send(orjson.dumps({"sequences": [[[7, 7]]]}), *headers)
        queue = made.service.serving.served[0].queue
        await until(lambda: queue.pending)
        second.writer.close()
        await until(lambda: not queue.pending)
        release.set()
        assert (await first.answer())[0] == 200
        figures = await made.service.figures()
        assert figures['lengthwise_requests_total{code="499",key="-",model="sums",version="1"}'] == 1
        assert figures['lengthwise_batch_rows_count{model="sums",version="1"}'] == 1
        assert idle(figures)


async def test_a_deadline_that_passes_is_504_and_the_connection_goes_on() -> None:
    async with held() as (made, release, running):
        first, second = await made.line(), await made.line()
        first.send(GOOD)
        await running.wait()
        assert (await second.ask(orjson.dumps({"sequences": [[[1, 3]]], "timeout_ms": 5})))[0] == 504
        release.set()
        assert (await first.answer())[0] == 200
        assert (await second.ask(GOOD))[0] == 200


async def test_attention_requested_by_one_request_does_not_fail_the_others_of_its_batch() -> None:
    async with held() as (made, release, running):
        first, asking, other = [await made.line() for _ in range(3)]
        first.send(GOOD)
        await running.wait()
        asking.send(orjson.dumps({"sequences": [[[1, 3]]], "outputs": ["attention"]}))
        other.send(orjson.dumps({"sequences": [[[BLIND, BLIND]]]}))
        queue = made.service.serving.served[0].queue
        await until(lambda: len(queue.pending) >= 2)
        release.set()
        assert [(await line.answer())[0] for line in (first, asking, other)] == [200, 200, 200]


async def test_a_failure_of_the_service_itself_is_500_without_its_words(
    service: Service, made: Net, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def broken(request: Any, **_: Any) -> Any:
        raise ZeroDivisionError("internal words")

    monkeypatch.setattr(service.app.predict, "read", broken)
    status, _, content = await (await made.line()).ask(GOOD)
    assert status == 500
    assert b"internal words" not in content
    assert "internal words" in caplog.text


@pytest.mark.parametrize("breaks", [False, True], ids=["sound", "breaks"])
async def test_a_call_record_is_closed_once_after_the_answer_even_if_that_fails(
    service: Service, line: Line, monkeypatch: pytest.MonkeyPatch, breaks: bool
) -> None:
    done: list[str] = []
    answered, close = Connection.answered, CallRecord.close

    def writes(self: Connection, response: bytes, *, keep_alive: bool) -> bool:
        done.append("answered")
        if breaks:
            self.transport.abort()
            raise OSError("broken")
        return answered(self, response, keep_alive=keep_alive)

    def closes(self: CallRecord, status: int, *rest: Any, **named: Any) -> None:
        done.append(f"closed with {status}")
        close(self, status, *rest, **named)

    monkeypatch.setattr(Connection, "answered", writes)
    monkeypatch.setattr(CallRecord, "close", closes)
    if breaks:
        with pytest.raises((ConnectionError, asyncio.IncompleteReadError)):
            await line.ask(GOOD)
    else:
        assert (await line.ask(GOOD))[0] == 200
    assert done == ["answered", "closed with 499" if breaks else "closed with 200"]
    assert service.serving.batcher.unanswered == 0


async def test_an_accepted_request_is_answered_in_the_drain_and_its_connection_ended() -> None:
    async with held() as (made, release, running):
        line = await made.line()
        line.send(GOOD)
        await running.wait()
        made.service.serving.batcher.begin_draining()
        release.set()
        status, headers, _ = await line.answer()
        assert (status, headers["connection"]) == (200, "close")
        assert await line.reader.read() == b""
        await until(lambda: not made.state.connections)


KEPT = (
    *(FastRequest, InferenceCall, Received, Call, PendingRequest),
    *(QueuedSequence, CallRecord, AsgiRequest, Connection),
)


@asynccontextmanager
async def nothing_kept(made: Net) -> AsyncIterator[None]:
    """Holds that nothing of what is asked inside is left for the collector once its connections are gone."""
    gc.freeze()  # what there is already is none of it, and is not looked through
    gc.disable()
    try:
        yield
        for line in made.lines:
            line.writer.close()
        await until(lambda: not made.state.connections and not made.state.tasks)
        await until(lambda: not any(issubclass(type(each), KEPT) for each in gc.get_objects()))
    finally:
        gc.enable()


@pytest.mark.parametrize("direct", [True, False], ids=["direct", "by ASGI"])
@pytest.mark.parametrize(
    ("body", "status"),
    [
        (GOOD, 200),
        (BAD, 422),
        (orjson.dumps({"sequences": [[[1, 1]], [[NOT_FINITE, NOT_FINITE]]]}), 422),
        (orjson.dumps({"sequences": [[[1, 3]] * 20] * 20}), 413),
        (GOOD + b" " * LARGE_BODY_BYTES, 200),
        (BAD + b" " * LARGE_BODY_BYTES, 422),
    ],
    ids=["good", "bad", "not finite", "too much", "large", "large and bad"],
)
async def test_a_request_is_freed_with_its_connection_without_the_garbage_collector(
    body: bytes, status: int, direct: bool
) -> None:
    async with (
        serving(model(manifest()), max_queue_cost_steps=200, max_batch_cost_steps=200) as service,
        net(service, direct=direct) as made,
        nothing_kept(made),
    ):
        assert (await (await made.line()).ask(body))[0] == status


async def test_requests_that_waited_on_a_lost_connection_leave_no_garbage() -> None:
    async with held() as (made, release, running), nothing_kept(made):
        line = await made.line()
        for _ in range(4):
            line.send(GOOD)
        await running.wait()
        line.writer.transport.abort()
        release.set()


async def test_a_refused_head_does_not_run_the_request_before_it_again(service: Service, line: Line) -> None:
    assert (await line.ask(GOOD))[0] == 200
    line.send(b"", "long: " + "a" * 40_000)
    assert (await line.answer())[0] == 431
    assert await line.reader.read() == b""
    figures = await service.figures()
    assert figures['lengthwise_sequences_total{model="sums",version="1"}'] == 1


@pytest.mark.parametrize("direct", [True, False])
async def test_a_request_that_offers_another_protocol_is_answered_in_this_one(service: Service, direct: bool) -> None:
    async with net(service, direct=direct) as made:
        line = await made.line()
        for headers in (UPGRADE, UPGRADE, (), UPGRADE):
            status, _, content = await line.ask(GOOD, *headers)
            assert (status, orjson.loads(content)["predictions"][0]["label"]) == (200, "c")
        for headers in (UPGRADE, (), UPGRADE, UPGRADE):
            line.send(GOOD, *headers)
        assert [(await line.answer())[0] for _ in range(4)] == [200] * 4


@pytest.mark.parametrize("direct", [True, False])
@pytest.mark.parametrize(
    ("version", "headers"), [("1.1", ("connection: close, upgrade", "upgrade: h2c")), ("1.0", UPGRADE)]
)
async def test_so_is_one_after_which_the_connection_ends(
    service: Service, version: str, headers: tuple[str, ...], direct: bool
) -> None:
    async with net(service, direct=direct) as made:
        line = await made.line()
        status, answered, content = await line.ask(GOOD, *headers, version=version)
        assert (status, orjson.loads(content)["predictions"][0]["label"]) == (200, "c")
        assert answered["connection"] == "close"
        assert await line.reader.read() == b""


@pytest.mark.parametrize("direct", [True, False])
async def test_the_body_behind_an_offer_of_another_protocol_is_no_request(service: Service, direct: bool) -> None:
    async with net(service, direct=direct) as made:
        line = await made.line()
        hidden = b"GET /livez HTTP/1.1\r\nhost: x\r\n\r\n"
        head = "\r\n".join(["POST /predict HTTP/1.1", "host: x", *UPGRADE, f"content-length: {len(hidden)}", "", ""])
        line.writer.write(head.encode())
        await (await made.line()).ask(GOOD)  # by then the head has arrived alone
        line.writer.write(hidden)
        assert (await line.answer())[0] == 422
        assert b"predictions" in (await line.ask(GOOD))[2]


@pytest.mark.parametrize(("body", "status"), [(GOOD, 200), (BAD, 422)])
async def test_an_answer_made_before_the_drain_and_written_in_it_ends_its_connection(
    service: Service, made: Net, line: Line, monkeypatch: pytest.MonkeyPatch, body: bytes, status: int
) -> None:
    make = fast_request.response

    def then_drain(*parts: Any) -> bytes:
        made = make(*parts)
        service.serving.batcher.begin_draining()
        return made

    monkeypatch.setattr(fast_request, "response", then_drain)
    found, headers, _ = await line.ask(body)
    assert (found, headers["connection"]) == (status, "close")
    assert await rest_of(line) == b""


async def test_a_request_that_is_answered_during_the_drain_ends_its_connection(
    service: Service, made: Net, line: Line
) -> None:
    line.writer.write(b"POST /v2/repository/index HTTP/1.1\r\nhost: x\r\ncontent-length: 2\r\n\r\n")
    await until(lambda: made.by_asgi)
    service.serving.batcher.begin_draining()
    line.writer.write(b"{}")
    assert b"connection: close" in (await rest_of(line)).lower()


@pytest.mark.parametrize("path", ["/predict", "/v1/models/sums:predict"])
async def test_a_client_that_does_not_read_its_answers_is_not_read_from(
    service: Service, made: Net, line: Line, path: str
) -> None:
    line.writer.transport.set_write_buffer_limits(high=1)
    request = f"POST {path} HTTP/1.1\r\nhost: x\r\ncontent-length: 1\r\n\r\nx".encode()
    sent = 0
    with suppress(ConnectionError, TimeoutError):
        for _ in range(40):
            line.writer.write(request * 2000)
            sent += 2000
            async with asyncio.timeout(0.5):
                await line.writer.drain()
    answered = sum(value for name, value in (await service.figures()).items() if 'code="422"' in name)
    assert answered < sent
    connection = next(iter(made.state.connections), None)
    assert connection is None or connection.transport.get_write_buffer_size() < 8_000_000


LONG = orjson.dumps({"sequences": [{"steps": [[1, 3]] * 2000, "step_mask": [True] * 2000}]})
"""A good body that only the reader in Python reads, and that is not short."""
ORDINARY = orjson.dumps({"sequences": [[[1, 3]] * 6000]})


@pytest.mark.sampled(3)
@pytest.mark.parametrize("direct", [True, False], ids=["direct", "by ASGI"])
@pytest.mark.parametrize(
    ("body", "status", "beside"),
    [
        (GOOD, 200, False),
        (BAD, 422, False),
        (ORDINARY, 200, not fast_json.COMPILED),
        (LONG, 200, True),
        (orjson.dumps({"sequences": [[[1]] * 9000]}), 422, True),
        (b'{"sequences":[' + b",".join([b"[[]]"] * 1020) + b"]}", 422, True),
    ],
    ids=["good", "bad", "ordinary", "long", "long and bad", "short steps"],
)
async def test_what_takes_the_reader_in_python_long_is_read_beside_the_event_loop(
    body: bytes, status: int, beside: bool, direct: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    readers: set[str] = set()
    for module, name in ((validation, "read"), (fast_json, "read")):
        function = getattr(module, name)

        def watched(*given: Any, function: Any = function, module: Any = module, **options: Any) -> Any:
            if module is validation or len(given[0]) < CAREFUL_BYTES:
                readers.add(threading.current_thread().name)
            return function(*given, **options)

        monkeypatch.setattr(module, name, watched)
    tried: list[bytes] = []  # on the event loop
    async with serving(model(manifest(max_length=10_000))) as service, net(service, direct=direct) as made:
        read = service.app.predict.read

        def counted(request: Received, *, fast: bool) -> Any:
            if fast:
                tried.append(request.body)
            return read(request, fast=fast)

        monkeypatch.setattr(service.app.predict, "read", counted)
        line = await made.line()
        assert (await line.ask(body))[0] == status
        assert len(tried) <= 1
        assert (await line.ask(GOOD))[0] == 200
        assert made.by_asgi == (0 if direct else 2)
        assert idle(await service.figures())
    assert (len(readers - {threading.main_thread().name}) > 0) == beside


@pytest.mark.parametrize("how", ["leaves", "is late"])
async def test_a_client_that_leaves_or_is_late_while_its_body_is_read_beside_the_loop(
    how: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    reading, release, loop = asyncio.Event(), threading.Event(), asyncio.get_running_loop()
    read = validation.read

    def slow(*given: Any, **options: Any) -> Any:
        loop.call_soon_threadsafe(reading.set)
        release.wait(20)
        return read(*given, **options)

    monkeypatch.setattr(validation, "read", slow)
    rules, patience = manifest(max_length=10_000), {"default_timeout_ms": 100} if how == "is late" else {}
    async with serving(model(rules), **patience) as service, net(service) as made:
        lines = [await made.line() for _ in range(3)]
        for line in lines:
            line.send(LONG)
        await reading.wait()
        if how == "leaves":
            for line in lines:
                line.writer.transport.abort()
            await until(lambda: not (made.state.connections))
            assert service.serving.inflight.bytes == 0
        else:
            assert (await lines[2].answer())[0] == 504  # the others have the places
        release.set()
        if how == "is late":
            assert [(await line.answer())[0] for line in lines[:2]] == [504, 504]
        await until(lambda: service.app.predict.large_bodies.free >= LARGE_BODIES_AT_ONCE)
        assert idle(await service.figures())
        assert service.serving.batcher.unanswered == 0
