"""Thousands of mutated pipelines: each request in one gets what it gets on a connection of its own, in its turn.

A *piece* is the bytes of one request, mutated. What it gets alone says what a pipeline of pieces must get: the same
answers in the same order, up to the piece that ends the connection, and nothing behind that. A piece that is not one
request (it ends early, or something is left of it) ends what can be compared: what comes then depends on the next.
"""

import asyncio
import gzip
import random
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Final, NamedTuple

import orjson
import pytest

from tests.hostile.watched import STEP
from tests.support import proc
from tests.support.server_process import ServerProcess, started
from tests.support.waiting import wait_until

pytestmark = pytest.mark.process

CONCURRENT: Final = 48  # connections at once
PATIENCE_SECONDS: Final = 180.0
MARKER: Final = b"GET /livez HTTP/1.1\r\nhost: marker\r\n\r\n"
UNLIKE: Final = frozenset({"date", "server-timing", "x-request-id"})  # headers that differ from answer to answer
EARLY: Final = frozenset({200, 401, 404, 405, 413, 415})  # what may be told before a body is there


class Answer(NamedTuple):
    """One answer, without what differs each time."""

    status: int
    headers: tuple[tuple[str, str], ...]
    body: bytes

    @property
    def last(self) -> bool:
        """Whether it says that the connection ends."""
        return ("connection", "close") in self.headers


@dataclass(frozen=True)
class Piece:
    """A piece and what it gets alone."""

    data: bytes
    answers: tuple[Answer, ...]
    ends: bool  # the connection ends behind them, even if more is sent
    exact: bool  # the next request on the connection is taken as it is


@dataclass
class Report:
    """What a run has seen."""

    pipelines: int = 0
    statuses: Counter[int] = field(default_factory=Counter)  # of all answers that were compared
    failures: list[str] = field(default_factory=list)  # each with what was expected and what came


def parsed(data: bytes) -> tuple[list[Answer], bytes]:
    """The answers that stand in these bytes, and the rest; interim answers are left out."""
    answers = []
    while True:
        end = data.find(b"\r\n\r\n")
        if end < 0:
            return answers, data
        first, *lines = data[:end].decode("latin-1").split("\r\n")
        pairs = [(name.lower(), value.strip()) for name, _, value in (line.partition(":") for line in lines)]
        status, headers = int(first.split()[1]), dict(pairs)
        size = 0 if 100 <= status < 200 or status == 204 else int(headers["content-length"])
        if len(data) < end + 4 + size:
            return answers, data
        body = data[end + 4 : end + 4 + size]
        data = data[end + 4 + size :]
        if status >= 200:
            answers.append(Answer(status, tuple(sorted(pair for pair in pairs if pair[0] not in UNLIKE)), body))


async def said(port: int, segments: Sequence[bytes], *, enough: int) -> list[Answer]:
    """Sends segments one by one on a connection, reads that many answers, says that nothing more comes, reads on.

    All answers; one that is not whole has status 0. With `enough` 0 nothing is waited for.
    """
    got = bytearray()
    writer = None
    try:
        async with asyncio.timeout(PATIENCE_SECONDS):
            reader, writer = await asyncio.open_connection("127.0.0.1", port)
            sending = asyncio.ensure_future(_sent(writer, segments, half_close=enough == 0))
            with suppress(OSError):
                while part := await reader.read(65_536):
                    got += part
                    if enough and len(parsed(bytes(got))[0]) >= enough:
                        await sending
                        writer.write_eof()
                        enough = 0
            await sending
    except TimeoutError:
        got += b"HTTP/1.1 0 late\r\ncontent-length: 0\r\n\r\n"
    finally:
        if writer is not None:
            writer.transport.abort()
    answers, rest = parsed(bytes(got))
    return [*answers, Answer(0, (), rest)] if rest else answers


async def _sent(writer: asyncio.StreamWriter, segments: Sequence[bytes], *, half_close: bool) -> None:
    with suppress(OSError):  # the server has ended the connection
        for number, segment in enumerate(segments):
            writer.write(segment)
            await writer.drain()
            if number + 1 < len(segments):
                await asyncio.sleep(0.0005)  # so that it is read before the next one comes
        if half_close:
            writer.write_eof()


async def _each(count: int, act: Callable[[int], object]) -> None:
    """Acts for each number, some at a time."""
    numbers = iter(range(count))

    async def work() -> None:
        for number in numbers:
            await act(number)  # type: ignore[misc]

    async with asyncio.TaskGroup() as group:
        for _ in range(min(CONCURRENT, count)):
            group.create_task(work())


async def alone(port: int, data: Sequence[bytes]) -> list[Piece]:
    """What pieces get on connections of their own."""
    found: list[Piece | None] = [None] * len(data)

    async def ask(number: int) -> None:
        answers = await said(port, [data[number]], enough=0)
        behind = await said(port, [data[number], MARKER], enough=0)
        ends = bool(answers) and answers[-1].last
        exact = len(behind) == len(answers) + 1 and behind[:-1] == answers and behind[-1].status == 200
        found[number] = Piece(data[number], tuple(answers), ends, exact)

    await _each(len(data), ask)
    return [piece for piece in found if piece is not None]


