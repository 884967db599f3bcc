"""Turns records into training batches: targets from labels, a stratified split, and batches of similar lengths.

A batch is as wide as its longest sequence. Sequences of similar length are batched together, so little padding is
needed. The order of the batches depends on a seed.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence

from lengthwise.exporter_api.contract import Task, answers
from lengthwise_export.architecture.spec import Spec
from lengthwise_export.training.record_checks import Record, static_values_of

__all__ = [
    "NO_TARGET",
    "POOL_BATCHES",
    "Example",
    "Task",
    "TrainingBatch",
    "batches",
    "make_examples",
    "static_of",
    "stratified_split",
    "stratum",
    "with_other_static",
]

NO_TARGET = -100  # of a padded step, and of one without a label: `cross_entropy`'s `ignore_index`
POOL_BATCHES = 8  # batches cut from one group of sequences sorted by length: more saves padding, fewer is more random


@dataclass(frozen=True, slots=True)
class Example:
    """A sequence with its target."""

    steps: Tensor  # `[length, features]` float32 or `[length]` int64
    # int64 `[]`, the index of the label; multi-label: 0.0 or 1.0, `[classes]`; per-step: `[length]`, with `NO_TARGET`
    # where a step has no label
    target: Tensor
    static: Tensor | None = None  # `[count]` float32, the static values; None if the model takes none

    @property
    def missing(self) -> float:
        """Share of missing values."""
        return float(self.steps.isnan().float().mean()) if self.steps.is_floating_point() else 0.0


@dataclass(frozen=True, slots=True)
class TrainingBatch:
    """A padded batch of examples."""

    steps: Tensor  # `[rows, width, features]` or `[rows, width]`, zeros at padding
    lengths: Tensor  # `[rows]` int64
    targets: Tensor  # `[rows]`, `[rows, classes]`, or `[rows, width]` with `NO_TARGET` at padding
    static: Tensor | None = None  # `[rows, count]`; None if the model takes none


def make_examples(records: Iterable[Record], spec: Spec) -> list[Example]:
    """Turns records into examples, and cuts sequences above `max_length` as `input.long` says.

    "window" gives an example for each window of a sequence, "tail" keeps the last steps, any other policy the first.
    An example in which no step has a label is left out. The records must fit the spec (`record_checks.check`).
    """
    examples, longest = [], spec.input.max_length
    for record in records:
        static = static_values_of(record, spec)
        beside = torch.from_numpy(static) if isinstance(static, np.ndarray) else None
        steps, target = torch.from_numpy(record.steps), _target(record, spec)
        parts = [slice(longest)]
        if spec.input.long == "window":
            parts = [slice(start, start + len(part)) for start, part in answers.windows(record.steps, longest)]
        elif spec.input.long == "tail":
            parts = [slice(-longest, None)]
        per_step = spec.output.task == "per-step"
        examples += [Example(steps[part], target[part] if per_step else target, beside) for part in parts]
    return [example for example in examples if (example.target != NO_TARGET).any()]


def _target(record: Record, spec: Spec) -> Tensor:
    """Converts the label of a record to a target tensor, in the form of `Example.target`."""
    task, labels = spec.output.task, spec.output.labels
    several = record.label if isinstance(record.label, tuple) else (record.label,)
    indices = torch.tensor(
        [NO_TARGET if label is None else labels.index(label) for label in several], dtype=torch.int64
    )
    if task == "multi-label":
        return torch.zeros(len(labels)).index_fill(0, indices, 1.0)
    return indices if task == "per-step" else indices[0]


def stratified_split(targets: Sequence[object], share: float, *, seed: int) -> tuple[list[int], list[int]]:
    """Splits examples at random into two parts, so that the frequencies of the targets are about the same in both.

    Args:
        targets: The target of each example, hashable.
        share: The share 0..1 of the second part; 0 leaves it empty.
        seed: The seed of the random split.

    Returns:
        The sorted indices of the first and of the second part. With a share above 0, a target that several examples
        have is in both parts; the only example of a target is in the first.
    """
    random = np.random.default_rng(seed)
    indices_of: dict[object, list[int]] = defaultdict(list)  # by target, in the order in which targets first occur
    for index, target in enumerate(targets):
        indices_of[target].append(index)
    second_part: set[int] = set()
    for indices in indices_of.values():
        count = min(max(round(share * len(indices)), 1), len(indices) - 1) if share > 0 else 0
        second_part.update(random.permutation(indices)[:count].tolist())
    return [index for index in range(len(targets)) if index not in second_part], sorted(second_part)


def stratum(example: Example, task: Task) -> object:
    """The hashable target of an example for `stratified_split`.

    The index of the label; for multi-label, the 0.0 or 1.0 of each class; per step, the most frequent label's index.
    """
    if task == "per-step":
        return int(example.target[example.target != NO_TARGET].mode().values)
    return tuple(example.target.tolist()) if task == "multi-label" else int(example.target)


def batches(examples: Sequence[Example], rows: int, *, seed: Sequence[int]) -> Iterator[TrainingBatch]:
    """Yields padded batches of at most `rows` sequences of similar length, in a random order that `seed` determines.

    The examples are shuffled and divided into pools of `POOL_BATCHES` batches; only within a pool they are sorted by
    length, so that the batches of each epoch differ.
    """
    lengths = np.asarray([len(example.steps) for example in examples])
    random = np.random.default_rng(seed)
    shuffled = random.permutation(len(examples))
    indices_of_batches = []
    for start in range(0, len(shuffled), rows * POOL_BATCHES):
        pool = shuffled[start : start + rows * POOL_BATCHES]
        pool = pool[np.argsort(lengths[pool], kind="stable")]
        indices_of_batches += [pool[first : first + rows] for first in range(0, len(pool), rows)]
    # By the forms of `Example.target`: a float target `[classes]` is multi-label
    per_step = examples[0].target.ndim == 1 and not examples[0].target.is_floating_point()
    for number in random.permutation(len(indices_of_batches)):
        indices = indices_of_batches[number]
        steps = [examples[index].steps for index in indices]
        targets = [examples[index].target for index in indices]
        yield TrainingBatch(
            pad_sequence(steps, batch_first=True),
            torch.from_numpy(lengths[indices]),
            pad_sequence(targets, batch_first=True, padding_value=NO_TARGET) if per_step else torch.stack(targets),
            static_of([examples[index] for index in indices]),
        )


def static_of(examples: Sequence[Example]) -> Tensor | None:
    """The static values of examples, `[examples, count]`; None if they have none."""
    static = [example.static for example in examples if example.static is not None]
    return torch.stack(static) if static else None


def with_other_static(examples: Sequence[Example], seed: int) -> list[Example] | None:
    """The examples, each with the static values of another one at random, so that these say nothing of its label.

    None if they have no static values.
    """
    if (static := static_of(examples)) is None:
        return None
    order = np.random.default_rng(seed).permutation(len(examples))
    return [replace(example, static=static[index]) for example, index in zip(examples, order, strict=True)]
