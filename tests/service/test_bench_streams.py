"""Streams as load: keys that come and go, chunks with their states, and each answer against that to the whole."""

import threading
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import orjson
import pytest
from click.testing import CliRunner, Result

from lengthwise.bench.connection import ServerAddress
from lengthwise.bench.streams import Script, Streams, cut, prepare
from lengthwise.bench.trial import LoadSpec, LoadTest
from lengthwise.commands.bench import bench
from tests.support.small_server import Reply, SmallServer, serving


@dataclass
class StreamingServer(SmallServer):
    """Answers with the sum of all steps so far, and how many they are; both are the state."""

    states: list[str | None] = field(default_factory=list)  # of the chunks, in the order of the requests
    keeps: bool = True  # whether it counts the steps before

    def predict(self, path: str, headers: dict[str, str], body: bytes) -> Reply:
        document = orjson.loads(body)
        predictions: list[dict[str, Any]] = []
        for item in document["sequences"]:
            steps, state = (item, None) if isinstance(item, list) else (item["steps"], item.get("state"))
            offset, total = map(float, state.split(":")) if state and self.keeps else (0.0, 0.0)
            for step in steps:  # one after the other: rounded in the same way, wherever they are cut
                offset, total = offset + 1, total + sum(step)
            predictions.append({"probabilities": [total, offset], "state": f"{offset!r}:{total!r}"})
            if "outputs" in document:
                self.states.append(state)
        with self.lock:
            number = len(self.bodies)
            self.bodies.append(body)
        return self.behave(number, Reply(200, orjson.dumps({"predictions": predictions})))


RANDOM = np.random.default_rng(0)
SEQUENCES = [RANDOM.normal(size=(20 + more, 2)).round(3).astype(np.float32) for more in range(5)]
LOAD = LoadSpec(concurrency=4, seconds=60, warmup_seconds=0, count=120)


def prepared(target: Any, keys: int = 30, **options: Any) -> LoadTest:
    form: dict[str, Any] = {"fields": {"model": "small"}, "headers": {}, "tolerance": 0.0}
    return prepare(target, SEQUENCES, np.array([1, 2, 5]), keys, **form | options)


def test_a_sequence_is_cut_into_all_of_its_steps():
    chunks = cut(SEQUENCES[0], [3, 8])
    assert [len(chunk) for chunk in chunks] == [3, 8, 3, 6]
    np.testing.assert_array_equal(np.concatenate(chunks), SEQUENCES[0])


def test_every_answer_is_held_against_that_to_the_whole():
    server = StreamingServer()
    with serving(server) as target:
        seen = prepared(target).run(LOAD)
    assert (seen.answers, seen.wrong) == ({200: 120}, 0)
    assert server.states.count(None) >= 3  # sequences begin without a state, the others go on with one
    assert len({*server.states}) > 15


def test_a_server_that_forgets_what_came_before_is_found():
    with serving(StreamingServer(keeps=False)) as target:
        seen = prepared(target).run(LOAD)
    assert seen.wrong is not None
    assert seen.wrong > 60


def test_a_difference_within_the_tolerance_is_right():
    def drift(number: int, reply: Reply) -> Reply:
        document = orjson.loads(reply.body)
        for prediction in document["predictions"] if number > 40 else ():
            prediction["probabilities"][0] += 1e-6
        return Reply(200, orjson.dumps(document))

    found = []
    for tolerance in (1e-5, 1e-7):
        with serving(StreamingServer(behave=drift)) as target:
            found.append(prepared(target, tolerance=tolerance).run(LOAD).wrong)
    assert found[0] == 0
    assert found[1]


def test_a_chunk_that_was_refused_is_sent_again_with_its_state():
    lock, seen = threading.Lock(), [0]

    def refuse(_number: int, reply: Reply) -> Reply:
        with lock:
            seen[0] += 1
            return Reply(429, b"{}") if seen[0] > 30 and seen[0] % 3 == 0 else reply

    with serving(StreamingServer(behave=refuse)) as target:
        load = prepared(target, keys=4).run(LoadSpec(concurrency=1, seconds=60, warmup_seconds=0, count=90))
    assert load.wrong == 0
    assert load.answers[429] >= 20
    assert load.answers[200] + load.answers[429] == 90


def test_each_answer_to_a_chunk_that_was_sent_often_is_compared():
    def reply(probability: float) -> bytes:
        return orjson.dumps({"predictions": [{"probabilities": [probability], "state": "S"}]})

    script = Script((b"[[1]]", b"[[2]]"), ([0.5], [0.7]))
    streams = Streams([script], 1, ServerAddress("localhost", 1), {}, {}, 0.0)
    assert all(b"[[1]]}" in streams[index] for index in range(5))  # one key, five connections
    assert streams.is_right(1, reply(0.5))
    assert b'[[2]],"state":"S"' in streams[5]  # the first answer moves the key
    assert not streams.is_right(0, reply(0.4))
    assert not streams.is_right(2, b"{}")
    assert streams.is_right(3, reply(0.5))
    assert b'[[2]],"state":"S"' in streams[6]  # the others do not
    assert not streams.is_right(5, reply(0.5))
    assert b"[[1]]}" in streams[7]
    assert streams.is_right(6, reply(0.7))
    assert not streams.is_right(4, reply(0.7))


def test_a_late_answer_to_a_script_of_one_chunk_moves_no_key():
    streams = Streams([Script((b"[[1]]",), ([0.5],))], 1, ServerAddress("localhost", 1), {}, {}, 0.0)
    answer = orjson.dumps({"predictions": [{"probabilities": [0.5], "state": "S"}]})
    assert all(streams[index] for index in range(3))
    assert all(streams.is_right(index, answer) for index in range(3))
    assert all(streams[index] for index in range(3, 6))
    assert streams.is_right(5, answer)


@pytest.mark.parametrize("keys", [1, 2, 3])
def test_with_few_keys_sequences_end_and_begin(keys: int):
    server = StreamingServer()
    with serving(server) as target:
        seen = prepared(target, keys=keys).run(LOAD)
    assert (seen.answers, seen.wrong) == ({200: 120}, 0)
    assert len({*server.states}) > 5


def test_keys_are_on_for_some_chunks_and_then_off():
    server = StreamingServer()
    with serving(server) as target:
        prepared(target, keys=200).run(LoadSpec(concurrency=1, seconds=60, warmup_seconds=0, count=200))
    begun = [index for index, state in enumerate(server.states) if state is None]
    assert begun[:20] == [*range(20)]  # a tenth of the keys is on at first
    assert len(begun) > 25  # others come meanwhile
    assert len(begun) < 120


def call(*arguments: str, server: SmallServer) -> Result:
    with serving(server) as target:
        few = ("--request-count", "40", "--concurrency", "2", "--lengths", "uniform:1,4", "--stream", "10")
        return CliRunner().invoke(bench, [target.url, *few, *arguments], env={"COLUMNS": "200"})


def test_the_command_says_how_many_keys_and_how_long_the_chunks_are():
    result = call("--json", server=StreamingServer())
    assert result.exit_code == 0, result.output
    document = orjson.loads(result.stdout)
    assert document["title"].endswith("10 keys, chunks of uniform:1,4")
    assert document["loads"][0]["wrong"] == 0
    assert call(server=StreamingServer(keeps=False)).exit_code == 1


@pytest.mark.parametrize("other", ["--no-check", "--sequences=2"])
def test_options_that_mean_nothing_of_streams_are_refused(other: str):
    result = call(other, server=StreamingServer())
    assert result.exit_code == 2
    assert "--stream" in result.stderr
