"""Whether a model takes a sequence that is an array already."""

from __future__ import annotations

import numpy as np
import pytest

from service.calls import unfit
from service.padding import Steps
from tests.service.numpy_models import MANIFESTS, manifest


@pytest.mark.parametrize(
    ("model", "steps", "said"),
    [
        ("refuses missing", np.zeros((0, 2), np.float32), "at least one step"),
        ("refuses missing", np.zeros((1, 3), np.float32), "takes 2 features a step, this one has 3"),
        (
            "refuses missing",
            np.array([[0, 0], [0, np.nan]], np.float32),
            "step 1 lacks a value: the model sums/1 refuses",
        ),
        ("takes missing", np.array([[0, 0], [np.inf, 0]], np.float32), "step 1 holds a number that is not finite"),
        ("short", np.zeros((3, 2), np.float32), "3 steps; the model sums/1 takes at most 2"),
        ("tokens", np.array([0, 10]), "step 1 is no token id: the vocabulary has 0 to 9"),
        ("tokens", np.array([-1, 9]), "step 0 is no token id"),
    ],
)
def test_what_a_model_does_not_take_is_said(model: str, steps: Steps, said: str):
    assert said in (unfit(steps, MANIFESTS[model]) or "")


@pytest.mark.parametrize(
    ("model", "steps"),
    [
        ("refuses missing", np.zeros((1024, 2), np.float32)),
        ("takes missing", np.full((1, 2), np.nan, np.float32)),
        ("tokens", np.array([0, 9])),
        ("head", np.zeros((3, 2), np.float32)),
    ],
)
def test_what_a_model_takes_is_fit(model: str, steps: Steps):
    assert unfit(steps, MANIFESTS[model]) is None


def test_windows_take_any_length():
    assert unfit(np.zeros((9, 2), np.float32), manifest(long="window", max_length=2)) is None
