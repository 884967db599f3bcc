"""`SequenceSummaries`: the definitions in NumPy, the graph with the same bits, and what scikit-learn asks of it."""

from __future__ import annotations

import json
import pickle
from collections.abc import Iterator
from typing import Any

import numpy as np
import onnx
import pandas
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from onnx import TensorProto, helper, numpy_helper
from sklearn.base import clone
from sklearn.utils.estimator_checks import parametrize_with_checks

import lengthwise
from lengthwise.errors import ConfigurationError, InvalidSequences
from lengthwise.padding import pad
from lengthwise.runtime import recurrent_kernels
from lengthwise.runtime.manifest import GraphNames, Manifest
from lengthwise.runtime.onnx.summaries import DOMAIN, INSTRUCTION_SETS, fused
from lengthwise.runtime.session import Session
from lengthwise.verification.random_sequences import EXTREME_PADDING, draw
from lengthwise_export import SequenceSummaries
from lengthwise_export.architecture.summaries_session import opened
from lengthwise_export.onnx_graphs.probing import open_session
from lengthwise_export.onnx_graphs.protos import NodeWriter
from lengthwise_export.summaries import series_graph
from lengthwise_export.summaries.definitions import GROUPS

_SHORTER = "a row of an array is a sequence of one feature: fewer columns are shorter sequences"
NOT_PASSED = {  # the checks of scikit-learn that make no sense here, each with the reason
    "check_n_features_in": "n_features_in_ is the number of values of a step, which is 1 for the rows of an array",
    "check_n_features_in_after_fitting": _SHORTER,
    "check_dtype_object": "a text in the place of a number is a ValueError that names the sequence, not a TypeError",
    "check_estimators_empty_data_messages": "an array without columns is named as sequences without steps",
    "check_transformer_general": _SHORTER,
}


@parametrize_with_checks([SequenceSummaries()], expected_failed_checks=lambda _estimator: NOT_PASSED, xfail_strict=True)
def test_a_check_of_scikit_learn_holds(estimator: Any, check: Any) -> None:
    check(estimator)


def summary(name: str, *sequences: Any, **options: Any) -> list[float]:
    """One summary of sequences of one feature."""
    table = SequenceSummaries([name], **options).fit(list(sequences)).transform(list(sequences))
    assert table.shape == (len(sequences), 1)
    return [round(float(value), 6) for value in table[:, 0]]


ONE, TWO, THREE = [5.0], [1.0, 3.0], [2.0, -1.0, 5.0]
CONSTANT, GAPS = [4.0] * 6, [np.nan, 1.0, np.nan, np.nan, 3.0, 2.0]
NOTHING = [np.nan, np.nan]
EXPECTED = {
    "length": [1, 2, 3, 6, 6, 2],
    "first": [5, 1, 2, 4, 1, 0],
    "last": [5, 3, 5, 4, 2, 0],
    "mean": [5, 2, 2, 4, 2, 0],
    "std": [0, 1, 6**0.5, 0, (2 / 3) ** 0.5, 0],
    "rms": [5, 5**0.5, 10**0.5, 4, (14 / 3) ** 0.5, 0],
    "minimum": [5, 1, -1, 4, 1, 0],
    "maximum": [5, 3, 5, 4, 3, 0],
    "minimum_position": [0, 0, 1 / 3, 0, 0, 0],
    "maximum_position": [0, 0.5, 2 / 3, 0, 1 / 3, 0],
    "quantile_0.25": [5, 1.5, 0.5, 4, 1.5, 0],
    "quantile_0.5": [5, 2, 2, 4, 2, 0],
    "slope": [0, 2, 1.5, 0, 0.5, 0],
    "slope_error": [0, 0, 6.75**0.5, 0, 0.75**0.5, 0],
    "mean_absolute_change": [0, 2, 4.5, 0, 1.5, 0],
    "mean_crossings": [0, 1, 1, 0, 2, 0],
    "longest_run": [0, 1, 1, 0, 1, 0],
    "autocorrelation_1": [0, -1, -0.75, 0, -0.75, 0],
    "autocorrelation_2": [0, 0, 0, 0, 0, 0],
    "missing_share": [0, 0, 0, 0, 0.5, 1],
    "longest_gap": [0, 0, 0, 0, 2, 2],
    "band_1": [0, 1, 1, 0, 0.5, 0],
}
"""Of one step, two, three, a constant, one with gaps (its values are 1, 3, 2), and one without a value."""


