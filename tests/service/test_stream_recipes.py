"""The recipes for streams, run: a log that is read twice, and customers with new transactions."""

import asyncio
import importlib.util
import json
import sqlite3
from collections.abc import AsyncIterator
from pathlib import Path
from types import ModuleType
from typing import Any

import httpx2
import numpy as np
import pytest

import lengthwise
from lengthwise.batching.limits import BatchLimits
from lengthwise.scoring.opened import OpenModel
from tests.support.numpy_models import serving
from tests.support.streaming_models import LABELS, UNITS, gru, model, sequences, whole

EXAMPLES = Path(__file__).parents[2] / "examples"
GRU = model(gru)
KEYS = dict(zip(("pump-1", "pump-2", "fan-1"), sequences([17, 9, 23]), strict=True))


def recipe(name: str) -> ModuleType:
    spec = importlib.util.spec_from_file_location(name, EXAMPLES / f"{name}.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def records(seed: int = 0) -> list[tuple[str, int, Any]]:
    """The chunks of all keys, each key in its order, and the keys among each other: (key, begin, steps)."""
    random, ends, found = np.random.default_rng(seed), dict.fromkeys(KEYS, 0), []
    while names := [name for name, end in ends.items() if end < len(KEYS[name])]:
        name = names[random.integers(len(names))]
        begin, ends[name] = ends[name], min(ends[name] + int(random.integers(1, 6)), len(KEYS[name]))
        found.append((name, begin, KEYS[name][begin : ends[name]]))
    return found


def expected(name: str, end: int) -> tuple[str, float]:
    """Label and score of the first steps of a key, asked as a whole."""
    probabilities = whole(GRU, KEYS[name][:end])
    return LABELS[int(probabilities.argmax())], float(probabilities.max())


@pytest.fixture
async def client() -> AsyncIterator[lengthwise.AsyncClient]:
    async with serving(GRU) as service:
        transport = httpx2.ASGITransport(service.app)
        async with lengthwise.AsyncClient("http://service", transport=transport) as made:
            yield made


async def test_a_log_that_is_read_twice_gives_each_answer_once(client: lengthwise.AsyncClient, tmp_path: Path):
    example = recipe("stream_log")
    log = sqlite3.connect(tmp_path / "log.db")
    log.executescript(example.TABLES)
    chunks = records()
    rows = [(name, begin, json.dumps(steps.tolist())) for name, begin, steps in chunks]
    log.executemany("INSERT INTO log (key, begin, steps) VALUES (?, ?, ?)", rows)
    store = lengthwise.SQLiteStates(tmp_path / "states.db")
    streams = lengthwise.KeyedStreams(client, store)
    await example.consume(log, streams)
    for begin in (0, 5):  # the consumer begins again
        await example.consume(log, streams, begin)
    answers = {(key, steps): (label, score) for key, steps, label, score in log.execute("SELECT * FROM answers")}
    ends = [(name, begin + len(steps)) for name, begin, steps in chunks]
    assert sorted(answers) == sorted(ends)
    for name, end in ends:
        assert answers[name, end] == pytest.approx(expected(name, end))
    store.close()


async def test_a_chunk_that_was_answered_but_not_written_is_answered_again(
    client: lengthwise.AsyncClient, tmp_path: Path
):
    example = recipe("stream_log")
    log = sqlite3.connect(tmp_path / "log.db")
    log.executescript(example.TABLES)
    store = lengthwise.DictStates()
    streams = lengthwise.KeyedStreams(client, store)
    steps = KEYS["pump-1"]
    log.execute("INSERT INTO log (key, begin, steps) VALUES (?, 0, ?)", ("pump-1", json.dumps(steps[:4].tolist())))
    await streams.push("pump-1", steps[:4].tolist(), offset=0)  # the consumer ended here
    await example.consume(log, streams)
    assert log.execute("SELECT key, steps, label FROM answers").fetchall() == [("pump-1", 4, expected("pump-1", 4)[0])]


async def test_many_tasks_push_to_the_same_keys_and_each_step_counts_once(client: lengthwise.AsyncClient):
    store = lengthwise.DictStates()
    consumers = [lengthwise.KeyedStreams(client, store) for _ in range(3)]
    for name, begin, steps in records(seed=1):
        pushed = (consumer.push(name, steps, offset=begin) for consumer in consumers)
        for answer in await asyncio.gather(*pushed):
            assert answer.offset == begin + len(steps)
            assert answer.label == expected(name, begin + len(steps))[0]


async def test_a_store_whose_state_is_of_no_served_version_says_so(client: lengthwise.AsyncClient):
    other = model(gru, options={"seed": 1})
    (prediction,) = lengthwise.Model(OpenModel(other, BatchLimits(), 1)).predict(
        [KEYS["fan-1"][:3]], states=[None], outputs=["state"]
    )
    store = lengthwise.DictStates()
    await store.put("fan-1", lengthwise.StoredState(3, str(prediction.state)), None)
    streams = lengthwise.KeyedStreams(client, store)
    with pytest.raises(lengthwise.StateConflict):
        await streams.push("fan-1", KEYS["fan-1"][3:5])
    await store.delete("fan-1")
    assert (await streams.push("fan-1", KEYS["fan-1"][:5])).offset == 5


def test_customers_are_updated_by_their_new_transactions_only():
    loaded = model(gru, options={"head": False}, labels=[], task="embedding", dimensions=UNITS)
    opened = lengthwise.Model(OpenModel(loaded, BatchLimits(), 1))
    example = recipe("stream_customers")
    customers = sqlite3.connect(":memory:")
    customers.execute(example.TABLE)
    first = {name: steps[:7].tolist() for name, steps in KEYS.items()}
    example.update(customers, opened, first)
    example.update(customers, opened, {"fan-1": KEYS["fan-1"][7:].tolist(), "pump-1": KEYS["pump-1"][7:8].tolist()})
    ends = {"pump-1": 8, "pump-2": 7, "fan-1": 23}
    for name, count, embedding, _ in customers.execute("SELECT * FROM customers"):
        assert count == ends.pop(name)
        assert embedding == whole(loaded, KEYS[name][:count]).tobytes()
    assert not ends
    assert sorted(example.nearest(customers, "fan-1")) == ["pump-1", "pump-2"]
