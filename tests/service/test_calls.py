from typing import Any

import numpy as np
import pytest

from lengthwise.decoding.calls import Problems, make_item, why_refused
from tests.support.numpy_models import manifest

STEPS = np.arange(5, dtype=np.int64)


@pytest.mark.parametrize("policy", ["head", "tail", "reject"])
def test_a_sequence_that_fits_is_left_whole(policy: Any) -> None:
    item = make_item(STEPS, manifest(vocabulary=10, max_length=5, long=policy), sent_steps=5)
    assert item.steps is STEPS
    assert item.step_indices is None


def test_problems_keep_the_first_and_count_all() -> None:
    problems = Problems(most_listed=2)
    for i in range(5):
        problems.add(f"/{i}", "why")
    assert [problem.pointer for problem in problems.first] == ["/0", "/1"]
    assert problems.total == 5


WAY_OUT = (
    "to allow them, export a model that takes NaN with --missing handled, or train it again with `missing` in its spec"
)
VALUES = np.array([[0, 1], [2, 3], [4, 5]], dtype=np.float32)


def changed(row: int, value: float) -> np.ndarray[Any, np.dtype[np.float32]]:
    steps = VALUES.copy()
    steps[row, 1] = value
    return steps


@pytest.mark.parametrize(
    ("steps", "fields", "why"),
    [
        (VALUES, {}, None),
        (VALUES[:0], {}, "a sequence has at least one step"),
        (VALUES, {"max_length": 2}, "3 steps; the model sums/1 takes at most 2"),
        (VALUES, {"max_length": 2, "long": "head"}, None),
        (VALUES[:, :1], {}, "the model takes 2 features a step, this one has 1"),
        (changed(1, np.inf), {}, "step 1 holds a number that is not finite as float32"),
        (changed(2, -np.inf), {"missing": "zero"}, "step 2 holds a number that is not finite as float32"),
        (changed(2, np.nan), {}, f"step 2 lacks a value: the model sums/1 refuses missing values; {WAY_OUT}"),
        (changed(2, np.nan), {"missing": "zero"}, None),
        (STEPS, {"vocabulary": 5}, None),
        (STEPS, {"vocabulary": 4}, "step 4 is not a token id: the vocabulary has 0 to 3"),
        (STEPS - 1, {"vocabulary": 5}, "step 0 is not a token id: the vocabulary has 0 to 4"),
    ],
)
def test_why_a_model_does_not_take_a_sequence(steps: Any, fields: Any, why: str | None) -> None:
    assert why_refused(steps, manifest(**fields)) == why
