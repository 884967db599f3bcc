"""One bound over the bytes of all calls, by every protocol, and every byte of it given back once."""

import asyncio
import gzip
import math
import random
import time
from collections.abc import Awaitable, Callable
from contextlib import AsyncExitStack, suppress
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import grpc
import httpx2
import numpy as np
import orjson
import pytest
from grpc_reflection.v1alpha import reflection_pb2
from hypothesis import given
from hypothesis import strategies as st

from lengthwise.connections.inflight import Hold, Inflight
from lengthwise.decoding import calls
from lengthwise.decoding.calls import Call
from lengthwise.errors import ConfigurationError, InflightFull, TooLarge
from lengthwise.grpc import calls as grpc_calls
from lengthwise.grpc import infer, receiving
from lengthwise.grpc import server as grpc_server
from lengthwise.grpc.infer import INFER, SERVICE, ModelInfer
from lengthwise.grpc.server import GrpcServer
from lengthwise.padding import PaddedBatch
from lengthwise.protocols.endpoint import LARGE_BODY_BYTES
from lengthwise.protocols.turns import Turns
from lengthwise.runtime.manifest import Manifest
from lengthwise.settings import Settings
from tests.support.grpc_calls import Caller, calling, listening
from tests.support.grpc_calls import request as message
from tests.support.http_lines import Line, Net, held, net
from tests.support.numpy_models import MANIFESTS, NOT_FINITE, Service, idle, manifest, model, serving
from tests.support.waiting import until

MEBIBYTE = 1 << 20
GOOD = orjson.dumps({"sequences": [[[1, 3]]]})
PADDED = GOOD + b" " * LARGE_BODY_BYTES
V1 = orjson.dumps({"instances": [[[1, 3]]]})
V2: dict[str, Any] = {
    "inputs": [
        {"name": "values", "datatype": "FP32", "shape": [2, 2, 2], "data": [1, 3, 7, 7, 0, 0, -2, 0]},
        {"name": "lengths", "datatype": "INT32", "shape": [2], "data": [1, 2]},
    ]
}
OCTETS = np.ones((3, 2), dtype="<f4").tobytes()


# What one call holds


@given(st.lists(st.tuples(st.integers(0, 3), st.integers(0, 60)), max_size=60))
def test_bytes_in_flight_are_the_sum_of_all_calls_and_stay_within_the_bound(steps: list[tuple[int, int]]) -> None:
    inflight = Inflight(100)
    holds = [Hold(inflight) for _ in range(3)]
    for which, size in steps:
        if which == 3:
            holds[size % 3].close()
            holds[size % 3].close()
        else:
            before = holds[which].size
            try:
                holds[which].set(size)
            except InflightFull:
                assert inflight.bytes - before + size > 100
                assert holds[which].size == before
        assert inflight.bytes == sum(hold.size for hold in holds) <= 100
        assert inflight.free == 100 - inflight.bytes
    for hold in holds:
        hold.close()
    assert inflight.bytes == 0


def test_a_call_above_the_bound_is_too_large_and_one_that_shrinks_is_accepted() -> None:
    inflight = Inflight(100)
    hold = Hold(inflight)
    with pytest.raises(TooLarge):
        hold.set(101)
    hold.holds(130)  # it is there already
    hold.set(120)
    assert inflight.bytes == 120
    with pytest.raises(InflightFull) as refused:
        Hold(inflight).grow(1)
    assert refused.value.retry_after_seconds == 1


@given(st.lists(st.tuples(st.integers(0, 2), st.integers(0, 120)), max_size=60))
def test_a_call_may_have_what_other_workers_leave_within_one_bound(
    steps: list[tuple[int, int]],
) -> None:
    cells = [0.0] * 3
    holds = [Hold(Inflight(100, cells, index)) for index in range(3)]
    for index, size in steps:
        before, left = holds[index].size, 100 - sum(hold.size for hold in holds if hold is not holds[index])
        try:
            holds[index].set(size)
        except TooLarge:
            assert size > 100
            assert holds[index].size == before
        except InflightFull:
            assert 100 >= size > max(left, before)
            assert holds[index].size == before
        assert cells == [hold.size for hold in holds]
        assert {hold.inflight.free for hold in holds} == {100 - sum(cells)}
        assert sum(cells) <= 100


