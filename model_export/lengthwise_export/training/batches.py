"""From records to training batches: labels to targets, a stratified split, and batches of sequences of like length.

A batch is as wide as its longest sequence, and whatever is shorter is padded: so sequences of like length are put
together, in an order that a seed decides.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence

from lengthwise.decoding.dataset import Record
from lengthwise.errors import ConfigurationError
from lengthwise.runtime.answers import windows
from lengthwise.runtime.manifest import Task
from lengthwise.scoring.records import mislabelled, unknown_labels
from lengthwise_export.architecture.spec import Spec

NO_TARGET = -100
"""The target of a padded step: `cross_entropy`'s `ignore_index`."""

POOL_BATCHES = 8
"""Batches that are cut from one length-sorted pool: enough to save padding, few enough to keep the order random."""


@dataclass(frozen=True, slots=True)
class Example:
    """A sequence with its target.

    Attributes:
        steps: `[length, features]` float32 or `[length]` int64.
        target: int64 `[]`, the label's index; multi-label: float32 `[classes]`, 0 or 1; per-step: int64 `[length]`.
    """

    steps: Tensor
    target: Tensor


@dataclass(frozen=True, slots=True)
class TrainingBatch:
    """Examples side by side.

    Attributes:
        steps: `[rows, width, features]` or `[rows, width]`, zeros at padding.
        lengths: `[rows]` int64.
        targets: `[rows]`, `[rows, classes]`, or `[rows, width]` with `NO_TARGET` at padding.
    """

    steps: Tensor
    lengths: Tensor
    targets: Tensor


def examples(records: Iterable[Record], spec: Spec) -> list[Example]:
    """Records as examples; a sequence past the spec's max length is treated as its policy says.

    Raises:
        ConfigurationError: A record does not fit the spec; names its file and line.
    """
    made = []
    for record in records:
        steps = torch.from_numpy(record.steps)
        _check_steps(record, steps, spec)
        target = _target(record, spec)
        made += [
            Example(steps[part], target[part] if spec.output.task == "per-step" else target)
            for part in _parts(record, spec)
        ]
    return made


def check(record: Record, spec: Spec) -> None:
    """Makes sure that a record can be used for training.

    Raises:
        ConfigurationError: It does not fit the spec; the message names its file and line.
    """
    examples([record], spec)


def stratified_split(targets: Sequence[object], share: float, *, seed: int) -> tuple[list[int], list[int]]:
    """Splits examples so that each kind of target keeps its share.

    Args:
        targets: One hashable for each example: what is to be spread evenly.
        share: Of each kind, how much goes into the second part; a kind with two or more has at least one in each.
        seed: Decides which.

    Returns:
        The indices of both parts, in order.
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
    """What `stratified_split` spreads: the label, the set of labels, or a per-step model's most frequent label."""
    if task == "per-step":
        return int(example.target.mode().values)
    return tuple(example.target.tolist()) if task == "multi-label" else int(example.target)


def batches(members: Sequence[Example], rows: int, *, seed: Sequence[int] | None = None) -> Iterator[TrainingBatch]:
    """Batches of sequences of like length.

    Args:
        members: In any order.
        rows: Examples a batch; the last one may have fewer.
        seed: Decides the order; without one, by length.
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
    """One batch of these examples, in their order."""
    targets = [example.target for example in members]
    per_step = targets[0].ndim == 1 and not targets[0].is_floating_point()
    return TrainingBatch(
        steps=pad_sequence([example.steps for example in members], batch_first=True),
        lengths=torch.tensor([len(example.steps) for example in members]),
        targets=pad_sequence(targets, batch_first=True, padding_value=NO_TARGET) if per_step else torch.stack(targets),
    )


def _check_steps(record: Record, steps: Tensor, spec: Spec) -> None:
    expected = spec.input.features
    if expected is not None:
        found = steps.shape[1]
        if found != expected:
            raise ConfigurationError(f"{record.place}: {found} features a step, the spec says {expected}")
        if spec.input.missing == "refuse" and bool(steps.isnan().any()):
            raise ConfigurationError(
                f"{record.place}: a value is missing, and input.missing = 'refuse'; "
                "'zero', 'mean' and 'indicator' are the ways to take it"
            )
    elif spec.input.vocabulary is not None and int(steps.max()) >= spec.input.vocabulary:
        raise ConfigurationError(f"{record.place}: token {int(steps.max())} in a vocabulary of {spec.input.vocabulary}")


def _parts(record: Record, spec: Spec) -> list[slice]:
    """Which steps become examples: all, or by the policy past the max length."""
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
    wrong = mislabelled(record, task) or unknown_labels(record, labels, "output.labels")
    if wrong is not None:
        raise ConfigurationError(f"{record.place}: {wrong}")
    several = label if isinstance(label, tuple) else (label,)
    indices = torch.tensor([labels.index(one) for one in several], dtype=torch.int64)
    if task == "multi-label":
        return torch.zeros(len(labels)).index_fill(0, indices, 1.0)
    return indices if task == "per-step" else indices[0]
