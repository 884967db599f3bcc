from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from service.calls import Problems, fitted
from tests.service.numpy_models import manifest

STEPS = np.arange(5, dtype=np.int64)


@pytest.mark.parametrize(
    ("policy", "steps", "kept"),
    [
        ("head", [0, 1], [0, 1]),
        ("tail", [3, 4], [3, 4]),
        ("window", [0, 1, 2, 3, 4], None),
    ],
)
def test_a_long_sequence_is_cut_as_if_the_rest_had_been_masked(policy: Any, steps: list[int], kept: Any) -> None:
    item = fitted(STEPS, manifest(vocabulary=10, max_length=2, long=policy), sent=5, id="a")
    assert item.steps.tolist() == steps
    assert (None if item.kept is None else item.kept.tolist()) == kept
    assert (item.sent, item.id) == (5, "a")


@pytest.mark.parametrize("policy", ["head", "tail", "reject"])
def test_a_sequence_that_fits_is_left_whole(policy: Any) -> None:
    item = fitted(STEPS, manifest(vocabulary=10, max_length=5, long=policy), sent=5)
    assert item.steps is STEPS
    assert item.kept is None


def test_a_part_of_the_kept_steps_stands_at_the_places_sent() -> None:
    kept = np.array([1, 3, 5, 7, 9])
    item = fitted(STEPS, manifest(vocabulary=10, max_length=2, long="tail"), sent=10, kept=kept)
    assert item.kept is not None
    assert item.kept.tolist() == [7, 9]


def test_problems_keep_the_first_and_count_all() -> None:
    problems = Problems(listed=2)
    for i in range(5):
        problems.add(f"/{i}", "why")
    assert [problem.pointer for problem in problems.found] == ["/0", "/1"]
    assert problems.total == 5