@pytest.mark.parametrize("name", EXPECTED)
def test_a_summary_of_few_steps_a_constant_and_gaps(name: str) -> None:
    sequences = [np.array(values) for values in (ONE, TWO, THREE, CONSTANT, GAPS, NOTHING)]
    np.testing.assert_allclose(summary(name, *sequences), EXPECTED[name], atol=2e-6)


def test_features_that_move_together_are_correlated() -> None:
    steps = np.array([[1.0, 2.0, -1.0], [2.0, 4.0, -2.0], [4.0, 8.0, -4.0], [np.nan, 0.0, 7.0]])
    table = SequenceSummaries(["correlations"]).fit([steps])
    assert table.get_feature_names_out().tolist() == ["x0_x1_correlation", "x0_x2_correlation", "x1_x2_correlation"]
    assert table.transform([steps[:3]]).tolist() == [[1.0, -1.0, -1.0]]
    deviations = np.array([-4 / 3, -1 / 3, 5 / 3, 0.0])  # a missing value counts as the mean
    other = steps[:, 1] - steps[:, 1].mean()
    expected = deviations @ other / np.sqrt((deviations @ deviations) * (other @ other))
    np.testing.assert_allclose(table.transform([steps])[0, 0], expected, rtol=1e-6)


@pytest.mark.long
@pytest.mark.filterwarnings("ignore:__array_wrap__:DeprecationWarning")  # aeon, of a tensor of torch
def test_intervals_of_equal_lengths_are_those_of_quant() -> None:
    from aeon.transformations.collection.interval_based import QUANTTransformer

    for length in (9, 16, 50):
        X = np.random.default_rng(length).normal(size=(4, 1, length)).cumsum(axis=2).astype(np.float32)
        table = SequenceSummaries(["intervals"], layout="channels-first").fit_transform(list(X))
        expected = QUANTTransformer().fit_transform(X)
        np.testing.assert_allclose(table, expected, atol=5e-7 * np.abs(expected).max())


def test_the_spectrum_is_the_discrete_fourier_transform() -> None:
    steps = np.random.default_rng(0).normal(size=400)
    energy = np.abs(np.fft.rfft(steps)) ** 2
    energy[0], frequency = 0.0, np.fft.rfftfreq(400)
    for band, low, high in ((1, 0.25, 0.5), (2, 0.125, 0.25), (3, 0.0625, 0.125), (4, 0.0, 0.0625)):
        share = energy[(frequency > low) & (frequency <= high)].sum() / energy.sum()
        np.testing.assert_allclose(summary(f"band_{band}", steps), share, atol=1e-6)


def graph_of(summaries: SequenceSummaries) -> onnx.ModelProto:
    """The graph of fitted summaries alone."""
    writer = NodeWriter({"values", "lengths", "table"}, "")
    table = series_graph.summarised(writer, summaries, "values", "lengths")
    values = helper.make_tensor_value_info("values", TensorProto.FLOAT, ["rows", "width", summaries.n_features_in_])
    lengths = helper.make_tensor_value_info("lengths", TensorProto.INT32, ["rows"])
    output = helper.make_tensor_value_info("table", TensorProto.FLOAT, ["rows", None])
    nodes = [*writer.nodes, helper.make_node("Identity", [table.name], ["table"])]
    graph = helper.make_graph(nodes, "summaries", [values, lengths], [output], writer.constants)
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=10)


ALL = SequenceSummaries([*GROUPS]).fit([np.zeros((20, 3))])
SESSION = open_session(graph_of(ALL))


def by_graph(sequences: list[NDArray[np.float32]], width: int, padding: float = 0.0) -> NDArray[np.float32]:
    batch = pad(sequences, width=width)
    for row, length in zip(batch.steps, batch.lengths, strict=True):
        row[length:] = padding
    table: NDArray[np.float32] = SESSION.run(None, {"values": batch.steps, "lengths": batch.lengths})[0]
    return table


@given(st.lists(st.integers(1, 40), min_size=1, max_size=12), st.integers(0, 10**6), st.integers(0, 9))
@settings(deadline=None)
def test_the_graph_has_the_bits_of_numpy_with_any_padding(lengths: list[int], seed: int, wider: int) -> None:
    sequences = draw(ALL.manifest(), lengths, seed, raw=True)
    expected = ALL.transform(sequences)
    assert np.isfinite(expected).all()
    padding = [*EXTREME_PADDING.values(), 0.0][seed % 6]
    assert by_graph(sequences, max(lengths) + wider, padding).tobytes() == expected.tobytes()
    alone = np.concatenate([ALL.transform([steps]) for steps in sequences])
    assert alone.tobytes() == expected.tobytes()
    assert np.concatenate([by_graph([steps], len(steps)) for steps in sequences]).tobytes() == expected.tobytes()


