"""A cost table that nothing poisons: monotone, following, bounded."""

import json
import math
from typing import Any

import hypothesis.strategies as st
import numpy as np
import pytest
from hypothesis import given
from numpy.typing import NDArray

from lengthwise.batching.cost import Column, CostTable
from tests.support.costs import assert_monotone, linear_table

seconds = st.floats(1e-6, 1.0)


@st.composite
def tables(draw: st.DrawFn) -> CostTable:
    rows = draw(st.sampled_from([[1], [2, 7], [1, 2, 4, 8, 16]]))
    widths = draw(st.sampled_from([[4], [8, 100], [4, 8, 16, 32, 61]]))
    drawn = draw(st.lists(seconds, min_size=len(rows) * len(widths), max_size=len(rows) * len(widths)))
    table = np.array(drawn).reshape(len(rows), len(widths))
    return CostTable(rows, widths, table, padding_cost=draw(st.sampled_from([0.0, 0.25, 1.0])))


# What it says


@pytest.mark.parametrize(
    ("row_limit", "allowed", "rows"),
    [(4, 0.5, 1), (4, 1.0, 1), (4, 1.9, 1), (4, 2.0, 3), (4, 4.9, 3), (4, 5.0, 4), (3, 9.0, 3), (2, 2.0, 2)],
)
def test_the_most_rows_within_a_limit_and_some_seconds(row_limit: int, allowed: float, rows: int):
    column = Column.of(np.array([1.0, 2.0, 2.0, 5.0]))
    assert column.rows_within(row_limit, allowed) == rows


@pytest.mark.parametrize(
    ("count", "row_limit", "rows"),
    [
        (9, 8, 4),  # the cheapest number
        (7, 8, 4),  # 4 and 3 are sooner than 7, or 5 and 2
        (4, 8, 4),
        (5, 3, 3),
        (3, 8, 3),
    ],
)
def test_how_many_of_one_width_run_first(count: int, row_limit: int, rows: int):
    column = Column.of(np.array([4.0, 4.0, 4.0, 4.0, 9.0, 9.0, 9.0, 9.0]))
    assert column.rows_of_first(count, row_limit, seconds=9.0) == rows


@given(tables())
def test_more_rows_or_steps_never_cost_less(table: CostTable):
    assert_monotone(table)


@given(tables(), st.lists(st.tuples(st.integers(1, 40), st.integers(1, 150), st.floats()), max_size=30))
def test_no_more_so_after_whatever_was_observed(table: CostTable, observed: list[tuple[int, int, float]]):
    for rows, width, took in observed:
        table.observe(rows, width, took)
    assert_monotone(table)
    assert np.isfinite(table.seconds).all()


@given(st.floats(0, 0.01), st.floats(1e-6, 0.01), st.integers(1, 64), st.integers(4, 9000))
def test_what_is_linear_is_predicted_exactly_between_the_points_and_past_the_widest(
    fixed: float, per_step: float, rows: int, width: int
):
    assert linear_table(fixed, per_step).predict(rows, width) == pytest.approx(fixed + per_step * rows * width)


def test_past_the_most_rows_it_grows_as_the_rows_do():
    table = linear_table(1.0, 1.0)
    assert table.predict(128, 4) == pytest.approx(2 * table.predict(64, 4))


def test_past_a_single_point_it_grows_in_proportion():
    table = CostTable([2], [8], np.array([[0.5]]))
    assert [table.predict(rows, width) for rows, width in ((1, 4), (2, 8), (6, 8), (2, 24))] == [0.5, 0.5, 1.5, 1.5]


@given(tables(), st.integers(1, 30), st.integers(1, 150))
def test_the_cheapest_number_of_rows_is_the_one_with_the_least_seconds_a_row(table: CostTable, rows: int, width: int):
    column = table.column(width, rows)
    assert len(column.seconds) == len(column.cheapest_rows) == rows + 1
    for most in range(1, rows + 1):
        best = column.cheapest_rows[most]
        assert 1 <= best <= most
        assert column.seconds[best] / best <= min(column.seconds[n] / n for n in range(1, most + 1)) * (1 + 1e-12)


