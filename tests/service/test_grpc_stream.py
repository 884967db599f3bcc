"""`ModelStreamInfer`: many requests on one stream, answered as they are done, and bounded as everything else is."""

from __future__ import annotations

import asyncio
import gzip
import threading
import time
import zlib
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager, suppress
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import grpc
import grpc.aio
import numpy as np
import pytest
import trustme
from grpc_health.v1 import health_pb2, health_pb2_grpc

from lengthwise.connections import listener
from lengthwise.grpc import open_inference_pb2 as pb
from lengthwise.grpc import stream as streams
from lengthwise.grpc import transport
from lengthwise.grpc.infer import SERVICE, STREAM
from lengthwise.grpc.receiving import ARRIVED, LEFT, IncomingMessage, MessageState, Receiving
from lengthwise.grpc.server import GrpcServer
from lengthwise.grpc.transport import RpcCall
from lengthwise.protocols.turns import Turns
from tests.support.grpc_calls import Caller, listening, request
from tests.support.numpy_models import held_batch, manifest, model, serving
from tests.support.used_metrics import page_of
from tests.support.waiting import until

Code = grpc.StatusCode


def stream(caller: Caller, requests: Any = None, **options: Any) -> Any:
    method = caller.channel.stream_stream(
        f"/{STREAM}",
        request_serializer=lambda given: given if isinstance(given, bytes) else given.SerializeToString(),
        response_deserializer=pb.ModelStreamInferResponse.FromString,
    )
    return method(requests, **options)


async def answers(call: Any, count: int) -> list[pb.ModelStreamInferResponse]:
    return [await asyncio.wait_for(call.read(), 30) for _ in range(count)]


async def ask(call: Any, **fields: Any) -> pb.ModelStreamInferResponse:
    """The next answer of a stream, to a request that is sent now."""
    await call.write(request(**fields))
    return (await answers(call, 1))[0]


async def test_many_requests_of_one_stream_are_answered_as_single_calls_are(caller: Caller) -> None:
    many = [request(id=str(number), values=np.full((2, 2, 2), number, "<f4")) for number in range(150)]
    found = {one.infer_response.id: one async for one in stream(caller, iter(many))}
    assert len(found) == 150
    for one in (many[0], many[149]):
        alone = await caller.call("ModelInfer", one)
        assert found[one.id].infer_response == alone
        assert found[one.id].error_message == ""
    figures = await caller.service.figures()
    assert figures['lengthwise_requests_total{code="200",key="-",model="sums",version="1"}'] == 152
    await until(lambda: caller.service.serving.inflight.bytes == 0)


PINGING = (  # what many proxies and clients in Go set: a ping after ten seconds of silence, also without a call
    ("grpc.keepalive_time_ms", 10_000),
    ("grpc.keepalive_permit_without_calls", 1),
    ("grpc.http2.max_pings_without_data", 0),
    ("grpc.use_local_subchannel_pool", 1),  # a connection of its own for each channel
)


@pytest.mark.long
@pytest.mark.parametrize("secured", [False, True])
async def test_clients_that_ping_every_ten_seconds_keep_their_streams(tmp_path: Path, secured: bool) -> None:
    authority, certificate = trustme.CA(), tmp_path / "server.pem"
    authority.issue_cert("localhost").private_key_and_cert_chain_pem.write_to_path(str(certificate))
    files = {"tls_cert_file": certificate} if secured else {}
    async with serving(model(manifest()), **files) as service, AsyncExitStack() as stack:
        server = GrpcServer(service.serving, Turns())
        address = f"localhost:{await server.start('127.0.0.1', 0)}"
        stack.push_async_callback(server.stop)
        credentials = grpc.ssl_channel_credentials(authority.cert_pem.bytes())
        infers, watches, without_calls = [
            await stack.enter_async_context(
                grpc.aio.secure_channel(address, credentials, options=PINGING)
                if secured
                else grpc.aio.insecure_channel(address, options=PINGING)
            )
            for _ in range(3)
        ]
        call = stream(Caller(service, infers))
        await ask(call, id="before")
        watch = health_pb2_grpc.HealthStub(watches).Watch(health_pb2.HealthCheckRequest())
        await watch.read()
        await Caller(service, without_calls).call("ServerLive")
        # A connection that is refused for its pings makes its channel leave the state.
        leaving = [
            asyncio.ensure_future(channel.wait_for_state_change(grpc.ChannelConnectivity.READY))
            for channel in (infers, watches, without_calls)
        ]
        assert not (await asyncio.wait(leaving, timeout=45, return_when=asyncio.FIRST_COMPLETED))[0]
        assert (await ask(call, id="after")).infer_response.id == "after"
        service.serving.batcher.begin_draining()
        await server.report_health()
        assert (await watch.read()).status == health_pb2.HealthCheckResponse.NOT_SERVING


