import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from lengthwise_export.checking.axes import difference, differences_along_steps, values_at_padding
from lengthwise_export.checking.baseline import relative_difference
from lengthwise_export.checking.trials import Geometry, Pairing

LENGTHS = (11, 8, 6, 5, 1)
ROWS = len(LENGTHS)
BEFORE, WIDER = Geometry(LENGTHS, 13), Geometry(LENGTHS, 19)
LARGER = Geometry((14, 14, 14, 11, 9, 8, 4), 20)
SAME = tuple((row, row) for row in range(ROWS))
AT_ONE_WIDTH = Pairing(BEFORE, BEFORE, SAME, larger=LARGER)
WIDENED = Pairing(BEFORE, WIDER, SAME, larger=LARGER)


def steps(geometry: Geometry, padding: float, *, seed: int = 0, features: int = 6) -> np.ndarray:
    """The same sequences in any geometry, with that padding."""
    values = np.full((geometry.rows, geometry.width, features), padding, dtype=np.float32)
    for row, length in enumerate(geometry.lengths):
        values[row, :length] = np.random.default_rng((seed, row)).normal(size=(length, features))
    return values


FORMS = {
    "as it is": lambda x: x,
    "time first": lambda x: x.swapaxes(0, 1),
    "channels before steps": lambda x: x.swapaxes(1, 2),
    "rows and steps merged": lambda x: x.reshape(-1, x.shape[2]),
    "steps and rows merged": lambda x: x.swapaxes(0, 1).reshape(-1, x.shape[2]),
    "rows and heads merged": lambda x: x.reshape(*x.shape[:2], 2, 3).transpose(0, 2, 1, 3).reshape(-1, x.shape[1], 3),
    "steps and features merged": lambda x: x.reshape(x.shape[0], -1),
    "one step in front": lambda x: np.concatenate([np.ones_like(x[:, :1]), x], axis=1),
    "padded on both sides": lambda x: np.pad(x, ((0, 0), (2, 2), (0, 0))),
    "one step fewer": lambda x: x[:, 1:] + x[:, :-1],
    "every step with every other": lambda x: x @ x.swapaxes(1, 2),
}


@pytest.mark.parametrize("pairing", [AT_ONE_WIDTH, WIDENED], ids=["padding", "width"])
@pytest.mark.parametrize("form", FORMS)
def test_padding_is_told_from_valid_steps_and_one_that_moves_is_seen(form: str, pairing: Pairing) -> None:
    before, larger = FORMS[form](steps(pairing.before, 0.0)), FORMS[form](steps(LARGER, 0.0)).shape
    after = steps(pairing.after, 7.0)
    assert difference(before, FORMS[form](after), pairing, larger) == pytest.approx(0.0, abs=1e-6)
    after[1, 2:7] += 5.0
    apart = difference(before, FORMS[form](after), pairing, larger)
    assert apart is not None
    assert apart > 0.5


def test_a_value_without_steps_is_compared_as_a_whole_unless_its_shape_is_another() -> None:
    before, after = np.ones((ROWS, 6), np.float32), np.ones((ROWS, 6), np.float32)
    after[2, 3] = 2.0
    assert difference(before, after, AT_ONE_WIDTH, (LARGER.rows, 6)) == 1.0
    assert difference(np.float32(1.0)[None], np.float32(3.0)[None], WIDENED) == 2.0
    assert difference(np.ones((ROWS, 6)), np.ones(6), AT_ONE_WIDTH) == float("inf")
    assert difference(np.ones((ROWS, 100)), np.ones((ROWS, 203)), WIDENED) is None  # says nothing


def test_an_axis_that_does_not_follow_the_width_does_not_run_along_the_steps() -> None:
    # 12 is one step fewer than the first width: only the wider run tells that these are features.
    before, after = np.ones((ROWS, 12), np.float32), np.ones((ROWS, 12), np.float32)
    after[4, 11] = 2.0
    assert difference(before, after, AT_ONE_WIDTH) == 0.0
    assert difference(before, after, AT_ONE_WIDTH, (LARGER.rows, 12)) == 1.0


