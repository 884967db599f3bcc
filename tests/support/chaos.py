"""Callers of every kind against one server process, and what is done to the process meanwhile.

Each caller has a connection of its own, and names each of its requests. It is good, sends something wrong, leaves at
some point, or is slow. Every answer must belong to the request that waits for it; a good answer must have the same
bits as the one that the sequence got when nothing else ran.
"""

from __future__ import annotations

import asyncio
import contextlib
import gzip
import os
import random
import shutil
import signal
import time
from collections import Counter
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import orjson

from lengthwise.bench.workload import Input, draw_lengths, make_sequences
from lengthwise.padding import Steps
from tests.support import proc
from tests.support.bad_bodies import NOT_JSON
from tests.support.model_directories import place
from tests.support.numpy_models import idle
from tests.support.server_process import PATIENCE_SECONDS, ServerProcess
from tests.support.waiting import wait_until

NAME = "vowels"
FEATURES = 12
REFUSED = frozenset({429, 503, 504})
INJECTED = 500
KINDS = ("good", "bad", "leaves", "slow")
SHARES = (0.5, 0.2, 0.2, 0.1)
"""What a caller does next, and how often."""
_DRAWN = 60
"""Sequences that callers choose from."""
MOST_IDLE_SECONDS = 1.0
"""A connection that was idle for longer is not used again: the server closes idle connections after five seconds."""
_ENDED = (ConnectionError, asyncio.IncompleteReadError, OSError)


@dataclass(frozen=True)
class Form:
    """One way to send sequences."""

    path: str
    answer: str
    headers: tuple[str, ...] = ("content-type: application/json",)

    def body(self, sequences: Sequence[Steps]) -> bytes:
        """The body with these sequences; v2 has one."""
        lists = [steps.tolist() for steps in sequences]
        if self.answer == "outputs":
            values = {"name": "values", "datatype": "FP32", "shape": [1, *sequences[0].shape], "data": lists}
            return orjson.dumps({"inputs": [values]})
        body = orjson.dumps({"instances": lists} if "/v1/" in self.path else {"sequences": lists, "model": NAME})
        return gzip.compress(body, 1) if "content-encoding: gzip" in self.headers else body

    def results(self, body: bytes) -> list[Any]:
        """What an answer has for its sequences."""
        found: list[Any] = orjson.loads(body)[self.answer]
        return [found] if self.answer == "outputs" else found


FORMS = (
    Form("/predict", "predictions"),
    Form("/predict", "predictions", ("content-type: application/json", "content-encoding: gzip")),
    Form(f"/v1/models/{NAME}:predict", "predictions"),
    Form(f"/v2/models/{NAME}/infer", "outputs"),
)


