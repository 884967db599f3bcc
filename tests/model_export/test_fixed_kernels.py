"""The fixed kernels in C beside the operators of the graph, which onnxruntime or torch compute: the same bits."""

from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
import onnx
import pytest
import torch
from numpy.typing import NDArray
from onnx import numpy_helper

from lengthwise.batching.cost import CostTable
from lengthwise.batching.limits import BatchLimits
from lengthwise.padding import pad
from lengthwise.repository.loading import LoadedModel
from lengthwise.repository.registry import ServedModel
from lengthwise.runtime import fixed_kernels, recurrent_kernels
from lengthwise.runtime.manifest import Manifest
from lengthwise.runtime.provider import CPU_DEVICE, PLAIN_CPU, Device
from lengthwise.runtime.recurrent_kernels import ONNXRUNTIME
from lengthwise.runtime.session import Session
from lengthwise.telemetry.metrics import ModelMetrics
from lengthwise_export.architecture import rocket
from lengthwise_export.architecture.rocket import RocketClassifier
from lengthwise_export.masks import step_mask
from tests.support.specs import candidate, spec

pytestmark = pytest.mark.skipif(
    not fixed_kernels.INSTRUCTION_SETS, reason="the kernels were not built: no compiler at installation"
)
LENGTHS = (*range(1, 10), 16, 17, 33, 70)
EVERY_SET = ("avx512", "avx2", "portable")
ROCKET = 'kind = "rocket"\nkernels = {}\ngrid = "{}"'


@pytest.fixture(params=EVERY_SET)
def instructions(request: pytest.FixtureRequest) -> Iterator[str]:
    if request.param not in fixed_kernels.INSTRUCTION_SETS:
        pytest.skip(f"this processor has no {request.param}")
    recurrent_kernels.choose(request.param, "shares")
    yield request.param
    recurrent_kernels.choose(fixed_kernels.INSTRUCTION_SETS[0], "shares")


def sequences(features: int, lengths: Sequence[int] = LENGTHS, seed: int = 0) -> list[NDArray[np.float32]]:
    """Random sequences whose sizes differ by orders of magnitude; some values are equal to others."""
    random = np.random.default_rng(seed)
    found = []
    for length in lengths:
        steps = random.standard_normal((length, features)) * 10.0 ** random.uniform(-30, 36)
        steps[random.random(steps.shape) < 0.2] = 0
        found.append(np.clip(steps, -3e38, 3e38).astype(np.float32))
    return found


def fitted(features: int, kernels: int, longest: int) -> RocketClassifier:
    return fitted_to(sequences(features, [longest, 40], seed=1), kernels)


def fitted_to(given: Sequence[NDArray[np.float32]], kernels: int, grid: str = "sequence") -> RocketClassifier:
    described = spec(ROCKET.format(kernels, grid), step=f"features = {given[0].shape[1]}")
    return rocket.with_fitted_kernels(
        described, rocket.first_layer(described), [*map(torch.from_numpy, given)], seed=3
    ).eval()


def by_operators(model: RocketClassifier, given: Sequence[NDArray[np.float32]]) -> NDArray[np.float32]:
    batch = pad(given)
    steps, lengths = torch.from_numpy(batch.steps), torch.from_numpy(batch.lengths)
    with torch.no_grad():
        return model.by_operators(steps, lengths, step_mask(lengths, steps.shape[1])).numpy()


@pytest.mark.sampled(15)
@pytest.mark.parametrize(
    ("features", "kernels", "longest"), [(1, 9996, 1300), (1, 84, 9), (2, 2520, 300), (12, 9996, 40), (500, 420, 120)]
)
def test_shares_have_the_bits_of_the_operators(features: int, kernels: int, longest: int, instructions: str) -> None:
    model, given = fitted(features, kernels, longest), sequences(features)
    found = fixed_kernels.shares(model.plan, given)
    assert np.array_equal(found, by_operators(model, given))
    alone = [fixed_kernels.shares(model.plan, [steps])[0] for steps in given]
    assert np.array_equal(found, alone)


def test_a_sequence_with_nan_or_of_no_steps_gets_nan_and_others_do_not(instructions: str) -> None:
    model, given = fitted(3, 420, 40), sequences(3)
    plain = fixed_kernels.shares(model.plan, given)
    given[4][2, 1] = np.nan
    given[6] = given[6][:0]
    found = fixed_kernels.shares(model.plan, given)
    for row, (now, before) in enumerate(zip(found, plain, strict=True)):
        assert np.isnan(now).all() if row in (4, 6) else np.array_equal(now, before)
    assert fixed_kernels.shares(model.plan, []).shape == (0, model.plan.biases.size)


@pytest.mark.sampled(3)
@pytest.mark.parametrize("size", [0.0, 1e-45, 1e-38, 2.0**-60, 1.0, 2.0**119, 2.0**120, 3e38, np.inf])
def test_the_grid_is_that_of_the_operators_at_every_size(size: float, instructions: str) -> None:
    model = fitted(3, 84, 9)
    given = [(np.random.default_rng(0).uniform(-1, 1, (20, 3)) * np.float32(size)).astype(np.float32)]
    given[0][0, 0] = size
    assert np.array_equal(fixed_kernels.shares(model.plan, given), by_operators(model, given))


