"""Holds a model to `--missing handled`: that it takes NaN at valid steps itself, and what stands beside it counts.

A finite answer proves nothing: onnxruntime's LSTM and GRU make numbers of NaN, and a step of which one value is missing
may then be lost as a whole. So what is known beside a null is changed, in its own step and in the others, and the
answer must move; and where this package's own recurrent kernels run, which make no number of NaN, it must be finite.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any, Final

import numpy as np
import onnx
from numpy.typing import NDArray

from lengthwise.padding import PaddedBatch, pad, step_mask
from lengthwise.runtime.manifest import Manifest, StepInput
from lengthwise.runtime.session import CPU, Session
from lengthwise.verification.proof import Case
from lengthwise_export.checking import axes
from lengthwise_export.errors import UncheckableError
from lengthwise_export.targets.target import Target

Logits = NDArray[np.float32]

LEAST: Final = 1e-3
"""The least that an answer moves beside a null, as a share of what the same change moves it by without one."""

_NO_MOVE: Final = 1e-6
"""What moves an answer by less without a null tells nothing."""

_LENGTHS: Final = (7, 5, 4, 3)
_MOST_FEATURES: Final = 16
"""Features that a null is tried in."""


def cases(
    run: Callable[[PaddedBatch], Logits], steps: StepInput, *, max_length: int, seed: int, provider: str
) -> Iterator[Case]:
    """Measures what an answer does beside a null.

    Args:
        run: Answers a batch, logits rows first.
        steps: What one step is: numbers.
        max_length: The longest sequence that it takes.
        seed: Decides the sequences.
        provider: Where it runs.

    Yields:
        A case for each feature that a null is tried in and each change: its difference is the least share, over the
        rows, of what the same change does where nothing is missing; 0 where an answer is not finite.
    """
    trial = _Trial(run, steps, max_length, seed)
    features = steps.features or 1
    for feature in sorted({round(place) for place in np.linspace(0, features - 1, min(features, _MOST_FEATURES))}):
        for name, share in trial.shares(feature):
            yield Case(
                name=f"{name} a null of feature {feature}",
                varied="missing",
                difference=share,
                relative=share,
                bits=False,
                provider=provider,
            )


def why_not(found: list[Case]) -> str | None:
    """Why a model does not take missing values itself, from its cases; None where it does."""
    worst = min(found, key=lambda case: case.difference, default=None)
    if worst is None or worst.difference >= LEAST:
        return None
    if worst.difference == 0.0 and worst.name.startswith("finite"):
        return "its answer to a null is not finite"
    return f"{worst.name} moves its answer by {worst.difference:.2g} of what it does without the null: the null ate it"


def looks_for_nan(graph: onnx.ModelProto) -> bool:
    """Whether a graph asks which values are NaN, so that it may take missing values itself."""
    return any(node.op_type == "IsNaN" for node in graph.graph.node) or any(
        node.op_type == "IsNaN" for function in graph.functions for node in function.node
    )


def require(target: Target, *, max_length: int, seed: int) -> None:
    """Holds a target under check to `--missing handled`.

    Args:
        target: Whatever it was made with.
        max_length: The longest sequence that it takes.
        seed: Decides the sequences.

    Raises:
        UncheckableError: It makes no sense of missing values: what was said contradicts it.
    """
    if target.steps.kind == "tokens":
        raise UncheckableError("--missing handled: a sequence of token ids has no missing values")

    def answer(batch: PaddedBatch) -> Logits:
        return target.subject.answer(batch).logits

    runs: list[Callable[[PaddedBatch], Logits]] = [answer]
    if not target.framework:
        manifest = Manifest(
            name="model",
            version=1,
            input=target.steps,
            labels=target.labels,
            task="per-step" if target.per_step else "single-label",
            graph=target.names,
        )
        # As a model that refuses NaN it runs in the kernels that make no number of it.
        session = Session(target.build("model", 0).SerializeToString(), manifest)
        runs.append(lambda batch: session.run(batch).logits)
    for run in runs:
        why = why_not(list(cases(run, target.steps, max_length=max_length, seed=seed, provider=CPU)))
        if why is not None:
            raise UncheckableError(f"--missing handled contradicts {target.text}: {why}")


class _Trial:
    def __init__(self, run: Callable[[PaddedBatch], Logits], steps: StepInput, max_length: int, seed: int) -> None:
        self._run = run
        random = np.random.default_rng(seed)
        lengths = [length for length in _LENGTHS if length <= max_length] or [max_length]
        self._batch = pad([_drawn(steps, length, random) for length in lengths])
        self._other = pad([_drawn(steps, length, random) for length in lengths])
        rows = np.arange(len(lengths))
        # The null stands in the middle: steps before it and behind it must count.
        self._place = (rows, self._batch.lengths // 2)

    def shares(self, feature: int) -> Iterator[tuple[str, float]]:
        """The share of each change, by what is changed."""
        plain, null = self._run(self._batch), self._run(self._with_null(self._batch.steps, feature))
        valid = step_mask(self._batch.lengths, self._batch.width)
        finite = np.isfinite(null[valid] if null.ndim == 3 else null).all()
        yield "finite answers to", 1.0 if finite else 0.0
        if not finite:
            return
        for name, where in self._changes(feature):
            changed = np.where(where[..., None] if where.ndim == 2 else where, self._other.steps, self._batch.steps)
            usual = self._moved(plain, self._run(PaddedBatch(changed, self._batch.lengths)))
            beside = self._moved(null, self._run(self._with_null(changed, feature)))
            shares = [mine / its for mine, its in zip(beside, usual, strict=True) if its > _NO_MOVE]
            if shares:
                # Some row's answer may be far from the null; where it moves none, the null ate them all.
                yield name, float(max(shares))

    def _changes(self, feature: int) -> Iterator[tuple[str, NDArray[np.bool_]]]:
        steps = self._batch.steps
        null_step = np.zeros(steps.shape[:2], dtype=bool)
        null_step[self._place] = True
        if steps.shape[2] > 1:
            other_values = np.repeat(null_step[..., None], steps.shape[2], axis=2)
            other_values[..., feature] = False
            yield "changing the other values of a step with", other_values
        place = np.arange(steps.shape[1])
        before = place < self._place[1][:, None]
        if before.any():
            yield "changing the steps before", before
        behind = (place > self._place[1][:, None]) & step_mask(self._batch.lengths, self._batch.width)
        if behind.any():
            yield "changing the steps behind", behind

    def _with_null(self, steps: NDArray[Any], feature: int) -> PaddedBatch:
        values = steps.copy()
        values[(*self._place, feature)] = np.nan
        return PaddedBatch(values, self._batch.lengths)

    def _moved(self, before: Logits, after: Logits) -> list[float]:
        """How far each row's answer moved, at valid steps."""
        return [
            axes.gap(one[:length], other[:length]) if one.ndim == 2 else axes.gap(one, other)
            for one, other, length in zip(before, after, self._batch.lengths, strict=True)
        ]


def _drawn(steps: StepInput, length: int, random: np.random.Generator) -> NDArray[np.float32]:
    """`[length, features]`, of the model's own mean and deviation where its manifest has them."""
    features = steps.features or 1
    mean, std = np.asarray(steps.mean or np.zeros(features)), np.asarray(steps.std or np.ones(features))
    return (mean + std * random.standard_normal((length, features))).astype(np.float32)
