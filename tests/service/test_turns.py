"""Whose turn it is to have a large body read, and how long a body waits for it."""

import asyncio
import gzip
import math
import random
import threading
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import httpx2
import pytest
from hypothesis import given
from hypothesis import strategies as st

from lengthwise.decoding import json_body
from lengthwise.errors import DeadlineExceeded
from lengthwise.protocols.body import ClientLeft
from lengthwise.protocols.call import InferenceCall, timeout_of
from lengthwise.protocols.endpoint import LARGE_BODY_BYTES, Received
from lengthwise.protocols.turns import BodyReading, Turns, believed_bytes
from tests.support.http_lines import net
from tests.support.numpy_models import Service, idle, manifest, model, serving
from tests.support.waiting import until

SEQUENCES = b'"sequences": [[[1, 3]]]' + b" " * LARGE_BODY_BYTES + b"}"
PLAIN = b"{" + SEQUENCES
PATIENT = b'{"timeout_ms": 60000, ' + SEQUENCES


async def order_of(bodies: list[tuple[str, int]]) -> list[int]:
    """In which order bodies, each of a connection and a size, are read that came while one was being read."""
    turns, order = Turns(slots=1), []

    async def read(index: int, peer: str, size: int) -> None:
        async with turns.turn(peer, size, math.inf):
            order.append(index)

    async with asyncio.TaskGroup() as group, turns.turn("first", 1, math.inf):
        for index, (peer, size) in enumerate(bodies):
            group.create_task(read(index, peer, size))
        while turns.waiting < len(bodies):
            await asyncio.sleep(0)
    assert turns.free == 1
    assert not turns.waiting
    return order


async def test_a_short_body_does_not_wait_behind_the_long_ones_of_others() -> None:
    long = [(f"caller {i}", 8_000_000) for i in range(12)]
    assert (await order_of([*long, ("honest", 88_000)]))[0] == 12


async def test_nor_does_one_that_comes_when_some_of_them_are_read() -> None:
    turns, order = Turns(slots=1), []

    async def read(peer: str, size: int) -> None:
        async with turns.turn(peer, size, math.inf):
            order.append(peer)
            if len(order) == 3:
                group.create_task(read("honest", 88_000))
            for _ in range(5):
                await asyncio.sleep(0)

    async with asyncio.TaskGroup() as group:
        for i in range(12):
            group.create_task(read(f"caller {i}", 8_000_000))
    assert order.index("honest") == 3


async def test_bodies_of_one_connection_wait_for_those_of_others() -> None:
    assert await order_of([("busy", 100), ("busy", 100), ("busy", 100), ("other", 150)]) == [0, 3, 1, 2]


@given(st.lists(st.tuples(st.sampled_from("abc"), st.integers(1, 1000)), max_size=20))
def test_every_body_has_its_turn_and_those_of_a_connection_in_their_order(bodies: list[tuple[str, int]]) -> None:
    order = asyncio.run(order_of(bodies))
    assert sorted(order) == list(range(len(bodies)))
    for peer in "abc":
        own = [index for index in order if bodies[index][0] == peer]
        assert own == sorted(own)


async def test_a_body_that_gives_up_frees_its_slot() -> None:
    turns = Turns(slots=1)
    taken = turns.turn("first", 1, math.inf)
    await taken.__aenter__()
    with pytest.raises(DeadlineExceeded):
        await turns.turn("late", 1, time.monotonic()).__aenter__()
    waiting = asyncio.ensure_future(turns.turn("left", 1, math.inf).__aenter__())
    while not turns.waiting:
        await asyncio.sleep(0)
    await taken.__aexit__(None, None, None)  # its turn has come, and it does not know yet
    waiting.cancel()
    with pytest.raises(asyncio.CancelledError):
        await waiting
    assert (turns.free, turns.waiting) == (1, 0)


@pytest.mark.parametrize("also_cancelled", [False, True])
async def test_a_body_whose_client_leaves_does_not_wait_for_its_turn(also_cancelled: bool) -> None:
    turns = Turns(slots=1)
    async with turns.turn("first", 1, math.inf):
        slot = asyncio.get_running_loop().create_future()
        waiting = asyncio.ensure_future(turns.turn("left", 1, math.inf, slot=slot).__aenter__())
        await until(lambda: turns.waiting)
        slot.cancel()
        if also_cancelled:
            waiting.cancel()
        with pytest.raises(asyncio.CancelledError if also_cancelled else ClientLeft):
            await waiting
        assert (turns.free, turns.waiting) == (0, 0)
    assert (turns.free, turns.waiting) == (1, 0)


