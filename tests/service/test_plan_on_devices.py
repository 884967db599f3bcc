"""Where rows are nearly free and as many arrive as run, plans answer more than batches in order of arrival."""

from itertools import cycle
from typing import Any

import numpy as np
import pytest

from benchmarks.devices import DEVICES, LENGTHS, TABLES, compared, drawn, first_seconds, planned_loop, true_costs
from lengthwise.batching import plan as planning
from lengthwise.batching.buckets import BEFORE_READY, MOST_FIRST
from lengthwise.batching.cost import Column, CostTable
from lengthwise.batching.limits import BatchLimits
from lengthwise.batching.pending import PendingSequences, WaitingSequence
from lengthwise.batching.plan import plan

ROWS_ARE_FREE = ["flat to 256 rows", "in steps of 64 rows"]


@pytest.mark.long
@pytest.mark.sampled(3)
@pytest.mark.parametrize("device", ["flat to 256 rows", "H200, BiLSTM 2 x 128", "H200, encoder of 4 layers"])
def test_few_slow_first_runs_precede_the_first_answer_and_suffice(device: str):
    lengths = drawn("lognormal", count=1000)
    seconds, p99 = first_seconds(DEVICES[device], lengths, BEFORE_READY)
    assert seconds <= 0.3
    assert p99 <= 1.1 * first_seconds(DEVICES[device], lengths, MOST_FIRST)[1]


@pytest.mark.long
@pytest.mark.sampled(9)
@pytest.mark.parametrize("device", ROWS_ARE_FREE)
@pytest.mark.parametrize("lengths", LENGTHS)
def test_as_many_are_answered_where_one_batch_takes_all(lengths: str, device: str):
    found = compared(DEVICES[device], drawn(lengths, count=10_000), 64)
    assert found["over_arrival"] >= 0.998  # few widths are rounded up
    assert found["over_same_shapes"] >= 1 - 1e-9  # nothing else is lost
    assert found["p99_over_arrival"] <= 1.1


@pytest.mark.long
@pytest.mark.sampled(12)
@pytest.mark.parametrize("device", [*ROWS_ARE_FREE, "in proportion"])
@pytest.mark.parametrize("lengths", LENGTHS)
def test_more_are_answered_where_several_batches_wait(lengths: str, device: str):
    found = compared(DEVICES[device], drawn(lengths, count=10_000), 1024)
    assert found["over_arrival"] >= (2.0 if lengths == "lognormal" else 1.2)
    assert found["p99_over_arrival"] <= 1.1


@pytest.mark.long
def test_where_a_short_sequence_alone_is_dear_many_of_them_run_together():
    found = compared(TABLES["an encoder, quadratic in the width"], drawn("zipf", count=10_000), 1024)
    assert found["over_arrival"] >= 2.4
    assert found["p99_over_arrival"] <= 0.8


@pytest.mark.long
def test_batches_of_a_frequent_width_are_not_cut_where_the_partitioned_sequences_end():
    lengths = np.random.default_rng(0).choice([16, 64, 100, 101, 300], 10_000).tolist()
    found = compared(DEVICES["in proportion"], lengths, 2048)
    assert found["over_arrival"] >= 2.22
    assert found["p99_over_arrival"] <= 0.5


def test_the_anchor_runs_where_fewer_rows_are_in_time_than_its_part_has():
    """Rows are nearly free, no width may have more than a row in a turn, and the partition ends behind few widths."""
    cost = CostTable([1, 128], [8, 200, 400], np.array([[1.0, 1.0, 128.0], [128.0, 128.0, 128.0]]))
    pool, first = PendingSequences(), WaitingSequence(100)
    for one in (first, *(WaitingSequence(8 + i) for i in range(171)), *(WaitingSequence(400) for _ in range(340))):
        pool.add(one)
    assert not pool.refilled  # else it is a batch of a class
    assert first in plan(pool, cost, BatchLimits(128, 131_072, turn_seconds=0.0), 0.0)


