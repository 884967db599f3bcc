"""The graph is given what it wants, whatever form that has, and its answer to a sequence is the same in any company."""

import asyncio
from typing import Any

import numpy as np
import onnx.parser
import pytest

from lengthwise.batching.batcher import Batcher
from lengthwise.batching.cost import CostTable
from lengthwise.batching.limits import BatchLimits
from lengthwise.batching.queues import ModelQueue, Timing
from lengthwise.errors import ManifestError, ModelError
from lengthwise.padding import Steps, pad
from lengthwise.repository.loading import LoadedModel
from lengthwise.repository.stopping import Stopping
from lengthwise.repository.verifier import measure_cost
from lengthwise.runtime.answers import Answer
from lengthwise.runtime.graph_inputs import feed
from lengthwise.runtime.manifest import GraphNames, Manifest, StepInput
from lengthwise.runtime.session import CPU_LABEL, Session
from lengthwise.settings import bundled_models
from lengthwise.telemetry.metrics import ModelMetrics
from tests.support.fake_device import ONE


def manifest(**fields: Any) -> Manifest:
    return Manifest(**{"name": "m", "version": 1, "input": StepInput(features=2), "labels": ("a", "b"), **fields})


def graph(
    names: GraphNames,
    *,
    tokens: bool = False,
    rows: str | int = "rows",
    features: str | int = 2,
    attention: bool = False,
) -> bytes:
    """A graph that sums each row's valid steps: `logits [rows, features]`; and shows its mask as attention."""
    steps = f"width,{rows}" if names.time_first else f"{rows},width"
    inputs = [f"int64[{steps}] {names.sequences}" if tokens else f"float[{steps},{features}] {names.sequences}"]
    outputs = [f"float[{rows},out] {names.logits}"]
    nodes = [f"numbers = Cast <to: int = 1> ({names.sequences})"]
    nodes.append("values_3d = Unsqueeze (numbers, last)" if tokens else "values_3d = Identity (numbers)")
    if names.mask is None:
        nodes.append("valid = Identity (values_3d)")
    else:
        inputs.append(f"{names.mask_type.replace('float32', 'float')}[{steps}] {names.mask}")
        nodes.append(f"weights = Cast <to: int = 1> ({names.mask})")
        nodes += ["weights_3d = Unsqueeze (weights, last)", "valid = Mul (values_3d, weights_3d)"]
    nodes.append("sums = ReduceSum <keepdims: int = 0> (valid, time)")
    if names.lengths is None:
        nodes.append(f"{names.logits} = Identity (sums)")
    else:
        inputs.append(f"{names.lengths_type}[{rows}] {names.lengths}")
        nodes.append(f"sizes = Cast <to: int = 1> ({names.lengths})")
        nodes += ["sizes_2d = Unsqueeze (sizes, one)", f"{names.logits} = Div (sums, sizes_2d)"]
    if attention:
        nodes.append("shown = Identity (weights)")
        outputs.append(f"float[{steps}] shown")
    time = 0 if names.time_first else 1
    return parsed(
        f"sums ({', '.join(inputs)}) => ({', '.join(outputs)})",
        f"<int64[1] time = {{{time}}}, int64[1] last = {{2}}, int64[1] one = {{1}}>",
        *nodes,
    )


def parsed(signature: str, initializers: str, *nodes: str) -> bytes:
    """A graph from its text."""
    text = f'<ir_version: 9, opset_import: ["": 18]>\n{signature}\n{initializers} {{\n' + "\n".join(nodes) + "\n}"
    serialized: bytes = onnx.parser.parse_model(text).SerializeToString()
    return serialized


BATCH = pad([np.full((2, 2), 3, np.float32), np.full((5, 2), 1, np.float32)])


@pytest.mark.parametrize("time_first", [False, True])
@pytest.mark.parametrize(
    ("names", "expected"),
    [
        ({"lengths": "lengths"}, [3.0, 1.0]),
        ({"lengths": "counts", "lengths_type": "int64"}, [3.0, 1.0]),
        ({"lengths": None, "mask": "mask"}, [6.0, 5.0]),
        ({"lengths": None, "mask": "mask", "mask_type": "float32"}, [6.0, 5.0]),
        ({"lengths": None, "mask": "mask", "mask_type": "int64"}, [6.0, 5.0]),
        ({"mask": "mask", "mask_type": "int32", "sequences": "x", "logits": "y"}, [3.0, 1.0]),
    ],
)
def test_a_graph_is_given_its_lengths_or_its_mask_in_its_own_form(
    names: dict[str, Any], expected: list[float], time_first: bool
):
    wants = GraphNames(**names, time_first=time_first)
    session = Session(graph(wants), manifest(graph=wants))
    outputs = session.run(BATCH)
    np.testing.assert_array_equal(outputs.logits, [[one, one] for one in expected])
    assert outputs.attention is None
    assert session.provider == CPU_LABEL