async def test_a_slot_that_comes_free_beside_another_is_used() -> None:
    turns, inside = Turns(slots=2), list[str]()
    first, second = (turns.turn(peer, 1, math.inf) for peer in ("first", "second"))
    await first.__aenter__()
    await second.__aenter__()

    async def read(peer: str) -> None:
        async with turns.turn(peer, 1, math.inf):
            inside.append(peer)
            await end.wait()

    end = asyncio.Event()
    async with asyncio.TaskGroup() as group:
        group.create_task(read("third"))
        while not turns.waiting:
            await asyncio.sleep(0)
        await first.__aexit__(None, None, None)  # the slot of the third one, which does not know yet
        await second.__aexit__(None, None, None)
        assert (turns.free, turns.waiting) == (1, 1)
        await asyncio.wait_for(turns.turn("fourth", 1, math.inf).__aenter__(), 20)
        while not inside:
            await asyncio.sleep(0)
        end.set()


async def test_a_deadline_that_cannot_be_met_is_refused_at_once() -> None:
    turns = Turns(slots=1)
    async with turns.turn("first", 1000, math.inf):
        began = time.monotonic()
        while time.monotonic() < began + 0.02:
            await asyncio.sleep(0)
    async with turns.turn("first", 1, math.inf):
        waiting = [asyncio.ensure_future(_turn(turns, f"caller {i}", 10**9)) for i in range(3)]
        while turns.waiting < 3:
            await asyncio.sleep(0)
        assert turns.predicted_seconds() > 10_000
        with pytest.raises(DeadlineExceeded):
            await _turn(turns, "honest", 10**10, time.monotonic() + 3600, certain=True)
        waiting.append(asyncio.ensure_future(_turn(turns, "short", 10, time.monotonic() + 3600, certain=True)))
        while turns.waiting < 4:
            await asyncio.sleep(0)
    await asyncio.gather(*waiting)


async def _turn(turns: Turns, peer: str, size: int, deadline: float = math.inf, **options: Any) -> None:
    async with turns.turn(peer, size, deadline, **options):
        pass


async def test_the_speed_of_one_kind_of_work_is_not_predicted_for_another() -> None:
    turns = Turns(slots=1)
    turns.rates["JSON"] = (1e6, 100.0)  # as measured
    for _ in range(30):
        async with turns.turn("fast", 10**6, math.inf, work="messages"):
            pass
    async with turns.turn("first", 1, math.inf, work="messages"):
        waiting = asyncio.ensure_future(_turn(turns, "slow", 10**6, work="JSON"))
        await until(lambda: turns.waiting)
        assert turns.predicted_seconds() == pytest.approx(100, rel=0.1)
    await waiting


async def test_the_time_of_a_body_is_measured_for_its_protocol(service: Service) -> None:
    turns = service.app.predict.large_bodies
    for path, field in (("/predict", "sequences"), ("/v1/models/sums:predict", "instances")):
        body = b'{"%s": [[[1, 3]]]' % field.encode() + b" " * LARGE_BODY_BYTES + b"}"
        assert (await service.client.post(path, content=body)).status_code == 200
    assert [*turns.rates] == [endpoint.name for endpoint in service.app.inference[:2]]
    assert all(size > LARGE_BODY_BYTES and seconds > 0 for size, seconds in turns.rates.values())


@asynccontextmanager
async def reading(monkeypatch: pytest.MonkeyPatch, **options: Any) -> AsyncIterator[tuple[Service, threading.Event]]:
    """A service whose places for large bodies are all taken, until the event is set."""
    decode, release, begun = json_body.decode, threading.Event(), asyncio.Event()
    loop = asyncio.get_running_loop()

    def slow(*given: Any, **options: Any) -> Any:
        loop.call_soon_threadsafe(begun.set)
        release.wait(60)
        return decode(*given, **options)

    monkeypatch.setattr(json_body, "decode", slow)
    async with serving(model(manifest()), **options) as service:
        turns = service.app.predict.large_bodies
        first = [asyncio.ensure_future(service.predict(PATIENT)) for _ in range(turns.free)]
        try:
            while turns.free:
                await begun.wait()
                await asyncio.sleep(0)
            yield service, release
        finally:
            release.set()
        assert {answer.status_code for answer in await asyncio.gather(*first)} == {200}
        assert idle(await service.figures())


@pytest.mark.parametrize("packed", [False, True])
async def test_the_default_does_not_end_a_body_that_names_its_own_timeout(
    monkeypatch: pytest.MonkeyPatch, packed: bool
) -> None:
    encoding = {"content_encoding": "gzip"} if packed else {}
    body = gzip.compress(PATIENT + b" " * (4 * LARGE_BODY_BYTES)) if packed else PATIENT
    async with reading(monkeypatch, default_timeout_ms=50) as (service, release):
        waiting = [asyncio.ensure_future(service.predict(body, **encoding)) for _ in range(8)]
        turns = service.app.predict.large_bodies
        while turns.waiting < 8:
            await asyncio.sleep(0.001)
        assert (await service.predict(PLAIN)).status_code == 504  # this one names none
        release.set()
        assert {answer.status_code for answer in await asyncio.gather(*waiting)} == {200}


