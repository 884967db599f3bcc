"""A client that leaves frees its place before its work begins, by every protocol; its batch-mates notice nothing."""

from __future__ import annotations

import asyncio
import contextlib
import socket
import struct
import threading
from collections.abc import Awaitable, Callable
from typing import Any

import orjson
import pytest

from lengthwise.http import connection as http_connection
from lengthwise.padding import PaddedBatch
from tests.support.grpc_calls import listening
from tests.support.grpc_calls import request as grpc_request
from tests.support.http_lines import GOOD, V1, Line, Net, held, net
from tests.support.numpy_models import Service, held_batch, idle, manifest, model, serving
from tests.support.waiting import until

TWO = [[[7, 7]], [[5, 5], [6, 6]]]
PADDED = [[[7, 7], [0, 0]], [[5, 5], [6, 6]]]
V2 = orjson.dumps(
    {
        "inputs": [
            {"name": "values", "datatype": "FP32", "shape": [2, 2, 2], "data": PADDED},
            {"name": "lengths", "datatype": "INT32", "shape": [2], "data": [1, 2]},
        ]
    }
)
WAYS: dict[str, Callable[[Line], None]] = {
    "past ASGI": lambda line: line.send(orjson.dumps({"sequences": TWO})),
    "through ASGI": lambda line: line.send(orjson.dumps({"sequences": TWO}), "origin: http://x"),
    "v1": lambda line: line.send(orjson.dumps({"instances": TWO}), path=V1),
    "v2": lambda line: line.send(V2, path="/v2/models/sums/infer"),
}
OF_MODEL = 'model="sums",version="1"'


async def left(service: Service, *, freed: int) -> dict[str, float]:
    """The figures, once one call is counted as left; `freed` of its sequences did not run."""
    async with asyncio.timeout(180):
        while (figures := await service.figures())[f'lengthwise_requests_total{{code="499",key="-",{OF_MODEL}}}'] != 1:
            await asyncio.sleep(0)
    assert figures[f"lengthwise_cancelled_sequences_total{{{OF_MODEL}}}"] == freed
    return figures


@pytest.mark.sampled(2)
@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("reset", [False, True], ids=["closes", "resets"])
async def test_a_client_that_leaves_frees_its_slot_and_others_are_answered(way: str, reset: bool) -> None:
    async with held(max_queue_cost_steps=16, max_batch_cost_steps=16) as (made, release, running):
        first, leaving, mate = [await made.line() for _ in range(3)]
        first.send(GOOD)
        await running.wait()
        queue = made.service.serving.served[0].queue
        WAYS[way](leaving)
        await until(lambda: len(queue.pending) == 2)
        mate.send(GOOD)
        await until(lambda: len(queue.pending) == 3)
        await end(leaving, reset=reset)
        await until(lambda: len(queue.pending) == 1)
        assert queue.padded_steps == 4, "the place is free for others"
        release.set()
        assert (await first.answer())[0] == 200
        status, _, answer = await mate.answer()
        assert (status, orjson.loads(answer)["predictions"][0]["label"]) == (200, "c")
        figures = await left(made.service, freed=2)
        assert figures[f"lengthwise_batch_rows_sum{{{OF_MODEL}}}"] == 2
        await idle_again(made)


@pytest.mark.parametrize("way", WAYS)
async def test_who_leaves_during_the_run_leaves_the_batch_mate_its_answer(way: str) -> None:
    permits, runs, loop = threading.Semaphore(0), asyncio.Semaphore(0), asyncio.get_running_loop()

    def wait(_: PaddedBatch) -> None:
        loop.call_soon_threadsafe(runs.release)
        permits.acquire(timeout=60)

    async with serving(model(manifest(), wait)) as service, net(service) as made, asyncio.timeout(180):
        first, leaving, mate = [await made.line() for _ in range(3)]
        served = service.serving.served[0]
        first.send(GOOD)
        await runs.acquire()
        WAYS[way](leaving)
        await until(lambda: len(served.queue.pending) == 2)
        mate.send(GOOD)
        await until(lambda: len(served.queue.pending) == 3)
        permits.release()
        await runs.acquire()
        await end(leaving, reset=True)
        await left(service, freed=0)
        permits.release()
        assert (await mate.answer())[0] == 200
        assert served.metrics.batch_rows.total == 4
        await idle_again(made)


async def end(line: Line, *, reset: bool) -> None:
    if reset:  # at once: without it, a client that closes looks like one that sends no more, and reads on
        connection = line.writer.get_extra_info("socket")
        connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    line.writer.close()


@pytest.fixture(autouse=True)
def _half_closed_is_left_soon(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(http_connection, "HALF_CLOSED_SECONDS", 0.05)


async def idle_again(made: Net) -> None:
    async with asyncio.timeout(180):
        while not idle(await made.service.figures()):
            await asyncio.sleep(0)


async def cancels(call: Any, channel: Any) -> None:
    call.cancel()


async def closes_its_channel(call: Any, channel: Any) -> None:
    await channel.close()


@pytest.mark.parametrize("leaves", [cancels, closes_its_channel])
async def test_over_grpc_too(leaves: Callable[[Any, Any], Awaitable[None]]) -> None:
    release, entered, wait = held_batch()
    async with listening(model(manifest(), wait)) as caller:
        service = caller.service
        queue = service.serving.served[0].queue
        first = asyncio.ensure_future(service.predict(GOOD))
        await entered.wait()
        call = caller.call("ModelInfer", grpc_request())
        waiting = asyncio.ensure_future(call)
        await until(lambda: len(queue.pending) == 2)
        mate = asyncio.ensure_future(service.predict(GOOD))
        await until(lambda: len(queue.pending) == 3)
        await leaves(call, caller.channel)
        with contextlib.suppress(asyncio.CancelledError):
            await waiting
        await until(lambda: len(queue.pending) == 1)
        release.set()
        assert [answer.status_code for answer in await asyncio.gather(first, mate)] == [200, 200]
        await left(service, freed=2)
