"""On a device few shapes run, and what they add to what is computed stays under a twentieth."""

import functools
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from lengthwise.batching.buckets import MOST_ADDED, MOST_FIRST, BucketedCosts, Buckets, choose, lowered
from lengthwise.batching.cost import CostTable
from lengthwise.batching.cost_measurement import grid
from lengthwise.batching.limits import BatchLimits
from lengthwise.batching.pending import PendingSequences, WaitingSequence
from lengthwise.batching.plan import plan
from lengthwise.padding import rounded_width

LONGEST = 1024
FEW = BatchLimits(64, 16_384)
MANY = BatchLimits(512, 262_144)


def table(limits: BatchLimits, rows_until_full: float) -> CostTable:
    """A device on which a step takes its time whatever the rows, until there are so many."""
    rows, widths = grid(limits.rows), grid(LONGEST, smallest=4)
    return CostTable(
        rows, widths, np.array([[5e-5 + 2e-5 * w * (1 + r / rows_until_full) for w in widths] for r in rows])
    )


def lognormal(random: np.random.Generator, count: int) -> NDArray[Any]:
    return np.exp(random.normal(np.log(50), 0.7, count))


def uniform(random: np.random.Generator, count: int) -> NDArray[Any]:
    return random.uniform(1, LONGEST, count)


def bimodal(random: np.random.Generator, count: int) -> NDArray[Any]:
    return np.where(random.random(count) < 0.8, random.normal(30, 8, count), random.normal(600, 100, count))


def zipf(random: np.random.Generator, count: int) -> NDArray[Any]:
    return 4.0 * random.zipf(1.5, count)


class Sequence(WaitingSequence):
    """One that waits, and knows its length."""

    length = 0


@pytest.mark.sampled(55)
@pytest.mark.parametrize("arrivals", [3, 30, 300])
@pytest.mark.parametrize("rows_until_full", [8.0, 256.0])
@pytest.mark.parametrize("limits", [FEW, MANY], ids=["64 rows", "512 rows"])
@pytest.mark.parametrize("lengths", [lognormal, uniform, bimodal, zipf])
def test_rounding_adds_less_than_a_twentieth_to_what_is_computed(
    lengths: Callable[[np.random.Generator, int], NDArray[Any]],
    limits: BatchLimits,
    rows_until_full: float,
    arrivals: int,
):
    random = np.random.default_rng(0)
    measured = table(limits, rows_until_full)
    buckets = choose(measured, limits, max_length=LONGEST, multiple=4)
    cost = BucketedCosts(measured, buckets)
    # So many that some dozens of batches run: of three, one that is rounded up much would decide.
    waiting = np.clip(lengths(random, max(800, 20 * arrivals)), 1, LONGEST).astype(int).tolist()
    pool, computed, needed = PendingSequences(), 0, 0
    while waiting or len(pool):
        for _ in range(min(len(waiting), random.poisson(arrivals))):
            length = waiting.pop()
            one = Sequence(buckets.width_of(length), float("inf"), 0)
            one.length = length
            pool.add(one)
        batch: list[Any] = plan(pool, cost, limits, 0.0)
        if batch:
            width = max(one.width for one in batch)
            computed += buckets.rows_of(len(batch), width) * width
            needed += len(batch) * rounded_width(max(one.length for one in batch))
    assert computed < 1.05 * needed


@pytest.mark.long
@pytest.mark.parametrize("limits", [FEW, MANY], ids=["64 rows", "512 rows"])
def test_there_are_few_shapes(limits: BatchLimits):
    buckets = choose(table(limits, 64.0), limits, max_length=LONGEST, multiple=4)
    assert len(buckets.widths) < 64  # of 256 multiples of four
    assert len(buckets.rows) < 20 + 16 * np.log2(limits.rows / 16)
    assert len(buckets.shapes()) == len(set(buckets.shapes())) < len(buckets.widths) * (len(buckets.rows) + 1) + 1