@pytest.mark.sampled(3)
@pytest.mark.parametrize(("direct", "packed"), [(True, False), (False, False), (False, True)])
async def test_a_body_whose_client_left_is_freed_while_others_are_read(
    monkeypatch: pytest.MonkeyPatch, direct: bool, packed: bool
) -> None:
    body = b'{"timeout_ms": 86400000, ' + SEQUENCES  # so long that no look at the deadline ends the wait
    headers = []
    if packed:
        body, headers = gzip.compress(body + b" " * (4 * LARGE_BODY_BYTES)), ["content-encoding: gzip"]
    async with reading(monkeypatch) as (service, _), net(service, direct=direct) as made:
        turns, inflight = service.app.predict.large_bodies, service.serving.inflight
        before = inflight.bytes
        line = await made.line()
        line.send(body, *headers)
        await until(lambda: turns.waiting)
        line.writer.transport.abort()
        await until(lambda: not turns.waiting)
        await until(lambda: inflight.bytes == before)


LONG = PATIENT + b" " * (16 * LARGE_BODY_BYTES)
LIES = {
    "the last member is small": gzip.compress(LONG) + gzip.compress(b" "),
    "every member is small": b"".join(gzip.compress(LONG[i : i + 20_000]) for i in range(0, len(LONG), 20_000)),
    "the trailer is false": gzip.compress(LONG)[:-4] + b"\1\0\0\0",
}


@pytest.mark.long
@pytest.mark.sampled(3)
@pytest.mark.parametrize("lie", LIES)
async def test_a_compressed_body_waits_by_the_bytes_it_has(monkeypatch: pytest.MonkeyPatch, lie: str) -> None:
    decoded = list[int]()  # sizes of bodies, in the order in which they were decoded
    async with reading(monkeypatch) as (service, release), net(service) as made:
        turns, slow = service.app.predict.large_bodies, json_body.decode

        def noting(body: bytes, *given: Any, **options: Any) -> Any:
            decoded.append(len(body))
            return slow(body, *given, **options)

        monkeypatch.setattr(json_body, "decode", noting)
        lines = [await made.line() for _ in range(7)]
        for waiting, line in enumerate(lines[:6], start=1):
            line.send(LIES[lie], "content-encoding: gzip")
            await until(lambda waiting=waiting: turns.waiting == waiting)
        honest = PLAIN + b" " * LARGE_BODY_BYTES
        lines[6].send(honest)
        await until(lambda: turns.waiting == 7)
        release.set()
        statuses = [(await line.answer())[0] for line in lines]
    assert statuses == [422 if "false" in lie else 200] * 6 + [200]
    assert decoded[0] == len(honest)
    assert decoded[1:] == ([] if "false" in lie else [len(LONG) + (lie == "the last member is small")] * 6)


async def test_a_connection_is_charged_the_bytes_that_its_body_had() -> None:
    turns, order = Turns(slots=1), list[str]()

    async def read(peer: str, size: int) -> None:
        async with turns.turn(peer, size, math.inf) as reading:
            reading.size = 100
            order.append(peer)
            for _ in range(5):
                await asyncio.sleep(0)
        if order == ["small"]:
            group.create_task(read("small", 1_000))

    async with asyncio.TaskGroup() as group:
        for peer in ("small", *(f"caller {i}" for i in range(12))):
            group.create_task(read(peer, 10_000))
    assert order[:3] == ["small", "caller 0", "small"]


@pytest.mark.long
async def test_a_packed_body_is_not_refused_for_the_size_it_waits_with(monkeypatch: pytest.MonkeyPatch) -> None:
    spaces = bytes(random.Random(1).choices(b" \t\n\r", k=600_000))  # a quarter as large when they are packed
    packed = gzip.compress(b'{"timeout_ms": 120000, "sequences": [[[1, 3]]]' + spaces + b"}")
    async with reading(monkeypatch) as (service, release):
        turns = service.app.predict.large_bodies
        turns.rates["POST /predict"] = (1e6, 100.0)  # as measured
        assert len(spaces) * 1e-4 < 120 < 10 * len(packed) * 1e-4
        waiting = asyncio.ensure_future(service.predict(packed, content_encoding="gzip"))
        await until(lambda: turns.waiting or waiting.done())
        assert turns.predicted_seconds() < 60
        release.set()
        assert (await waiting).status_code == 200


