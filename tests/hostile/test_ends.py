"""How connections end: half closed, reset, refused in the middle. What was accepted before is answered whole."""

import time
from collections.abc import Iterator

import orjson
import pytest

from tests.hostile.watched import GOOD, STEP, unharmed, until
from tests.support.server_process import ServerProcess, Wire, request, started

V1 = orjson.dumps({"instances": GOOD["sequences"]})
WAYS = {
    "past ASGI": request(GOOD),
    "through ASGI": request(GOOD, origin="http://x"),
    "v1": b"POST /v1/models/japanese-vowels:predict HTTP/1.1\r\nhost: x\r\ncontent-length: %d\r\n\r\n%s"
    % (len(V1), V1),
    "no call": b"GET /livez HTTP/1.1\r\nhost: x\r\n\r\n",
}


@pytest.fixture(scope="module")
def server() -> Iterator[ServerProcess]:
    with started() as process:
        yield process


def statuses(wire: Wire) -> list[int]:
    """Of all answers until the connection ends."""
    found = []
    while (status := wire.answer()[0]) != 0:
        found.append(status)
    return found


@pytest.mark.parametrize("piece", WAYS.values(), ids=WAYS.keys())
def test_a_large_answer_comes_whole_though_what_follows_is_refused(server: ServerProcess, piece: bytes) -> None:
    large = request({"sequences": [[STEP]] * 1024})
    with server.connect() as wire:
        wire.send(large + piece + b"nonsense\r\n\r\n" + b"more\r\n" * 20_000)
        status, _, body = wire.answer()
        assert status == 200
        assert len(orjson.loads(body)["predictions"]) == 1024
        assert statuses(wire) == [200, 400]


def test_a_flood_of_malformed_requests_costs_little_and_writes_a_line_a_second(server: ServerProcess) -> None:
    said, began = len(server.text), time.monotonic()

    def malformed() -> None:
        with server.connect() as wire:
            wire.send(b"nonsense\r\n\r\n")
            assert statuses(wire) == [400]

    def told() -> bool:
        malformed()
        return "more since the last such line" in server.text[said:]

    with unharmed(server):
        for _ in range(1500):
            malformed()
    until(told, "no line says how many there were")
    assert server.text[said:].count("malformed request") <= 2 + time.monotonic() - began
