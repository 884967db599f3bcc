"""Turns records into training batches: targets from labels, a stratified split, and batches of similar lengths.

A batch is as wide as its longest sequence. Sequences of similar length are batched together, so little padding is
needed. The order of the batches depends on a seed.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence

from lengthwise.decoding.calls import first_fault
from lengthwise.decoding.dataset import Record
from lengthwise.errors import ConfigurationError
from lengthwise.runtime.answers import windows
from lengthwise.runtime.manifest import Task
from lengthwise.scoring.records import label_mismatch, unknown_labels
from lengthwise_export.architecture.spec import Spec

NO_TARGET = -100
"""The target of a padded step: `cross_entropy`'s `ignore_index`."""

POOL_BATCHES = 8
"""Number of batches that are cut from one group of sequences sorted by length. More saves padding, fewer is more
random."""


@dataclass(frozen=True, slots=True)
class Example:
    """A sequence with its target.

    Attributes:
        steps: `[length, features]` float32 or `[length]` int64.
        target: int64 `[]`, the index of the label; multi-label: float32 `[classes]`, 0 or 1; per-step: int64
            `[length]`.
    """

    steps: Tensor
    target: Tensor


@dataclass(frozen=True, slots=True)
class TrainingBatch:
    """A padded batch of examples.

    Attributes:
        steps: `[rows, width, features]` or `[rows, width]`, zeros at padding.
        lengths: `[rows]` int64.
        targets: `[rows]`, `[rows, classes]`, or `[rows, width]` with `NO_TARGET` at padding.
    """

    steps: Tensor
    lengths: Tensor
    targets: Tensor


def examples(records: Iterable[Record], spec: Spec) -> list[Example]:
    """Turns records into examples. The spec's policy is applied to sequences above the max length.

    Raises:
        ConfigurationError: A record does not fit the spec; the message names its file and line.
    """
    members = []
    for record in records:
        steps = torch.from_numpy(record.steps)
        _check_steps(record, spec)
        target = _target(record, spec)
        members += [
            Example(steps[part], target[part] if spec.output.task == "per-step" else target)
            for part in _parts(record, spec)
        ]
    return members


def check(record: Record, spec: Spec) -> None:
    """Makes sure that a record can be used for training.

    Raises:
        ConfigurationError: It does not fit the spec; the message names its file and line.
    """
    examples([record], spec)


def stratified_split(targets: Sequence[object], share: float, *, seed: int) -> tuple[list[int], list[int]]:
    """Splits examples into two parts with the same share of each target.

    Args:
        targets: One hashable value for each example.
        share: The share of the second part. A target with two or more examples has at least one in each part.
        seed: Seed of the random choice.

    Returns:
        The sorted indices of both parts.
    """
    kinds: dict[object, list[int]] = defaultdict(list)
    for index, target in enumerate(targets):
        kinds[target].append(index)
    random = np.random.default_rng(seed)
    second: set[int] = set()
    for members in kinds.values():
        count = min(max(round(share * len(members)), 1), len(members) - 1) if share > 0 else 0
        second.update(members[place] for place in random.permutation(len(members))[:count])
    return [index for index in range(len(targets)) if index not in second], sorted(second)


def stratum(example: Example, task: Task) -> object:
    """The target for `stratified_split`: the label, the set of labels, or the most frequent label of the steps."""
    if task == "per-step":
        return int(example.target.mode().values)
    return tuple(example.target.tolist()) if task == "multi-label" else int(example.target)


def batches(members: Sequence[Example], rows: int, *, seed: Sequence[int] | None = None) -> Iterator[TrainingBatch]:
    """Yields batches of sequences of similar length.

    Args:
        members: The examples.
        rows: Examples in a batch; the last batch may have fewer.
        seed: Seed of the order; None to sort by length.
    """
    lengths = np.asarray([len(example.steps) for example in members])
    if seed is None:
        order = np.argsort(lengths, kind="stable")
        groups = [order[start : start + rows] for start in range(0, len(order), rows)]
    else:
        random = np.random.default_rng(seed)
        shuffled = random.permutation(len(members))
        groups = []
        for start in range(0, len(shuffled), rows * POOL_BATCHES):
            pool = shuffled[start : start + rows * POOL_BATCHES]
            pool = pool[np.argsort(lengths[pool], kind="stable")]
            groups += [pool[first : first + rows] for first in range(0, len(pool), rows)]
        groups = [groups[place] for place in random.permutation(len(groups))]
    for group in groups:
        yield collate([members[index] for index in group])


def collate(members: Sequence[Example]) -> TrainingBatch:
    """One batch of these examples."""
    targets = [example.target for example in members]
    per_step = targets[0].ndim == 1 and not targets[0].is_floating_point()
    return TrainingBatch(
        steps=pad_sequence([example.steps for example in members], batch_first=True),
        lengths=torch.tensor([len(example.steps) for example in members]),
        targets=pad_sequence(targets, batch_first=True, padding_value=NO_TARGET) if per_step else torch.stack(targets),
    )


def _check_steps(record: Record, spec: Spec) -> None:
    steps, expected = record.steps, spec.input.features
    if expected is not None and steps.shape[1] != expected:
        raise ConfigurationError(f"{record.place}: {steps.shape[1]} features a step, the spec says {expected}")
    vocabulary = spec.input.vocabulary
    if expected is None and vocabulary is None:
        return
    fault = first_fault(steps, vocabulary=vocabulary, takes_missing=spec.input.missing != "refuse")
    if fault is None:
        return
    place, why = fault
    if why == "no token":
        raise ConfigurationError(f"{record.place}: token {steps[place]} in a vocabulary of {vocabulary}")
    raise ConfigurationError(
        f"{record.place}: a value is missing, and input.missing = 'refuse'; to train on missing values, set it "
        "to 'zero', 'mean' or 'indicator'"
    )


def _parts(record: Record, spec: Spec) -> list[slice]:
    """The slices of a sequence that become examples, by the policy for sequences above the max length."""
    length, longest = len(record.steps), spec.input.max_length
    if length <= longest:
        return [slice(0, length)]
    if spec.input.long == "reject":
        raise ConfigurationError(
            f"{record.place}: {length} steps, and input.max_length = {longest}; raise it, or set input.long"
        )
    if spec.input.long == "window":
        return [slice(start, start + len(part)) for start, part in windows(record.steps, longest)]
    return [slice(0, longest) if spec.input.long == "head" else slice(length - longest, length)]


def _target(record: Record, spec: Spec) -> Tensor:
    """The record's label as a target; see `Example`."""
    task, labels = spec.output.task, spec.output.labels
    label = record.label
    if label is None:
        raise ConfigurationError(f'{record.place}: there is no label to train on: "label" is missing')
    wrong = label_mismatch(record, task) or unknown_labels(record, labels, "output.labels")
    if wrong is not None:
        raise ConfigurationError(f"{record.place}: {wrong}")
    several = label if isinstance(label, tuple) else (label,)
    indices = torch.tensor([labels.index(one) for one in several], dtype=torch.int64)
    if task == "multi-label":
        return torch.zeros(len(labels)).index_fill(0, indices, 1.0)
    return indices if task == "per-step" else indices[0]
