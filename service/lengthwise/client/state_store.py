"""Keeps the states of many sequences on the caller's side, and applies each chunk of their steps once.

    store.get(key) -> state ──> AsyncClient.predict ──> answer, next state ──> store.put(key), if nobody else did

A server keeps nothing between two calls: the state of a sequence goes out with its answer, and comes in with its next
steps. A `StateStore` is where it stays meanwhile: in a dict, in SQLite, in Redis, or in whatever has a
*compare-and-set* (a write that happens only while the stored offset is the expected one). That is all that is needed
for each step to count once, however often a chunk is sent, and by however many processes.
"""

from __future__ import annotations

import asyncio
import os
import sqlite3
from collections.abc import Sequence
from typing import Any, Final, NamedTuple, Protocol

from lengthwise.api import Prediction
from lengthwise.client.client import AsyncClient
from lengthwise.decoding.chunks import NO_OFFSET
from lengthwise.errors import InvalidSequences, Problem, StateConflict


class StoredState(NamedTuple):
    """What is stored for one sequence.

    Attributes:
        offset: The steps of the sequence that the state has seen.
        state: The state's text, as an answer has it.
    """

    offset: int
    state: str


class StateStore(Protocol):
    """A place for the states of sequences, by key. Any class with these three methods is one."""

    async def get(self, key: str) -> StoredState | None:
        """Returns what is stored for a sequence; None if nothing is."""

    async def put(self, key: str, stored: StoredState, expected: int | None) -> bool:
        """Stores the state of a sequence if its stored offset is still the expected one; returns whether it did.

        Comparing and storing are one step: of two callers that expect the same offset, one succeeds.

        Args:
            key: The key of the sequence.
            stored: What to store.
            expected: The offset that is stored now; None if nothing is.
        """

    async def delete(self, key: str) -> None:
        """Forgets a sequence: its next chunk begins it anew."""


class KeyedStreams:
    """Sequences that do not end, by key: sends their next steps, and keeps their states in a store.

    Several tasks and processes may push to the same keys.

    Args:
        client: The client of a server whose model streams.
        store: Where the states are kept.

    Example:
        >>> async with lengthwise.AsyncClient("http://localhost:8000") as client:
        ...     pumps = lengthwise.KeyedStreams(client, lengthwise.SQLiteStates("states.db"))
        ...     prediction = await pumps.push("pump-7", steps, offset=1000)
        >>> prediction.offset
        1010
    """

    def __init__(self, client: AsyncClient, store: StateStore) -> None:
        self._client = client
        self._store = store

    async def push(self, key: str, steps: Sequence[Any], *, offset: int | None = None, **options: Any) -> Prediction:
        """Sends the next steps of a sequence, and returns the answer to all of its steps so far.

        Steps that the state has seen already count once: of a chunk that comes again only what is new is sent, and if
        nothing is, the sequence as far as it has come is answered again. So a chunk may come twice, late, or cut
        differently. `Prediction.offset` says up to which step the answer is.

        Args:
            key: The key of the sequence.
            steps: Its next steps, as `AsyncClient.predict` takes those of a sequence; may be empty.
            offset: Where the steps begin in the sequence. None: behind those that the state has seen.
            **options: Of `AsyncClient.predict`, such as `timeout`.

        Raises:
            InvalidSequences: `offset` is negative, or the model does not accept the steps.
            StateConflict: Steps are missing between those that the state has seen and `offset`. Or the server refuses
                the state, as it serves other versions now: `delete` it from the store, and send all steps again.
        """
        if offset is not None and offset < 0:
            raise InvalidSequences([Problem("/sequences/0", f"offset: {NO_OFFSET}")])
        options["outputs"] = [*options.get("outputs", ()), "state"]
        while True:
            stored = await self._store.get(key)
            seen, state = (0, None) if stored is None else stored
            begin = seen if offset is None else offset
            if begin > seen:
                raise StateConflict([Problem("/sequences/0/offset", f"{key!r} has seen {seen} steps, not {begin}")])
            new = steps[seen - begin :]
            (prediction,) = await self._client.predict([new], states=[state], **options)
            after = StoredState(prediction.offset or 0, prediction.state or "")
            if not len(new) or await self._store.put(key, after, None if stored is None else seen):
                return prediction


