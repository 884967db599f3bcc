"""Each fix that a check prints for a Keras model, followed in the model, cures it."""

from __future__ import annotations

import importlib
import textwrap
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch

import lengthwise_export
from lengthwise.errors import ConfigurationError
from lengthwise_export.checking.report import Report
from tests.gallery.keras_trials import calm
from tests.support.keras_models import NEEDS_KERAS

pytestmark = NEEDS_KERAS

MODEL = """
import keras
from keras import layers, ops

def model():
    keras.utils.set_random_seed(0)
    inputs = keras.Input({shape})
    x = {masking}
    x = layers.Dense(6, activation="tanh", bias_initializer="random_normal")(x)
{lines}
    return keras.Model(inputs, layers.Dense(2)(x))
"""

LEAKING = {
    "mean": "x = ops.mean(x, axis=1)",
    "mean from the end": "x = ops.mean(x, axis=-2)",
    "mean, axis kept": "x = ops.mean(x, axis=1, keepdims=True)\nx = x[:, 0]",
    "average": "x = ops.average(x, axis=1)",
    "max": "x = ops.max(x, axis=1)",
    "amax": "x = ops.amax(x, axis=1)",
    "min": "x = ops.min(x, axis=1)",
    "amin": "x = ops.amin(x, axis=-2)",
    "std": "x = ops.std(x, axis=1)",
    "var": "x = ops.var(x, axis=1)",
    "logsumexp": "x = ops.logsumexp(x, axis=1)",
    "prod": "x = ops.prod(x, axis=1)",
    "last step": "x = x[:, -1]",
    "turned mean": "x = ops.transpose(x, (0, 2, 1)) + 0.1\nx = ops.mean(x, axis=2)",
    "softmax": "h = x\nx = layers.Dense(1)(h)\nx = ops.softmax(x, axis=1)\nx = ops.sum(x * h, axis=1)",
    "largest of all": "h = x\nx = ops.max(x)\nx = (h / x)[:, 0]",
    "max pooling": "pool = layers.GlobalMaxPooling1D(name='pool')\nx = pool(x)",
    "first of a sort": "x = ops.sort(x, axis=1)\nx = x[:, 0]",
}
"""Lines that leak, with or without a Masking layer in front; each assigns what it computes to `x`."""

UNMASKED = {
    "sum": "x = ops.sum(x, axis=1)",
    "norm": "x = ops.norm(x, axis=1)",
    "matrix product": "x = ops.matmul(ops.transpose(x, (0, 2, 1)), x)\nx = ops.reshape(x, (-1, 36))",
    "mean pooling": "pool = layers.GlobalAveragePooling1D(name='pool')\nx = pool(x)",
    "gru": "gru = layers.GRU(6, name='gru')\nx = gru(x)",
    "lstm": "lstm = layers.LSTM(6, go_backwards=True, name='lstm')\nx = lstm(x)",
    "bidirectional": "both = layers.Bidirectional(layers.GRU(3), name='both')\nx = both(x)",
    "convolution": "conv = layers.Conv1D(6, 3, padding='same', name='conv')\nx = conv(x)\n"
    "x = layers.GlobalAveragePooling1D()(x, mask=layers.Masking().compute_mask(inputs))",
    "attention": "attend = layers.MultiHeadAttention(2, 3, name='attend')\nx = attend(x, x)\nx = x[:, 0]",
    "dot attention": "attend = layers.Attention(name='attend')\nx = attend([x, x])\nx = x[:, 0]",
    "softmax layer": "h = x\nx = layers.Dense(1)(x)\nsoft = layers.Softmax(axis=1, name='soft')\nx = soft(x)\n"
    "x = ops.sum(x * h, axis=1)",
}
"""Lines that leak where the model has no mask."""

CASES = [
    *((name, lines, masking) for name, lines in LEAKING.items() for masking in ("layers.Masking()(inputs)", "inputs")),
    *((name, lines, "inputs") for name, lines in UNMASKED.items()),
]


def checked(lines: str, masking: str, folder: Path, number: int, shape: str = "(None, 3)") -> Report:
    file = folder / f"net_{number}.py"
    file.write_text(MODEL.format(shape=shape, masking=masking, lines=textwrap.indent(lines, "    ")))
    with calm():
        return lengthwise_export.check(f"{file}:model", max_length=40)


def pasted(lines: str, fix: str, operator: str) -> str:
    """The lines with a fix where its first line says: in the place of, or in front of, the line that makes `x`."""
    head, _, code = fix.partition("\n")
    name, _, kind = operator.removesuffix(")").partition(" (")
    calls = (f"{name}(", f"ops.{kind.lower()}(", "x[:, -1]" if kind == "GetItem" else f"ops.{kind.lower()}(")
    before = lines.split("\n")
    place = next(
        place for place, line in enumerate(before) if line.startswith("x = ") and any(c in line for c in calls)
    )
    kept = before[place:] if head.startswith("# in front of") else before[place + 1 :]
    assert head.startswith(("# in front of", "# in the place of")), fix
    return "\n".join([*before[:place], code, *kept])


@pytest.mark.long
@pytest.mark.sampled(60)
@pytest.mark.parametrize(("name", "lines", "masking"), CASES, ids=lambda word: word if "\n" not in word else "...")
def test_a_fix_that_is_followed_ends_the_leak(name: str, lines: str, masking: str, tmp_path: Path) -> None:
    report = checked(lines, masking, tmp_path, 0)
    assert report.verdict == "leak", report.reason
    for number in range(1, 4):
        lines = pasted(lines, report.leaks[0].cause.fix, report.leaks[0].operator)
        report = checked(lines, masking, tmp_path, number)
        if report.verdict != "leak":
            break
    assert report.verdict in ("sound", "warning"), (report.reason, lines)


def keras_subclasses() -> ModuleType:
    """Models that need Keras, which is imported by the tests that need it."""
    return importlib.import_module("tests.support.keras_subclasses")


@pytest.mark.parametrize(
    "make",
    [
        lambda: keras_subclasses().TakesLengths(),
        lambda: keras_subclasses().with_input(shape=(None,), dtype="bool", name="valid"),
        lambda: keras_subclasses().with_input(shape=(None,), dtype="bool", name="mask"),
    ],
)
def test_a_model_that_takes_its_lengths_is_told_where_their_mask_comes_from(make: Callable[[], Any]) -> None:
    with pytest.raises(ConfigurationError, match=r"compute_mask\((x|steps)\).*as mask="):
        lengthwise_export.check(make())


@pytest.mark.long
def test_a_mask_that_a_subclass_makes_from_the_steps_is_that_of_the_lengths() -> None:
    model = keras_subclasses().MasksItself()
    with calm():
        model(torch.ones(2, 5, 3))
        assert lengthwise_export.check(model, max_length=40).verdict == "sound"
