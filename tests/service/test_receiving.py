"""Which gRPC message is received when: places, turns of connections, and who is refused."""

import asyncio
import time
from collections.abc import Callable
from contextlib import suppress

import pytest

from lengthwise.connections.inflight import Hold, Inflight
from lengthwise.errors import DeadlineExceeded, InflightFull, RequestError
from lengthwise.protocols import receiving
from lengthwise.protocols.receiving import Receiving, WaitingCalls

LARGEST = 100


def made(received: Callable[[str], int | None] = lambda _: 0, places: int = 1) -> tuple[Receiving, Inflight]:
    inflight = Inflight(1000 * LARGEST)
    return Receiving(inflight, LARGEST, received, places), inflight


async def sends(
    receive: Receiving, inflight: Inflight, client: str, seconds: float | None, deadline: float = 30
) -> str:
    """A call whose message arrives after so long, or never; its client, when the message is here."""
    hold = Hold(inflight)
    try:
        async with receive.one(hold, time.monotonic() + deadline, client):
            await (asyncio.Event().wait() if seconds is None else asyncio.sleep(seconds))
        return client
    finally:
        hold.close()


async def test_a_silent_call_keeps_its_place_until_another_waits_and_then_not_for_long(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(receiving, "PATIENCE_SECONDS", 60.0)  # a busy machine may take two seconds for nothing
    receive, inflight = made()
    silent = asyncio.ensure_future(sends(receive, inflight, "silent", None))
    await asyncio.sleep(2 * receiving.SILENT_SECONDS)
    assert not silent.done()
    assert inflight.bytes == 2 * LARGEST
    began = time.monotonic()
    assert await sends(receive, inflight, "honest", 0) == "honest"
    assert time.monotonic() - began < receiving.PATIENCE_SECONDS
    with pytest.raises(DeadlineExceeded):
        await silent
    assert inflight.bytes == 0


async def test_a_message_that_arrives_fast_enough_keeps_its_place_though_others_wait() -> None:
    began = time.monotonic()

    def arriving(_: str) -> int:
        return int((time.monotonic() - began) * 10 * receiving.MIN_BYTES_PER_SECOND)

    receive, inflight = made(arriving)
    slow = asyncio.ensure_future(sends(receive, inflight, "large", 4 * receiving.SILENT_SECONDS))
    await asyncio.sleep(0)
    other = asyncio.ensure_future(sends(receive, inflight, "other", 0))
    assert await slow == "large"
    assert await other == "other"


@pytest.mark.parametrize("received", [None, 10**9], ids=["not known", "all the time"])
async def test_no_message_takes_longer_than_the_patience_while_others_wait(
    received: int | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(receiving, "PATIENCE_SECONDS", 0.3)
    counted = iter(range(0, 10**18, 10**9))
    receive, inflight = made(lambda _: None if received is None else next(counted))
    silent = asyncio.ensure_future(sends(receive, inflight, "slow", None))
    await asyncio.sleep(0)
    assert await sends(receive, inflight, "other", 0) == "other"
    with pytest.raises(DeadlineExceeded):
        await silent


async def test_connections_take_turns_and_those_that_were_silent_come_last() -> None:
    turns = WaitingCalls(1)
    order: list[str] = []

    async def take(client: str) -> None:
        await turns.take(client)
        order.append(client)

    turns.arrived("silent", promptly=False)
    turns.arrived("prompt", promptly=True)
    assert turns.try_take()
    waiting = ["silent", "new", "new", "new", "other", "prompt", "prompt"]
    tasks = [asyncio.ensure_future(take(client)) for client in waiting]
    await asyncio.sleep(0)
    assert turns.waiting == len(waiting)
    for _ in waiting:
        turns.give_back()
    await asyncio.gather(*tasks)
    assert order == ["prompt", "prompt", "new", "other", "new", "new", "silent"]
    assert turns.waiting == 0


async def test_a_connection_that_was_silent_loses_the_turns_that_it_waits_for() -> None:
    turns = WaitingCalls(1)
    assert turns.try_take()
    tasks = [asyncio.ensure_future(turns.take(client)) for client in ("silent", "other")]
    await asyncio.sleep(0)
    turns.arrived("silent", promptly=False)
    turns.give_back()
    await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
    assert [task.done() for task in tasks] == [False, True]
    turns.give_back()
    await asyncio.gather(*tasks)


async def test_a_waiting_call_that_ends_leaves_its_line_and_gives_a_place_back_that_came_too_late() -> None:
    turns = WaitingCalls(1)
    assert turns.try_take()
    leaving, staying = (asyncio.ensure_future(turns.take(client)) for client in ("a", "b"))
    await asyncio.sleep(0)
    leaving.cancel()
    await asyncio.wait([leaving])
    assert turns.waiting == 1
    turns.give_back()
    staying.cancel()  # its place has come, and it does not know that yet
    await asyncio.wait([staying])
    assert turns.waiting == 0
    assert turns.try_take()


async def test_where_too_many_wait_the_connection_with_most_of_them_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(receiving, "MAX_WAITING", 4)
    turns = WaitingCalls(1)
    assert turns.try_take()
    greedy = [asyncio.ensure_future(turns.take("greedy")) for _ in range(4)]
    await asyncio.sleep(0)
    with pytest.raises(InflightFull):
        await turns.take("greedy")
    honest = asyncio.ensure_future(turns.take("honest"))
    with pytest.raises(InflightFull):
        await greedy[-1]
    assert not any(task.done() for task in greedy[:-1])
    assert turns.waiting == 4
    for _ in range(4):
        turns.give_back()
    await asyncio.gather(honest, *greedy[:-1])


async def test_a_deadline_ends_the_wait_and_the_message() -> None:
    receive, inflight = made()
    first = asyncio.ensure_future(sends(receive, inflight, "a", None, deadline=0.05))
    await asyncio.sleep(0)
    for call in (sends(receive, inflight, "b", 0, deadline=0.01), first):
        with pytest.raises(DeadlineExceeded):
            await call
    assert await sends(receive, inflight, "c", 0) == "c"


async def test_places_are_never_lost(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(receiving, "SILENT_SECONDS", 0.01)
    receive, inflight = made(places=2)
    calls = [
        asyncio.ensure_future(sends(receive, inflight, f"{number % 5}", None if number % 3 else 0.001, deadline=0.2))
        for number in range(60)
    ]
    for number, call in enumerate(calls):
        await asyncio.sleep(0.001)
        if number % 7 == 0:
            call.cancel()
    for call in calls:
        with suppress(RequestError, asyncio.CancelledError):
            await call
    both = [sends(receive, inflight, "x", 0.01), sends(receive, inflight, "y", 0.01)]
    assert await asyncio.gather(*both) == ["x", "y"]
    assert inflight.bytes == 0


async def test_a_message_that_comes_as_its_place_is_taken_away_is_not_late() -> None:
    receive, inflight = made()
    late: list[str] = []
    end = receive.start(Hold(inflight), time.monotonic() + 30, "silent", lambda: late.append("silent"))
    assert end is not None
    waiting = asyncio.ensure_future(sends(receive, inflight, "other", 0))
    (arrival,) = receive._arrivals  # noqa: SLF001 - what the look at slow messages does, at this moment
    arrival.timeout.reschedule(0)
    assert arrival.timeout.expired()
    end(True)
    assert await waiting == "other"
    assert late == []