def same(got: Sequence[Answer], wanted: Sequence[Answer], *, nothing_more: bool) -> bool:
    """Whether a pipeline got what it must get.

    A request that is refused by its head alone, or that wants no body, may have its answer before a malformed body is
    there. So in the place of the refusal that ends a connection there may be one answer of that kind.
    """
    if nothing_more and len(got) != len(wanted):
        return False
    if list(got[: len(wanted)]) == list(wanted):
        return True
    early = (
        bool(wanted) and wanted[-1].status in (400, 431) and wanted[-1].last and got[len(wanted) - 1].status in EARLY
    )
    return early and list(got[: len(wanted) - 1]) == list(wanted[:-1])


def expected(pieces: Sequence[Piece]) -> tuple[list[Answer], bool]:
    """What a pipeline must get, and whether there must be nothing behind it."""
    answers: list[Answer] = []
    for piece in pieces:
        answers += piece.answers
        if piece.ends:
            return answers, True
        if not piece.exact:
            return answers[: len(answers) - len(piece.answers)], False
    return answers, True


async def run(port: int, seed: int, *, pieces: int, pipelines: int) -> Report:
    """Sends pipelines, made of so many pieces, to a server with the key `KEY`, and compares what they get."""
    rng = random.Random(seed)
    pool = await alone(port, [piece(rng) for _ in range(pieces)])
    exact = [one for one in pool if one.exact]
    report = Report()
    # Mostly pieces behind which the connection goes on: else nearly every pipeline would end with its first.
    chosen = [
        [rng.choice(exact if rng.random() < 0.6 else pool) for _ in range(rng.randint(2, 5))] for _ in range(pipelines)
    ]
    cuts = [rng.choice((0, 0, 1, 2, 4, 8)) for _ in chosen]

    async def compare(number: int) -> None:
        pipeline = chosen[number]
        data = b"".join(one.data for one in pipeline)
        places = sorted(random.Random(seed * 1_000_003 + number).choices(range(len(data)), k=cuts[number]))
        segments = [data[a:b] for a, b in zip([0, *places], [*places, len(data)], strict=True) if a < b]
        wanted, nothing_more = expected(pipeline)
        got = await said(port, segments, enough=len(wanted))
        report.pipelines += 1
        report.statuses.update(one.status for one in wanted)
        if len(got) < len(wanted) or not same(got, wanted, nothing_more=nothing_more):
            shown = [[one.status for one in many] for many in (wanted, got)]
            report.failures.append(f"number {number}: expected {shown[0]}, got {shown[1]}, of {segments!r}")

    await _each(pipelines, compare)
    return report


# What is sent.

KEY: Final = b"a-good-key-of-sixteen"
_PATHS: Final = (b"/predict", b"/v1/models/japanese-vowels:predict", b"/v2/models/japanese-vowels/infer", b"/livez")
_VALUES: Final = {
    b"transfer-encoding": (b"chunked", b"gzip, chunked", b"identity", b"chunked, chunked", b" chunked", b"xchunked"),
    b"content-length": (b"0", b"5", b"-1", b"+5", b"0x10", b"5, 5", b"99999999999999999999", b"", b"1 1"),
    b"content-encoding": (b"gzip", b"br", b"identity", b"gzip, gzip"),
    b"content-type": (b"text/plain", b"application/json; charset=utf-8", b"application/octet-stream"),
    b"connection": (b"close", b"keep-alive", b"Upgrade", b"close, keep-alive"),
    b"upgrade": (b"h2c", b"websocket"),
    b"host": (b"", b"y", b"a b", b"a, b", b"[::1]:80"),
    b"authorization": (b"Bearer " + KEY, b"Bearer wrong-wrong-wrong-wrong", b"Basic eDp5"),
    b"expect": (b"100-continue", b"nothing"),
    b"x-request-id": (b"mine", b"\xff", b"a" * 200),
    b"x-lengthwise-shape": (b"1,12", b"1,1"),
    b"x-large": (b"l" * 33_000,),
}
_ODD: Final = (b"\r\n", b"\n", b"\r", b" ", b"\t", b"\0", b":", b"0\r\n\r\n", b"\xff", b"ZZ", b"a: b\r\n", b"\r\n\r\n")


def _body(path: bytes, rng: random.Random) -> bytes:
    sequences = [[STEP] * rng.randint(1, 3) for _ in range(rng.randint(1, 2))]
    if rng.random() < 0.15:
        return rng.choice((b"", b"{", b"no json", b'{"sequences": 3}', b"[" * 50))
    if path.startswith(b"/v1"):
        return orjson.dumps({"instances": sequences})
    if path.startswith(b"/v2"):
        data = [value for step in sequences[0] for value in step]
        tensor = {"name": "values", "datatype": "FP32", "shape": [1, len(sequences[0]), 12], "data": data}
        return orjson.dumps({"inputs": [tensor]})
    return orjson.dumps({"sequences": sequences})