@pytest.mark.long
@pytest.mark.sampled(6)
@pytest.mark.parametrize("lengths", LENGTHS)
def test_four_batches_that_wait_are_answered_faster_and_have_no_longer_tail(lengths: str):
    found = compared(DEVICES["in steps of 64 rows"], drawn(lengths, count=10_000), 256)
    assert found["over_arrival"] >= 1.2
    assert found["p99_over_arrival"] <= 1.1


@pytest.mark.sampled(2)
@pytest.mark.parametrize(("device", "waiting"), [(ROWS_ARE_FREE[0], 1024), (ROWS_ARE_FREE[1], 256)])
def test_a_few_long_ones_are_no_class_together_with_many_short_ones(device: str, waiting: int):
    """Those around 200 steps do not fill a class; a width around 20 would overfill it, and run with them."""
    found = compared(DEVICES[device], drawn("bimodal", count=20_000), waiting)
    assert found["over_arrival"] >= 2.5
    assert found["p99_over_arrival"] <= 0.75


@pytest.mark.long
@pytest.mark.sampled(2)
@pytest.mark.parametrize(
    ("device", "waiting", "parts"),
    [
        ("in steps of 64 rows", 125, [(10_000, 87, 0.05), (10_000, 164, 1.0)]),
        ("H200, BiLSTM 2 x 128", 435, [(16_000, 27, 0.4), (4_000, 371, 0.3)]),
    ],
)
def test_where_too_few_wait_for_two_classes_they_run_in_two_parts(
    device: str, waiting: int, parts: list[tuple[int, float, float]]
):
    """`parts`: number, median and spread of lognormal lengths. A second class would be nearly empty, and slower."""
    draw = np.random.default_rng(0)
    steps = np.concatenate([median * draw.lognormal(0, spread, number) for number, median, spread in parts])
    found = compared(DEVICES[device], np.clip(draw.permutation(steps), 1, 500).astype(int).tolist(), waiting)
    assert found["over_arrival"] >= 1.5
    assert found["p99_over_arrival"] <= 0.8


@pytest.mark.sampled(2)
@pytest.mark.parametrize("shift", [0, 300, 1000, 2000])
def test_where_one_width_is_much_more_frequent_than_all_others_it_is_a_class(shift: int):
    """One in twenty has 400 steps, the others have 20; and those of 20 have another width while that is learned."""
    lengths = np.roll(np.where(np.random.default_rng(0).random(30_000) < 0.05, 400, 20), -shift).tolist()
    assert planned_loop(DEVICES["in steps of 64 rows"], lengths, 512).per_second > 20_000


@pytest.mark.sampled(14)
@pytest.mark.parametrize("seed", [1, 2, 3])
@pytest.mark.parametrize("waiting", [1024, 4096])
@pytest.mark.parametrize("device", ROWS_ARE_FREE)
def test_of_lengths_that_are_much_alike_none_waits_for_long(device: str, waiting: int, seed: int):
    """Few are much shorter than the others: no class of their own, and none is left behind by the wider ones."""
    lengths = np.random.default_rng(seed).normal(100, 10, 10_000).astype(int).tolist()
    found = compared(DEVICES[device], lengths, waiting)
    assert found["over_arrival"] >= 0.99  # few widths are rounded up
    assert found["p99_over_arrival"] <= 1.1


@pytest.mark.long
@pytest.mark.sampled(6)
@pytest.mark.parametrize("seed", [1, 2, 3])
@pytest.mark.parametrize(("device", "waiting"), [(ROWS_ARE_FREE[0], 1024), (ROWS_ARE_FREE[1], 256)])
def test_with_few_batches_that_wait_no_draw_of_lengths_has_a_longer_tail(device: str, waiting: int, seed: int):
    assert compared(DEVICES[device], drawn("uniform", seed, 10_000), waiting)["p99_over_arrival"] <= 1.1


@pytest.mark.long
@pytest.mark.sampled(2)
@pytest.mark.parametrize("waiting", [256, 1024])
def test_one_length_runs_in_a_whole_number_of_batches(waiting: int):
    found = compared(DEVICES["in steps of 64 rows"], [36] * 10_000, waiting)
    assert found["over_arrival"] >= 1 - 1e-9
    assert found["p99_over_arrival"] <= 1 + 1e-9


