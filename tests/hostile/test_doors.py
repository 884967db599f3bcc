"""The same attacks at every door: HTTP, the admin port and gRPC, without and with TLS.

Whatever is done at one door, an honest caller is answered at the others all the time, and at this one once its bounds
have passed.
"""

import gzip
import re
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress

import pytest

from lengthwise.grpc import open_inference_pb2 as pb
from lengthwise.grpc.infer import SERVICE
from tests.hostile.watched import MEBIBYTE
from tests.support import http2, proc
from tests.support.doors import HEALTH, Door, Doors, opened
from tests.support.numpy_models import samples
from tests.support.waiting import wait_until

pytestmark = pytest.mark.process

HEAD_SECONDS = 1
FILES = 256
MANY = 120
"""Connections: more than any door has places here."""
INFER, STREAM, READY = (f"/{SERVICE}/{name}" for name in ("ModelInfer", "ModelStreamInfer", "ModelReady"))
GRPC_METHODS = [
    *(f"/grpc.health.v1.Health/{name}" for name in ("Check", "Watch", "List", "None")),
    "/grpc.reflection.v1alpha.ServerReflection/ServerReflectionInfo",
    *(f"/{SERVICE}/{one.name}" for one in pb.DESCRIPTOR.services_by_name[SERVICE.split(".")[1]].methods),
]
MALFORMED = {
    "no message": b"",
    "half a message": http2.message(b"\x0a\x05abcde")[:8],
    "a wrong field": http2.message(b"\xff\xff\xff"),
    "no text": http2.message(b"\x0a\x02\xff\xfe"),
    "a long varint": http2.message(b"\x08" + b"\xff" * 30),
    "two messages": http2.message(b"") * 2,
    "packed as nobody said": http2.message(b"abc", flag=1),
    "a flag that is none": http2.message(b"", flag=7),
    "a size past the limit": b"\0\xff\xff\xff\xff",
    "bytes": bytes(range(256)),
}


OPTIONS = ("--header-timeout-seconds", str(HEAD_SECONDS), "--max-connections", "40")


@pytest.fixture(scope="module")
def plain() -> Iterator[Doors]:
    with opened(*OPTIONS, files=FILES) as made:
        yield made


@pytest.fixture(scope="module")
def encrypted(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Doors]:
    with opened(*OPTIONS, files=FILES, folder=tmp_path_factory.mktemp("tls")) as made:
        yield made


@pytest.fixture(params=["plain", "encrypted"])
def doors(request: pytest.FixtureRequest) -> Doors:
    found: Doors = request.getfixturevalue(request.param)
    return found


def crowd(door: Door, way: str, stack: ExitStack) -> None:
    """Opens many connections that send next to nothing."""
    for _ in range(MANY):
        with suppress(OSError):  # there are too many, and this one has ended
            wire = stack.enter_context(door.connect(handshake=way != "no handshake"))
            if way == "half a head":
                wire.sendall(door.head()[:10] or b"POST /pre")
            elif way == "a whole head":
                wire.sendall(door.head())


@pytest.mark.sampled(9)
@pytest.mark.parametrize("way", ["no handshake", "silence", "half a head", "a whole head"])
@pytest.mark.parametrize("name", ["http", "admin", "grpc"])
def test_connections_without_a_call_end_and_other_ports_answer_meanwhile(doors: Doors, name: str, way: str) -> None:
    files = proc.open_files(doors.server.process.pid)
    with ExitStack() as stack:
        crowd(doors.of[name], way, stack)
        assert all(door.answers(seconds=10) for door in doors.of.values() if door.name != name)
        began = time.monotonic()
        wait_until(doors.of[name].answers, "no place is free", 30)
        assert time.monotonic() - began < 15  # one that waits for the end of its client takes 20
    wait_until(lambda: proc.open_files(doors.server.process.pid) <= files, "files stay open", 60)
    assert "Traceback" not in doors.server.text


def test_open_files_are_divided_between_protocols_as_the_log_says(plain: Doors) -> None:
    (said,) = re.findall(
        r"at most (\d+) over HTTP, (\d+) over gRPC; this process may open (\d+) files", plain.server.text
    )
    assert said == ("20", "20", str(FILES))