def _chunks(body: bytes, rng: random.Random) -> bytes:
    """A body in chunks, with extensions and trailers, some of them wrong."""
    made = b""
    while body:
        size = rng.randint(1, len(body))
        extension = rng.choice((b"", b"", b"", b";a=b", b" ;a", b";" + b"e" * 100))
        shown = rng.choice((b"%x", b"%X", b"0%x")) % size
        if rng.random() < 0.04:
            shown = rng.choice((b"ZZ", b"-1", b"", b"f" * 18, b"%x" % (size + 1), b"0x1"))
        made += shown + extension + b"\r\n" + body[:size] + b"\r\n"
        body = body[size:]
    trailers = [rng.choice(list(_VALUES.items())) for _ in range(rng.choice((0, 0, 1, 3)))]
    lines = [name + b": " + rng.choice(values) + b"\r\n" for name, values in trailers]
    return made + b"0\r\n" + b"".join(lines) + b"\r\n"


def piece(rng: random.Random) -> bytes:
    """One request, nearly right."""
    path = rng.choice(_PATHS)
    headers = [(b"host", b"x")]
    if rng.random() < 0.8:
        headers.append((b"authorization", b"Bearer " + KEY))
    method, body = b"POST", _body(path, rng)
    if path == b"/livez":
        method, body = b"GET", b""
    if rng.random() < 0.1:
        body = gzip.compress(body, mtime=0)
        headers.append((b"content-encoding", b"gzip"))
    if body and rng.random() < 0.4:
        headers.append((b"transfer-encoding", b"chunked"))
        body = _chunks(body, rng)
    elif body or method == b"POST":
        headers.append((b"content-length", b"%d" % len(body)))
    version = b"1.1"
    for _ in range(rng.choice((0, 0, 0, 1, 1, 2))):
        kind = rng.random()
        name, values = rng.choice(list(_VALUES.items()))
        if kind < 0.5:  # one more header, or another value of one
            if rng.random() < 0.5:
                headers = [one for one in headers if one[0] != name]
            if name != b"x-large" or rng.random() < 0.2:
                headers.insert(rng.randint(0, len(headers)), (rng.choice((name, name.title())), rng.choice(values)))
        elif kind < 0.6:
            headers.pop(rng.randrange(len(headers)))
        elif kind < 0.7 and headers:
            headers.append(rng.choice(headers))
        elif kind < 0.8:
            method = rng.choice((b"GET", b"PUT", b"OPTIONS", b"CONNECT", b"DELETE", b"post", b"GE T", b""))
        elif kind < 0.9:
            path = rng.choice(
                (*_PATHS, b"/nowhere", b"*", b"", b"//", b"http://y/predict", b"/%ff", b"/predict?a=b", b"/a b")
            )
        else:
            version = rng.choice((b"1.0", b"1.2", b"2.0", b"0.9", b"1.1 ", b"11"))
        headers = headers or [(b"host", b"x")]
    lines = [b"%s %s HTTP/%s" % (method, path, version), *(name + b": " + value for name, value in headers)]
    made = b"\r\n".join([*lines, b"", b""]) + body
    if rng.random() < 0.15:  # bytes, wherever
        start = rng.randrange(len(made))
        made = made[:start] + rng.choice((*_ODD, b"")) + made[start + rng.choice((0, 0, 1, 2, 10)) :]
    return made


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ServerProcess]:
    keys = tmp_path_factory.mktemp("keys") / "keys"
    keys.write_bytes(KEY + b"\n")
    with started("--api-keys-file", str(keys)) as process:
        yield process


def compared(server: ServerProcess, seed: int, pieces: int, pipelines: int) -> Report:
    pid, began = server.process.pid, time.process_time()
    files, used = proc.open_files(pid), proc.processor_seconds(pid)
    report = asyncio.run(run(server.port, seed, pieces=pieces, pipelines=pipelines))
    print(
        f"{report.pipelines} pipelines of {pieces} pieces: server {proc.processor_seconds(pid) - used:.1f} s, "
        f"client {time.process_time() - began:.1f} s of processor; {dict(report.statuses.most_common())}"
    )
    assert report.failures == []
    assert report.pipelines == pipelines
    assert {200, 400, 401, 404, 405, 415, 422} <= set(report.statuses)  # it did meet them all
    wait_until(lambda: proc.open_files(pid) <= files, "files stay open", 60)
    return report


@pytest.mark.long
def test_some_hundred_pipelines_get_what_their_requests_get_alone(server: ServerProcess) -> None:
    compared(server, seed=1, pieces=250, pipelines=400)


@pytest.mark.long
def test_twenty_thousand_pipelines_get_what_their_requests_get_alone(server: ServerProcess) -> None:
    compared(server, seed=2, pieces=6000, pipelines=20_000)