@pytest.mark.long
@pytest.mark.sampled(4)
@pytest.mark.parametrize("lengths", LENGTHS)
def test_a_long_queue_is_divided_into_more_classes(lengths: str):
    found = compared(DEVICES["in steps of 64 rows"], drawn(lengths, count=10_000), 4096)
    assert found["over_arrival"] >= 1.5
    assert found["p99_over_arrival"] <= 1.0


@pytest.mark.long
@pytest.mark.sampled(12)
@pytest.mark.parametrize("waiting", [64, 256, 1024])
@pytest.mark.parametrize("lengths", LENGTHS)
def test_with_the_measured_costs_of_a_card_more_are_answered_and_no_tail_is_longer(lengths: str, waiting: int):
    """A row of the widest takes nearly as long as a turn, and a full batch of them longer: yet full batches run."""
    found = compared(DEVICES["H200, BiLSTM 2 x 128"], drawn(lengths, count=10_000), waiting)
    assert found["over_arrival"] >= (1.2 if waiting == 1024 else 0.998)
    assert found["p99_over_arrival"] <= 1.1


@pytest.mark.long
@pytest.mark.sampled(12)
@pytest.mark.parametrize("waiting", [64, 96, 128])
@pytest.mark.parametrize("lengths", LENGTHS)
def test_where_few_wait_none_waits_for_a_second_batch_in_vain(lengths: str, waiting: int):
    """An encoder, whose rows are free up to 32: more wait than run cheaply, and too few for two classes."""
    found = compared(DEVICES["H200, encoder of 4 layers"], drawn(lengths, count=10_000), waiting)
    assert found["over_arrival"] >= (0.998 if lengths == "uniform" else 1.1)  # few widths are rounded up
    assert found["p99_over_arrival"] <= 1.1


@pytest.mark.long
def test_no_sequence_beside_a_cut_that_moves_misses_the_turns_of_both_parts():
    lengths = np.clip(np.random.default_rng(77).exponential(80, 30_000), 1, 400).astype(int).tolist()
    found = compared(DEVICES["H200, encoder of 4 layers"], lengths, 64)
    assert found["over_arrival"] >= 1.2
    assert found["p99_over_arrival"] <= 1.1


@pytest.mark.long
@pytest.mark.sampled(2)
@pytest.mark.parametrize("device", ["H200, BiLSTM 2 x 128", "flat to 256 rows"])
def test_no_sequence_beside_a_moving_end_misses_the_turns_of_both_classes(device: str):
    """Where the arrivals fill two classes about as well with one width more or less in the wide one."""
    found = [compared(DEVICES[device], drawn("uniform", seed), 1024) for seed in (0, 4, 5, 7)]
    assert min(each["over_arrival"] for each in found) >= 1.2
    # An end moves when it must, as the widest of the last arrivals are others: so in one of 80 draws on the H200.
    assert sum(each["p99_over_arrival"] > 1.1 for each in found) <= (1 if device.startswith("H200") else 0)


@pytest.mark.parametrize(("moved", "stays"), [(1, True), (-1, True), (5, False), (-5, False)])
def test_a_class_ends_where_it_did_only_while_it_is_nearly_full_so(moved: int, stays: bool):
    """Each width fills a row, a full class some fifty: one that ends a width off is nearly full, five off not."""

    def tops(earlier: list[int]) -> list[int]:
        pool, cost = PendingSequences(), CostTable([1, 64], [4, 400], np.array([[1.0, 100.0]] * 2))
        for place in range(400):
            pool.add(WaitingSequence(2 * (place % 200 + 1)))
        pool.class_tops = earlier
        pool.take_planned([])  # as many have come since as it took: none
        plan(pool, cost, BatchLimits(rows=64), 0.0)
        return [*pool.class_tops]

    *_, second, widest = tops([])
    assert tops([second + 2 * moved, widest])[-2] == (second + 2 * moved if stays else second)


