"""Verifies `--missing handled`: the model accepts NaN at valid steps, and still uses the values around it.

A finite answer is not enough: onnxruntime's LSTM and GRU turn NaN into numbers, and then a step with one missing
value may be lost as a whole. So the test changes the known values around a *null* (a NaN that stands for a missing
value), in the same step and in other steps, and the answer must change. With this package's own recurrent kernels,
which keep NaN, it must also be finite. The *ratio* of a change of values is how much it changes the answer with the
null, divided by how much it does without the null: near 0 means that the null hides the values.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import replace
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from lengthwise.exporter_api.contract import BatchLogits, PaddedBatch, StepInput, pad, step_mask
from lengthwise.exporter_api.verification import CPU_LABEL, Case, Session
from lengthwise_export.checking.baseline import relative_difference
from lengthwise_export.errors import UncheckableError
from lengthwise_export.onnx_graphs.beside import completed
from lengthwise_export.targets.target import Target

MIN_RATIO: Final = 1e-3  # the smallest ratio (see above) of a model that handles missing values

_MIN_DIFFERENCE: Final = 1e-6  # rows whose answer changes by less than this without a null are left out

_LENGTHS: Final = (7, 5, 4, 3)
_MAX_FEATURES: Final = 16  # a null is tried in at most this many features


def cases(
    run: Callable[[PaddedBatch], BatchLogits],
    steps: StepInput,
    *,
    max_length: int,
    seed: int,
    provider: str,
    min_length: int = 1,
) -> list[Case]:
    """Measures how answers depend on the values around a null.

    Args:
        run: Runs a batch; returns logits `[rows, classes]`, or `[rows, width, classes]` per step.
        steps: What a step is, from the manifest.
        max_length: The longest sequence that the model takes.
        seed: The seed of random values.
        provider: The execution provider that runs the graph, for the report.
        min_length: The shortest sequence that the model takes.

    Returns:
        A case for each feature and change of values, whose `difference` is the ratio; and for each feature a case
        "finite answers", whose `difference` is 1 if they are finite, else 0.
    """
    probe = _MissingValueProbe(run, steps, min_length, max_length, seed)
    features = steps.features or 1
    indices = sorted({round(index) for index in np.linspace(0, features - 1, min(features, _MAX_FEATURES))})
    return [
        Case(f"{name} a null of feature {feature}", "missing", ratio, ratio, bits=False, provider=provider)
        for feature in indices
        for name, ratio in probe.ratios(feature)
    ]


def is_compared(origin: Mapping[str, Any]) -> bool:
    """Whether a graph's answers with missing values were compared with those of a pipeline of scikit-learn.

    Then no cases are needed, and they would show nothing: a tree may rightly ignore any value.

    Args:
        origin: What the field `made` of the manifest says.
    """
    return "summaries" in origin


def failure(measured: list[Case]) -> str | None:
    """Why a model does not handle missing values, by the worst of its cases; None if it does."""
    worst = min(measured, key=lambda case: case.difference, default=None)
    if worst is None or worst.difference >= MIN_RATIO:
        return None
    if worst.difference == 0.0 and worst.name.startswith("finite"):
        return "its answer to a null is not finite: the model itself must replace NaN"
    return (
        f"{worst.name} moves its answer by only {worst.difference:.2g} of the change without the null: the null hides "
        "the values around it"
    )


def require(target: Target, *, max_length: int, seed: int, min_length: int = 1) -> None:
    """Makes sure that a target under check handles missing values, for `check --missing handled`.

    Raises:
        UncheckableError: It does not handle them, or its steps are token ids.
    """
    if target.steps.kind == "tokens":
        raise UncheckableError("--missing handled: a sequence of token ids has no missing values")

    runs: list[Callable[[PaddedBatch], BatchLogits]] = [target.reference]
    if not target.traced:
        manifest = target.describe(min_length=min_length, max_length=max_length)
        # The manifest's default policy runs the graph in our own recurrent kernels, which keep NaN.
        session = Session(target.build("model", 0).SerializeToString(), manifest)
        runs.append(lambda batch: session.run(batch).logits)
    for run in runs:
        why = failure(
            cases(run, target.steps, min_length=min_length, max_length=max_length, seed=seed, provider=CPU_LABEL)
        )
        if why is not None:
            raise UncheckableError(f"--missing handled contradicts {target.text}: {why}")


class _MissingValueProbe:
    """Runs the same batch with and without a null, and with changed values around it."""

    def __init__(
        self, run: Callable[[PaddedBatch], BatchLogits], steps: StepInput, shortest: int, longest: int, seed: int
    ) -> None:
        self._run = run
        normal, features = np.random.default_rng(seed).standard_normal, steps.features or 1
        mean, std = np.asarray(steps.mean or np.zeros(features)), np.asarray(steps.std or np.ones(features))
        added_steps = max(shortest - min(_LENGTHS), 0)
        lengths = [added_steps + length for length in _LENGTHS if added_steps + length <= longest] or [longest]
        self._batch, self._changed_batch = (
            completed(pad([(mean + std * normal((length, features))).astype(np.float32) for length in lengths]), steps)
            for _ in range(2)
        )
        # The null is in the middle: the steps before and after it must affect the answer.
        self._null_at = (np.arange(len(lengths)), self._batch.lengths // 2)

    def ratios(self, feature: int) -> Iterator[tuple[str, float]]:
        """Yields the name of each change of values, and its ratio, with the null in this feature.

        First comes "finite answers to" with 1 if the answers to the null are finite, else 0; then nothing follows.
        """
        plain, null = self._run(self._batch), self._run(self._with_null(self._batch.steps, feature))
        valid = step_mask(self._batch.lengths, self._batch.width)
        finite = np.isfinite(null[valid] if null.ndim == 3 else null).all()
        yield "finite answers to", 1.0 if finite else 0.0
        if not finite:
            return
        for name, mask in self._changes(feature):
            changed = np.where(
                mask[..., None] if mask.ndim == 2 else mask, self._changed_batch.steps, self._batch.steps
            )
            without_null = self._differences(plain, self._run(replace(self._batch, steps=changed)))
            with_null = self._differences(null, self._run(self._with_null(changed, feature)))
            ratios = [
                numerator / denominator
                for numerator, denominator in zip(with_null, without_null, strict=True)
                if denominator > _MIN_DIFFERENCE
            ]
            if ratios:
                # The largest of all rows: a model may rightly ignore the other values of a row where the null matters
                yield name, float(max(ratios))

    def _changes(self, feature: int) -> Iterator[tuple[str, NDArray[np.bool_]]]:
        """Yields which values around the null to change: a text for the report, and a mask of these values.

        The mask is `[rows, width, features]`, or `[rows, width]` where whole steps change.
        """
        steps = self._batch.steps
        null_step = np.zeros(steps.shape[:2], dtype=bool)
        null_step[self._null_at] = True
        if steps.shape[2] > 1:
            other_values = np.repeat(null_step[..., None], steps.shape[2], axis=2)
            other_values[..., feature] = False
            yield "changing the other values of a step with", other_values
        positions = np.arange(steps.shape[1])
        is_before = positions < self._null_at[1][:, None]
        if is_before.any():
            yield "changing the steps before", is_before
        is_after = (positions > self._null_at[1][:, None]) & step_mask(self._batch.lengths, self._batch.width)
        if is_after.any():
            yield "changing the steps after", is_after

    def _with_null(self, steps: NDArray[Any], feature: int) -> PaddedBatch:
        """The batch of `steps [rows, width, features]`, with a null in the middle step of each row, in this feature."""
        values = steps.copy()
        values[(*self._null_at, feature)] = np.nan
        return replace(self._batch, steps=values)

    def _differences(self, answers: BatchLogits, changed_answers: BatchLogits) -> list[float]:
        """The relative difference of two answers, for each row; of a per-step model at its valid steps."""
        rows = zip(answers, changed_answers, self._batch.lengths, strict=True)
        return [
            relative_difference(first[:length], second[:length])
            if first.ndim == 2
            else relative_difference(first, second)
            for first, second, length in rows
        ]