@pytest.mark.parametrize("time_first", [False, True])
@pytest.mark.parametrize(
    "fields",
    [
        {"lengths": "lengths"},
        {"lengths": "counts", "lengths_type": "int64"},
        {"lengths": None, "mask": "mask", "attention": "shown"},
        {"lengths": None, "mask": "mask", "mask_type": "float32", "attention": "shown"},
        {"mask": "mask", "mask_type": "int64", "attention": "shown"},
    ],
)
@pytest.mark.parametrize("tokens", [False, True])
def test_a_graph_of_every_form_answers_on_a_device_as_on_the_cpu(
    fields: dict[str, Any], time_first: bool, tokens: bool
):
    wants = GraphNames(**fields, time_first=time_first)
    of_graph = manifest(graph=wants)
    batch = BATCH
    if tokens:
        of_graph = manifest(graph=wants, input=StepInput(kind="tokens", vocabulary=9), labels=("a",))
        batch = pad([np.array([4, 2], np.int64), np.array([1, 1, 1, 1, 6], np.int64)])
    data = graph(wants, tokens=tokens, attention=wants.attention is not None)
    ordinary, bound = Session(data, of_graph), Session(data, of_graph, devices=ONE)
    bound.warm_up([(3, 12), (2, 4)], seconds=60)
    for asked in (("logits", "attention"), ("logits",)):
        expected, found = ordinary.run(batch, asked), bound.run(batch, asked)
        np.testing.assert_array_equal(found.logits, expected.logits)
        assert (found.attention is None) == (expected.attention is None) == (wants.attention is None or len(asked) == 1)
        if expected.attention is not None:
            np.testing.assert_array_equal(found.attention, expected.attention)


@pytest.mark.parametrize("time_first", [False, True])
def test_a_head_for_each_step_answers_on_a_device_as_on_the_cpu(time_first: bool):
    wants = GraphNames(time_first=time_first)
    axes = "width,rows,2" if time_first else "rows,width,2"
    inputs = f"float[{axes}] values, int32[rows] lengths"
    data = parsed(f"g ({inputs}) => (float[{axes}] logits)", "", "logits = Neg (values)")
    session = Session(data, manifest(graph=wants, task="per-step"), devices=ONE)
    np.testing.assert_array_equal(session.run(BATCH).logits, -BATCH.steps)


def test_tokens_are_given_as_they_are():
    wants = GraphNames(sequences="tokens")
    of_tokens = manifest(graph=wants, input=StepInput(kind="tokens", vocabulary=9))
    session = Session(graph(wants, tokens=True), of_tokens)
    batch = pad([np.array([4, 2], np.int64), np.array([1, 1, 1, 1, 6], np.int64)])
    np.testing.assert_array_equal(session.run(batch).logits, [[3.0], [2.0]])


@pytest.mark.parametrize("time_first", [False, True])
def test_attention_comes_rows_first_and_only_where_it_is_asked_for(time_first: bool):
    wants = GraphNames(lengths=None, mask="mask", attention="shown", time_first=time_first)
    session = Session(graph(wants, attention=True), manifest(graph=wants))
    outputs = session.run(BATCH, ("logits", "attention"))
    assert outputs.attention is not None
    np.testing.assert_array_equal(outputs.attention, [[1, 1, 0, 0, 0, 0, 0, 0], [1, 1, 1, 1, 1, 0, 0, 0]])
    assert session.run(BATCH).attention is None


def test_a_batch_as_wide_as_it_has_rows_is_not_turned_the_wrong_way():
    wants = GraphNames(lengths=None, mask="mask", attention="shown", time_first=True)
    session = Session(graph(wants, attention=True), manifest(graph=wants))
    batch = pad([np.ones((length, 2), np.float32) for length in range(1, 9)])
    outputs = session.run(batch, ("logits", "attention"))
    assert outputs.attention is not None
    assert batch.rows == batch.width
    np.testing.assert_array_equal(outputs.attention, np.tri(8))
    np.testing.assert_array_equal(outputs.logits[:, 0], np.arange(1, 9))


def test_what_is_fed_is_contiguous():
    wants = GraphNames(mask="mask", time_first=True)
    assert all(array.flags.c_contiguous for array in feed(wants, BATCH).values())


@pytest.mark.parametrize(
    ("made", "named"),
    [
        ({}, {"lengths": "sizes"}),
        ({"lengths_type": "int64"}, {}),
        ({"lengths": None, "mask": "mask"}, {}),
        ({"logits": "other"}, {}),
        ({}, {"attention": "weights"}),
    ],
)
def test_a_graph_that_is_not_what_the_manifest_says_is_refused(made: dict[str, Any], named: dict[str, Any]):
    with pytest.raises(ManifestError):
        Session(graph(GraphNames(**made)), manifest(graph=GraphNames(**named)))


