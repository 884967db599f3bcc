"""One server, the requests for it, and what a load on it shows."""

import json
from pathlib import Path

import numpy as np
import pytest

from lengthwise.bench.launch import ServiceUnderLoad
from lengthwise.bench.trial import LoadSpec, Workload, prepare
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


def test_a_binary_request_carries_its_shape_and_its_model_beside_the_bytes():
    server = SmallServer()
    with serving(server) as target:
        seen = prepare(target, SEQUENCES, form="binary", fields={"model": "m"}, headers={"x-key": "k"}).run(SHORT)
    assert seen.wrong == 0
    assert server.bodies[2] == SEQUENCES[2].tobytes()
    assert server.headers[2]["x-lengthwise-shape"] == "3,2"
    assert server.headers[2]["x-key"] == "k"
    assert server.paths[2] == "/predict?model=m"


@pytest.mark.parametrize(("sequences", "per_request"), [(SEQUENCES, 2), ([np.array([1, 2])], 1)])
def test_what_a_binary_request_cannot_hold_is_refused(sequences: list[np.ndarray], per_request: int):
    with serving(SmallServer()) as target, pytest.raises(ConfigurationError):
        prepare(target, sequences, form="binary", per_request=per_request)


def test_a_workload_takes_its_steps_and_longest_length_from_the_service():
    with serving(SmallServer()) as target:
        sequences = Workload(lengths="fixed:500", distinct=3).sequences(ServiceUnderLoad(target))
    assert [steps.shape for steps in sequences] == [(64, 2)] * 3


def test_a_service_that_does_not_describe_its_model_is_said():
    with serving(SmallServer(models=[{"model": "m"}])) as target, pytest.raises(ConfigurationError):
        Workload().sequences(ServiceUnderLoad(target))


def test_a_workload_may_be_the_sequences_of_a_file(tmp_path: Path):
    file = tmp_path / "data.jsonl"
    file.write_text('{"steps": [[1, null]]}\n{"steps": [[1, 2], [3, 4]]}\n')
    server = SmallServer()
    with serving(server) as target:
        Workload(data=str(file)).load_test(ServiceUnderLoad(target, "small", "1"))
    assert json.loads(server.bodies[0]) == {"sequences": [[[1, None]]], "model": "small", "version": "1"}
    assert len(server.bodies) == 2
