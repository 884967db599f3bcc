"""Which gRPC message is received when: slots, turns of connections, and who is refused."""

import asyncio
import time
from collections.abc import Callable
from contextlib import suppress
from typing import Any

import pytest

from lengthwise.connections.inflight import Hold, Inflight
from lengthwise.errors import DeadlineExceeded, InflightFull, RequestError
from lengthwise.grpc import receiving
from lengthwise.grpc.receiving import ARRIVED, LEFT, TRANSITIONS, IncomingMessage, MessageState, Receiving

LARGEST = 100


def made(received: Callable[[str], int | None] = lambda _: 0, slots: int = 1) -> tuple[Receiving, Inflight]:
    inflight = Inflight(1000 * LARGEST)
    return Receiving(inflight, LARGEST, received, slots), inflight


async def sends(
    receive: Receiving, inflight: Inflight, client: str, seconds: float | None, deadline: float = 30
) -> str:
    """A call whose message arrives after so long, or never; its client, when the message is here."""
    loop, hold = asyncio.get_running_loop(), Hold(inflight)
    here: asyncio.Future[str] = loop.create_future()

    def arrives() -> None:
        message.enter(ARRIVED)
        if not here.done():
            here.set_result(client)

    def begin() -> None:
        if seconds is not None:
            loop.call_later(seconds, arrives)

    def refuse(error: RequestError) -> None:
        if not here.done():
            here.set_exception(error)

    message = IncomingMessage(receive, client, hold, time.monotonic() + deadline, begin, refuse)
    try:
        return await here
    finally:
        message.enter(LEFT)
        hold.close()


async def test_a_silent_call_keeps_its_slot_until_another_waits_then_not_long(
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


async def test_a_message_that_arrives_fast_keeps_its_slot_though_others_wait() -> None:
    began = time.monotonic()

    def arriving(_: str) -> int:
        return int((time.monotonic() - began) * 10 * receiving.MIN_BYTES_PER_SECOND)

    receive, inflight = made(arriving)
    slow = asyncio.ensure_future(sends(receive, inflight, "large", 4 * receiving.SILENT_SECONDS))
    await asyncio.sleep(0)
    other = asyncio.ensure_future(sends(receive, inflight, "other", 0))
    assert await slow == "large"
    assert await other == "other"


async def test_a_message_that_is_complete_is_not_slow_and_keeps_its_rank(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(receiving, "PATIENCE_SECONDS", 0.2)
    receive, inflight = made()
    refused: list[RequestError] = []
    deadline = time.monotonic() + 60
    message = IncomingMessage(receive, "complete", Hold(inflight), deadline, bool, refused.append)
    message.complete()  # and is inflated later
    other = asyncio.ensure_future(sends(receive, inflight, "other", 0))
    await asyncio.sleep(0.3)
    assert not refused
    message.refuse_late()
    assert await other == "other"
    assert [str(one) for one in refused] == ["the deadline passed before the message could be inflated"]
    assert receive.ranks["complete"] == receive.ranks["other"]


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


async def test_one_that_is_refused_for_another_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(receiving, "MAX_WAITING", 2)
    receive, inflight = made()
    first = asyncio.ensure_future(sends(receive, inflight, "a", 0.02))
    await asyncio.sleep(0)
    greedy = [asyncio.ensure_future(sends(receive, inflight, "greedy", 0)) for _ in range(2)]
    await asyncio.sleep(0)
    honest = asyncio.ensure_future(sends(receive, inflight, "honest", 0))
    with pytest.raises(InflightFull):
        await greedy[-1]
    assert await asyncio.gather(first, greedy[0], honest) == ["a", "greedy", "honest"]


async def test_those_that_wait_are_refused_without_memory_and_no_slot_is_lost() -> None:
    inflight = Inflight(3 * LARGEST)
    receive = Receiving(inflight, LARGEST, lambda _: 0, 1)
    taken = Hold(inflight)
    first = asyncio.ensure_future(sends(receive, inflight, "a", 0.1))
    await asyncio.sleep(0)
    others = [asyncio.ensure_future(sends(receive, inflight, f"{number}", 0)) for number in range(3)]
    taken.holds(2 * LARGEST)
    assert await first == "a"
    assert [type(one) for one in await asyncio.gather(*others, return_exceptions=True)] == [InflightFull] * 3
    taken.close()
    assert await sends(receive, inflight, "b", 0) == "b"


async def test_a_deadline_ends_the_wait_and_the_message() -> None:
    receive, inflight = made()
    first = asyncio.ensure_future(sends(receive, inflight, "a", None, deadline=0.05))
    await asyncio.sleep(0)
    for call in (sends(receive, inflight, "b", 0, deadline=0.01), first):
        with pytest.raises(DeadlineExceeded):
            await call
    assert await sends(receive, inflight, "c", 0) == "c"


async def test_slots_are_never_lost(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(receiving, "SILENT_SECONDS", 0.01)
    receive, inflight = made(slots=2)
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


async def test_a_message_that_comes_after_its_refusal_gives_no_second_slot_back() -> None:
    receive, inflight = made()
    refused: list[RequestError] = []
    message = IncomingMessage(receive, "silent", Hold(inflight), time.monotonic(), bool, refused.append)
    await asyncio.sleep(0.01)
    message.enter(ARRIVED)
    assert [type(one) for one in refused] == [DeadlineExceeded]
    first, second = (asyncio.ensure_future(sends(receive, inflight, client, None)) for client in "ab")
    await asyncio.sleep(0)
    assert inflight.bytes == 2 * (2 * LARGEST)  # what was refused still holds its own, and one is received
    for call in (first, second):
        call.cancel()
        await asyncio.wait([call])
    assert receive.free


def table() -> dict[MessageState, set[MessageState]]:
    """The states that may follow each state, as the table of the module has them."""
    rows = [[cell.strip() for cell in line.strip("|").split("|")] for line in (receiving.__doc__ or "").splitlines()]
    following: dict[MessageState, set[MessageState]] = {}
    for states, _, after in (row for row in rows if len(row) == 3 and row[2] in MessageState.__members__):
        for before in states.split(", "):
            following.setdefault(MessageState[before], set()).add(MessageState[after])
    return following


def test_the_life_of_a_message_in_the_table_is_that_of_the_code() -> None:
    assert {before: set(after) for before, after in TRANSITIONS.items()} == table()


@pytest.mark.parametrize("receives", [True, False], ids=["with a slot", "waiting"])
@pytest.mark.parametrize("ended", MessageState)
async def test_a_message_ends_once_whatever_comes_then(ended: MessageState, receives: bool) -> None:
    receive, inflight = made(slots=int(receives) or 1)
    if not receives:
        first = IncomingMessage(receive, "first", Hold(inflight), time.monotonic() + 60, bool, bool)
    refused: list[Any] = []
    message = IncomingMessage(receive, "client", Hold(inflight), time.monotonic() + 60, bool, refused.append)
    before = message.state
    for state in (ended, *MessageState):
        message.enter(state, InflightFull("none", retry_after_seconds=1) if state is MessageState.REFUSED else None)
        if ended in TRANSITIONS[before] and ended not in TRANSITIONS:
            assert message.state is ended
    assert len(refused) == (message.state is MessageState.REFUSED)
    assert message.state not in TRANSITIONS
    assert (receive.free, len(receive.queue)) == (int(receives), 0)
    if not receives:
        first.enter(LEFT)
    assert receive.free == 1
