"""Connections between two requests: how long they stay open, and who gives its place to a new one."""

import http.client

import pytest

from lengthwise.connections import listener
from lengthwise.connections.listener import LEAST_IDLE_SECONDS, KeptAlive
from tests.support.bounded_server import answer, served
from tests.support.server_process import PATIENCE_SECONDS, started

REQUEST = b"GET / HTTP/1.1\r\nhost: x\r\n\r\n"


class Idle:
    """A connection; `busy` if its next request has begun, which nobody has seen yet."""

    def __init__(self, *, busy: bool = False) -> None:
        self.busy = busy
        self.ended = False

    def give_way(self) -> bool:
        self.ended = not self.busy
        return self.ended


def test_the_one_that_has_been_idle_longest_gives_way() -> None:
    idle, connections = KeptAlive(), [Idle() for _ in range(3)]
    for moment, connection in enumerate(connections):
        idle[connection] = float(moment)
    del idle[connections[0]]  # its next request came
    idle[connections[0]] = 3.0
    assert idle.make_room(100.0)
    assert [connection.ended for connection in connections] == [False, True, False]
    assert idle.make_room(100.0)
    assert idle.make_room(100.0)
    assert not idle.make_room(100.0)


def test_one_that_was_used_a_moment_ago_stays_and_one_whose_request_has_just_arrived_is_passed_over() -> None:
    idle, busy, other = KeptAlive(), Idle(busy=True), Idle()
    idle[busy], idle[other] = 0.0, 1.0
    assert not idle.make_room(LEAST_IDLE_SECONDS - 0.1)
    assert idle.make_room(1.0 + LEAST_IDLE_SECONDS)
    assert (busy.ended, other.ended) == (False, True)


async def test_a_new_connection_gets_the_place_of_an_idle_one(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(listener, "LEAST_IDLE_SECONDS", 0.0)
    async with served(max_connections=1) as talk:
        reader, writer = await talk()
        for _ in range(2):
            writer.write(REQUEST)
            assert await answer(reader) == (200, b"0")
        other, other_writer = await talk()
        other_writer.write(REQUEST)
        assert await answer(other) == (200, b"0")
        assert await reader.read() == b""  # it ended, and was not reset


@pytest.mark.parametrize("sent", [b"", REQUEST[:9], b"POST / HTTP/1.1\r\nhost: x\r\ncontent-length: 9\r\n\r\n12"])
async def test_one_that_has_begun_a_request_or_sent_none_keeps_its_place(
    sent: bytes, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(listener, "LEAST_IDLE_SECONDS", 0.0)
    async with served(max_connections=1) as talk:
        reader, writer = await talk()
        if sent:
            writer.write(REQUEST)
            assert await answer(reader) == (200, b"0")
            writer.write(sent)
        other, _ = await talk()
        assert (await answer(other))[0] == 503
        writer.write(REQUEST[len(sent) :] if sent == REQUEST[:9] else b"3456789" if sent else REQUEST)
        assert (await answer(reader))[0] == 200


@pytest.mark.long
def test_a_connection_without_requests_ends_after_the_time_that_was_set() -> None:
    with started("--keep-alive-seconds", "1") as server:
        line = http.client.HTTPConnection("127.0.0.1", server.port, timeout=PATIENCE_SECONDS)
        line.request("GET", "/livez")
        assert line.getresponse().read()
        assert line.sock.recv(1) == b""
        line.close()