class DictStates:
    """A `StateStore` in the memory of one process."""

    def __init__(self) -> None:
        self._states: dict[str, StoredState] = {}

    async def get(self, key: str) -> StoredState | None:
        """Returns what is stored for a sequence; None if nothing is."""
        return self._states.get(key)

    async def put(self, key: str, stored: StoredState, expected: int | None) -> bool:
        """Stores a state if the stored offset is the expected one; returns whether it did."""
        now = self._states.get(key)
        is_expected = (None if now is None else now.offset) == expected
        if is_expected:
            self._states[key] = stored
        return is_expected

    async def delete(self, key: str) -> None:
        """Forgets a sequence."""
        self._states.pop(key, None)


class SQLiteStates:
    """A `StateStore` in a file of SQLite, for the processes of one machine: the table `states` (key, steps, state).

    Args:
        path: The file; it is made if it is missing.
    """

    def __init__(self, path: str | os.PathLike[str]) -> None:
        self._connection = sqlite3.connect(path, isolation_level=None, check_same_thread=False)
        self._connection.execute("CREATE TABLE IF NOT EXISTS states (key TEXT PRIMARY KEY, steps INTEGER, state TEXT)")

    async def get(self, key: str) -> StoredState | None:
        """Returns what is stored for a sequence; None if nothing is."""
        rows = await self._execute("SELECT steps, state FROM states WHERE key = ?", key)
        return StoredState(*rows[0]) if rows else None

    async def put(self, key: str, stored: StoredState, expected: int | None) -> bool:
        """Stores a state if the stored offset is the expected one; returns whether it did."""
        if expected is None:
            change = "INSERT INTO states (steps, state, key) VALUES (?, ?, ?) ON CONFLICT DO NOTHING RETURNING steps"
            return bool(await self._execute(change, *stored, key))
        change = "UPDATE states SET steps = ?, state = ? WHERE key = ? AND steps = ? RETURNING steps"
        return bool(await self._execute(change, *stored, key, expected))

    async def delete(self, key: str) -> None:
        """Forgets a sequence."""
        await self._execute("DELETE FROM states WHERE key = ?", key)

    def close(self) -> None:
        """Closes the file."""
        self._connection.close()

    async def _execute(self, statement: str, *values: str | int) -> list[Any]:
        """Executes a statement, a transaction of its own; returns its rows. Another thread waits for the disk."""
        return await asyncio.to_thread(lambda: self._connection.execute(statement, values).fetchall())


_COMPARE_AND_SET: Final = """
if (redis.call('HGET', KEYS[1], 'offset') or '') ~= ARGV[1] then return 0 end
redis.call('HSET', KEYS[1], 'offset', ARGV[2], 'state', ARGV[3])
return 1
"""  # a script runs in Redis as one step


class RedisStates:
    """A `StateStore` in Redis, for any number of machines: a hash with `offset` and `state` for each sequence.

    Args:
        redis: A `redis.asyncio.Redis` (`pip install "lengthwise[redis]"`).
        prefix: What each key begins with in Redis.
    """

    def __init__(self, redis: Any, prefix: str = "lengthwise:") -> None:
        self._redis = redis
        self._prefix = prefix

    async def get(self, key: str) -> StoredState | None:
        """Returns what is stored for a sequence; None if nothing is."""
        offset, state = await self._redis.hmget(self._prefix + key, "offset", "state")
        if offset is None:
            return None
        return StoredState(int(offset), state.decode() if isinstance(state, bytes) else state)

    async def put(self, key: str, stored: StoredState, expected: int | None) -> bool:
        """Stores a state if the stored offset is the expected one; returns whether it did."""
        values = "" if expected is None else expected, stored.offset, stored.state
        return bool(await self._redis.eval(_COMPARE_AND_SET, 1, self._prefix + key, *values))

    async def delete(self, key: str) -> None:
        """Forgets a sequence."""
        await self._redis.delete(self._prefix + key)