def test_a_bound_that_the_largest_body_does_not_fit_into_is_a_wrong_option() -> None:
    with pytest.raises(ConfigurationError) as raised:
        Settings.load(max_inflight_bytes=MEBIBYTE)
    assert "max_inflight_bytes (1048576) must be at least 4 times max_body_bytes (16777216, the default)" in str(
        raised.value
    )
    with pytest.raises(ConfigurationError):
        Settings.load(max_body_bytes=536_870_912)


@pytest.mark.parametrize(
    ("rules", "attention"),
    [
        (MANIFESTS["refuses missing"], False),
        (MANIFESTS["refuses missing"], True),
        (manifest(task="per-step"), True),
        (manifest(max_length=4, long="window"), True),
        (manifest(task="multi-label"), False),
    ],
)
async def test_an_answer_takes_no_more_than_was_kept_for_it(rules: Manifest, attention: bool) -> None:
    asked: list[Call] = []
    async with serving(model(rules)) as service:
        submit = service.serving.submit

        def watched(call: Call, *args: Any, **options: Any) -> Any:
            asked.append(call)
            return submit(call, *args, **options)

        service.serving.submit = watched  # type: ignore[method-assign]
        sequences = [[[0.1 * i, i / 7] for i in range(length)] for length in (1, 3, 17)]
        body = {"sequences": sequences} | ({"outputs": ["attention"]} if attention else {})
        found = await service.predict(body)
    assert found.status_code == 200
    head = len(asked[0].model.manifest.answer_head)
    assert len(found.content) - head <= calls.answer_bytes(asked[0])


# Refused where there is no room, by every protocol


async def _v2_binary(service: Service, values: Any, lengths: Any) -> httpx2.Response:
    tensors = [
        {"name": name, "datatype": kind, "shape": array.shape, "parameters": {"binary_data_size": array.nbytes}}
        for name, kind, array in (("values", "FP32", values), ("lengths", "INT32", lengths))
    ]
    head = orjson.dumps({"inputs": tensors})
    headers = {"inference-header-content-length": str(len(head)), "content-type": "application/octet-stream"}
    content = head + values.tobytes() + lengths.tobytes()
    return await service.client.post("/v2/models/sums/infer", content=content, headers=headers)


PROTOCOLS: dict[str, Callable[[Service], Awaitable[httpx2.Response]]] = {
    "predict": lambda service: service.predict(GOOD),
    "octets": lambda service: service.predict(
        OCTETS, content_type="application/octet-stream", x_lengthwise_shape="3,2"
    ),
    "v1": lambda service: service.client.post("/v1/models/sums:predict", content=V1),
    "v2": lambda service: service.client.post("/v2/models/sums/infer", json=V2),
    "v2 binary": lambda service: _v2_binary(service, np.ones((1, 2, 2), "<f4"), np.array([2], "<i4")),
}


@pytest.mark.parametrize("ask", PROTOCOLS.values(), ids=PROTOCOLS)
async def test_a_rejected_call_gets_a_retry_time_and_is_counted(
    service: Service, ask: Callable[[Service], Awaitable[httpx2.Response]]
) -> None:
    inflight = service.serving.inflight
    inflight.bytes += inflight.max_bytes
    answer = await ask(service)
    assert (answer.status_code, answer.headers["retry-after"]) == (503, "1")
    figures = await service.figures()
    assert figures["lengthwise_inflight_bytes"] == figures["lengthwise_max_inflight_bytes"] == inflight.max_bytes
    assert sum(n for name, n in figures.items() if "rejected_total" in name and 'reason="inflight_full"' in name) == 1
    inflight.bytes -= inflight.max_bytes
    assert (await ask(service)).status_code == 200
    assert idle(await service.figures())