def test_only_shared_rows_are_compared() -> None:
    kept = Pairing(BEFORE, BEFORE, ((0, 0), (2, 2)), frozenset({6}))
    before, after = steps(BEFORE, 0.0), steps(BEFORE, 0.0)
    after[1] += 1.0
    assert difference(before, after, kept) == 0.0
    after[2] += 1.0
    assert difference(before, after, kept) > 0.0


def test_rows_may_have_been_sorted_by_length() -> None:
    turned = Geometry(LENGTHS[::-1], 13)
    order = Pairing(BEFORE, turned, tuple((row, ROWS - 1 - row) for row in range(ROWS)), frozenset({6}))
    by_length = steps(BEFORE, 0.0)
    assert difference(by_length, by_length, order) == 0.0
    unsorted = Pairing(BEFORE, turned, order.rows, frozenset({6}), may_be_sorted=False)
    assert difference(by_length, by_length, unsorted) > 0.0


def test_steps_behind_one_another_are_compared_where_the_rows_are_the_same() -> None:
    flat = np.concatenate([steps(BEFORE, 0.0)[row, :length] for row, length in enumerate(LENGTHS)])
    assert difference(flat, flat, AT_ONE_WIDTH) == 0.0
    assert difference(flat, flat + 1, AT_ONE_WIDTH) > 0.0
    others = Pairing(BEFORE, BEFORE, ((0, 0),), frozenset({6}))
    assert difference(flat, flat + 1, others) is None


def test_half_the_steps_are_told_by_half_the_lengths() -> None:
    pooled = [
        np.pad(steps(one, fill), ((0, 0), (0, 1), (0, 0))).reshape(ROWS, -1, 2, 6)[:, :, 0]
        for one, fill in ((BEFORE, 0.0), (WIDER, 7.0))
    ]
    assert difference(*pooled, WIDENED) == 0.0


def test_the_difference_is_relative_to_large_values_and_may_be_infinite() -> None:
    assert relative_difference(np.array([1000.0, 1.0]), np.array([1000.0, 2.0])) == pytest.approx(1e-3)
    assert relative_difference(np.array([np.nan, -np.inf]), np.array([np.nan, -np.inf])) == 0.0
    assert relative_difference(np.array([0.0]), np.array([np.nan])) == float("inf")
    assert relative_difference(np.array([1, 2]), np.array([1, 3])) == 1.0
    assert relative_difference(np.array([]), np.array([])) == 0.0
    assert relative_difference(np.array([1 + 1j]), np.array([1 + 2j])) == pytest.approx(2**-0.5)


@given(st.lists(st.floats(width=32, allow_nan=False, allow_infinity=False), min_size=1, max_size=9))
def test_nothing_differs_from_itself(values: list[float]) -> None:
    assert relative_difference(np.array(values, np.float32), np.array(values, np.float32)) == 0.0


def test_a_row_is_shown_step_by_step_with_its_padding() -> None:
    along = differences_along_steps(steps(BEFORE, 0.0), steps(BEFORE, 7.0), AT_ONE_WIDTH, 2)
    assert along is not None
    assert along[:6] == [0.0] * 6
    assert min(along[6:]) > 1.0
    assert differences_along_steps(np.ones((ROWS, 6)), np.ones((ROWS, 6)), AT_ONE_WIDTH, 0, (LARGER.rows, 6)) is None
    assert differences_along_steps(np.ones(3), np.ones((3, 1)), AT_ONE_WIDTH, 0) is None


def test_padding_is_found_where_a_value_has_both_axes() -> None:
    values = steps(BEFORE, 7.0)
    assert (values_at_padding(values, BEFORE) == 7.0).all()
    assert (values_at_padding(values.swapaxes(0, 1), BEFORE) == 7.0).all()
    assert values_at_padding(np.ones((ROWS, 6)), BEFORE) is None
    square = Geometry(LENGTHS, ROWS)
    assert values_at_padding(np.ones((ROWS, 4)), square) is None