def test_a_column_is_computed_once_until_the_table_changes():
    table = linear_table(1.0, 1.0)
    four, eight = table.column(4, 8), table.column(8, 8)
    assert table.column(8, 2) is eight
    assert table.column(4, 8) is four
    for _ in range(50):
        table.observe(1, 4, 50.0)
    for rows, width in 200 * [(1, 4), (16, 80)]:
        table.observe(rows, width, linear_table(50.0, 1.0).predict(rows, width))
    assert table.column(4, 8).seconds[1] > four.seconds[1] + 1


def test_a_drift_makes_everything_slower_and_no_column_is_computed_again(monkeypatch: pytest.MonkeyPatch):
    table = linear_table(1.0, 1.0)
    column, before = table.column(4, 8), [table.predict(rows, 4) for rows in range(1, 9)]
    monkeypatch.setattr(CostTable, "computed", None)
    for _ in range(50):
        table.observe(1, 4, 50.0)
    assert table.column(4, 8) is column
    assert table.drift > 2
    assert [table.predict(rows, 4) for rows in range(1, 9)] == pytest.approx([table.drift * each for each in before])


def test_more_rows_asked_for_while_another_thread_learns_lose_nothing_of_it(monkeypatch: pytest.MonkeyPatch):
    table = linear_table(1.0, 1.0)
    overtaken: list[bool] = []

    class Held:
        """A lock that had to be waited for: another thread learned meanwhile."""

        def __enter__(self) -> None:
            if not overtaken:
                overtaken.append(True)
                for _ in range(50):
                    table.observe(1, 4, 50.0)

        def __exit__(self, *_: object) -> None:
            """Lets go."""

    monkeypatch.setattr(table, "learning", Held())
    table.predict(2, 4)
    assert overtaken
    assert table.predict(1, 4) > 20.0
    assert table.predict(1, 4) == table.seconds[0, 0]


def test_memory_is_bounded_however_many_widths_are_asked_for():
    table = linear_table(1.0, 1.0)
    first = table.column(1, 1)
    assert table.column(1, 1) is first
    for width in range(2, 1030):
        table.predict(1, width)
    assert table.column(1, 1) is not first


@pytest.mark.parametrize(
    ("rows", "widths", "seconds"),
    [
        *(([1, 2], [4], [[1.0], [wrong]]) for wrong in (0.0, -1.0, math.nan, math.inf)),
        *((rows, [4, 8], np.ones((2, 2))) for rows in ([2, 1], [1, 1], [0, 1])),
        ([1, 2], [8, 4], np.ones((2, 2))),
        ([], [], np.ones((0, 0))),
        ([[1], [2]], [4, 8], np.ones((2, 2))),
        ([1, 2], [4, 8], np.ones((2, 3))),
    ],
)
def test_an_impossible_table_is_refused(rows: list[int], widths: list[int], seconds: Any):
    with pytest.raises(ValueError):  # noqa: PT011  # its words are for the log
        CostTable(rows, widths, np.array(seconds, dtype=np.float64))


@given(tables())
def test_as_json_it_is_the_same_table(table: CostTable):
    again = CostTable.from_json(json.loads(json.dumps(table.to_json())))
    assert again.predict(5, 37, 50) == pytest.approx(table.predict(5, 37, 50))
    np.testing.assert_array_equal(again.seconds, table.seconds)


# What it learns


@pytest.mark.parametrize("factor", [3.0, 0.4])
def test_a_drift_is_followed_within_some_hundred_batches(factor: float):
    table, truth = linear_table(0.001, 0.0001), linear_table(factor * 0.001, factor * 0.0001)
    random = np.random.default_rng(0)
    for _ in range(800):
        rows, width = int(random.choice((1, 2, 3, 5, 60))), 4 * int(random.integers(1, 10))
        table.observe(rows, width, truth.predict(rows, width) * float(random.lognormal(0, 0.05)))
    for rows, width in ((1, 4), (3, 40), (60, 20)):
        assert table.predict(rows, width) == pytest.approx(truth.predict(rows, width), rel=0.15)


def test_one_hiccup_moves_it_by_a_few_percent_only():
    table = linear_table(0.001, 0.0001)
    before = table.predict(2, 40)
    table.observe(2, 40, 3600.0)
    assert before <= table.predict(2, 40) <= 1.04 * before