@pytest.mark.parametrize(
    ("wrong", "identifier"),
    [
        (request(id="w", model_name="none"), "w"),
        (request(id="w", ends=np.array([9, 9], "<i4")), "w"),
        (request(id="w", raw=False, model_version="7"), "w"),
        (b"\xff\xff\xff", ""),
        (b"", ""),
    ],
)
async def test_a_wrong_request_is_an_error_of_its_own_and_not_of_the_stream(wrong: Any, identifier: str) -> None:
    async with listening(model(manifest()), model(manifest(name="other"))) as caller:
        call = stream(caller)
        await call.write(wrong)
        await call.write(request(id="good"))
        found = {one.infer_response.id: one.error_message for one in await answers(call, 2)}
        assert found["good"] == ""
        assert found[identifier] != ""
        await call.done_writing()
        assert await call.read() is grpc.aio.EOF
        assert await call.code() is Code.OK


async def test_an_answer_does_not_wait_for_an_earlier_request() -> None:
    release, running, wait = held_batch()
    async with listening(model(manifest(), wait)) as caller:
        call = stream(caller)
        await call.write(request(id="slow"))
        await running.wait()
        await call.write(request(id="wrong", model_name="none"))
        (first,) = await answers(call, 1)
        release.set()
        (second,) = await answers(call, 1)
        assert [one.infer_response.id for one in (first, second)] == ["wrong", "slow"]
        assert first.error_message
        assert not second.error_message


