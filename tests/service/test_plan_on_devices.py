"""Where rows are nearly free and as many arrive as run, plans answer more than batches in order of arrival."""

import pytest

from benchmarks.devices import DEVICES, LENGTHS, compared, drawn
from lengthwise.batching.pending import PendingSequences, WaitingSequence

FLAT = DEVICES["flat to 256 rows"]


@pytest.mark.parametrize("lengths", LENGTHS)
def test_as_many_are_answered_where_one_batch_takes_all(lengths: str):
    found = compared(FLAT, drawn(lengths, count=10_000), 64)
    assert found["over_arrival"] >= 0.98  # widths are rounded up to those of a device, by 5 % at most
    assert found["p99_over_arrival"] <= 1.2


@pytest.mark.parametrize("lengths", LENGTHS)
def test_more_are_answered_where_several_batches_wait(lengths: str):
    found = compared(FLAT, drawn(lengths, count=10_000), 1024)
    assert found["over_arrival"] >= 1.2
    assert found["p99_over_arrival"] <= 1.4


def test_a_queue_is_refilled_once_half_as_many_have_come_as_the_last_plan_took():
    pool = PendingSequences()
    waits = [WaitingSequence(4) for _ in range(10)]
    for waiting in waits:
        pool.add(waiting)
    assert not pool.refilled  # nothing was planned yet
    pool.run(waits[:4])
    pool.add(WaitingSequence(4))
    assert not pool.refilled
    pool.add(WaitingSequence(4))
    assert pool.refilled


def test_one_is_overdue_when_a_tenth_of_the_queue_has_passed_it_over():
    pool, first, *others = PendingSequences(), *(WaitingSequence(4) for _ in range(31))
    for waiting in (first, *others):
        pool.add(waiting)
    pool.run(others[:2])
    assert first.turn >= pool.overdue_before
    pool.run(others[2:4])
    assert first.turn < pool.overdue_before