def learned(truth: CostTable, rows: tuple[int, ...], widths: tuple[int, ...], *, overhead: float) -> CostTable:
    """A table of 10 us a step and 0.1 ms a run after many batches that took what `truth` says and a fixed overhead."""
    table = linear_table(0.0001, 0.00001)
    random = np.random.default_rng(0)
    for _ in range(1000):
        shape = int(random.choice(rows)), int(random.choice(widths))
        table.observe(*shape, (truth.predict(*shape) + overhead) * float(random.lognormal(0, 0.05)))
    return table


@pytest.mark.parametrize("slower", [0.7, 1.0, 1.5])
def test_half_of_the_overhead_of_a_batch_is_predicted(slower: float):
    truth = linear_table(slower * 0.0001, slower * 0.00001)
    table = learned(truth, (1, 2, 4, 6, 12), (20, 40, 80, 160), overhead=0.0006)
    without = learned(truth, (1, 2, 4, 6, 12), (20, 40, 80, 160), overhead=0.0)
    assert without.predict(1, 4) == pytest.approx(truth.predict(1, 4), rel=0.3)
    assert table.predict(1, 4) - without.predict(1, 4) == pytest.approx(0.0003, rel=0.4)
    for shape in ((1, 40), (4, 40), (12, 160)):  # the drift takes the other half
        assert table.predict(*shape) == pytest.approx(truth.predict(*shape) + 0.0006, rel=0.4)


def test_batches_that_take_what_is_predicted_give_no_overhead_from_the_first_on():
    table, truth = linear_table(0.0001, 0.00001), linear_table(0.0001, 0.00001)
    for shape in [(4, 60), (8, 100), (2, 20), (1, 40)]:
        table.observe(*shape, truth.predict(*shape))
        assert table.overhead.seconds == pytest.approx(0, abs=1e-12)


def test_an_overhead_that_no_longer_changes_computes_no_column_again():
    table = learned(linear_table(0.0001, 0.00001), (1, 4, 16), (20, 80), overhead=0.001)
    assert table.overhead.seconds > 0.1 * table.overhead.mean_batch_seconds
    columns = []
    for _ in range(20):
        table.observe(4, 80, table.predict(4, 80))
        columns.append(table.column(80, 64))
    assert len({*map(id, columns)}) <= 2


def test_what_was_learned_is_in_the_table_that_is_stored():
    table = learned(linear_table(0.0002, 0.00002), (1, 4, 16), (20, 80), overhead=0.001)
    assert CostTable.from_json(table.to_json()).predict(4, 80) == pytest.approx(table.predict(4, 80))


def test_overhead_makes_batches_larger():
    truth = linear_table(0.0001, 0.00001)
    before = truth.column(20, 64).enough_rows
    assert learned(truth, (1, 4, 16), (20, 80), overhead=0.0).column(20, 64).enough_rows <= before + 1
    assert learned(truth, (1, 4, 16), (20, 80), overhead=0.001).column(20, 64).enough_rows > before + 5


def test_batches_of_one_size_give_no_overhead():
    table = learned(linear_table(0.0001, 0.00001), (4,), (40,), overhead=0.001)
    assert table.predict(4, 40) == pytest.approx(0.0027, rel=0.15)
    assert table.predict(1, 4) < 0.0004


def test_overhead_is_at_most_a_quarter_of_the_mean_batch():
    table = learned(linear_table(0.0001, 0.00001), (1, 2), (4, 8, 16), overhead=0.01)
    overhead = table.overhead
    assert overhead.seconds == pytest.approx(0.25 * overhead.mean_batch_seconds)


@pytest.mark.parametrize("before", [1, 2, 10, 100])
def test_one_slow_run_is_no_overhead_even_after_few_batches(before: int):
    table, truth = linear_table(0.0001, 0.00001), linear_table(0.0001, 0.00001)
    shapes = [(8, 100), (4, 60), (2, 20)]
    for number in range(before):
        rows, width = shapes[number % len(shapes)]
        table.observe(rows, width, truth.predict(rows, width))
    table.observe(1, 40, 3600.0)
    assert table.predict(1, 4) <= 1.25 * truth.predict(1, 4)
    assert table.predict(8, 100) <= 1.1 * truth.predict(8, 100)