@pytest.mark.parametrize("whole", [True, False], ids=["in one piece", "in two"])
async def test_past_asgi_a_call_without_room_is_refused_and_its_connection_kept(made: Net, whole: bool) -> None:
    inflight = made.service.serving.inflight
    line = await made.line()
    assert (await line.ask(GOOD))[0] == 200  # its head is known from here on
    inflight.bytes += inflight.max_bytes
    if whole:
        status, headers, _ = await line.ask(GOOD)
    else:
        line.writer.write(b"POST /predict HTTP/1.1\r\nhost: x\r\ncontent-length: %d\r\n\r\n" % len(GOOD))
        line.writer.write(GOOD[:5])
        await line.writer.drain()
        status, headers, _ = await line.answer()
        line.writer.write(GOOD[5:])
    assert (status, headers["retry-after"]) == (503, "1")
    inflight.bytes -= inflight.max_bytes
    assert (await line.ask(GOOD))[0] == 200
    assert idle(await made.service.figures())


HEAD_OF_5000 = b"POST /predict HTTP/1.1\r\nhost: x\r\ncontent-length: 5000\r\n\r\n"


async def test_a_body_past_asgi_is_counted_as_it_comes_and_may_be_refused(made: Net) -> None:
    leaving, line, inflight = await made.line(), await made.line(), made.service.serving.inflight
    for part, held_then in ((HEAD_OF_5000 + b" ", 1), (b" " * 2000, 2001), (b" " * 2000, 4001)):
        leaving.writer.write(part)
        await until(lambda held_then=held_then: inflight.bytes == held_then)
    leaving.writer.close()
    await until(lambda: inflight.bytes == 0)
    line.writer.write(HEAD_OF_5000 + b" ")
    await until(lambda: inflight.bytes == 1)
    inflight.bytes += inflight.max_bytes - 1000
    line.writer.write(b" " * 2000)
    status, headers, _ = await line.answer()
    assert (status, headers["retry-after"]) == (503, "1")
    assert inflight.bytes == inflight.max_bytes - 1000
    inflight.bytes = 0
    line.writer.write(b" " * 2999)
    assert (await line.ask(GOOD))[0] == 200
    assert made.by_asgi == 0
    assert idle(await made.service.figures())


async def test_whoever_only_says_that_a_body_comes_takes_no_room_from_others(tmp_path: Path) -> None:
    (tmp_path / "keys").write_text("k" * 40)
    small = {"max_body_bytes": 100_000, "max_inflight_bytes": 400_000, "api_keys_file": tmp_path / "keys"}
    known = "authorization: Bearer " + "k" * 40
    async with serving(model(manifest()), **small) as service, net(service) as made:
        for key in ("a: b", known):
            for _ in range(20):
                line = await made.line()
                head = f"POST /predict HTTP/1.1\r\nhost: x\r\n{key}\r\ncontent-length: 60000\r\n\r\n"
                line.writer.write(head.encode())
                if key != known:  # and without a key not even by sending it
                    assert (await line.answer())[0] == 401
                    line.writer.write(b" " * 59_999)
            assert (await (await made.line()).ask(GOOD, known))[0] == 200
        assert service.serving.inflight.bytes == 0


# What waits, and what is not read


async def all_taken(places: Turns) -> AsyncExitStack:
    """Takes all places for large bodies, until it is closed."""
    taken = AsyncExitStack()
    while places.free:
        await taken.enter_async_context(places.turn("another", 1, math.inf))
    return taken