@pytest.mark.parametrize("lengths", LENGTHS)
def test_a_burst_that_nothing_follows_runs_in_no_more_time_than_in_order_of_arrival(lengths: str):
    """Also of the widest, which take longer than a turn, so many run together that a row is cheap."""
    truth, burst = DEVICES["H200, BiLSTM 2 x 128"], drawn(lengths)[:1024]
    cost, limits, buckets = true_costs(truth)
    pool = PendingSequences()
    for length in burst:
        pool.add(WaitingSequence(buckets.width_of(length)))
    seconds = 0.0
    while pool:
        batch = plan(pool, cost, limits, seconds)
        width = max(waiting.width for waiting in batch)
        seconds += truth(buckets.rows_of(len(batch), width), width)
    assert seconds <= sum(truth(256, max(burst[first : first + 256])) for first in range(0, 1024, 256))


def test_a_burst_of_long_ones_with_a_few_short_between_them_runs_in_full_batches():
    cost, limits, buckets = true_costs(DEVICES["in steps of 64 rows"])
    pool, seconds = PendingSequences(), 0.0
    for number in range(4096):
        pool.add(WaitingSequence(buckets.width_of(500 if number % 100 else 10)))
    while pool:
        batch = plan(pool, cost, limits, seconds)
        seconds += cost.predict(len(batch), max(waiting.width for waiting in batch))
    assert seconds <= 1.05 * 4096 / 64 * cost.predict(64, buckets.padded_width(500))


