"""Rows with static values and two sequences under load, while workers are killed and the model is replaced."""

import asyncio
import json
import os
import random
import signal
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from lengthwise.padding import Sample, pad
from lengthwise.verification.random_sequences import draw
from tests.support import sample_models
from tests.support.chaos import Form, Line, request, until
from tests.support.server_process import started
from tests.support.workers import Workers

pytestmark = [pytest.mark.process, pytest.mark.long]

NAME = "beside"
CALLERS = 32
KILLS = 6
WANTED = 100_000  # answered requests
FORMS = (Form("/predict", "predictions"), Form(f"/v1/models/{NAME}:predict", "predictions"))
TOLERANCE = 1e-6  # of what JSON shows of a probability in float32


@dataclass
class Callers:
    """Callers that send rows until enough are answered, and send again what a killed worker did not answer."""

    port: int
    rows: Sequence[Sample]
    expected: Sequence[list[float]]  # the probabilities of each row alone
    wanted: int  # answered requests
    ends: Counter[str] = field(default_factory=Counter)
    wrong: list[str] = field(default_factory=list)

    async def all(self) -> None:
        """Runs all callers."""
        self.items = [item_of(row) for row in self.rows]
        async with asyncio.TaskGroup() as callers:
            for number in range(CALLERS):
                callers.create_task(self.one(random.Random(number)))

    async def one(self, chance: random.Random) -> None:
        """One caller: a connection after the other, and on each one request after the other."""
        while self.ends["answered"] < self.wanted:
            try:
                line = await Line.open(self.port)
            except OSError:
                self.ends["refused"] += 1
                continue
            try:
                while self.ends["answered"] < self.wanted:
                    await self.ask(line, chance)
            except (OSError, asyncio.IncompleteReadError):
                self.ends["reset"] += 1
            finally:
                line.close(abort=True)

    async def ask(self, line: Line, chance: random.Random) -> None:
        """Sends a few rows, and compares each answer with that of its row alone."""
        form, chosen = chance.choice(FORMS), chance.sample(range(len(self.rows)), chance.randint(1, 3))
        name = f"{chance.random()}"
        body = b'{"%s": [%s]}' % (
            b"instances" if "/v1/" in form.path else b"sequences",
            b", ".join([self.items[row] for row in chosen]),
        )
        line.writer.write(request(form, body, name))
        status, headers, content = await line.answer()
        if headers[b"x-request-id"] != name.encode():
            self.wrong.append(f"an answer of {headers[b'x-request-id']!r} to {name}")
        if status != 200:
            self.ends[str(status)] += 1
            return
        results = form.results(content)
        given = [result["probabilities"] for result in results]
        if not np.allclose(given, [self.expected[row] for row in chosen], rtol=0, atol=TOLERANCE):
            self.wrong.append(f"rows {chosen}: {given}")
        self.ends["answered"] += 1


def item_of(row: Sample) -> bytes:
    """A row as an item of a body."""
    inputs = {"title": row.steps.tolist(), "body": row.others["body"].tolist()}
    return json.dumps({"inputs": inputs, "static": row.beside["static"].tolist()}).encode()


async def test_kills_and_a_reload_give_no_row_the_answer_of_another(tmp_path: Path) -> None:
    first = sample_models.manifest(static=True, second=True)
    model, drawn = sample_models.loaded(first), np.random.default_rng(0)
    rows: Any = draw(first, drawn.integers(1, 40, 200).tolist(), 1)
    expected = [model.answer(pad([row]), False)[0] for row in rows]
    probabilities = [answer.probabilities.tolist() for answer in expected if answer is not None]
    assert len({tuple(each) for each in probabilities}) > len(rows) / 2  # or one row's answer might be another's
    sample_models.place(tmp_path, first)
    with started(str(tmp_path), "--workers", "2") as server:
        callers = Callers(server.port, rows, probabilities, WANTED)
        load, workers = asyncio.create_task(callers.all()), Workers(server)
        for kill in range(KILLS):
            due = WANTED * (kill + 1) // (KILLS + 1)
            await until(lambda due=due: load.done() or callers.ends["answered"] > due, "they are answered")
            if kill == KILLS // 2:
                sample_models.place(tmp_path, sample_models.manifest(static=True, second=True, version=2))
                server.process.send_signal(signal.SIGHUP)
            victim = (await asyncio.to_thread(workers.ready))[kill % 2]["pid"]
            os.kill(victim, signal.SIGKILL)
            await asyncio.to_thread(workers.replaced, victim)
        await until(lambda: '"version":"2"' in server.get("/healthz").text, "the next version is served")
        await load
    assert callers.wrong == []
    assert callers.ends["answered"] >= WANTED
    assert callers.ends["reset"]  # of workers that were killed
