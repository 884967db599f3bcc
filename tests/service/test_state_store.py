"""Streams by key: a chunk counts once, however often it comes and whoever sends it, in every store."""

import asyncio
import json
import shutil
import subprocess
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

import lengthwise
from lengthwise.client.state_store import DictStates, KeyedStreams, RedisStates, SQLiteStates, StateStore, StoredState
from lengthwise.errors import InvalidSequences, StateConflict


class Sums:
    """A client whose server answers with the sum of all steps so far, which is also its state."""

    def __init__(self, before: Callable[[], Any] = asyncio.Event) -> None:
        self.sent: list[int] = []  # the steps of each call
        self.before = before

    async def predict(
        self, sequences: list[Any], *, states: list[str | None], outputs: list[str], **_: Any
    ) -> list[SimpleNamespace]:
        assert outputs == ["state"]
        offset, total = json.loads(states[0]) if states[0] else (0, 0.0)
        self.sent.append(len(sequences[0]))
        result = self.before()
        if asyncio.iscoroutine(result):
            await result
        offset, total = offset + len(sequences[0]), total + float(np.sum(sequences[0]))
        return [SimpleNamespace(offset=offset, state=json.dumps([offset, total]), total=total)]


class FakeRedis:
    """What `RedisStates` calls of redis.asyncio, in a dict."""

    def __init__(self) -> None:
        self.hashes: dict[str, dict[str, Any]] = {}

    async def hmget(self, key: str, *fields: str) -> list[bytes | None]:
        found = self.hashes.get(key, {})
        return [str(found[field]).encode() if field in found else None for field in fields]

    async def eval(self, script: str, count: int, key: str, expected: Any, offset: Any, state: Any) -> int:
        assert (count, script.count("redis.call")) == (1, 2)
        if str(self.hashes.get(key, {}).get("offset", "")) != str(expected):
            return 0
        self.hashes[key] = {"offset": offset, "state": state}
        return 1

    async def delete(self, key: str) -> None:
        self.hashes.pop(key, None)


@pytest.fixture(params=["dict", "sqlite", "redis"])
async def store(request: pytest.FixtureRequest, tmp_path: Path) -> AsyncIterator[StateStore]:
    if request.param == "sqlite":
        made = SQLiteStates(tmp_path / "states.db")
        yield made
        made.close()
    else:
        yield DictStates() if request.param == "dict" else RedisStates(FakeRedis())


STEPS = np.arange(12, dtype=np.float32)[:, None]


@pytest.mark.parametrize("offset", [-1, -100, np.int64(-1)])
async def test_a_negative_offset_is_refused(store: StateStore, offset: int):
    client = Sums()
    streams = KeyedStreams(client, store)  # type: ignore[arg-type]  # no real client
    for _ in range(2):
        with pytest.raises(InvalidSequences, match="offset: must be a whole number of steps, from 0"):
            await streams.push("a", STEPS[:3], offset=offset)
        await streams.push("a", STEPS[:3])
    assert client.sent == [3, 3]


async def test_a_store_sets_only_what_has_the_expected_offset(store: StateStore):
    assert await store.get("a") is None
    assert not await store.put("a", StoredState(3, "three"), 0)
    assert await store.put("a", StoredState(3, "three"), None)
    assert not await store.put("a", StoredState(9, "nine"), None)
    assert await store.get("a") == StoredState(3, "three")
    assert not await store.put("a", StoredState(5, "five"), 2)
    assert await store.put("a", StoredState(5, "five"), 3)
    assert await store.get("a") == StoredState(5, "five")
    assert await store.get("b") is None
    await store.delete("a")
    await store.delete("b")
    assert await store.get("a") is None


async def test_chunks_go_on_where_the_state_is(store: StateStore):
    client = Sums()
    streams = KeyedStreams(client, store)  # type: ignore[arg-type]
    for begin in (0, 5, 9):
        answer: Any = await streams.push("a", STEPS[begin : begin + 4])
    other: Any = await streams.push("b", STEPS[:2])
    assert (answer.offset, other.offset, other.total) == (11, 2, 1)