def test_runs_of_equal_prediction_give_no_overhead():
    table = CostTable([1, 2], [4], np.full((2, 1), 1e-7))
    for number in range(100):
        table.observe(1 + number % 2, 4, 0.001)
    assert table.overhead.seconds == 0
    assert table.predict(1, 4) > 1e-6


def test_noise_in_batches_of_similar_size_is_no_overhead():
    table, random = linear_table(0.0001, 0.00001), np.random.default_rng(0)
    for _ in range(1000):
        width = int(random.choice((40, 44)))
        table.observe(4, width, (0.0001 + 0.00004 * width) * float(random.lognormal(0, 0.15)))
        assert table.overhead.seconds < 0.0001 + 0.05 * table.overhead.mean_batch_seconds


def test_a_machine_slower_at_rest_than_at_work_shows_no_overhead():
    table, truth = linear_table(0.0001, 0.00001), linear_table(0.0001, 0.00001)
    random = np.random.default_rng(0)
    for number in range(400):
        rows, slower = (1, 1.6) if number < 300 else (16, 1.0)
        width = 4 * int(random.integers(2, 20))
        table.observe(rows, width, slower * truth.predict(rows, width) * float(random.lognormal(0, 0.05)))
    assert table.column(20, 64).enough_rows <= truth.column(20, 64).enough_rows + 4
    assert table.predict(16, 40) == pytest.approx(truth.predict(16, 40), rel=0.1)


@pytest.mark.parametrize("wrong", [0.0, -1.0, math.nan, math.inf, -math.inf])
def test_an_invalid_duration_is_ignored(wrong: float):
    table = linear_table(0.001, 0.0001)
    before = table.predict(2, 40)
    for _ in range(100):
        table.observe(2, 40, wrong)
    assert table.predict(2, 40) == before


def test_drift_measured_on_one_shape_applies_to_all():
    table, truth = linear_table(0.001, 0.0001), linear_table(0.004, 0.0004)
    for _ in range(300):
        table.observe(1, 20, truth.predict(1, 20))
    assert table.predict(1, 20) == pytest.approx(truth.predict(1, 20), rel=0.1)
    assert table.predict(60, 20) == pytest.approx(truth.predict(60, 20), rel=0.1)


def test_a_column_computed_while_another_thread_learns_is_not_kept(monkeypatch: pytest.MonkeyPatch):
    compute, overtaken = CostTable.computed, []

    def computed(self: CostTable, width: int, rows: int, seconds: NDArray[np.float64]) -> NDArray[np.float64]:
        column = compute(self, width, rows, seconds)
        if not overtaken:
            overtaken.append(width)
            for of_rows, of_width in 200 * [(1, 4), (16, 80)]:
                self.observe(of_rows, of_width, linear_table(50.0, 1.0).predict(of_rows, of_width))
        return column

    monkeypatch.setattr(CostTable, "computed", computed)
    table = linear_table(1.0, 1.0)
    assert table.column(8, 1).seconds[1] == 9.0
    assert overtaken == [8]
    assert table.column(8, 1).seconds[1] > 10.0


# Padding


@given(tables(), st.lists(st.integers(1, 100), min_size=1, max_size=40))
def test_mixed_lengths_cost_as_many_fewer_rows_as_their_padding_is_free(table: CostTable, lengths: list[int]):
    rows, width, valid = len(lengths), max(lengths), sum(lengths)
    of_one_length = [table.predict(count, width) for count in range(1, rows + 1)]
    charged = valid / width + table.padding_cost * (rows - valid / width)
    assert table.predict(rows, width, valid) == pytest.approx(np.interp(charged, range(1, rows + 1), of_one_length))


@pytest.mark.parametrize("padding_cost", [-0.01, 1.01, float("nan")])
def test_a_padding_step_costs_between_nothing_and_a_valid_one(padding_cost: float):
    with pytest.raises(ValueError, match="padding step from 0 to 1"):
        CostTable([1], [4], np.ones((1, 1)), padding_cost=padding_cost)