@pytest.mark.long
async def test_a_body_that_waits_for_a_slot_is_counted_as_it_was_sent(service: Service) -> None:
    packed = gzip.compress(GOOD + b" " * (4 * MEBIBYTE))
    places = service.app.predict.large_bodies
    taken = await all_taken(places)
    waiting = [asyncio.ensure_future(service.predict(packed, content_encoding="gzip")) for _ in range(20)]
    await until(lambda: service.serving.inflight.bytes >= 20 * len(packed))
    for _ in range(100):  # turns of the event loop in which the others could go on
        await asyncio.sleep(0)
    assert service.serving.inflight.bytes < 20 * (len(packed) + 3 * LARGE_BODY_BYTES)
    await taken.aclose()
    assert {answer.status_code for answer in await asyncio.gather(*waiting)} == {200}
    assert idle(await service.figures())


async def test_a_bomb_that_would_fill_the_bound_is_refused_while_it_is_inflated() -> None:
    packed = gzip.compress(GOOD + b" " * (15 * MEBIBYTE))
    async with serving(model(manifest()), max_inflight_bytes=64 * MEBIBYTE) as service:
        inflight = service.serving.inflight
        inflight.bytes += 60 * MEBIBYTE
        answer = await service.predict(packed, content_encoding="gzip")
        assert answer.status_code == 503
        inflight.bytes -= 60 * MEBIBYTE
        assert (await service.predict(packed, content_encoding="gzip")).status_code == 200
        assert idle(await service.figures())


async def test_what_waits_is_counted_by_what_it_keeps_in_memory() -> None:
    async with held() as (made, release, running):
        first, second = await made.line(), await made.line()
        first.send(GOOD)
        await running.wait()
        before = made.service.serving.inflight.bytes
        second.send(orjson.dumps({"sequences": [[[1, 3]] * 100]}))
        queue = made.service.serving.served[0].queue
        await until(lambda: len(queue.pending) == 1)
        assert 800 <= made.service.serving.inflight.bytes - before < 1200  # 200 numbers, and some room for the answer
        release.set()
        assert [(await line.answer())[0] for line in (first, second)] == [200, 200]
        assert idle(await made.service.figures())


@pytest.mark.parametrize("read", [True, False], ids=["late", "never"])
async def test_an_unread_answer_is_counted_until_it_is_read_or_its_connection_ends(read: bool) -> None:
    rules = manifest(task="per-step", max_length=100_000)
    async with serving(model(rules)) as service, net(service) as made:
        body = orjson.dumps({"sequences": [[[1, 3]] * 5000]})
        line = await made.line()
        line.reader._transport.pause_reading()  # type: ignore[attr-defined]
        for _ in range(40):
            line.send(body)
        await until(lambda: bool(made.state.connections))
        (connection,) = made.state.connections
        await until(lambda: connection.flow.write_paused and not service.serving.batcher.unanswered)
        inflight = service.serving.inflight
        assert inflight.bytes >= connection.transport.get_write_buffer_size() > 65_536
        if read:
            line.reader._transport.resume_reading()  # type: ignore[attr-defined]
            for _ in range(40):
                assert (await line.answer())[0] == 200
        else:
            line.writer.transport.abort()
        await until(lambda: inflight.bytes == 0)


@pytest.mark.parametrize("answered", [True, False])
async def test_bodies_behind_a_request_that_waits_are_counted(answered: bool) -> None:
    async with held() as (made, release, running):
        line = await made.line()
        line.send(GOOD)
        await running.wait()
        inflight = made.service.serving.inflight
        before = inflight.bytes
        for _ in range(10):
            line.send(GOOD + b" " * 3000)
        await until(lambda: inflight.bytes - before >= 10 * 3000)
        release.set()
        if answered:
            assert [(await line.answer())[0] for _ in range(11)] == [200] * 11
        else:
            line.writer.transport.abort()
        await until(lambda: inflight.bytes == 0)