async def test_a_stream_is_not_read_while_enough_of_it_is_unanswered(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(streams, "IN_FLIGHT", 3)
    release, running, wait = held_batch()
    async with listening(model(manifest(), wait)) as caller:
        call = stream(caller, iter([request(id=str(number)) for number in range(10)]))
        await running.wait()
        name = 'lengthwise_sequence_length_steps_count{model="sums",version="1"}'
        async with asyncio.timeout(30):
            while (await caller.service.figures())[name] < 3 * 2:  # two rows a request
                await asyncio.sleep(0.02)
        await caller.service.figures()
        assert (await caller.service.figures())[name] == 3 * 2
        release.set()
        assert len(await answers(call, 10)) == 10


@pytest.mark.parametrize(("end", "code"), [("cancel", 499), ("deadline", 504)])
async def test_a_stream_that_ends_early_lets_go_of_all_of_its_requests(
    end: str, code: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    # As if the call had taken 50 ms to arrive: the client leaves before the deadline passes here.
    monkeypatch.setattr(transport, "time", SimpleNamespace(**vars(time) | {"time": lambda: time.time() - 0.05}))
    release, running, wait = held_batch()
    async with listening(model(manifest(), wait)) as caller:
        call = stream(caller, **({"timeout": 2.0} if end == "deadline" else {}))
        for number in range(4):
            await call.write(request(id=str(number)))
        await running.wait()
        name = f'lengthwise_requests_total{{code="{code}",key="-",model="sums",version="1"}}'
        if end == "cancel":  # what has not arrived by then never does
            await until(lambda: caller.service.serving.batcher.unanswered == 4)
            call.cancel()
        async with asyncio.timeout(30):
            while (await caller.service.figures()).get(name, 0) < 4:
                await asyncio.sleep(0.02)
        release.set()
        await until(lambda: caller.service.serving.inflight.bytes == 0)
        assert (await caller.call("ModelInfer", request())).model_name == "sums"


async def test_silent_streams_hold_neither_memory_nor_a_slot(caller: Caller) -> None:
    silent = [stream(caller) for _ in range(30)]
    for one in silent:
        await ask(one, id="a")
    await until(lambda: caller.service.serving.inflight.bytes == 0)
    assert (await caller.call("ModelInfer", request())).model_name == "sums"
    await asyncio.sleep(3 * streams.LOOK_SECONDS)
    assert caller.service.serving.inflight.bytes == 0
    for one in silent:  # and are there when they are needed
        assert (await ask(one, id="b")).infer_response.id == "b"
        one.cancel()


async def test_a_new_stream_ends_the_longest_idle_one_or_is_refused(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(streams, "MAX_STREAMS", 3)
    release, running, wait = held_batch()
    async with listening(model(manifest(), wait)) as caller:
        busy, oldest, other = (stream(caller) for _ in range(3))
        await busy.write(request())
        await running.wait()
        for one in (oldest, other):
            await ask(one, model_name="none")
        assert await stream(caller).code() is Code.UNAVAILABLE  # the others were used just now
        monkeypatch.setattr(listener, "LEAST_IDLE_SECONDS", 0.0)
        await ask(newest := stream(caller), model_name="none")
        assert await oldest.code() is Code.UNAVAILABLE
        assert "idle" in await oldest.details()
        release.set()
        assert not (await answers(busy, 1))[0].error_message
        assert (await ask(other, id="there")).infer_response.id == "there"
        monkeypatch.setattr(listener, "LEAST_IDLE_SECONDS", 60.0)
        newest.cancel()
        await until(lambda: caller.service.serving.openings.streams()["infer"] < 3)
        assert not (await ask(stream(caller))).error_message


@pytest.mark.sampled(3)
@pytest.mark.parametrize("compression", [None, grpc.Compression.Gzip, grpc.Compression.Deflate])
async def test_other_calls_of_its_connection_do_not_end_a_stream_that_is_idle(
    monkeypatch: pytest.MonkeyPatch, compression: grpc.Compression | None
) -> None:
    places: list[Any] = []
    monkeypatch.setattr(streams, "IncomingMessage", lambda *given: places.append(given) or IncomingMessage(*given))
    monkeypatch.setattr(streams, "WINDOW_BYTES", 20_000)
    monkeypatch.setattr(streams, "LOOK_SECONDS", 0.02)
    async with listening(model(manifest(max_length=500))) as caller:
        call = stream(caller)
        await ask(call, id="before")
        end = time.monotonic() + 30 * streams.LOOK_SECONDS
        while time.monotonic() < end:
            values = np.random.default_rng(1).random((20, 500, 2), "<f4")
            large_one = request(values=values, ends=np.full(20, 500, "<i4"))
            await caller.call("ModelInfer", large_one, compression=compression)
            await caller.call("ModelInfer", request())
        assert not places, "a place is taken for a large message of the stream"
        assert (await ask(call, id="after")).infer_response.id == "after"


@asynccontextmanager
async def inflating(
    monkeypatch: pytest.MonkeyPatch, count: int
) -> AsyncIterator[tuple[Caller, list[Any], threading.Event]]:
    """So many streams, each of which has sent a large compressed message; the threads inflate none until the end."""
    release, begun = threading.Event(), 0

    class Held:
        def __init__(self, bits: int) -> None:
            self._inflater = zlib.decompressobj(bits)

        def __getattr__(self, name: str) -> Any:
            return getattr(self._inflater, name)

        def decompress(self, *given: Any) -> bytes:
            nonlocal begun
            if threading.current_thread() is not threading.main_thread():
                begun += 1
                release.wait(180)
            return self._inflater.decompress(*given)

    held = SimpleNamespace(MAX_WBITS=zlib.MAX_WBITS, error=zlib.error, decompressobj=Held)
    async with listening(model(manifest(max_length=500))) as caller:
        monkeypatch.setattr(transport, "zlib", held)
        calls = []
        for number in range(count):
            calls.append(stream(caller, compression=grpc.Compression.Gzip))
            await calls[-1].write(large(100, id=str(number)))
        await until(lambda: begun == 2)
        try:
            yield caller, calls, release
        finally:
            release.set()


@pytest.mark.parametrize("compression", [grpc.Compression.Gzip, grpc.Compression.Deflate])
async def test_small_compressed_messages_wait_for_no_large_ones(
    monkeypatch: pytest.MonkeyPatch, compression: grpc.Compression
) -> None:
    async with inflating(monkeypatch, 6) as (caller, calls, _):
        small = request(values=np.ones((2, 400, 2), "<f4"), ends=np.full(2, 400, "<i4"))
        for _ in range(3):
            await caller.call("ModelInfer", small, compression=compression, timeout=60)
        assert not any(call.done() for call in calls)


async def test_a_stream_whose_message_waits_to_be_inflated_ends_with_its_client(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    async with inflating(monkeypatch, 6) as (caller, calls, _):
        streams_open = caller.service.serving.openings.streams
        await until(lambda: streams_open()["infer"] == 6)  # a message that is sent is not yet one that has arrived
        for call in calls:
            call.cancel()
        await until(lambda: streams_open()["infer"] == 2)  # those whose messages threads have


async def test_large_compressed_messages_are_answered_when_it_is_their_turn(monkeypatch: pytest.MonkeyPatch) -> None:
    async with inflating(monkeypatch, 6) as (_, calls, release):
        release.set()
        assert {(await answers(call, 1))[0].infer_response.id for call in calls} == set("012345")


def large(rows: int, **fields: Any) -> pb.ModelInferRequest:
    return request(values=np.ones((rows, 500, 2), "<f4"), ends=np.full(rows, 500, "<i4"), **fields)


async def test_a_large_message_is_received_as_a_small_one() -> None:
    async with listening(model(manifest(max_length=500))) as caller:
        call = stream(caller)
        await call.write(large(1000, id="large"))
        await call.write(request(id="small"))
        found = {one.infer_response.id: one.error_message for one in await answers(call, 2)}
        assert found == {"large": "", "small": ""}
        await until(lambda: caller.service.serving.inflight.bytes == 0)


async def test_without_memory_a_request_is_refused_and_the_stream_goes_on() -> None:
    async with listening(model(manifest(max_length=500))) as caller:
        inflight = caller.service.serving.inflight
        call = stream(caller)
        await ask(call, id="before")
        await until(lambda: inflight.bytes == 0)
        inflight.bytes += inflight.max_bytes
        refused = await ask(call, id="full")
        assert (refused.infer_response.id, bool(refused.error_message)) == ("full", True)
        inflight.bytes -= inflight.max_bytes
        assert not (await ask(call, id="after")).error_message


async def test_a_message_that_arrives_without_end_needs_memory_or_ends_its_stream(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(streams, "WINDOW_BYTES", -1)  # as if more than a window had come
    monkeypatch.setattr(streams, "LOOK_SECONDS", 0.01)
    async with listening(model(manifest())) as caller:
        call = stream(caller)
        await ask(call, id="a")
        inflight = caller.service.serving.inflight
        await until(lambda: inflight.bytes > 0)  # it has a place, with memory reserved
        assert (await ask(call, id="b")).infer_response.id == "b"
        inflight.bytes += inflight.max_bytes
        assert await call.code() is Code.UNAVAILABLE
        inflight.bytes -= inflight.max_bytes
        await until(lambda: inflight.bytes == 0)


async def test_a_stream_without_a_key_is_refused_and_counted(tmp_path: Path) -> None:
    keys = tmp_path / "keys"
    keys.write_text("team-a: good-key-of-sixteen\n")
    async with listening(model(manifest()), api_keys_file=keys) as caller:
        bad = stream(caller)
        assert await bad.code() is Code.UNAUTHENTICATED
        good = stream(caller, metadata=(("authorization", "Bearer good-key-of-sixteen"),))
        assert not (await ask(good, id="a")).error_message
        headers = {"authorization": "Bearer good-key-of-sixteen"}
        figures = (await caller.service.client.get("/metrics", headers=headers)).text
        assert 'lengthwise_requests_total{code="401",key="-",model="",version=""} 1.0' in figures
        named = 'lengthwise_requests_total{code="200",key="team-a",model="sums",version="1"} 1.0'
        await until(lambda: named in page_of(caller.service.serving.metrics).decode())


async def test_at_the_end_of_the_server_what_was_asked_is_answered_and_the_stream_is_told() -> None:
    release, running, wait = held_batch()
    async with serving(model(manifest(), wait)) as service:
        server = GrpcServer(service.serving, Turns())
        port = await server.start("127.0.0.1", 0)
        async with grpc.aio.insecure_channel(f"127.0.0.1:{port}") as channel:
            call, idle = (stream(Caller(service, channel)) for _ in range(2))
            await call.write(request(id="a"))
            await ask(idle, id="b", model_name="none")
            await running.wait()
            stopping = asyncio.ensure_future(server.stop())
            assert await idle.code() is Code.UNAVAILABLE
            release.set()
            assert (await answers(call, 1))[0].infer_response.id == "a"
            assert await call.code() is Code.UNAVAILABLE
            await stopping


def test_a_call_whose_status_nobody_takes_is_watched_past_its_last_answer() -> None:
    begun: list[Any] = []  # what gRPC was asked for, and is told here to be done
    core = SimpleNamespace(peer=lambda: b"ipv4:127.0.0.1:1", start_server_batch=lambda _, done: begun.append(done))
    details = SimpleNamespace(method=b"/a", deadline=float("inf"))
    unread: dict[RpcCall, float] = {}
    event = SimpleNamespace(call=core, call_details=details, invocation_metadata=())
    rpc = RpcCall(event, unread, Turns(), 1)
    written: list[bool] = []
    rpc.write(b"first", lambda: written.append(True))
    begun[1](None)
    assert (written, list(unread)) == ([True], [])
    rpc.write(b"last", lambda: written.append(True))
    rpc.finish()
    begun[2](None)
    assert (written, list(unread)) == ([True, True], [rpc])
    begun[3](None)
    begun[0](SimpleNamespace(batch_operations=[SimpleNamespace(cancelled=lambda: False)]))
    assert not unread


async def test_a_compressed_message_waits_by_the_bytes_it_has() -> None:
    sizes, read = list[int](), list[int]()

    class Noting(Turns):
        @asynccontextmanager
        async def turn(self, peer: object, size: int, *given: Any, **options: Any) -> AsyncIterator[Any]:
            sizes.append(size)
            async with super().turn(peer, size, *given, **options) as reading:
                yield reading
                read.append(reading.size)

    begun: list[Any] = []
    core = SimpleNamespace(peer=lambda: b"ipv4:127.0.0.1:1", start_server_batch=lambda _, done: begun.append(done))
    details = SimpleNamespace(method=b"/a", deadline=float("inf"))
    event = SimpleNamespace(call=core, call_details=details, invocation_metadata=())
    rpc, received = RpcCall(event, {}, Noting(), 2**24), list[bytes | None]()
    rpc.receive(received.append)
    message = bytes((i * i * 2_654_435_761 >> 16) & 255 for i in range(100_000)) + bytes(5_000_000)
    packed = gzip.compress(message)  # whose beginning is not made smaller
    begun[1](SimpleNamespace(batch_operations=[SimpleNamespace(message=lambda: packed)]))
    await until(lambda: received)
    assert received == [message]
    assert sizes[0] >= 10 * len(packed)
    assert sizes[-2] < len(message) <= sizes[-1]
    assert read == [0] * (len(sizes) - 1) + [len(message)]  # what is measured, and the connection is charged


async def test_a_call_that_closes_without_a_message_does_not_count_as_prompt(monkeypatch: pytest.MonkeyPatch) -> None:
    ended: list[MessageState] = []
    remove = Receiving.remove

    def spied(self: Receiving, message: IncomingMessage, before: MessageState) -> None:
        ended.append(message.state)
        remove(self, message, before)

    monkeypatch.setattr(Receiving, "remove", spied)
    async with listening(model(manifest())) as caller:
        silent = caller.channel.stream_unary(f"/{SERVICE}/RepositoryIndex")(iter(()))
        assert await silent.code() is Code.INVALID_ARGUMENT
        await caller.call("RepositoryIndex")
    assert ended == [LEFT, ARRIVED]


async def test_answers_that_nobody_takes_end_the_stream(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(transport, "PATIENCE_SECONDS", 0.2)
    async with listening(model(manifest(max_length=1000, task="per-step"))) as caller:
        call, values, ends = stream(caller), np.ones((32, 1000, 2), "<f4"), np.full(32, 1000, "<i4")
        began = time.monotonic()
        with suppress(grpc.aio.AioRpcError, asyncio.InvalidStateError):  # a busy machine ends it before the last
            for number in range(40):  # their answers are larger than what is sent ahead
                await call.write(request(id=str(number), values=values, ends=ends))
        await until(lambda: not caller.service.serving.openings.streams()["infer"])
        assert time.monotonic() - began >= transport.PATIENCE_SECONDS  # not ended for another reason
        await until(lambda: caller.service.serving.inflight.bytes == 0)
