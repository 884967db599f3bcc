"""Whatever layers of Keras are stacked: `check` says what Keras does, and the graph of a sound stack answers alike."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from lengthwise.padding import pad
from lengthwise.runtime.session import Session
from lengthwise_export.checking.check import check_subject
from lengthwise_export.options import TargetOptions
from lengthwise_export.targets import targets
from tests.support import keras_stacks
from tests.support.keras_models import NEEDS_KERAS

SAME = 1e-5

pytestmark = [
    NEEDS_KERAS,
    pytest.mark.filterwarnings("ignore:__array__ implementation doesn't accept a copy keyword"),
    pytest.mark.filterwarnings("ignore:Layer .* was passed an input with a mask attached"),
    pytest.mark.filterwarnings("ignore:You are using a softmax over axis"),
]


def require_as_keras(seed: int, folder: Path) -> None:
    stack = keras_stacks.draw(seed)
    truth = keras_stacks.truth(stack, seed)
    file = folder / "stack.keras"
    stack.model.save(file)
    target = targets.read(str(file), TargetOptions())
    report = check_subject(target.subject, max_length=40)
    assert (truth.difference > SAME) == (report.verdict == "leak"), (stack.layers, truth.difference, report.reason)
    if report.verdict == "leak":
        return
    manifest = target.describe()
    session = Session(target.build("model", 20).SerializeToString(), manifest)
    wanted = np.int64 if stack.tokens else np.float32
    logits = session.run(pad([steps.astype(wanted) for steps in truth.sequences])).logits
    assert max(map(keras_stacks.apart, logits, truth.alone)) <= SAME, stack.layers


@pytest.mark.long
@pytest.mark.parametrize("seed", range(1))
def test_a_stack_of_layers_is_judged_and_answered_as_keras_does(seed: int, tmp_path: Path) -> None:
    require_as_keras(seed, tmp_path)


@pytest.mark.gallery
@pytest.mark.parametrize("seed", range(1, 150))
def test_many_stacks_of_layers_are_judged_and_answered_as_keras_does(seed: int, tmp_path: Path) -> None:
    require_as_keras(seed, tmp_path)