@pytest.mark.parametrize("form", [{"rows": 4}, {"features": 3}])
def test_a_graph_of_frozen_rows_or_other_features_is_refused(form: dict[str, int]):
    with pytest.raises(ManifestError):
        Session(graph(GraphNames(), **form), manifest())


def test_what_is_no_graph_is_refused():
    with pytest.raises(ModelError):
        Session(b"no graph", manifest())


def test_costs_are_measured_with_sequences_that_the_model_takes():
    lengths: list[int] = []

    class Counting(Session):
        def run(self, batch: Any, outputs: Any = ("logits",)) -> Any:
            lengths.extend(batch.lengths.tolist())
            return super().run(batch, outputs)

    for wants, said in (
        (GraphNames(), {"input": StepInput(features=2)}),
        (GraphNames(sequences="tokens"), {"input": StepInput(kind="tokens", vocabulary=9)}),
    ):
        of_model = manifest(graph=wants, max_length=30, **said)
        session = Counting(graph(wants, tokens=of_model.input.kind == "tokens"), of_model)
        table = measure_cost(
            session, of_model, BatchLimits(rows=4, padded_steps=64), stopping=Stopping(), budget_seconds=0.05
        )
        assert table.predict(4, 32) >= table.predict(1, 4) > 0
    assert max(lengths) == 30


# The same bits alone and in company


@pytest.fixture(scope="module")
def bundled() -> LoadedModel:
    directory = bundled_models() / "japanese-vowels" / "1"
    read = Manifest.read(directory)
    return LoadedModel(read, Session.load(directory, read), CostTable([1], [4], np.array([[1.0]])))


@pytest.fixture(scope="module")
def recordings() -> list[Steps]:
    random = np.random.default_rng(11)
    return [random.normal(size=(int(length), 12)).astype(np.float32) for length in random.integers(1, 40, 150)]


@pytest.fixture(scope="module")
def alone(bundled: LoadedModel, recordings: list[Steps]) -> list[bytes]:
    return [bundled.session.run(pad([steps])).logits.tobytes() for steps in recordings]


@pytest.mark.parametrize("batches", [200, pytest.param(1000, marks=pytest.mark.long)])
def test_a_neighbour_never_changes_an_answer(
    batches: int, bundled: LoadedModel, recordings: list[Steps], alone: list[bytes]
):
    random = np.random.default_rng(12)
    for _ in range(batches):
        chosen = random.choice(len(recordings), size=int(random.integers(2, 8)), replace=True)
        extra = 4 * int(random.integers(0, 3))
        batch = pad([recordings[one] for one in chosen])
        wider = pad([recordings[one] for one in chosen], width=batch.width + extra)
        logits = bundled.session.run(wider).logits
        assert [row.tobytes() for row in logits] == [alone[one] for one in chosen]


@pytest.mark.parametrize(
    ("runners", "rounds"), [(2, 10), *(pytest.param(runners, 40, marks=pytest.mark.long) for runners in (1, 2))]
)
async def test_every_plan_and_number_of_runners_gives_the_bits_of_unbatched_runs(
    runners: int, rounds: int, bundled: LoadedModel, recordings: list[Steps]
):
    expected = [answer(bundled, steps) for steps in recordings]
    random = np.random.default_rng(runners)
    batcher = Batcher(runners=runners)
    metrics = ModelMetrics("m", "1")
    await batcher.start()
    for _ in range(rounds):
        # Any cost table, so that any plan.
        cost = CostTable([1, 4, 64], [4, 16, 64], random.lognormal(-7, 2, (3, 3)))
        limits = BatchLimits(rows=int(random.integers(1, 40)), padded_steps=int(random.integers(40, 2000)))
        queue = ModelQueue("m/1", bundled.answer, cost, metrics, limits)
        batcher.open(queue)
        order = random.permutation(len(recordings))
        requests = [batcher.submit(queue, [recordings[one]], first) for one in order]
        found = await asyncio.gather(*(request.future for request in requests))
        batcher.close(queue)
        assert [one.probabilities.tobytes() for one in found] == [expected[one] for one in order]
    assert await batcher.drain(10)
    assert sum(metrics.batch_rows.counts) > 12.5 * rounds


def answer(model: LoadedModel, steps: Steps) -> bytes:
    (one,) = model.answer(pad([steps]), False)
    assert one is not None
    return one.probabilities.tobytes()


def first(results: list[Answer | None], timing: Timing) -> Answer | None:
    return results[0]
