"""Sequences that do not end, as load: many keys at once, each sent in chunks with its state.

    script: a sequence cut into chunks ──> key: the next chunk, and the state of its last answer ──> answer, next state

A *script* is a sequence with its cuts, and the answer to the whole so far at each of them. Each key plays one script
after another. Its arrival is on and off: a key that is *on* sends some chunks, one after the other, and is then *off*
while others are. A chunk without an answer is sent again with the same state, which changes nothing.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final, NamedTuple

import numpy as np
import orjson

from lengthwise.bench.connection import ServerAddress
from lengthwise.bench.load import Tick, ask_each
from lengthwise.bench.trial import LoadTest, Probabilities, groups_of, json_requests
from lengthwise.bench.workload import Lengths
from lengthwise.padding import Steps

_SCRIPTS: Final = 100
_SHARE_ON: Final = 0.1  # of the keys
_BURST_CHUNKS: Final = 10  # mean of the chunks that a key sends while it is on
_PREFIXES_AT_ONCE: Final = 50
_SAME: Final = 1e-5  # how far an answer may be from that to the whole: rounding, where a model promises no equal bits
_MANY: Final = 2**62  # requests, which are made one by one as they are sent


@dataclass(frozen=True, slots=True)
class Script:
    """A sequence in chunks."""

    chunks: tuple[bytes, ...]  # the steps of each, as JSON
    whole: tuple[Probabilities, ...]  # the answer to all steps up to the end of each


@dataclass(slots=True, eq=False)
class StreamKey:
    """Where a key is."""

    script: int  # its index
    chunk: int = 0  # the index of the next one
    state: str = ""  # after the chunk before; empty without one

    @property
    def next_chunk(self) -> SentChunk:
        """The key and its next chunk."""
        return SentChunk(self, self.script, self.chunk)


class SentChunk(NamedTuple):
    """A chunk that a key sends or has sent."""

    key: StreamKey
    script: int  # its index
    chunk: int  # its index


class Streams:
    """The requests of a load, made as they are sent; and which answers to them are right.

    Args:
        scripts: What the keys send.
        keys: How many keys there are.
        target: The server.
        fields: Further fields of each body.
        headers: Of each request.
        tolerance: How far an answer may be from that to the whole.
        seed: Of the arrival.
    """

    def __init__(
        self,
        scripts: Sequence[Script],
        keys: int,
        target: ServerAddress,
        fields: Mapping[str, str],
        headers: Mapping[str, str],
        tolerance: float,
        seed: int = 0,
    ) -> None:
        self._scripts, self._target, self._tolerance = scripts, target, tolerance
        self._fields = orjson.dumps({**fields, "outputs": ["state"]})[1:]
        self._headers = {"content-type": "application/json", **headers}
        self._random = np.random.default_rng(seed)
        self._keys = [StreamKey(int(script)) for script in self._random.integers(len(scripts), size=keys)]
        count = max(1, round(_SHARE_ON * keys))
        self._on, self._off = deque(self._keys[:count]), self._keys[count:]
        self._waiting: dict[StreamKey, None] = {}  # keys whose chunk has no answer yet, by the time of its last request
        self._sent: dict[int, SentChunk] = {}  # by the index of the request

    def __len__(self) -> int:
        return _MANY

    def __getitem__(self, index: int) -> bytes:
        """The next request: the chunk of a key that is on; if all wait for answers, of one more; then of the oldest."""
        if not self._on:
            self._on.append(self._off.pop() if self._off else next(iter(self._waiting)))
        key = self._on.popleft()
        self._waiting.pop(key, None)
        self._waiting[key] = None
        self._sent[index] = key.next_chunk
        steps = self._scripts[key.script].chunks[key.chunk]
        state = b',"state":"%s"' % key.state.encode() if key.state else b""
        body = b'{"sequences":[{"steps":%s%s}],%s' % (steps, state, self._fields)
        return self._target.request("/predict", body, self._headers)

    def is_right(self, index: int, body: bytes) -> bool:
        """Whether an answer is that to the whole so far.

        With the first answer to a chunk, which may be sent several times, its key goes on, and may go off.
        """
        sent = self._sent.pop(index)
        try:
            prediction = orjson.loads(body)["predictions"][0]
            answer, state = answer_of(prediction), prediction["state"]
            whole = self._scripts[sent.script].whole[sent.chunk]
            expected = whole[-len(answer) :]  # of a model with an answer for each step, those of the chunk
        except (orjson.JSONDecodeError, LookupError, TypeError):
            return False
        if sent.key in self._waiting and sent == sent.key.next_chunk:
            self._go_on(sent.key, state)
        return answer == expected or bool(np.allclose(answer, expected, rtol=0, atol=self._tolerance))

    def _go_on(self, key: StreamKey, state: str) -> None:
        """Moves a key to its next chunk, with the state after the one that was answered; or to another script."""
        del self._waiting[key]
        key.state = state
        key.chunk += 1
        if key.chunk == len(self._scripts[key.script].chunks):  # the sequence ends, and the next one begins
            key.script, key.chunk, key.state = int(self._random.integers(len(self._scripts))), 0, ""
        if self._off and self._random.random() < 1 / _BURST_CHUNKS:
            place = int(self._random.integers(len(self._off)))
            key, self._off[place] = self._off[place], key
        self._on.append(key)


def answer_of(prediction: Mapping[str, Any]) -> Probabilities:
    """The probabilities of a prediction, or the values of a model without a head."""
    answer: Probabilities = prediction["probabilities"] if "probabilities" in prediction else prediction["values"]
    return answer


def cut(steps: Steps, lengths: Sequence[int]) -> list[Steps]:
    """Cuts a sequence into chunks of these lengths, and again from the first of them; the last one may be shorter."""
    chunks, begin = list[Steps](), 0
    while begin < len(steps):
        length = lengths[len(chunks) % len(lengths)]
        chunks.append(steps[begin : begin + length])
        begin += length
    return chunks


def prepare(
    target: ServerAddress,
    sequences: Sequence[Steps],
    chunk_lengths: Lengths,
    keys: int,
    *,
    fields: Mapping[str, str],
    headers: dict[str, str],
    tolerance: float = _SAME,
    tick: Tick | None = None,
) -> LoadTest:
    """Cuts sequences into chunks, and asks the server for the answer to the whole at each cut.

    Args:
        target: The server.
        sequences: The sequences; the first hundred are used.
        chunk_lengths: The lengths of the chunks.
        keys: How many sequences are under way at once.
        fields: Further fields of each body, such as the model.
        headers: Of each request.
        tolerance: How far an answer may be from that to the whole.
        tick: Shows the progress.
    """
    random = np.random.default_rng(0)
    cuts = [cut(steps, random.permutation(chunk_lengths).tolist()) for steps in sequences[:_SCRIPTS]]
    prefixes = [
        steps[:end]
        for steps, chunks in zip(sequences, cuts, strict=False)
        for end in np.cumsum([len(chunk) for chunk in chunks])
    ]
    bodies = ask_each(target, json_requests(target, groups_of(prefixes, _PREFIXES_AT_ONCE), fields, headers), tick=tick)
    answers = iter([answer_of(entry) for body in bodies for entry in orjson.loads(body)["predictions"]])
    scripts = [
        Script(
            tuple(orjson.dumps(chunk, option=orjson.OPT_SERIALIZE_NUMPY) for chunk in chunks),
            tuple(next(answers) for _ in chunks),
        )
        for chunks in cuts
    ]
    streams = Streams(scripts, keys, target, fields, headers, tolerance)
    return LoadTest(target, streams, streams, headers=headers)