class Line:
    """One connection."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.reader = reader
        self.writer = writer
        self.used = time.monotonic()
        self.requests = 0

    @classmethod
    async def open(cls, port: int) -> Line:
        return cls(*await asyncio.open_connection("127.0.0.1", port))

    async def answer(self) -> tuple[int, dict[bytes, bytes], bytes]:
        head = await self.reader.readuntil(b"\r\n\r\n")
        first, *lines = head[:-4].split(b"\r\n")
        headers = {name.lower(): value.strip() for name, _, value in (line.partition(b":") for line in lines)}
        return int(first.split()[1]), headers, await self.reader.readexactly(int(headers[b"content-length"]))

    def close(self, *, abort: bool = False) -> None:
        if abort:
            self.writer.transport.abort()
        else:
            self.writer.close()


def request(form: Form, body: bytes, name: str, *headers: str) -> bytes:
    """The bytes of one request with this name, and more headers."""
    lines = (f"POST {form.path} HTTP/1.1", "host: x", f"content-length: {len(body)}", f"x-request-id: {name}")
    return "\r\n".join([*lines, *form.headers, *headers, "", ""]).encode() + body


@dataclass
class Chaos:
    """The callers, and what they saw."""

    server: ServerProcess
    seed: int = 0
    pause_seconds: float = 0.0
    headers: tuple[str, ...] = ()
    ends: Counter[str] = field(default_factory=Counter)
    wrong: list[str] = field(default_factory=list)
    latencies: list[tuple[float, float]] = field(default_factory=list)
    going: bool = True
    sequences: list[Steps] = field(init=False)

    def __post_init__(self) -> None:
        chance = np.random.default_rng(self.seed)
        lengths = draw_lengths("lognormal:12,0.6", _DRAWN, 29, chance)
        self.sequences = make_sequences(lengths, Input("values", FEATURES), chance)
        self._alone: dict[Form, list[Any]] = {}

    async def ask_alone(self) -> None:
        """Asks for each sequence alone, in each form, while nothing else runs."""
        line = await Line.open(self.server.port)
        for form in FORMS:
            self._alone[form] = []
            for steps in self.sequences:
                line.writer.write(request(form, form.body([steps]), "alone", *self.headers))
                status, _, body = await line.answer()
                assert status == 200, body
                self._alone[form] += form.results(body)
        line.close()

    @asynccontextmanager
    async def callers(self, count: int) -> AsyncIterator[None]:
        """So many callers, while the block runs; afterwards each has got its last answer."""
        self.going = True
        tasks = [asyncio.create_task(self._call(number)) for number in range(count)]
        try:
            yield
        finally:
            self.going = False
            async with asyncio.timeout(PATIENCE_SECONDS):
                await asyncio.gather(*tasks)

    async def _call(self, number: int) -> None:
        chance = random.Random(f"{self.seed}-{number}")
        line: Line | None = None
        turn = 0
        while self.going:
            if line is None:
                try:
                    line = await Line.open(self.server.port)
                except OSError:  # no descriptor for it
                    self.ends["not connected"] += 1
                    await asyncio.sleep(0.05)
                    continue
            if time.monotonic() - line.used > MOST_IDLE_SECONDS:  # this process was held up
                line.close()
                line = None
                continue
            turn += 1
            kind = chance.choices(KINDS, SHARES)[0]
            began, idle_seconds = time.monotonic(), time.monotonic() - line.used
            try:
                stays = await self._turn(line, kind, f"{number}-{turn}", chance)
            except _ENDED as error:
                taken = time.monotonic() - began
                self.wrong.append(
                    f"request {number}-{turn} ({kind}) lost its connection after {line.requests} requests, idle for "
                    f"{idle_seconds:.2f} s before and {taken:.2f} s later: {error!r}"
                )
                line.close(abort=True)
                stays = False
            line.used = time.monotonic()
            line.requests += 1
            if not stays:
                line = None
            await asyncio.sleep(chance.expovariate(1 / self.pause_seconds) if self.pause_seconds else 0)
        if line is not None:
            await self._expect_silence(line, number)

    async def _turn(self, line: Line, kind: str, name: str, chance: random.Random) -> bool:
        """One request; whether the connection stays."""
        form = chance.choice(FORMS)
        places = [chance.randrange(_DRAWN) for _ in range(1 if form.answer == "outputs" else chance.choice((1, 1, 4)))]
        if kind == "bad":
            form = FORMS[0]
            body = chance.choice(NOT_JSON).body
        else:
            body = form.body([self.sequences[place] for place in places])
        sent = request(form, body, name, *self.headers)
        if kind == "leaves":
            await self._leave(line, sent, chance)
            return False
        started = time.monotonic()
        if kind == "slow":
            await self._send_slowly(line, sent, chance)
        else:
            line.writer.write(sent)
        status, headers, answer = await line.answer()
        if kind == "slow":
            started = time.monotonic()
        closes = headers.get(b"connection") == b"close"
        if closes:
            line.close()
        if headers.get(b"x-request-id") != name.encode():
            if status == 503 and closes:  # the connection itself was refused
                self.ends["connection refused"] += 1
                return False
            self.wrong.append(f"request {name} got the answer {status} of {headers.get(b'x-request-id')!r}")
        self._judge(kind, name, form, places, status, answer)
        if status == 200:
            self.latencies.append((time.monotonic(), time.monotonic() - started))
        return not closes

    def _judge(self, kind: str, name: str, form: Form, places: list[int], status: int, answer: bytes) -> None:
        """Counts an answer, and notes one that is not right."""
        self.ends[f"{kind}: {status}"] += 1
        if status in REFUSED or (status == INJECTED and b"could not be run on this batch" in answer):
            return
        if kind == "bad":
            if not 400 <= status < 500:
                self.wrong.append(f"request {name} was bad and got {status}")
        elif status != 200:
            self.wrong.append(f"request {name} was good and got {status}: {answer[:200]!r}")
        elif form.results(answer) != [self._alone[form][place] for place in places]:
            self.wrong.append(f"request {name} ({form.path}) got another answer than alone")

    async def _leave(self, line: Line, sent: bytes, chance: random.Random) -> None:
        """Leaves in the middle of a request, or while it waits."""
        self.ends["leaves"] += 1
        whole = chance.random() < 0.6
        with contextlib.suppress(*_ENDED):
            line.writer.write(sent if whole else sent[: chance.randrange(1, len(sent))])
            await line.writer.drain()
            await asyncio.sleep(chance.uniform(0, 0.005))
        line.close(abort=chance.random() < 0.5)

    async def _send_slowly(self, line: Line, sent: bytes, chance: random.Random) -> None:
        cuts = sorted(chance.randrange(len(sent)) for _ in range(5))
        for start, end in zip([0, *cuts], [*cuts, len(sent)], strict=True):
            line.writer.write(sent[start:end])
            await line.writer.drain()
            await asyncio.sleep(chance.uniform(0, 0.02))
        await asyncio.sleep(chance.uniform(0, 0.05))  # and reads late

    async def _expect_silence(self, line: Line, number: int) -> None:
        """After the last answer nothing more comes."""
        with contextlib.suppress(TimeoutError, *_ENDED):
            async with asyncio.timeout(0.2):
                more = await line.reader.read(100)
                if more:
                    self.wrong.append(f"caller {number} got more than its answers: {more!r}")
        line.close()


# What is done to the process.


async def stop_for(server: ServerProcess, seconds: float) -> None:
    """Stops the whole process for a while."""
    stopped = proc.serving(server.process.pid)
    try:
        _send(stopped, signal.SIGSTOP)
        await asyncio.sleep(seconds)
    finally:  # also where the caller is cancelled meanwhile
        _send(stopped, signal.SIGCONT)


def _send(pids: list[int], number: signal.Signals) -> None:
    for pid in pids:
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, number)


def publish(server: ServerProcess, folder: Path, version: int) -> None:
    """Replaces the model by a next version with the same graph."""
    place(folder, NAME, version)
    for old in (folder / NAME).iterdir():
        if int(old.name) < version - 1:
            shutil.rmtree(old)
    server.process.send_signal(signal.SIGHUP)


# What is left of it.


def is_idle(server: ServerProcess) -> bool:
    """Whether nothing waits, runs or is in memory."""
    return idle(server.figures())


async def until(true: Any, what: str) -> None:
    """Waits until something is true."""
    await asyncio.to_thread(wait_until, true, what)