def test_every_batch_runs_in_a_shape_that_was_listed_and_fits():
    for length in range(1, LONGEST + 1, 7):
        width = CHOSEN.padded_width(length)
        assert length <= width <= rounded_width(length) * (1 + MOST_ADDED)
        for rows in range(1, min(max(1, FEW.padded_steps // width), FEW.rows) + 1):
            filled = CHOSEN.rows_of(rows, width)
            assert (filled, width) in LISTED
            assert rows <= filled <= rows * (1 + MOST_ADDED)
            assert filled == 1 or filled * width <= FEW.padded_steps
            assert CHOSEN.rows_of(filled, width) == filled


@functools.cache
def chosen(multiple: int) -> Buckets:
    return choose(table(FEW, 32.0), FEW, max_length=LONGEST, multiple=multiple)


def widths_after(longest_of_blocks: list[int], multiple: int = 1) -> Buckets:
    """Buckets after blocks of arrivals with these longest sequences."""
    buckets = replace(chosen(multiple))
    for longest in longest_of_blocks:
        for length in (longest, *[1] * 63):
            buckets.width_of(length)
    return buckets


@pytest.mark.long
def test_a_width_that_comes_often_is_not_rounded_up_and_is_again_once_it_is_rare():
    rounded = widths_after([]).padded_width(199)
    assert rounded > 199
    assert widths_after([199]).padded_width(199) == rounded  # once is not often
    assert widths_after([199, 1, 199]).padded_width(199) == 199
    assert widths_after([199, 1, 199, *[1] * 64]).padded_width(199) == rounded


def test_widths_that_come_once_each_are_rounded_up():
    lengths = range(150, 200)
    buckets, few = widths_after([*lengths]), widths_after([])
    assert [buckets.width_of(length) for length in lengths] == [few.padded_width(length) for length in lengths]


@pytest.mark.parametrize(
    ("multiple", "length", "width"), [(4, 197, 200), (8, 197, 200), (1, 1001, 1004), (4, 1023, 1024)]
)
def test_a_width_that_comes_often_is_a_multiple_and_wide_neighbours_are_one(multiple: int, length: int, width: int):
    assert widths_after([length, length], multiple).padded_width(length) == width


def test_a_length_past_the_longest_leaves_the_longest_width_as_it_is():
    assert widths_after([LONGEST + 5, LONGEST + 5]).padded_width(LONGEST) == LONGEST


def test_what_no_batch_may_be_is_not_filled():
    assert [CHOSEN.rows_of(rows, 1024) for rows in (16, 17, 63)] == [16, 17, 63]


CHOSEN = choose(table(FEW, 32.0), FEW, max_length=LONGEST, multiple=4)
LISTED = set(CHOSEN.shapes())


def test_the_largest_shape_is_listed_first_so_that_a_warm_up_makes_room_for_all():
    largest = CHOSEN.shapes()[0]
    assert largest[0] * largest[1] == max(rows * width for rows, width in LISTED)


@pytest.mark.sampled(4)
@pytest.mark.parametrize("lengths", [(), (20, 37, 50, 62, 5000)], ids=["unknown", "of the training data"])
@pytest.mark.parametrize("limits", [FEW, MANY], ids=["64 rows", "512 rows"])
def test_before_the_first_request_few_shapes_run_and_few_rows_before_many(
    limits: BatchLimits, lengths: tuple[int, ...]
):
    buckets = choose(table(limits, 64.0), limits, max_length=LONGEST, multiple=4)
    shapes, first = buckets.shapes(), buckets.first_shapes(lengths)
    assert len(first) == len(set(first)) <= MOST_FIRST < len(shapes)
    assert set(first) <= set(shapes)
    assert first[0] == shapes[0]
    assert [rows for rows, _ in first[1:]] == sorted(rows for rows, _ in first[1:])
    expected = {buckets.padded_width(min(length, LONGEST)) for length in lengths} or {
        buckets.widths[0],
        buckets.widths[-1],
    }
    assert expected <= {width for rows, width in first if rows == 1}
    assert max(rows for rows, _ in first) == max(rows for rows, width in shapes if width in dict(map(reversed, first)))


def test_all_of_few_shapes_run_before_the_first_request():
    buckets = Buckets((4, 8), (1, 2, 4), BatchLimits(4, 32))
    assert buckets.first_shapes() == buckets.shapes()


@pytest.mark.parametrize(("flat_until", "rows"), [(40, 40), (200, 200), (5000, 512)])
def test_rows_and_steps_are_lowered_to_what_a_device_gains_from(flat_until: int, rows: int):
    """Seconds do not depend on the rows up to `flat_until`, and are in proportion to them past it."""
    counts, widths = sorted({*grid(512), min(flat_until, 512)}), grid(LONGEST, smallest=4)
    seconds = np.array([[1e-5 * width * max(1.0, count / flat_until) for width in widths] for count in counts])
    limits = lowered(CostTable(counts, widths, seconds), BatchLimits(512, 262_144))
    assert 0.95 * rows <= limits.rows <= rows
    assert 0.9 * min(rows * LONGEST, 262_144) <= limits.padded_steps <= min(rows * LONGEST, 262_144)


def test_widths_are_multiples_of_what_the_model_wants_and_reach_its_longest_sequence():
    buckets = choose(table(FEW, 32.0), FEW, max_length=1001, multiple=8)
    assert all(width % 8 == 0 for width in buckets.widths)
    assert buckets.widths[-1] == 1008


def test_a_step_in_the_cost_is_not_rounded_over():
    """Past 32 rows a run takes twice as long: a batch of 32 must not be filled up past it."""
    rows, widths = [1, 16, 32, 33, 64], [4, 1024]
    steps = CostTable(rows, widths, np.array([[w * (1.0 if r <= 32 else 2.0) for w in widths] for r in rows]))
    assert 32 in choose(steps, FEW, max_length=LONGEST, multiple=4, most_added=0.5).rows


@pytest.mark.parametrize("up_to", [4, 1024], ids=["of narrow ones", "of all widths"])
def test_nor_is_one_that_a_choice_among_fewer_numbers_of_rows_would_miss(up_to: int):
    rows, widths = [1, 16, 32, 33, 64], [4, 1024]
    seconds = np.array([[2.0 if r > 32 and w <= up_to else 1.0 for w in widths] for r in rows])
    assert 32 in choose(CostTable(rows, widths, seconds), FEW, max_length=LONGEST, multiple=4, most_added=0.25).rows


def test_where_seconds_rise_steeply_no_rounding_adds_more_than_a_twentieth_to_them():
    """Only at 256 steps, the width of a full batch of all rows, more than 32 rows take a hundred times as long."""
    seconds = np.array([[1.0, 2.0, 1000.0], [1.0, 2.0, 1000.0], [1.0, 200.0, 1000.0]])
    steep = CostTable([1, 32, 64], [4, 256, 1024], 1e-4 * seconds)
    buckets = choose(steep, FEW, max_length=LONGEST, multiple=4)
    for rows in range(1, 65):
        assert steep.predict(buckets.rows_of(rows, 256), 256) <= (1 + MOST_ADDED) * steep.predict(rows, 256)
    for length in range(4, LONGEST + 1, 4):
        width = buckets.padded_width(length)
        full, wider = steep.predict(FEW.most_rows(length), length), steep.predict(FEW.most_rows(width), width)
        assert wider <= (1 + MOST_ADDED) * full


def test_where_rows_cost_time_and_no_share_is_left_every_number_of_rows_stands():
    exact = choose(table(FEW, 8.0), FEW, max_length=64, multiple=4, most_added=0.0)
    assert exact.rows == tuple(range(1, 65))
    assert exact.widths == tuple(range(4, 65, 4))


def test_a_planner_is_told_what_a_batch_costs_with_the_rows_that_fill_it():
    buckets = Buckets((4, 1024), (1, 8, 64), FEW)
    measured = table(FEW, 8.0)
    cost = BucketedCosts(measured, buckets)
    assert [cost.predict(rows, 4) for rows in (2, 8)] == [measured.predict(8, 4)] * 2
    assert cost.predict(9, 4) == measured.predict(64, 4)
    assert cost.column(4, 64).cheapest_rows[9] == 8
    assert cost.column(4, 64).cheapest_rows[64] == 64
    assert len(cost.column(4, 64).seconds) == 65


@pytest.mark.parametrize("width", [4, 250, 300, 1024, 3000])
def test_every_number_of_rows_costs_what_runs_in_its_place(width: int):
    buckets = Buckets((4, 250, 300, 1024), (1, 3, 8, 20, 64), FEW)
    measured = table(FEW, 8.0)
    column = BucketedCosts(measured, buckets).column(width, 80)
    runs = [buckets.rows_of(rows, width) for rows in range(1, 81)]
    assert column.seconds[1:] == pytest.approx([measured.predict(rows, width) for rows in runs], rel=1e-12)


def test_what_serving_sees_of_a_filled_batch_is_learned_for_it():
    buckets = Buckets((4, 1024), (1, 8, 64), FEW)
    cost = BucketedCosts(table(FEW, 8.0), buckets)
    before = cost.predict(5, 4)
    for _ in range(200):
        cost.observe(8, 4, 2 * before)
    assert cost.predict(5, 4) == pytest.approx(2 * before, rel=0.1)


@pytest.mark.long
def test_serving_corrects_the_times_of_similar_shapes_only():
    cost = BucketedCosts(table(MANY, 64.0), choose(table(MANY, 64.0), MANY, max_length=LONGEST, multiple=4))
    right, wrong = (2, 16), (512, 256)
    before = {shape: cost.predict(*shape) for shape in (right, wrong)}
    for _ in range(400):
        cost.observe(*right, before[right])
        cost.observe(*wrong, 3 * before[wrong])
    assert cost.predict(*right) == pytest.approx(before[right], rel=0.1)
    assert cost.predict(*wrong) == pytest.approx(3 * before[wrong], rel=0.1)


def test_noise_around_the_times_that_are_right_computes_no_column_again():
    cost = BucketedCosts(table(FEW, 8.0), CHOSEN)
    column = cost.column(16, FEW.rows)
    took = cost.predict(8, 16)
    for noise in (1.0, *100 * [1.05, 0.95]):
        cost.observe(8, 16, noise * took)
    assert cost.column(16, FEW.rows) is column


def test_a_correction_counts_at_once_and_columns_after_sixteen_runs():
    cost = BucketedCosts(table(FEW, 8.0), CHOSEN)
    column, before, took = cost.column(16, FEW.rows), cost.measured_seconds(8, 16), 3 * cost.predict(8, 16)
    for _ in range(10):
        cost.observe(8, 16, took)
    assert cost.column(16, FEW.rows) is column
    assert cost.measured_seconds(8, 16) > 1.5 * before
    for _ in range(7):
        cost.observe(8, 16, took)
    assert cost.column(16, FEW.rows) is not column


@pytest.mark.long
@pytest.mark.sampled(3)
@pytest.mark.parametrize("factor", [0.5, 1.5, 2.0])
def test_one_slow_shape_is_learned_for_similar_shapes_and_not_for_all(factor: float):
    measured = table(MANY, 256.0)
    cost = BucketedCosts(measured, choose(measured, MANY, max_length=LONGEST, multiple=4))
    took, far = factor * cost.predict(256, 1024), cost.predict(512, 64)
    for _ in range(1000):
        cost.observe(256, 1024, took)
    assert cost.predict(256, 1024) == pytest.approx(took, rel=0.05)
    assert abs(np.log(cost.drift)) < 0.7 * abs(np.log(factor))
    assert abs(np.log(cost.predict(512, 64) / far)) < 0.9 * abs(np.log(factor))


def test_corrections_that_the_columns_do_not_have_yet_count_for_the_next_ones():
    cost = BucketedCosts(table(FEW, 8.0), CHOSEN)
    took = 1.5 * cost.predict(8, 16)
    for _ in range(60):
        cost.observe(8, 16, took)
        assert (cost.measured_seconds(8, 16) + cost.overhead.seconds) * cost.drift < 1.1 * took


def test_times_rise_with_rows_and_widths_whatever_was_corrected():
    cost = BucketedCosts(table(FEW, 8.0), CHOSEN)
    random = np.random.default_rng(0)
    for _ in range(500):
        rows, width = int(random.integers(1, 65)), int(random.integers(1, LONGEST))
        cost.observe(rows, width, float(random.lognormal(0, 2)) * cost.predict(rows, width))
        assert (np.diff(cost.seconds, axis=0) >= 0).all()
        assert (np.diff(cost.seconds, axis=1) >= 0).all()


def test_the_slow_first_run_of_a_shape_is_not_learned():
    cost = BucketedCosts(table(FEW, 8.0), CHOSEN)
    before = cost.predict(5, 4)
    for width in CHOSEN.widths:
        cost.observe(5, width, 60.0)
    assert cost.predict(5, 4) == before


@pytest.mark.parametrize("seconds", [0.0, -1.0, float("nan"), float("inf")])
def test_an_impossible_time_corrects_nothing(seconds: float):
    cost = BucketedCosts(table(FEW, 8.0), CHOSEN)
    before = cost.predict(5, 4)
    for _ in range(50):
        cost.observe(5, 4, seconds)
    assert cost.predict(5, 4) == before


def test_a_bucketed_table_keeps_its_clock_and_is_kept_as_it_was_measured():
    measured = table(FEW, 8.0)
    measured.clock = lambda: 0.0
    cost = BucketedCosts(measured, CHOSEN)
    assert cost.clock is measured.clock
    assert cost.to_json() == measured.to_json()
