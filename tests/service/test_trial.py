"""One server, the requests for it, which answers are right, and what a load on it shows."""

import json

import numpy as np
import orjson
import pytest

from lengthwise.bench.trial import Expected, LoadSpec, prepare, scores
from lengthwise.errors import ConfigurationError
from tests.support.small_server import Reply, SmallServer, serving

SHORT = LoadSpec(concurrency=2, seconds=60, warmup_seconds=0, count=8)
SEQUENCES = [np.full((length, 2), length, dtype=np.float32) for length in (1, 2, 3, 4)]


def test_every_sequence_is_sent_alone_before_the_load():
    server = SmallServer()
    with serving(server) as target:
        prepare(target, SEQUENCES, per_request=2)
    assert [len(json.loads(body)["sequences"]) for body in server.bodies] == [1, 1, 1, 1]


def test_a_closed_loop_gives_its_figures_with_the_servers_own():
    server = SmallServer()
    with serving(server) as target:
        seen = prepare(target, SEQUENCES, per_request=2).run(SHORT)
    assert seen.answers == {200: 8}
    assert seen.wrong == 0
    assert seen.padding_share == pytest.approx(0.25)
    assert seen.rows_per_batch == pytest.approx(4)
    assert seen.load == "2 connections"
    assert seen.sequences_per_second == pytest.approx(2 * seen.requests_per_second)


def test_an_answer_that_changes_under_load_is_found():
    def drift(number: int, reply: Reply) -> Reply:
        return Reply(200, reply.body.replace(b".0", b".0000001")) if number == 6 else reply

    server = SmallServer(behave=drift)
    with serving(server) as target:
        assert prepare(target, SEQUENCES).run(SHORT).wrong == 1


def test_without_a_check_nothing_is_sent_alone_and_nothing_called_right():
    server = SmallServer()
    with serving(server) as target:
        trial = prepare(target, SEQUENCES, check=False)
        assert server.bodies == []
        assert trial.run(SHORT).wrong is None


@pytest.mark.parametrize("rate", [None, 400.0])
def test_a_warm_up_is_sent_and_does_not_count(rate: float | None):
    server = SmallServer()
    with serving(server) as target:
        load = LoadSpec(concurrency=1, rate=rate, seconds=5, warmup_seconds=0.05, count=3)
        seen = prepare(target, SEQUENCES, check=False).run(load)
    assert sum(seen.answers.values()) == 3
    assert len(server.bodies) > 3


def test_an_open_loop_is_named_by_its_rate():
    with serving(SmallServer()) as target:
        load = LoadSpec(concurrency=2, rate=1000, seconds=0.05, warmup_seconds=0)
        seen = prepare(target, SEQUENCES).run(load)
    assert seen.load == "1,000 requests/s"
    assert seen.offered_rate == 1000
    assert seen.answers == {200: len(load.schedule().moments)}


def test_the_same_seed_makes_the_same_schedule():
    load = LoadSpec(rate=100, seconds=1, seed=3)
    assert load.schedule() == LoadSpec(rate=100, seconds=1, seed=3).schedule()
    assert load.schedule() != LoadSpec(rate=100, seconds=1, seed=4).schedule()


def body(*probabilities: list[float], **fields: str) -> bytes:
    return orjson.dumps({**fields, "predictions": [{"probabilities": each} for each in probabilities]})


NEIGHBOUR = float(np.nextafter(np.float32(0.3), np.float32(1)))
FOUR = [body([0.1]), body([0.2]), body([0.3]), body([0.4])]


@pytest.mark.parametrize(
    ("alone", "per_request", "place", "answer", "right"),
    [
        ([body([0.25, 0.75])], 1, 0, body([0.25, 0.75], version="2"), True),  # other bytes
        ([body([float(np.float32(0.3))])], 1, 0, body([NEIGHBOUR]), False),  # the last bit of a float32
        (FOUR, 1, 0, body([0.2]), False),  # another request's
        (FOUR, 1, 1, body([0.2]), True),
        (FOUR, 2, 0, body([0.1], [0.2]), True),
        (FOUR, 2, 1, body([0.3], [0.4]), True),
        (FOUR, 2, 1, body([0.4], [0.3]), False),
        (FOUR, 2, 1, body([0.3]), False),
    ],
)
def test_an_answer_is_held_against_each_sequence_alone_whenever_it_comes(
    alone: list[bytes], per_request: int, place: int, answer: bytes, right: bool
):
    expected = Expected(alone, per_request)
    assert [expected.is_right(place, answer) for _ in range(2)] == [right, right]


@pytest.mark.parametrize("answer", [b"", b"[]", b"{}", b'{"predictions": [3]}'])
def test_what_is_no_answer_is_wrong_under_load_and_refused_before_it(answer: bytes):
    assert not Expected([body([0.1])]).is_right(0, answer)
    with pytest.raises(ConfigurationError):
        scores(answer)