BY_KERNEL = [*GROUPS]


def with_description(summaries: SequenceSummaries) -> tuple[bytes, Manifest]:
    """The graph of summaries as a model whose answers they are, with the metadata that the service reads."""
    model = graph_of(summaries)
    table = model.graph.node[-1].input[0]
    helper.set_model_props(model, {DOMAIN: json.dumps(summaries.description | {"table": table})})
    names = summaries.get_feature_names_out().tolist()
    return model.SerializeToString(), summaries.manifest(labels=names, graph=GraphNames(logits="table"))


@pytest.fixture(params=INSTRUCTION_SETS)
def instruction_set(request: pytest.FixtureRequest) -> Iterator[str]:
    best = INSTRUCTION_SETS[0]
    recurrent_kernels.choose(request.param, "summaries")
    yield request.param
    recurrent_kernels.choose(best, "summaries")


def test_the_kernels_have_the_bits_of_numpy(instruction_set: str) -> None:
    summaries = SequenceSummaries(BY_KERNEL, quantiles=(0.0, 0.3, 1.0), lags=(1, 5)).fit([np.zeros((20, 3))])
    session = Session(*with_description(summaries))
    assert session.kernels == f"summaries {instruction_set}"
    lengths = [*range(1, 40), 63, 64, 65, 300]
    for seed in range(2):
        sequences = draw(summaries.manifest(), lengths, seed, raw=True)
        sequences[5][:] = np.nan
        expected = summaries.transform(sequences)
        assert session.run(pad(sequences)).logits.tobytes() == expected.tobytes()
        assert session.run(pad(sequences[:1], width=7)).logits.tobytes() == expected[:1].tobytes()


@pytest.mark.parametrize("names", [["correlations"], ["std", "longest_gap", "quantile_0.5"], ["length"], ["x"]])
def test_the_kernels_compute_the_chosen_summaries_only(names: list[str]) -> None:
    if not INSTRUCTION_SETS:
        pytest.skip("the kernels were not built")
    summaries = SequenceSummaries(names if names != ["x"] else BY_KERNEL).fit([np.zeros((20, 2))])
    session = Session(*with_description(summaries))
    sequences = draw(summaries.manifest(), [1, 2, 9], 3)
    assert session.kernels.startswith("summaries")
    assert session.run(pad(sequences)).logits.tobytes() == summaries.transform(sequences).tobytes()


@pytest.mark.parametrize(("axis", "indices", "left"), [(1, [7, 2, 7], False), (1, [[2, 7]], True), (0, [1], True)])
def test_the_kernels_compute_the_columns_that_are_taken(axis: int, indices: list[Any], left: bool) -> None:
    if not INSTRUCTION_SETS:
        pytest.skip("the kernels were not built")
    summaries = SequenceSummaries(["moments", "intervals"]).fit([np.zeros((20, 2))])
    model = onnx.load_from_string(with_description(summaries)[0])
    table = model.graph.node[-1].input[0]
    model.graph.node[-1].CopyFrom(helper.make_node("Gather", [table, "taken"], ["table"], axis=axis))
    model.graph.initializer.append(numpy_helper.from_array(np.array(indices), "taken"))
    graph = model.SerializeToString()
    operators = [node.op_type for node in onnx.load_from_string(fused(graph, "values", "lengths")).graph.node]
    assert operators == ["Summaries", "Gather"][: 1 + left]
    sequences = draw(summaries.manifest(), [1, 2, 9], 3)
    batch = pad(sequences)
    feeds = {"values": batch.steps, "lengths": batch.lengths}
    taken = opened(graph, GraphNames(sequences="values")).run(["table"], feeds)[0]
    assert taken.tobytes() == np.take(summaries.transform(sequences), indices, axis).tobytes()


@pytest.mark.parametrize(
    "change",
    [
        {"groups": ["moments", "unknown"]},
        {"groups": ["ends"]},
        {"columns": [99]},
        {"columns": [-1]},
        {"features": 3},
        {"quantiles": "none"},
        {"table": "nowhere"},
    ],
    ids=str,
)
def test_a_description_that_is_not_the_graphs_is_not_believed(change: dict[str, Any]) -> None:
    summaries = SequenceSummaries(["moments"]).fit([np.zeros((20, 2))])
    graph, manifest = with_description(summaries)
    model = onnx.load_from_string(graph)
    description = json.loads(model.metadata_props[0].value)
    helper.set_model_props(model, {DOMAIN: json.dumps(description | change)})
    session = Session(model.SerializeToString(), manifest)
    assert session.kernels == "onnxruntime"
    sequences = draw(manifest, [3, 4], 0)
    assert session.run(pad(sequences)).logits.tobytes() == summaries.transform(sequences).tobytes()