async def test_a_chunk_that_comes_twice_is_answered_twice_and_counts_once(store: StateStore):
    client = Sums()
    streams = KeyedStreams(client, store)  # type: ignore[arg-type]
    first = [await streams.push("a", STEPS[begin : begin + 3], offset=begin) for begin in (0, 3, 6)]
    again: Any = await streams.push("a", STEPS[6:9], offset=6)
    assert (again.offset, again.total) == (first[-1].offset, first[-1].total) == (9, 36)  # type: ignore[attr-defined]
    old: Any = await streams.push("a", STEPS[:3], offset=0)
    assert (old.offset, old.total) == (9, 36)
    cut_otherwise: Any = await streams.push("a", STEPS[5:12], offset=5)
    assert (cut_otherwise.offset, cut_otherwise.total) == (12, 66)
    assert client.sent == [3, 3, 3, 0, 0, 3]


async def test_steps_that_are_missing_are_a_conflict_and_nothing_is_sent(store: StateStore):
    client = Sums()
    streams = KeyedStreams(client, store)  # type: ignore[arg-type]
    await streams.push("a", STEPS[:3])
    with pytest.raises(StateConflict, match="has seen 3 steps, not 4"):
        await streams.push("a", STEPS[4:], offset=4)
    assert client.sent == [3]
    assert await store.get("a") == StoredState(3, "[3, 3.0]")


async def test_of_two_that_send_the_same_chunk_at_once_one_counts(store: StateStore):
    both_sent = asyncio.Barrier(2)
    waits = iter([both_sent.wait] * 2)  # of the first call of each
    clients = [Sums(lambda: next(waits, asyncio.Event)()) for _ in range(2)]
    first = [KeyedStreams(client, store) for client in clients]  # type: ignore[arg-type]
    answers: list[Any] = await asyncio.gather(*(streams.push("a", STEPS[:4], offset=0) for streams in first))
    assert [(answer.offset, answer.total) for answer in answers] == [(4, 6)] * 2
    assert sorted(client.sent for client in clients) == [[4], [4, 0]]
    assert await store.get("a") == StoredState(4, "[4, 6.0]")


def test_what_is_exported_is_here():
    for name in ("DictStates", "KeyedStreams", "RedisStates", "SQLiteStates", "StateStore", "StoredState"):
        assert getattr(lengthwise, name).__doc__


@pytest.mark.process
@pytest.mark.parametrize("decode", [False, True])
async def test_redis_itself_sets_only_what_has_the_expected_offset(decode: bool, tmp_path: Path):
    redis = pytest.importorskip("redis.asyncio", reason="the library of Redis is not installed")
    if (program := shutil.which("redis-server")) is None:
        pytest.skip("Redis is not installed (apt-get install redis-server)")
    path = str(tmp_path / "socket")
    server = await asyncio.create_subprocess_exec(
        *(program, "--port", "0", "--unixsocket", path, "--save", ""), stdout=subprocess.PIPE
    )
    try:
        assert server.stdout is not None
        while b"ready to accept connections" not in (line := await asyncio.wait_for(server.stdout.readline(), 60)):
            assert line
        async with redis.Redis(unix_socket_path=path, decode_responses=decode) as connection:
            states = RedisStates(connection)
            assert await states.get("a") is None
            assert not await states.put("a", StoredState(3, "three"), 0)
            assert await states.put("a", StoredState(3, "three"), None)
            results = await asyncio.gather(*(states.put("a", StoredState(5, str(one)), 3) for one in range(20)))
            assert sum(results) == 1
            assert await states.get("a") == StoredState(5, str(results.index(True)))
            await states.delete("a")
            assert await states.get("a") is None
    finally:
        server.terminate()
        await server.wait()