def test_open_connections_are_counted_by_protocol(plain: Doors) -> None:
    def figures() -> dict[str, float]:
        with plain.of["admin"].connect() as wire:
            wire.sendall(b"GET /metrics HTTP/1.1\r\nhost: x\r\nconnection: close\r\n\r\n")
            with wire.makefile("rb") as file:
                text = file.read().decode().partition("\r\n\r\n")[2]
        found = samples(text)
        return {door: found[f'lengthwise_open_connections{{door="{door}"}}'] for door in plain.of} | {
            "most": found['lengthwise_max_connections{door="grpc"}']
        }

    wait_until(lambda: figures() == {"http": 0, "grpc": 0, "admin": 1, "most": 20}, "connections stay", 60)
    with ExitStack() as stack:
        for door, count in (("http", 3), ("grpc", 5)):
            for _ in range(count):
                stack.enter_context(plain.of[door].connect())
        wait_until(lambda: figures() == {"http": 3, "grpc": 5, "admin": 1, "most": 20}, "they are not counted", 5)


@contextmanager
def silent_calls(door: Door, connections: int, each: int, path: str) -> Iterator[list[http2.Connection]]:
    """Calls that never send their message."""
    with ExitStack() as stack:
        made = [http2.Connection(stack.enter_context(door.connect())) for _ in range(connections)]
        for connection in made:
            for _ in range(each):
                connection.begin(path)
        yield made


@pytest.mark.parametrize("path", [INFER, STREAM, HEALTH, READY])
def test_calls_that_send_no_message_hold_no_slot(plain: Doors, path: str) -> None:
    """Each takes a place for a tenth of a second at most; before, the first one took 2 s and the others queued."""
    door = plain.of["grpc"]
    with silent_calls(door, 4, 60, path), door.connect() as wire:
        honest = http2.Connection(wire)
        for ask, payload in ((INFER, b""), (READY, b""), (HEALTH, b"")):
            began = time.monotonic()
            honest.ended(honest.begin(ask, http2.message(payload)))
            assert time.monotonic() - began < 10
        assert door.answers()


def test_watches_of_health_are_few_and_the_rest_is_refused(plain: Doors) -> None:
    door = plain.of["grpc"]
    with ExitStack() as stack:
        for _ in range(4):
            connection = http2.Connection(stack.enter_context(door.connect()))
            for _ in range(100):
                connection.begin("/grpc.health.v1.Health/Watch", http2.message(b""))
        assert all(door.answers(seconds=10) for _ in range(3))
        with door.connect() as wire:
            one_more = http2.Connection(wire)
            one_more.ended(one_more.begin("/grpc.health.v1.Health/Watch", http2.message(b"")))
    wait_until(door.answers, "the watches stay", 60)


@pytest.mark.parametrize("body", MALFORMED.values(), ids=MALFORMED)
def test_no_message_whatever_writes_a_stack_into_the_log(plain: Doors, body: bytes) -> None:
    door = plain.of["grpc"]
    with door.connect() as wire:
        connection = http2.Connection(wire)
        for path in GRPC_METHODS:
            stream = connection.begin(path, body)
            if path.endswith("Watch"):  # which has no end, where it is understood
                wire.sendall(http2.frame(http2.RESET, 0, stream, b"\0\0\0\x08"))
            else:
                connection.ended(stream)
    assert door.answers()
    assert "Traceback" not in plain.server.text
    assert "Unexpected" not in plain.server.text


def test_an_unknown_compression_and_metadata_without_an_end_are_refused(plain: Doors) -> None:
    door = plain.of["grpc"]
    with door.connect() as wire:
        connection = http2.Connection(wire)
        connection.ended(connection.begin(INFER, http2.message(b"x", flag=1), **{"grpc-encoding": "lzma"}))
        large = http2.frame(http2.HEADERS, http2.END_HEADERS, 3, b"\x40\x01a\x7f\x80\x7f" + b"a" * 16_000)
        with suppress(ConnectionError):
            for _ in range(10):
                wire.sendall(large)
            for _ in range(100):
                list(connection.frames())
    assert door.answers()
    assert "Traceback" not in plain.server.text


@pytest.mark.long
def test_a_message_that_inflates_past_the_limit_takes_little_memory(plain: Doors) -> None:
    bomb = gzip.compress(bytes(128 * MEBIBYTE))
    with plain.of["grpc"].connect() as wire:
        connection = http2.Connection(wire)
        connection.ended(connection.begin(HEALTH, http2.message(b"")))
        before = plain.server.peak_bytes()
        for path in (INFER, STREAM):
            connection.ended(connection.begin(path, http2.message(bomb, flag=1), **{"grpc-encoding": "gzip"}))
        assert plain.server.peak_bytes() - before < 64 * MEBIBYTE
    assert plain.of["grpc"].answers()


@pytest.mark.long
def test_idle_connections_over_grpc_make_room_for_new_ones() -> None:
    with opened("--max-connections", "20", "--header-timeout-seconds", "600") as made, ExitStack() as stack:
        door = made.of["grpc"]
        crowd(door, "a whole head", stack)
        assert not door.answers()
        wait_until(door.answers, "no place is free", 20)