@pytest.mark.parametrize("failing", ["packed", "plain"])
async def test_bodies_that_fail_in_a_slot_do_not_make_the_prediction_short(
    monkeypatch: pytest.MonkeyPatch, failing: str
) -> None:
    encoding = {"content_encoding": "gzip"} if failing == "packed" else {}
    body = LIES["the trailer is false"] if failing == "packed" else b"?" + PLAIN
    charged = list[int]()

    class Noting(Turns):
        @asynccontextmanager
        async def turn(self, *given: Any, **options: Any) -> AsyncIterator[BodyReading]:
            async with super().turn(*given, **options) as reading:
                try:
                    yield reading
                finally:
                    charged.append(reading.size)

    async with serving(model(manifest())) as service:
        service.app.predict.large_bodies = turns = Noting()
        turns.rates["POST /predict"] = (1e6, 100.0)  # as measured
        for _ in range(10):
            assert (await service.predict(body, **encoding)).status_code == 422
        size, seconds = turns.rates["POST /predict"]
        assert 1_000_000 * seconds / size == pytest.approx(100)
    inflated = len(LONG) if failing == "packed" else len(body)
    assert [*filter(None, charged)] == pytest.approx([inflated] * 10, rel=0.02)


@pytest.mark.parametrize(
    ("packed", "said", "most", "sizes"),
    [
        (1_000, 7, 10**6, [10_000, 100_000, 10**6]),
        (1_000, 300_000, 10**6, [300_000, 10**6]),
        (200_000, 2**32 - 1, 10**6, [10**6]),
    ],
)
def test_the_believed_size_is_ten_times_the_packed_one_at_least_and_grows(
    packed: int, said: int, most: int, sizes: list[int]
) -> None:
    believed = [believed_bytes(packed, most, said)]
    while believed[-1] < most:
        believed.append(believed_bytes(believed[-1], most))
    assert believed == sizes


async def test_many_small_bodies_are_not_decoded_in_one_turn_of_the_event_loop(service: Service) -> None:
    def at_once(count: int) -> bool:
        body = b'{"sequences": [%s]}' % b",".join([b"[[1, 3]]"] * count)
        call = InferenceCall(service.app.predict, {})
        decoded = call.decode_at_once(Received({}, {}, body))
        call.close(200)
        return decoded is not None

    await asyncio.sleep(0)
    assert [at_once(1) for _ in range(600)] == [True] * 600
    assert [at_once(1000) for _ in range(3)] == [True, False, False]
    await asyncio.sleep(0)
    assert [at_once(100) for _ in range(8)] == [True] * 6 + [False] * 2


async def test_bodies_of_many_sequences_that_come_together_are_all_answered(service: Service) -> None:
    body = {"sequences": [[[1, 3]]] * 600}
    answers = await asyncio.gather(*(service.predict(body) for _ in range(8)))
    assert [len(answer.json()["predictions"]) for answer in answers] == [600] * 8


@pytest.mark.parametrize("where", ["body", "header", "both", "header of gzip"])
async def test_a_callers_own_deadline_ends_the_wait(monkeypatch: pytest.MonkeyPatch, where: str) -> None:
    headers = {} if where == "body" else {"x_lengthwise_timeout_ms": "50"}
    body = b'{"timeout_ms": %d, ' % (50 if where == "body" else 60_000) + SEQUENCES
    if where == "header of gzip":
        body, headers["content_encoding"] = gzip.compress(body), "gzip"
    async with reading(monkeypatch) as (service, _):
        assert (await service.predict(body, **headers)).status_code == 504
        figures = await service.figures()
    assert figures['lengthwise_rejected_total{model="",reason="deadline",version=""}'] == 1


@pytest.mark.parametrize(
    "text",
    ["", "0", "-1", "abc", "1e3", "nan", "inf", "0x10", "1_0", "1 ", "9" * 5000, "\u0661".encode().decode("latin-1")],
)
async def test_a_header_that_is_no_timeout_is_refused(service: Service, text: str) -> None:
    for path, status in (("/predict", 422), ("/v1/models/sums:predict", 400), ("/v2/models/sums/infer", 400)):
        answer = await service.client.post(
            path, content=b"{}", headers=[(b"x-lengthwise-timeout-ms", text.encode("latin-1"))]
        )
        assert answer.status_code == status, answer.text


async def test_the_header_holds_for_a_call_that_is_read_at_once_and_is_clipped_to_a_day(service: Service) -> None:
    assert timeout_of(b"99999999999") == 86_400_000
    answer: httpx2.Response = await service.predict({"sequences": [[[1, 3]]]}, x_lengthwise_timeout_ms="0.0001")
    assert answer.status_code == 504