@pytest.mark.sampled(10)
@pytest.mark.parametrize("limit", [2.0**-60, 2.0**-3, 8.0, 2.0**120])
@pytest.mark.parametrize("features", [1, 12, 500])
def test_the_grid_of_the_training_split_clips_and_counts_exactly(
    features: int, limit: float, instructions: str
) -> None:
    random, end = np.random.default_rng(0), np.float32(limit)
    given = [np.full((40, features), end * np.float32(0.51)), np.zeros((9, features), np.float32)]
    model = fitted_to(given, 84 if features == 500 else 840, "training")
    assert model.grid.limit == limit
    with np.errstate(over="ignore"):
        given += [(random.normal(size=(length, features)) * end).astype(np.float32) for length in LENGTHS]
    beyond = np.nextafter(end, np.float32(np.inf))
    given += [np.array(values, np.float32).repeat(features, axis=1) for values in ([[end]], [[np.inf], [-beyond]])]
    given[-1][0, 0] = -end
    assert np.array_equal(fixed_kernels.shares(model.plan, given), by_operators(model, given))
    counts = model.grid.clipped(torch.from_numpy(pad(given).steps))
    assert counts is not None
    assert counts.tolist() == [np.count_nonzero(np.abs(steps) > end) for steps in given]
    assert counts[-2:].tolist() == [0, 2 * features - 1]
    clipped = [np.clip(steps, -end, end) for steps in given]
    assert np.array_equal(fixed_kernels.shares(model.plan, given), fixed_kernels.shares(model.plan, clipped))


@pytest.mark.sampled(2)
@pytest.mark.parametrize("grid", ["sequence", "training"])
def test_counts_of_pieces_add_up_to_those_of_their_sequence(grid: str, instructions: str) -> None:
    random = np.random.default_rng(0)
    model = fitted_to([random.normal(size=(80, 3)).astype(np.float32)], 840, grid)
    whole = random.normal(size=(170, 3)).astype(np.float32)
    whole[3] *= 1e7  # only the first piece has it
    cuts, equal = [100, 81, 129], []
    begin = 0
    for each in model.dilations:
        end, overlap = begin + each.biases.numel(), 8 * each.dilation
        inside = np.repeat(each.inside.numpy().ravel(), each.biases.shape[1])

        def counts(steps: NDArray[np.float32], span: slice = slice(begin, end), lost: int = overlap) -> NDArray[Any]:
            return np.rint(fixed_kernels.shares(model.plan, [steps])[0, span] * (len(steps) - lost))

        for cut in cuts:  # a result at a step is that of the 4 * dilation steps before and behind
            pieces = counts(whole[:cut]) + counts(whole[cut - overlap :])
            equal.append(np.array_equal(pieces[inside], counts(whole)[inside]))
        begin = end
    assert all(equal) if grid == "training" else not any(equal)


def test_a_damaged_plan_is_refused_and_reads_no_foreign_memory() -> None:
    plan, given = fitted(3, 168, 40).plan, sequences(3)
    random = np.random.default_rng(0)
    for place in [*range(8), *random.integers(0, plan.numbers.size, 300)]:
        for value in (-1, 0, 1, 3, 2**24 + 1, 2**31 - 1, -(2**31)):
            numbers = plan.numbers.copy()
            numbers[place] = value
            try:
                fixed_kernels.shares(plan._replace(numbers=numbers), given)
            except ValueError:
                continue
            assert -1 <= value <= 3
    wrong = ((plan.numbers[:-1], plan.biases), (plan.numbers, plan.biases[1:]), (plan.numbers[:2], plan.biases))
    for numbers, biases in wrong:
        with pytest.raises(ValueError, match="damaged plan"):
            fixed_kernels.shares(fixed_kernels.KernelPlan(numbers, biases), given)


def exported(step: str, kernels: int = 168, grid: str = "sequence") -> tuple[bytes, Manifest]:
    made = candidate(ROCKET.format(kernels, grid), step=step)
    return made.build(made.manifest).SerializeToString(), made.manifest


