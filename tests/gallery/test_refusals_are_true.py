"""Every model that must be refused is at fault in the way its entry says: seen by running it, without any checker."""

import inspect

import numpy as np
import pytest
from onnxruntime.capi.onnxruntime_pybind11_state import Fail, InvalidArgument, RuntimeException

from tests.gallery.index import ONNX_REFUSED, TORCH_REFUSED, Exhibit
from tests.gallery.trials import TOLERANCE, Array, alone, difference, padded, run_of, sequences

REFUSED = {str(exhibit): exhibit for exhibit in TORCH_REFUSED + ONNX_REFUSED}
RAISED = (RuntimeError, Fail, InvalidArgument, RuntimeException)


def ragged(exhibit: Exhibit, width: int = 13) -> tuple[Array, Array]:
    return padded(sequences(exhibit), width, np.zeros)


@pytest.mark.parametrize(
    ("name", "width"),
    [("torch_refused/frozen_width", 40), ("onnx_refused/frozen_width", 30), ("onnx_refused/frozen_inside", 12)],
)
def test_a_frozen_width_is_the_only_one_that_runs(name: str, width: int) -> None:
    model = run_of(REFUSED[name])
    model(*ragged(REFUSED[name], width))
    for other in (width - 1, width + 1):
        with pytest.raises(RAISED):
            model(*ragged(REFUSED[name], other))


@pytest.mark.parametrize(("name", "rows"), [("torch_refused/frozen_rows", 16), ("onnx_refused/frozen_rows", 1)])
def test_a_frozen_number_of_rows_is_the_only_one_that_runs(name: str, rows: int) -> None:
    model = run_of(REFUSED[name])
    batch, lengths = ragged(REFUSED[name])
    model(batch[:1].repeat(rows, axis=0), lengths[:1].repeat(rows))
    with pytest.raises(RAISED):
        model(batch, lengths)


@pytest.mark.parametrize("name", ["torch_refused/left_padding", "onnx_refused/left_padding"])
def test_padding_on_the_left_is_sound_where_padding_on_the_right_leaks(name: str) -> None:
    exhibit = REFUSED[name]
    model, rows = run_of(exhibit), sequences(exhibit)
    expected = alone(model, rows)
    batch, lengths = ragged(exhibit)
    rolled = np.stack([np.roll(row, 13 - length, axis=0) for row, length in zip(batch, lengths, strict=True)])
    assert difference(exhibit, expected, model(rolled, lengths)) <= TOLERANCE
    assert difference(exhibit, expected, model(batch, lengths)) > TOLERANCE


def test_a_torch_module_that_demands_an_order_raises_without_it() -> None:
    exhibit = REFUSED["torch_refused/order_demanded"]
    model, rows = run_of(exhibit), sequences(exhibit)
    model(*padded(sorted(rows, key=len, reverse=True), 13, np.zeros))
    with pytest.raises(RuntimeError, match="sorted"):
        model(*padded(rows, 13, np.zeros))


def test_a_graph_that_demands_an_order_is_sound_in_it_and_wrong_without_it() -> None:
    exhibit = REFUSED["onnx_refused/longest_first"]
    model, rows = run_of(exhibit), sequences(exhibit)
    ordered = sorted(rows, key=len, reverse=True)
    assert difference(exhibit, alone(model, ordered), model(*padded(ordered, 13, np.zeros))) <= TOLERANCE
    assert difference(exhibit, alone(model, rows), model(*padded(rows, 13, np.zeros))) > TOLERANCE


@pytest.mark.parametrize("name", ["torch_refused/dropout_always_on", "onnx_refused/never_twice_the_same"])
def test_the_same_batch_gets_another_answer(name: str) -> None:
    model, batch = run_of(REFUSED[name]), ragged(REFUSED[name])
    assert np.abs(model(*batch) - model(*batch)).max() > TOLERANCE


@pytest.mark.parametrize("exhibit", TORCH_REFUSED, ids=str)
def test_the_second_argument_of_a_refused_module_says_what_it_is_where_it_is_no_fault(exhibit: Exhibit) -> None:
    second = [*inspect.signature(exhibit.make().forward).parameters][1:]
    second = ["lengths"] if second == ["lens"] else second
    assert second == {"no_lengths": [], "which_way_round": ["padding_mask"]}.get(exhibit.name, second)
    assert exhibit.second is None or exhibit.second.removesuffix("gths") in second[0]


def test_a_graph_without_lengths_has_one_input() -> None:
    assert [node.name for node in REFUSED["onnx_refused/no_second_input"].make().graph.input] == ["values"]


def test_a_graph_of_two_sensors_could_read_its_steps_from_either() -> None:
    shapes = {
        node.name: [axis.dim_param or axis.dim_value for axis in node.type.tensor_type.shape.dim]
        for node in REFUSED["onnx_refused/two_sensors"].make().graph.input
    }
    assert shapes == {"accelerometer": ["N", "T", 3], "gyroscope": ["N", "T", 3], "lengths": ["N"]}


@pytest.mark.parametrize(("name", "unit"), [("torch_refused/chunks_of_eight", 8)])
def test_a_model_of_whole_chunks_runs_at_their_widths_alone(name: str, unit: int) -> None:
    model = run_of(REFUSED[name])
    for width in (2 * unit, 3 * unit):
        model(*ragged(REFUSED[name], width))
    for width in (2 * unit + 1, 3 * unit - 1):
        with pytest.raises(RAISED):
            model(*ragged(REFUSED[name], width))


def test_a_model_of_one_length_a_batch_raises_for_two() -> None:
    exhibit = REFUSED["torch_refused/one_length_a_batch"]
    model = run_of(exhibit)
    batch, lengths = ragged(exhibit)
    model(batch[:1].repeat(3, axis=0), lengths[:1].repeat(3))
    with pytest.raises(NotImplementedError):
        model(batch, lengths)


def test_a_last_layer_of_zeros_hides_a_leak() -> None:
    exhibit = REFUSED["torch_refused/last_layer_of_zeros"]
    model = run_of(exhibit)
    batch, lengths = ragged(exhibit)
    assert np.array_equal(model(batch, lengths), model(batch + 1, lengths))


def test_lengths_as_shares_are_what_one_model_takes() -> None:
    exhibit = REFUSED["torch_refused/share_of_the_longest"]
    model = run_of(exhibit)
    batch, lengths = ragged(exhibit, 11)
    with pytest.raises(IndexError):
        model(batch, lengths)
    assert np.isfinite(model(batch, (lengths / batch.shape[1]).astype(np.float32))).all()
