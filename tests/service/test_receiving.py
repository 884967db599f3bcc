"""Which gRPC message is received when: places, turns of connections, and who is refused."""

import asyncio
import time
from collections.abc import Callable, Iterable
from contextlib import suppress

import pytest

from lengthwise.connections.inflight import Hold, Inflight
from lengthwise.errors import DeadlineExceeded, InflightFull, RequestError
from lengthwise.grpc import receiving
from lengthwise.grpc.receiving import IncomingMessage, Receiving, WaitingCalls

LARGEST = 100


def made(received: Callable[[str], int | None] = lambda _: 0, places: int = 1) -> tuple[Receiving, Inflight]:
    inflight = Inflight(1000 * LARGEST)
    return Receiving(inflight, LARGEST, received, places), inflight


async def sends(
    receive: Receiving, inflight: Inflight, client: str, seconds: float | None, deadline: float = 30
) -> str:
    """A call whose message arrives after so long, or never; its client, when the message is here."""
    loop, hold = asyncio.get_running_loop(), Hold(inflight)
    here: asyncio.Future[str] = loop.create_future()

    def arrives() -> None:
        receive.end(message, arrived=True)
        if not here.done():
            here.set_result(client)

    def begin() -> None:
        if seconds is not None:
            loop.call_later(seconds, arrives)

    message = IncomingMessage(hold, client, begin, lambda error: here.done() or here.set_exception(error))
    receive.start(message, time.monotonic() + deadline)
    try:
        return await here
    finally:
        receive.end(message, arrived=False)
        hold.close()


def waiting(client: str) -> IncomingMessage:
    return IncomingMessage(Hold(Inflight(1)), client, bool, bool)


def join(line: WaitingCalls, clients: Iterable[str]) -> list[IncomingMessage]:
    messages = [waiting(client) for client in clients]
    assert [line.join(message) for message in messages] == [None] * len(messages)
    return messages


def rest(line: WaitingCalls) -> list[str]:
    """Whose messages wait, in the order of their turns."""
    return [message.client for message in iter(line.next, None)]


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


def test_connections_take_turns_and_those_that_were_silent_come_last() -> None:
    line = WaitingCalls()
    line.set_rank("silent", promptly=False)
    line.set_rank("prompt", promptly=True)
    join(line, ["silent", "new", "new", "new", "other", "prompt", "prompt"])
    assert line.waiting == 7
    assert rest(line) == ["prompt", "prompt", "new", "other", "new", "new", "silent"]
    assert line.waiting == 0
    join(line, ["later silent", "other"])
    line.set_rank("later silent", promptly=False)  # it loses the turns that it waits for
    assert rest(line) == ["other", "later silent"]


def test_a_waiting_call_that_ends_leaves_its_line() -> None:
    line = WaitingCalls()
    leaving, _, again = join(line, ["a", "b", "a"])
    line.leave(leaving)
    line.leave(leaving)
    line.leave(again)
    assert line.waiting == 1
    assert rest(line) == ["b"]


def test_where_too_many_wait_the_connection_with_most_of_them_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(receiving, "MAX_WAITING", 4)
    line = WaitingCalls()
    greedy = join(line, ["greedy"] * 4)
    one_more = waiting("greedy")
    assert line.join(one_more) is one_more
    assert line.join(waiting("honest")) is greedy[-1]
    assert line.waiting == 4
    assert sorted(rest(line)) == ["greedy", "greedy", "greedy", "honest"]


def test_one_that_was_silent_takes_the_place_of_none_that_was_prompt(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(receiving, "MAX_WAITING", 2)
    line = WaitingCalls()
    line.set_rank("good", promptly=True)
    line.set_rank("bad", promptly=False)
    join(line, ["good"] * 2)
    newcomer = waiting("bad")
    assert line.join(newcomer) is newcomer


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


async def test_those_that_wait_are_refused_while_there_is_no_memory_and_no_place_is_lost() -> None:
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


async def test_a_message_that_comes_after_its_refusal_gives_no_second_place_back() -> None:
    receive, inflight = made()
    refused: list[RequestError] = []
    message = IncomingMessage(Hold(inflight), "silent", bool, refused.append)
    receive.start(message, time.monotonic())
    await asyncio.sleep(0.01)
    receive.end(message, arrived=True)
    assert [type(one) for one in refused] == [DeadlineExceeded]
    first, second = (asyncio.ensure_future(sends(receive, inflight, client, None)) for client in "ab")
    await asyncio.sleep(0)
    assert inflight.bytes == 2 * (2 * LARGEST)  # what was refused still holds its own, and one is received
    for call in (first, second):
        call.cancel()
        await asyncio.wait([call])
    assert receive.free