async def test_an_answer_larger_than_the_bound_is_refused_before_it_is_made() -> None:
    rules = manifest(task="per-step", features=1, max_length=65_536)
    values, lengths = np.zeros((64, 16_384, 1), "<f4"), np.array([16_384] + [1] * 63, "<i4")
    ran: list[PaddedBatch] = []
    async with serving(model(rules, ran.append), max_inflight_bytes=64 * MEBIBYTE) as service:
        answer = await _v2_binary(service, values, lengths)
        assert (answer.status_code, ran) == (413, [])
        assert "its answer included" in answer.json()["error"]
        assert idle(await service.figures())


# gRPC


async def nothing_held(service: Service) -> None:
    """Returns once all is given back: a caller may have its answer before the server knows."""
    await until(lambda: service.serving.inflight.bytes == 0)
    assert idle(await service.figures())


def slow_call(caller: Caller) -> Any:
    """A call whose message comes later."""
    return caller.channel.stream_unary(f"/{SERVICE}/ModelInfer")()


async def test_over_grpc_a_call_without_room_is_unavailable_and_counted(caller: Caller) -> None:
    inflight = caller.service.serving.inflight
    inflight.bytes += inflight.max_bytes
    error = await caller.refused("ModelInfer", message())
    assert error.code() is grpc.StatusCode.UNAVAILABLE
    assert ("grpc-retry-pushback-ms", "1000") in tuple(error.trailing_metadata())
    figures = await caller.service.figures()
    assert figures['lengthwise_rejected_total{model="",reason="inflight_full",version=""}'] == 1
    inflight.bytes -= inflight.max_bytes
    await caller.call("ModelInfer", message())
    await nothing_held(caller.service)


