"""The compute limit: the partition is the cheapest there is."""

from __future__ import annotations

import os

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from benchmarks.limits import best_case, partition
from benchmarks.workloads import japanese_vowels
from service.cost import CostTable
from service.manifest import Manifest, StepInput

MANIFEST = Manifest(name="m", version=1, input=StepInput(features=1), labels=("a",))
# A start-up time, a price a padded step, and rows that come four at a time.
TABLE = CostTable(
    [1, 4, 5, 8, 64], [4, 400], np.array([[6, 204], [7, 208], [11, 408], [12, 416], [100, 3300]], dtype=float)
)


def cost(lengths: list[int]) -> float:
    width = -(-max(lengths) // 4) * 4
    return TABLE.predict(len(lengths), width)


def cheapest(lengths: list[int]) -> float:
    """By trying every way to cut the sorted lengths."""
    ordered = sorted(lengths)
    ways = []
    for cuts in range(2 ** (len(ordered) - 1)):
        groups, group = [], [ordered[0]]
        for place, length in enumerate(ordered[1:]):
            if cuts >> place & 1:
                groups.append(group)
                group = []
            group.append(length)
        ways.append(sum(cost(each) for each in [*groups, group]))
    return min(ways)


@given(st.lists(st.integers(1, 60), min_size=1, max_size=9))
def test_the_partition_costs_as_little_as_any_of_all(lengths: list[int]):
    groups = partition([np.zeros((length, 1), dtype=np.float32) for length in lengths], TABLE, MANIFEST)
    found = [[len(steps) for steps in group] for group in groups]
    assert sorted(length for group in found for length in group) == sorted(lengths)
    assert np.isclose(sum(cost(group) for group in found), cheapest(lengths))


def test_a_batch_has_no_more_rows_than_the_service_would_take():
    groups = partition([np.zeros((4, 1), dtype=np.float32)] * 200, TABLE, MANIFEST)
    assert max(len(group) for group in groups) <= 64


def test_the_best_case_runs_every_sequence_with_little_padding():
    before = os.sched_getaffinity(0)
    best = best_case(japanese_vowels(0, 370), table_seconds=0.5)
    assert best.sequences >= 2000
    assert 0 < best.padding_share < 0.2
    clock, cpu = best.seconds_per_sequence([min(before)], repetitions=1)
    assert clock >= cpu > 0
    assert os.sched_getaffinity(0) == before