@pytest.mark.gallery
@pytest.mark.parametrize(
    ("step", "grid"),
    [
        ("features = 1", "sequence"),
        ("features = 12\nmissing = 'indicator'\nnormalize = 'both'", "sequence"),
        ("features = 12\nmissing = 'indicator'", "training"),
    ],
)
def test_the_graph_has_the_same_bits_with_and_without_the_operator(step: str, grid: str, instructions: str) -> None:
    whole = step == "features = 1" and instructions == fixed_kernels.INSTRUCTION_SETS[0]
    graph, manifest = exported(step, 4620 if whole else 252, grid)
    own, plain = Session(graph, manifest), Session(graph, manifest, devices=(PLAIN_CPU,))
    assert (own.kernels, plain.kernels) == (f"fixed {instructions}", ONNXRUNTIME)
    given = sequences(manifest.input.features or 1, (*LENGTHS, 97, 120))
    if manifest.missing == "handled":
        for steps in given[::2]:
            steps[np.random.default_rng(0).random(steps.shape) < 0.3] = np.nan
    batch = pad(given, width=128)
    batch.steps[np.arange(128) >= batch.lengths[:, None]] = np.nan  # what padding holds does not matter
    together = own.run(batch).logits
    assert np.isfinite(together).all()
    assert np.array_equal(together, plain.run(batch).logits)
    alone = [own.run(pad([steps], multiple=manifest.width_multiple)).logits[0] for steps in given]
    assert np.array_equal(together, alone)


@pytest.mark.long
@pytest.mark.parametrize("biases", [55, 70])
def test_biases_that_are_compared_in_parts_of_any_size_are_recognised(biases: int) -> None:
    """The exporter writes no sizes where all parts are equal."""
    graph, manifest = exported("features = 1", 84 * biases)
    assert Session(graph, manifest).kernels == f"fixed {fixed_kernels.INSTRUCTION_SETS[0]}"


@pytest.mark.long
def test_many_requests_get_the_bits_of_plain_onnxruntime() -> None:
    graph, manifest = exported("features = 3")
    own, plain = Session(graph, manifest), Session(graph, manifest, devices=(PLAIN_CPU,))
    random = np.random.default_rng(0)
    for seed in range(100):
        batch = pad(sequences(3, random.integers(1, 60, 16).tolist(), seed=seed))
        assert np.array_equal(own.run(batch).logits, plain.run(batch).logits)
    batch.lengths[0] = batch.width + 1
    with pytest.raises(Exception, match="a length is not between 0 and the number of steps"):
        own.run(batch)
    assert own.run(type(batch)(batch.steps[:0], batch.lengths[:0])).logits.shape == (0, 2)


@pytest.mark.long
@pytest.mark.sampled(2)
@pytest.mark.parametrize("device", [CPU_DEVICE, PLAIN_CPU])
def test_clipped_values_are_counted_in_the_metrics(device: Device) -> None:
    graph, manifest = exported("features = 3\nmissing = 'mean'", grid="training")
    session = Session(graph, manifest, devices=(device,))
    given = [np.full((length, 3), 1e-3, np.float32) for length in (1, 9, 30)]
    metrics, table = ModelMetrics(), CostTable([1], [4], np.array([[1.0]]))
    served = ServedModel(LoadedModel(manifest, session, table), metrics, BatchLimits())
    served.queue.run(pad(given), False)
    assert metrics.number("clipped_values") == 0
    given[0][0, 1], given[2][29], given[2][4] = -3e38, 1e6, np.nan
    batch = pad(given, rows=5)
    batch.steps[3:] = 1e6  # fillers, and padding
    batch.steps[1, 9:] = 1e6
    assert len(served.queue.run(batch, False)) == 3
    assert metrics.number("clipped_values") == 4
    other, described = exported("features = 3")
    assert described.graph.clipped is None
    model = LoadedModel(described, Session(other, described), table)
    ServedModel(model, metrics, BatchLimits()).queue.run(batch, False)
    assert metrics.number("clipped_values") == 4


def altered(graph: bytes, name: str, change: Any) -> bytes:
    """The graph with a change of the numbers of an initializer, the first whose name contains this."""
    model = onnx.load_from_string(graph)
    place = next(each for each in model.graph.initializer if name in each.name)
    place.CopyFrom(numpy_helper.from_array(change(numpy_helper.to_array(place).copy()), place.name))
    return model.SerializeToString()


def other_weight(weights: NDArray[Any]) -> NDArray[Any]:
    weights[7, 0, 3] += 1
    return weights


@pytest.mark.sampled(6)
@pytest.mark.parametrize(
    ("name", "change"),
    [
        ("0.weights", other_weight),
        ("0.weights", np.zeros_like),
        ("powers", lambda powers: powers * 4),
        ("distance", lambda distance: distance * np.float32(3)),
        ("distance", lambda distance: distance * np.float32(2**-4)),
        ("distance", lambda distance: distance * np.float32(0)),
    ],
    ids=["another kernel", "no channels", "another grid", "no power of two", "sums that are not exact", "zero"],
)
def test_a_graph_that_computes_something_else_keeps_its_operators(name: str, change: Any) -> None:
    graph, manifest = exported("features = 3", grid="training" if name == "distance" else "sequence")
    assert Session(altered(graph, name, change), manifest).kernels == ONNXRUNTIME


def test_steps_that_count_are_those_of_the_graph() -> None:
    graph, manifest = exported("features = 3")
    model = onnx.load_from_string(graph)
    for node in model.graph.node:
        if node.op_type == "LessOrEqual":  # which sequences are too short
            node.op_type = "Less"
    assert Session(model.SerializeToString(), manifest).kernels == ONNXRUNTIME