async def test_over_grpc_slow_messages_make_way_for_those_that_are_there(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(receiving, "PATIENCE_SECONDS", 0.2)
    async with listening(model(manifest()), max_inflight_bytes=128 * MEBIBYTE) as caller:
        inflight, places = caller.service.serving.inflight, 128 // receiving.SHARE // 32
        slow = [slow_call(caller) for _ in range(3 * places)]
        await until(lambda: inflight.bytes == places * 32 * MEBIBYTE)
        async with asyncio.timeout(180):
            await caller.call("ModelInfer", message())
        codes = {await one.code() for one in slow[:places]}
        assert codes == {grpc.StatusCode.DEADLINE_EXCEEDED}
        for one in slow:
            one.cancel()
        await nothing_held(caller.service)


async def test_over_grpc_a_message_that_waits_to_be_inflated_is_not_slow(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(receiving, "PATIENCE_SECONDS", 0.2)
    turns, room = Turns(1), 64 * MEBIBYTE  # for one message at once
    async with serving(model(manifest(max_length=500)), max_inflight_bytes=room) as service:
        async with calling(service, turns) as caller:
            async with turns.turn("a body of HTTP", 1, math.inf):
                values, ends = np.ones((100, 500, 2), "<f4"), np.full(100, 500, "<i4")
                large = message(values=values, ends=ends)
                here = asyncio.ensure_future(caller.call("ModelInfer", large, compression=grpc.Compression.Gzip))
                await until(lambda: turns.waiting)
                waiting = asyncio.ensure_future(caller.call("ModelInfer", message()))
                await asyncio.wait([here, waiting], timeout=1)
            assert len((await here).outputs) == len((await waiting).outputs)
        await nothing_held(service)


async def test_over_grpc_a_message_that_nobody_waits_behind_may_come_slowly_or_never(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(receiving, "PATIENCE_SECONDS", 0.0)
    async with listening(model(manifest())) as caller:
        slow = slow_call(caller)
        await until(lambda: caller.service.serving.inflight.bytes > 0)
        await asyncio.sleep(0.05)
        await slow.write(message().SerializeToString())
        await slow.done_writing()
        await slow
        await nothing_held(caller.service)
        empty = slow_call(caller)
        await empty.done_writing()
        assert await empty.code() is grpc.StatusCode.INVALID_ARGUMENT
        await nothing_held(caller.service)


async def test_over_grpc_there_are_no_more_calls_at_once_than_are_bound(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(grpc_server, "MAX_CALLS", 2)
    async with listening(model(manifest())) as caller:
        slow = [slow_call(caller) for _ in range(2)]
        await until(lambda: caller.service.serving.inflight.bytes > 32 * MEBIBYTE)
        assert (await caller.refused("ModelInfer", message())).code() is grpc.StatusCode.RESOURCE_EXHAUSTED
        for one in slow:
            one.cancel()
        await nothing_held(caller.service)


async def test_over_grpc_there_are_no_more_connections_than_are_bound() -> None:
    async with serving(model(manifest()), max_connections=2) as service, AsyncExitStack() as stack:
        server = GrpcServer(service.serving, Turns())
        port = await server.start("127.0.0.1", 0)
        own = [("grpc.use_local_subchannel_pool", 1)]
        channels = [
            await stack.enter_async_context(grpc.aio.insecure_channel(f"127.0.0.1:{port}", options=own))
            for _ in range(4)
        ]
        asked = [Caller(service, one).call("ModelInfer", message(), timeout=3) for one in channels]
        codes = [await one.code() for one in asked]
        assert codes.count(grpc.StatusCode.OK) == 2
        await server.stop()


@pytest.mark.parametrize("method", ["ServerMetadata", "RepositoryIndex"])
async def test_over_grpc_other_calls_are_received_when_there_is_room_too(caller: Caller, method: str) -> None:
    await caller.call(method)
    inflight = caller.service.serving.inflight
    inflight.bytes += inflight.max_bytes
    for body in (b"", bytes(8 * MEBIBYTE)):
        assert (await caller.refused(method, body)).code() is grpc.StatusCode.UNAVAILABLE
    inflight.bytes -= inflight.max_bytes
    assert (await caller.refused(method, bytes(8 * MEBIBYTE))).code() is grpc.StatusCode.INVALID_ARGUMENT
    assert inflight.bytes == 0


@pytest.mark.parametrize("method", [f"{SERVICE}/ServerLive", f"{SERVICE}/ServerReady", "grpc.health.v1.Health/Check"])
async def test_over_grpc_probes_are_answered_whatever_is_held(caller: Caller, method: str) -> None:
    call, inflight = caller.channel.unary_unary(f"/{method}"), caller.service.serving.inflight
    inflight.bytes += inflight.max_bytes
    silent = [caller.channel.stream_unary(f"/{method}")() for _ in range(20)]
    assert await call(b"") == b"\x08\x01"
    assert {await one for one in silent} == {b"\x08\x01"}  # they hold nothing for longer than a moment
    large = call(bytes(8 * MEBIBYTE))
    with suppress(grpc.aio.AioRpcError):
        assert await large == b"\x08\x01"  # it does not wait for all of the message
    assert await large.code() in (grpc.StatusCode.INVALID_ARGUMENT, grpc.StatusCode.OK)
    inflight.bytes -= inflight.max_bytes


async def test_over_grpc_few_streams_of_requests_are_open_at_once(caller: Caller) -> None:
    call = caller.channel.stream_stream("/grpc.reflection.v1alpha.ServerReflection/ServerReflectionInfo")
    listing = reflection_pb2.ServerReflectionRequest(list_services="").SerializeToString()
    streams = [call() for _ in range(grpc_calls.MAX_STREAMS)]
    for stream in streams:
        await stream.write(listing)
        assert await stream.read()
    assert await call().code() is grpc.StatusCode.UNAVAILABLE
    for stream in streams:
        stream.cancel()


async def test_a_call_that_leaves_before_it_waits_takes_no_slot(service: Service) -> None:
    inflight = service.serving.inflight
    receive = receiving.Receiving(inflight, 100, lambda _: None, slots=1)
    first = receiving.IncomingMessage(receive, "first", Hold(inflight), time.monotonic() + 30, bool, bool)
    ended: list[Callable[[], None]] = []
    never = {"time_remaining": lambda: None, "is_late": lambda: False, "receive": bool}
    rpc: Any = SimpleNamespace(metadata=(), peer="ipv4:1.1.1.1:1", client="1.1.1.1:1", on_end=ended.append, **never)
    infer.answer(ModelInfer(service.serving, Turns(), INFER), receive, rpc)
    rpc.on_cancel()
    for end in ended:
        end()
    first.enter(receiving.ARRIVED)
    await asyncio.sleep(0.01)
    assert inflight.bytes == 200  # of the first, which holds it still
    assert receive.free


# Chaos


BODIES = [
    *(GOOD, PADDED, b"{", b"[" * 5000, orjson.dumps({"sequences": [[[1, 3]] * 9] * 5})),
    orjson.dumps({"sequences": [[[NOT_FINITE, 1]]]}),
    orjson.dumps({"sequences": [[[1, 3]]], "timeout_ms": 0.001}),
    orjson.dumps({"sequences": [[[1, 3]]], "timeout_ms": 2}),
    orjson.dumps({"sequences": [{"steps": [[1, 3]] * 300, "step_mask": [True] * 299 + [False]}]}),
    orjson.dumps({"sequences": [[["a"]] * 3000]}),
]
SMALL = {"max_body_bytes": MEBIBYTE, "max_inflight_bytes": 4 * MEBIBYTE, "max_queue_cost_steps": 20_000}


@pytest.mark.parametrize("seed", range(2))
async def test_after_chaos_over_every_protocol_within_small_bounds_nothing_is_held(seed: int) -> None:
    draw = random.Random(seed)

    def run(_: PaddedBatch) -> None:
        if draw.random() < 0.05:
            raise RuntimeError("chaos")

    async with listening(model(manifest(), run), runners=2, **SMALL) as caller, net(caller.service) as made:
        service = caller.service

        async def past_asgi() -> None:
            line: Line = await made.line()
            for _ in range(draw.randrange(1, 4)):
                body = draw.choice(BODIES)
                if draw.random() < 0.3:
                    line.send(gzip.compress(body), "content-encoding: gzip")
                else:
                    line.send(body)
            try:
                if draw.random() < 0.1:
                    line.writer.write(HEAD_OF_5000 + b" " * 4000)
                    await asyncio.sleep(0.01)  # leaves within a body
                else:
                    await line.answer()
            finally:
                line.writer.transport.abort()

        async def by_asgi() -> None:
            await draw.choice(list(PROTOCOLS.values()))(service)

        async def by_grpc() -> None:
            values = np.ones((2, draw.choice([2, 9000]), 2), dtype="<f4")
            await caller.call("ModelInfer", message(values=values), timeout=draw.choice([None, 0.001, 5]))

        async def one() -> None:
            asked = asyncio.ensure_future(draw.choice([past_asgi, by_asgi, by_grpc])())
            if draw.random() < 0.3:  # leaves, at some moment
                await asyncio.sleep(draw.random() * 0.01)
                asked.cancel()
            with suppress(grpc.aio.AioRpcError, asyncio.IncompleteReadError, ConnectionError, asyncio.CancelledError):
                await asked

        for _ in range(6):
            async with asyncio.timeout(180):
                await asyncio.gather(*[one() for _ in range(40)])
        await until(lambda: not service.serving.batcher.unanswered and not made.state.tasks)
        await nothing_held(service)
        assert (await service.predict(GOOD)).status_code in (200, 500)


async def test_after_a_drain_that_ends_early_nothing_is_held() -> None:
    async with held(drain_seconds=0.1) as (made, release, running):
        lines = [await made.line() for _ in range(5)]
        for line in lines:
            line.send(GOOD)
        await running.wait()
        stopping = asyncio.ensure_future(made.service.serving.stop())
        statuses = {(await line.answer())[0] for line in lines}
        release.set()
        await stopping
        assert statuses == {503}
        assert made.service.serving.inflight.bytes == 0