def test_values_near_the_ends_of_float32_have_finite_summaries() -> None:
    largest = float(np.finfo(np.float32).max)
    rows = ([largest, -largest, largest], [1e-45, 0.0, -1e-45], [-0.0, 0.0, -0.0])
    sequences = [np.repeat(np.array(values, np.float32)[:, None], 3, axis=1) for values in rows]
    table = ALL.transform(sequences)
    assert np.isfinite(table).all()
    assert by_graph(sequences, 4).tobytes() == table.tobytes()
    assert not np.signbit(table[2]).any()


def test_summaries_are_chosen_by_group_or_name_and_named() -> None:
    X = [np.ones((3, 2)), np.zeros((5, 2))]
    chosen = SequenceSummaries(["std", "ends", "length"]).fit(X)
    assert chosen.get_feature_names_out().tolist() == [
        *("length", "x0_first", "x1_first", "x0_last", "x1_last", "x0_std", "x1_std")
    ]
    assert chosen.transform(X)[:, 0].tolist() == [3, 5]
    by_name = pandas.DataFrame({"id": [0, 0, 1], "speed": [1.0, 2.0, 3.0], "load": [0.0, 0.0, 1.0]})
    named = SequenceSummaries(["mean"]).set_output(transform="pandas").fit(by_name)
    table = named.transform(by_name[["load", "id", "speed"]])
    assert table.columns.tolist() == ["speed_mean", "load_mean"]
    assert table["speed_mean"].to_dict() == {"0": 1.5, "1": 3.0}


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"summaries": ["meen"]}, "'meen' is none; did you mean mean"),
        ({"quantiles": [0.5, 1.5]}, "quantiles = .* is out of range"),
        ({"lags": [0]}, "lags = .* is out of range"),
        ({"interval_depth": 0}, "interval_depth = 0 is out of range"),
        ({"quantile_divisor": 0}, "quantile_divisor = 0 is out of range"),
        ({"quantile_divisor": 0.5}, "quantile_divisor = 0.5 is out of range"),
        ({"interval_depth": 2.5}, "interval_depth = 2.5 is out of range"),
        ({"quantiles": [0.1, 0.5, 0.1]}, "quantiles = .* has a value twice"),
        ({"quantiles": [0.1, 0.1000000001]}, "quantiles = .* has a value twice"),
        ({"lags": [1, 1]}, "lags = .* has a value twice"),
        ({"summaries": []}, "summaries = .* gives no column"),
        ({"summaries": ["correlations"]}, "summaries = .* gives no column for 1 feature"),
        ({"summaries": ["quantiles"], "quantiles": []}, "summaries = .* gives no column"),
    ],
)
def test_a_wrong_parameter_is_refused_by_name(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigurationError, match=message):
        SequenceSummaries(**options).fit([[1.0, 2.0]])


def test_wrong_sequences_are_refused_by_index() -> None:
    summaries = SequenceSummaries().fit([np.ones((3, 2))])
    with pytest.raises(InvalidSequences, match="1"):
        summaries.transform([np.ones((3, 2)), np.ones((3, 4))])
    with pytest.raises(InvalidSequences, match="finite"):
        summaries.transform([np.array([[1.0, np.inf]])])
    with pytest.raises(ValueError, match="at least one sequence"):
        summaries.transform([])


def test_a_second_fit_leaves_nothing_of_the_first() -> None:
    by_name = pandas.DataFrame({"id": [0, 0, 1], "speed": [1.0, 2.0, 3.0], "load": [0.0, 0.0, 1.0]})
    summaries = SequenceSummaries(["mean"]).fit(by_name).fit([np.ones((4, 3))])
    assert summaries.get_feature_names_out().tolist() == ["x0_mean", "x1_mean", "x2_mean"]
    assert summaries.manifest().input.std == (0, 0, 0)


def test_they_are_cloned_pickled_and_part_of_the_package() -> None:
    assert lengthwise.SequenceSummaries is SequenceSummaries
    summaries = SequenceSummaries(["moments"], lags=(2,)).fit([np.ones((3, 2))])
    again = pickle.loads(pickle.dumps(summaries))
    assert again.transform([np.ones((4, 2))]).tolist() == summaries.transform([np.ones((4, 2))]).tolist()
    assert clone(summaries).get_params() == summaries.get_params()
