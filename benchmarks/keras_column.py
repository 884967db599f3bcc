"""The column Keras of the table of layers: what Keras' own layers do behind a Masking layer.

    layers.toml -> expression -> Masking(0.0), then the expression -> alone, and padded with zeros -> figures

The expression is evaluated as it stands: `x` is what `Masking(0.0)` or an Embedding gives, of `[rows, width, 4]` or of
token ids, and `mask` is its mask. The weights are random, biases and running statistics too, as training leaves them.

| verdict | means |
|---|---|
| right | alone and padded, the valid steps are equal; and the mask is passed on, or the steps are gone |
| passes on no mask | they are equal, but the layer behind it gets no mask, and reads the padding |
| leaks | they differ |
"""

from __future__ import annotations

import warnings
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from lengthwise.verification.promises import ROUNDING

LENGTHS = (7, 3, 11, 4, 9, 5)
WIDTHS = (11, 12, 29)

Verdict = Literal["correct", "passes on no mask", "leaks", "raises"]


@dataclass(frozen=True, slots=True)
class KerasFigures:
    """What one expression does in Keras."""

    # how far a valid step or an answer moves with padding, in units of max(1, largest value); None if the expression
    # raises an exception
    difference: float | None
    has_steps: bool  # whether there still is an axis of time
    has_mask: bool  # whether the mask is passed on

    @property
    def verdict(self) -> Verdict:
        """The verdict of the figures."""
        if self.difference is None:
            return "raises"
        if self.difference > ROUNDING:
            return "leaks"
        return "passes on no mask" if self.has_steps and not self.has_mask else "correct"


def measure(expression: str, *, tokens: bool = False) -> KerasFigures:
    """Runs an expression of `x`, `mask`, `keras`, `layers` and `ops`, alone and padded; with `tokens`, `x` is ids."""
    # Keras warns of each layer that drops a mask, which is what is measured, and of NumPy's newest rules.
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return _measure(expression, tokens)


def _measure(expression: str, tokens: bool) -> KerasFigures:
    from lengthwise_export.keras_models.backend import import_keras

    keras = import_keras()
    keras.utils.set_random_seed(0)
    inputs = keras.Input(shape=(None,), dtype="int32") if tokens else keras.Input(shape=(None, 4))
    x = inputs if tokens else keras.layers.Masking(0.0)(inputs)
    names = {"x": x, "mask": getattr(x, "_keras_mask", None)}
    try:
        y = eval(expression, {"keras": keras, "layers": keras.layers, "ops": keras.ops, **names})
        model = keras.Model(inputs, y)
        _train(model)
        rows = _sequences(tokens)
        alone = [_run(model, steps[None])[0] for steps in rows]
        has_steps = [len(answer) for answer in alone] == [len(steps) for steps in rows]
        moved = [_moved(model, rows, alone, width, has_steps) for width in WIDTHS]
    except (ValueError, RuntimeError):
        return KerasFigures(None, has_steps=True, has_mask=False)
    return KerasFigures(max(moved), has_steps, getattr(y, "_keras_mask", None) is not None)


def _train(model: Any) -> None:
    """Moves every weight and statistic, as training does."""
    random = np.random.default_rng(0)
    for variable in model.variables:
        if not variable.dtype.startswith("float"):
            continue
        moved = np.asarray(variable.value.detach()) + 0.3 * random.standard_normal(variable.shape)
        variable.assign(np.abs(moved) if "variance" in variable.name else moved)


def _sequences(tokens: bool) -> list[NDArray[Any]]:
    random = np.random.default_rng(1)
    if tokens:
        return [random.integers(1, 12, size=length).astype(np.int32) for length in LENGTHS]
    # Mostly negative: a zero at padding is then the largest value.
    return [(random.standard_normal((length, 4)) - 1.0).astype(np.float32) for length in LENGTHS]


def _run(model: Any, batch: NDArray[Any]) -> NDArray[np.float32]:
    return np.asarray(model(batch, training=False).detach())


def _moved(model: Any, rows: list[NDArray[Any]], alone: list[NDArray[Any]], width: int, has_steps: bool) -> float:
    """How far the answers in one batch of a width are from those alone."""
    batch = np.zeros((len(rows), width, *rows[0].shape[1:]), rows[0].dtype)
    for target, steps in zip(batch, rows, strict=True):
        target[: len(steps)] = steps
    answers = _run(model, batch)
    gaps = (
        np.abs((answer[: len(right)] if has_steps else answer) - right).max() / max(1.0, np.abs(right).max())
        for answer, right in zip(answers, alone, strict=True)
    )
    return float(max(gaps))


def cell(expression: str | None, figures: KerasFigures | None) -> str:
    """The cell of the table."""
    if expression is None or figures is None:
        return ""
    verdict = f"**{figures.verdict}**" if figures.verdict == "leaks" else figures.verdict
    moved = "" if figures.difference is None else f", {figures.difference:.2g}"
    return f"`{expression}` {verdict}{moved}"
