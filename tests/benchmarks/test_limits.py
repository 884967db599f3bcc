"""The compute limit: the partition is the cheapest there is."""

from __future__ import annotations

import os

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from benchmarks.limits import Graph, partition, planned
from benchmarks.workloads import japanese_vowels
from lengthwise.batching.cost import CostTable
from lengthwise.runtime.manifest import Manifest, StepInput

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


def test_the_best_batches_run_every_sequence_with_little_padding():
    before = os.sched_getaffinity(0)
    best = Graph.of(japanese_vowels(0, 370), table_seconds=0.5).best()
    assert best.sequences >= 2000
    assert 0 < best.padding_share < 0.2
    clock, cpu = best.seconds_per_sequence([min(before)], repetitions=1)
    assert clock >= cpu > 0
    assert os.sched_getaffinity(0) == before


@given(st.lists(st.integers(1, 100), min_size=1, max_size=60), st.integers(1, 80))
def test_what_is_planned_as_it_comes_is_run_once_and_only_when_it_has_come(lengths: list[int], waiting: int):
    sequences = [np.full((length, 1), place, dtype=np.float32) for place, length in enumerate(lengths)]
    groups = planned(sequences, waiting, TABLE, MANIFEST)
    ran = [[int(steps[0, 0]) for steps in group] for group in groups]
    everyone = [place for group in ran for place in group]
    assert len(set(everyone)) == len(everyone)
    assert len(everyone) > len(lengths) - min(waiting, len(lengths))  # all but those that wait at the end
    for place, group in enumerate(ran):
        answered = [len(each) for each in ran[:place]]
        known = waiting + sum(answered[:-1])  # those answered last come while this one runs
        if sum(answered) >= known:  # unless nobody else is there: then it waits for them
            known += answered[-1]
        assert max(group) < known


def test_to_know_less_costs_no_less():
    random = np.random.default_rng(0)
    sequences = [np.zeros((int(length), 1), dtype=np.float32) for length in random.integers(1, 200, size=400)]

    def mean_cost(groups: list[list[np.ndarray]]) -> float:
        return sum(cost([len(steps) for steps in group]) for group in groups) / sum(map(len, groups))

    best = mean_cost(partition(sequences, TABLE, MANIFEST))
    few, many = (mean_cost(planned(sequences, waiting, TABLE, MANIFEST)) for waiting in (2, 300))
    assert best < many < few