@pytest.mark.parametrize(("shortening", "least_valid"), [(1, 0.85), (10, 0.7)])
def test_on_a_processor_little_padding_is_computed(shortening: int, least_valid: float):
    """A small transformer in onnxruntime: a row of 64 steps takes 0.31 ms alone, and 0.20 ms in a full batch.

    Of 4 steps a row alone takes eight times as long as in a full batch, as on a device: the widest that wait tell.
    """
    milliseconds = [[0.12, 0.15, 0.31, 1.3], [0.16, 0.5, 1.02, 5.2], [0.3, 1.0, 3.7, 21.0], [0.9, 3.3, 12.9, 80.0]]
    cost = CostTable([1, 4, 16, 64], [4, 16, 64, 256], np.array(milliseconds) / 1000)
    pool = PendingSequences()
    arriving = iter([max(1, length // shortening) for length in drawn("lognormal", count=4000)])
    valid = computed = 0
    for length in arriving:
        pool.add(WaitingSequence(length))
        if len(pool) == 64:
            batch = plan(pool, cost, BatchLimits(), 0.0)
            valid += sum(one.width for one in batch)
            computed += len(batch) * max(one.width for one in batch)
    assert valid >= least_valid * computed


def test_where_only_full_batches_are_cheap_several_of_them_are_divided_by_length():
    """A row costs four times as much alone as in a batch of 16, the most that run together."""
    cost = CostTable([1, 16], [4, 512], np.multiply.outer([40e-6, 190e-6], [4, 512]))
    pool, lengths = PendingSequences(), drawn("lognormal", count=4000)
    answered, seconds = 0, 0.0
    for length in lengths:
        pool.add(WaitingSequence(length))
        if len(pool) == 64:
            batch = plan(pool, cost, BatchLimits(rows=16), 0.0)
            answered += len(batch)
            seconds += cost.predict(len(batch), max(one.width for one in batch))
    by_arrival = sum(cost.predict(16, max(lengths[first : first + 16])) for first in range(0, 4000, 16))
    assert answered / seconds >= 2 * 4000 / by_arrival


@pytest.mark.parametrize(
    ("alone", "passed_over", "later_run"),
    [(2.0, 0, True), (2.0, 60, True), (2.0, 150, False), (1.1, 0, True), (1.1, 1, False)],
)
def test_the_most_urgent_shares_its_batch_until_many_have_passed_it_over(
    alone: float, passed_over: int, later_run: bool
):
    """Many are a quarter of those that wait, or one where a row alone costs hardly more than in a batch.

    385 wait: the later one is just not of the most urgent sixth.
    """
    cost = CostTable([1, 8], [4, 512], np.multiply.outer([alone, 8.0], [4, 512]))
    first, near, later = WaitingSequence(100), [WaitingSequence(50) for _ in range(63)], WaitingSequence(100)
    pool, others = PendingSequences(), [WaitingSequence(50) for _ in range(320 + passed_over)]
    for one in (first, *near, later, *others):
        pool.add(one)
    pool.take(others[320:])
    assert pool.passed_over(first) == passed_over
    assert (later in plan(pool, cost, BatchLimits(), 0.0)) == later_run


def test_what_came_lately_is_counted_by_width_and_what_came_before_is_let_go():
    pool = PendingSequences()
    for width in (8, *[4] * 4095, 12):
        pool.add(WaitingSequence(width))
    assert pool.widths == {4: 4095, 12: 1}
    assert len(pool.recent) == 4096


def test_a_queue_is_refilled_once_half_as_many_have_come_as_the_last_plan_took():
    pool = PendingSequences()
    waits = [WaitingSequence(4) for _ in range(10)]
    for waiting in waits:
        pool.add(waiting)
    assert not pool.refilled  # nothing was planned yet
    pool.take_planned(waits[:4])
    pool.add(WaitingSequence(4))
    assert not pool.refilled
    pool.add(WaitingSequence(4))
    assert pool.refilled


def test_a_class_runs_when_its_first_is_the_most_urgent_and_takes_its_most_urgent():
    pool, cost = PendingSequences(), CostTable([1, 8], [4, 400], np.array([[1.0, 100.0], [1.0, 100.0]]))
    narrow, wide = ([WaitingSequence(width) for _ in range(40)] for width in (4, 400))
    for pair in zip(wide, narrow, strict=True):
        list(map(pool.add, pair))
    pool.take_planned([])  # as many have come since as it took: none
    batches = [plan(pool, cost, BatchLimits(rows=8), 0.0) for _ in range(2)]
    assert [sorted(one.urgency for one in batch) for batch in batches] == [
        [one.urgency for one in wide[:8]],
        [one.urgency for one in narrow[:8]],
    ]


def two_classes(
    narrow_seconds: float, wide_seconds: float, number: int = 40, narrow: int = 4
) -> tuple[PendingSequences, CostTable]:
    """As many sequences of 400 steps as of 4, in turn, a wide one first; up to 8 rows cost what one row costs."""
    pool, seconds = PendingSequences(), np.array([[narrow_seconds, wide_seconds]] * 2)
    for _ in range(number):
        pool.add(WaitingSequence(400))
        pool.add(WaitingSequence(narrow))
    return pool, CostTable([1, 8], [4, 400], seconds)


@pytest.mark.parametrize("narrow", [1, 4])
def test_the_rows_that_a_class_leaves_in_its_batch_are_for_narrower_ones(narrow: int):
    pool, cost = two_classes(1.0, 100.0, narrow=narrow)
    wide_ones, narrow_ones = list(pool)[::2], list(pool)[1::2]
    pool.take_planned(wide_ones[4:])
    pool.take_planned([])  # as many have come since as it took: none
    assert plan(pool, cost, BatchLimits(rows=8), 0.0) == [*wide_ones[:4], *narrow_ones[:4]]


@pytest.mark.parametrize(("waiting", "others"), [(60, {200}), (150, {4})])
def test_the_narrowest_class_joins_the_next_if_its_batches_are_near_empty(waiting: int, others: set[int]):
    """One in twenty has 4 steps: of 8 rows these fill 1 while 60 wait, 2.6 while 150 do. The first has 4 steps."""
    pool, cost = PendingSequences(), CostTable([1, 8], [4, 200, 400], np.array([[1.0, 50.0, 100.0]] * 2))
    for place in range(waiting):
        pool.add(WaitingSequence(4 if place % 20 == 0 else (200, 400)[place % 2]))
    pool.take_planned([])  # as many have come since as it took: none
    first, *rest = plan(pool, cost, BatchLimits(rows=8), 0.0)
    assert first.width == 4
    assert others <= {one.width for one in rest} <= others | {4}


@pytest.mark.parametrize(("wide_seconds", "rows"), [(2.0, 8), (100.0, 1)])
def test_a_class_with_too_few_runs_with_the_next_wider_one_if_more_are_answered_so(wide_seconds: float, rows: int):
    """One in a second, or eight in two; eight in a hundred are no more."""
    pool, cost = two_classes(1.0, wide_seconds, 200)
    first, *others = list(pool)[1::2]  # narrow ones
    pool.take_planned([next(iter(pool)), *others])
    pool.take_planned([])
    batch = plan(pool, cost, BatchLimits(rows=8), 0.0)
    assert batch[0] is first
    assert [one.width for one in batch[1:]] == [400] * (rows - 1)


@pytest.mark.parametrize(
    ("times", "rows"),
    [
        ([1 + 0.03 * rows for rows in range(1, 9)], 5),  # twice 5 rows are sooner than 8 and 1, though 8 are cheapest
        ([*[1.0] * 5, *[1.04] * 3], 8),  # nearly as soon, and cheaper
    ],
)
def test_nine_of_which_eight_fit_into_a_batch_run_in_equal_ones_where_that_is_sooner(times: list[float], rows: int):
    pool, cost = PendingSequences(), CostTable([*range(1, 9)], [4], np.array(times)[:, None])
    for _ in range(9):
        pool.add(WaitingSequence(4))
    pool.take_planned([])
    assert len(plan(pool, cost, BatchLimits(rows=8), 0.0)) == rows


def test_rows_that_are_left_in_a_wide_batch_are_for_the_narrow():
    pool, cost = PendingSequences(), CostTable([1, 8], [4, 400], np.array([[1.0, 100.0], [1.0, 100.0]]))
    narrow, wide = ([WaitingSequence(width) for _ in range(40)] for width in (4, 400))
    for pair in zip(wide, narrow, strict=True):
        list(map(pool.add, pair))
    for one in wide[:36]:
        pool.remove(one)
    pool.take_planned([])
    plan(pool, cost, BatchLimits(rows=8), 0.0)  # narrow ones, which are the most urgent
    pool.take_planned(narrow[8:36])
    assert sorted(one.width for one in plan(pool, cost, BatchLimits(rows=8), 0.0)) == [*[4] * 4, *[400] * 4]


def test_one_that_a_wider_batch_than_the_most_urgent_would_make_late_goes_before():
    pool, cost = PendingSequences(), CostTable([1, 8], [4, 400], np.array([[1.0, 2.0], [1.0, 2.0]]))
    hurried = WaitingSequence(400, deadline=3.5)  # after a batch of 2 seconds its own would end too late
    for one in (WaitingSequence(4), *(WaitingSequence(400) for _ in range(20)), hurried):
        pool.add(one)
    pool.take_planned([])
    assert hurried in plan(pool, cost, BatchLimits(rows=8), 0.0)


@pytest.mark.long
@pytest.mark.parametrize("waiting", [256, 1024])
def test_classes_make_no_more_late_than_batches_by_length_alone(waiting: int, monkeypatch: pytest.MonkeyPatch):
    random = np.random.default_rng(5)  # not that of the lengths: the longest would have the latest deadlines
    patience = (waiting / 15_000 * random.uniform(0.1, 1.5, 10_000)).tolist()

    def late() -> float:
        cases = [(DEVICES[device], drawn(name, count=10_000)) for device in ROWS_ARE_FREE for name in LENGTHS]
        return sum(planned_loop(device, lengths, waiting, patience).late for device, lengths in cases)

    by_class = late()
    monkeypatch.setattr(PendingSequences, "refilled", False)
    by_length = late()
    assert by_class <= 1.05 * by_length


def test_a_class_is_cut_where_its_widest_would_make_the_anchor_late():
    pool, cost = PendingSequences(), CostTable([1, 8], [4, 400], np.array([[1.0, 100.0], [1.0, 100.0]]))
    anchor, narrow = WaitingSequence(8, deadline=30.0), [WaitingSequence(8) for _ in range(7)]
    for one in (anchor, *narrow, *(WaitingSequence(200) for _ in range(4))):
        pool.add(one)
    pool.take_planned([])
    assert plan(pool, cost, BatchLimits(rows=8), 0.0) == [anchor, *narrow]


def test_one_that_is_late_whatever_runs_hides_none_that_can_still_be_in_time():
    pool, cost = PendingSequences(), CostTable([1, 8], [4, 400], np.array([[1.0, 2.0], [1.0, 2.0]]))
    late, hurried = WaitingSequence(400, deadline=1.5), WaitingSequence(400, deadline=3.5)
    for one in (*(WaitingSequence(4) for _ in range(20)), late, hurried):
        pool.add(one)
    pool.take_planned([])
    assert hurried in plan(pool, cost, BatchLimits(rows=8), 0.0)


def test_of_two_batches_the_one_runs_first_that_makes_fewer_late():
    pool, cost = PendingSequences(), CostTable([1, 8], [4, 400], np.array([[1.0, 2.0], [1.0, 2.0]]))
    others, hurried = [WaitingSequence(400, deadline=2.5) for _ in range(8)], WaitingSequence(4, deadline=1.5)
    for one in (*others, hurried):
        pool.add(one)
    pool.take_planned([])
    assert plan(pool, cost, BatchLimits(rows=8), 0.0) == others


@pytest.mark.long
def test_no_decision_computes_what_the_widths_of_a_device_cost(monkeypatch: pytest.MonkeyPatch):
    cost, limits, buckets = true_costs(DEVICES["in proportion"])
    column = cost.column(buckets.widths[3], limits.rows)
    for _ in range(40):
        for width in buckets.widths[:20]:
            cost.observe(8, width, 3 * cost.predict(8, width) * (1 + width / buckets.widths[-1]))
    assert cost.column(buckets.widths[3], limits.rows) is not column
    monkeypatch.setattr(CostTable, "computed", None)  # a call of it is a TypeError
    pool = PendingSequences()
    for length in drawn("lognormal", count=1000):
        pool.add(WaitingSequence(buckets.width_of(length)))
    while pool:
        plan(pool, cost, limits, 0.0)


@pytest.mark.sampled(2)
@pytest.mark.parametrize("lengths", LENGTHS)
def test_a_decision_looks_at_few_ends_of_batches_however_many_wait(lengths: str, monkeypatch: pytest.MonkeyPatch):
    cost, limits, buckets = true_costs(DEVICES["in proportion"])
    looks: list[float] = []
    within = Column.rows_within

    def counted(column: Column, row_limit: int, seconds: float) -> int:
        looks.append(seconds)
        return within(column, row_limit, seconds)

    monkeypatch.setattr(Column, "rows_within", counted)
    pool = PendingSequences()
    for length in drawn(lengths, count=4096):
        pool.add(WaitingSequence(buckets.width_of(length)))
    decisions = []
    while pool:
        plan(pool, cost, limits, 0.0)
        decisions.append(len(looks))
        looks.clear()
    assert max(decisions) <= 100


@pytest.mark.parametrize("device", ["H200, BiLSTM 2 x 128", "in steps of 64 rows"])
def test_a_decision_looks_at_few_ends_where_deadlines_leave_wide_batches_few_rows(
    device: str, monkeypatch: pytest.MonkeyPatch
):
    random, (cost, limits, buckets) = np.random.default_rng(0), true_costs(DEVICES[device])
    looks: list[bool] = []

    def counted(*values: Any, **named: Any) -> Any:
        looks.append(isinstance(values[0], list))  # of the begins of the batch that has one end
        return min(*values, **named)

    monkeypatch.setattr(planning, "min", counted, raising=False)
    pool, now, decisions = PendingSequences(), 0.0, []
    for length, patience in zip(random.integers(1, 513, 4096).tolist(), cycle((0.03, 0.1, 0.005, 0.05))):
        pool.add(WaitingSequence(buckets.width_of(length), deadline=patience))
    while pool:
        chosen = plan(pool, cost, limits, now)
        now += cost.predict(len(chosen), max(one.width for one in chosen))
        decisions.append(sum(looks))
        looks.clear()
        while (late := pool.earliest_deadline()) is not None and late.deadline <= now:
            pool.remove(late)
    assert max(decisions) <= 500
