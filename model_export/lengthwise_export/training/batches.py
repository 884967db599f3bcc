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

from lengthwise.datasets.dataset import Record
from lengthwise.datasets.record_fields import label_mismatch, unknown_labels
from lengthwise.decoding.calls import first_fault
from lengthwise.errors import ConfigurationError
from lengthwise.runtime.answers import windows
from lengthwise.runtime.manifest import Task
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

    @property
    def missing(self) -> float:
        """Share of missing values."""
        return float(self.steps.isnan().float().mean()) if self.steps.is_floating_point() else 0.0


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
    """Turns records that passed `check` into examples, cut by the spec's policy for long sequences."""
    members = []
    for record in records:
        steps, target = torch.from_numpy(record.steps), _target(record, spec)
        members += [
            Example(steps[part], target[part] if spec.output.task == "per-step" else target)
            for part in _parts(record, spec)
        ]
    return members


def check(record: Record, spec: Spec) -> None:
    """Makes sure that a record can be used for training; each record is checked once, when it is read.

    Raises:
        ConfigurationError: It does not fit the spec; the message names its file and line.
    """
    wrong = _wrong_steps(record, spec) or _wrong_label(record, spec)
    if wrong:
        raise ConfigurationError(f"{record.place}: {wrong}")


def lenient(spec: Spec) -> Spec:
    """The spec that records are checked against: missing values are allowed where their policy is chosen later."""
    is_open = spec.model.preset == "auto" and spec.input.kind == "values" and not spec.input.says("missing")
    return spec.with_keys(input={"missing": "indicator"}) if is_open else spec


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


def by_length(members: Sequence[Example], rows: int) -> Iterator[list[int]]:
    """The places of the examples by length, so many at a time."""
    order = np.argsort([len(example.steps) for example in members], kind="stable").tolist()
    return (order[start : start + rows] for start in range(0, len(order), rows))


def batches(members: Sequence[Example], rows: int, *, seed: Sequence[int]) -> Iterator[TrainingBatch]:
    """Yields batches of sequences of similar length, in a random order."""
    lengths = np.asarray([len(example.steps) for example in members])
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


def _wrong_steps(record: Record, spec: Spec) -> str:
    """Why the steps do not fit the spec; empty if they do."""
    steps, takes = record.steps, spec.input
    if takes.features is not None and steps.shape[1] != takes.features:
        return f"{steps.shape[1]} features a step, the spec says {takes.features}"
    fault = None
    if takes.features is not None or takes.vocabulary is not None:
        fault = first_fault(steps, vocabulary=takes.vocabulary, takes_missing=takes.missing != "refuse")
    if fault is not None and fault[1] == "no token":
        return f"token {steps[fault[0]]} in a vocabulary of {takes.vocabulary}"
    if fault is not None:
        return (
            "a value is missing (NaN), and input.missing = 'refuse'; to train on missing values, set it to 'zero', "
            "'mean' or 'indicator'"
        )
    if len(steps) > takes.max_length and takes.long == "reject":
        return f"{len(steps)} steps, and input.max_length = {takes.max_length}; raise it, or set input.long"
    return ""


def _wrong_label(record: Record, spec: Spec) -> str | None:
    """Why the label does not fit the spec; None or empty if it does."""
    if record.label is None:
        return 'there is no label to train on: "label" is missing'
    return label_mismatch(record, spec.output.task) or unknown_labels(record, spec.output.labels, "output.labels")


def _parts(record: Record, spec: Spec) -> list[slice]:
    """The slices of a sequence that become examples, by the policy for sequences above the max length."""
    length, longest = len(record.steps), spec.input.max_length
    if length <= longest:
        return [slice(0, length)]
    if spec.input.long == "window":
        return [slice(start, start + len(part)) for start, part in windows(record.steps, longest)]
    return [slice(length - longest, length) if spec.input.long == "tail" else slice(0, longest)]


def _target(record: Record, spec: Spec) -> Tensor:
    """The record's label as a target; see `Example`."""
    task, labels = spec.output.task, spec.output.labels
    several = record.label if isinstance(record.label, tuple) else (record.label,)
    indices = torch.tensor([labels.index(str(one)) for one in several], dtype=torch.int64)
    if task == "multi-label":
        return torch.zeros(len(labels)).index_fill(0, indices, 1.0)
    return indices if task == "per-step" else indices[0]
