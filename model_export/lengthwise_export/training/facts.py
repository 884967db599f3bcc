"""What training records look like, and what the user should know about them, whatever is trained."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Final

import numpy as np
from numpy.typing import NDArray

from lengthwise.datasets.dataset import Record
from lengthwise_export.architecture.spec import Spec

FEW_RECORDS: Final = 10  # with fewer records, no accuracy says anything
_MOST_LISTED: Final = 5


@dataclass(frozen=True, slots=True)
class DataFacts:
    """What the training records look like."""

    records: int  # their number
    median_length: float
    missing: float  # share of missing values
    # The factor between the standard deviations of small and large sequences (their tenth and ninetieth percentile), of
    # the feature where it is largest; infinity if some sequences are constant. 1 for tokens
    spread: float
    shift: float  # standard deviation of the means of sequences, relative to that of all values, of the largest feature


def look(records: Sequence[Record]) -> DataFacts:
    """Computes the facts about records."""
    lengths = [len(record.steps) for record in records]
    values = [np.asarray(record.steps, dtype=np.float64) for record in records]
    facts = (len(records), float(np.median(lengths)))
    if values[0].ndim == 1:
        return DataFacts(*facts, missing=0.0, spread=1.0, shift=0.0)
    missing = sum(int(np.isnan(steps).sum()) for steps in values) / sum(steps.size for steps in values)
    levels = np.array([_means(steps) for steps in values])  # (records, features)
    scales = np.array([np.sqrt(_means((steps - level) ** 2)) for steps, level in zip(values, levels, strict=True)])
    low, high = np.quantile(scales, [0.1, 0.9], axis=0)
    spreads = np.divide(high, np.maximum(low, high * 1e-12), out=np.ones_like(high), where=high > 0)
    everything = np.concatenate(values)
    std = np.sqrt(_means((everything - _means(everything)) ** 2))
    shifts = levels.std(axis=0) / np.where(std > 0, std, 1.0)
    spread = float(spreads.max())
    return DataFacts(*facts, missing, math.inf if spread >= 1e11 else spread, float(shifts.max()))


def _means(steps: NDArray[np.float64]) -> NDArray[np.float64]:
    """`[features]`, the mean of the values that are present; 0 if none is."""
    present = ~np.isnan(steps)
    return np.asarray(np.where(present, steps, 0.0).sum(axis=0) / np.maximum(present.sum(axis=0), 1))


def warnings(spec: Spec, records: Sequence[Record]) -> Iterator[str]:
    """Warnings about the records: their number, their labels, their ids, and their axes."""
    if len(records) < FEW_RECORDS:
        yield f"{len(records)} records are few: no accuracy that is measured with them says how good the model is"
    counts: Counter[str] = Counter()
    for record in records:
        counts.update({record.label} if isinstance(record.label, str) else {*(record.label or ())})
    if len(counts) == 1 and spec.output.task != "multi-label":
        yield f"every record has the label {_listed([*counts])}: there is nothing to tell apart"
    if absent := [label for label in spec.output.labels if not counts[label]]:
        yield f"no record has the label {_listed(absent)}: the model cannot learn it"
    lonely = [label for label in spec.output.labels if counts[label] == 1]
    if lonely and len(records) > 1:
        yield f"only one record has the label {_listed(lonely)}: nothing measures whether the model learns it"
    if twice := [name for name, count in Counter(record.id for record in records).items() if count > 1]:
        yield f"several records have the id {_listed(twice)}: if they are copies, validation measures what was learned"
    yield from _axes(records)


def _axes(records: Sequence[Record]) -> Iterator[str]:
    """Sequences that may be transposed, or rows of a table that were taken for sequences."""
    lengths = {len(record.steps) for record in records}
    widths = {record.steps.shape[1] if record.steps.ndim == 2 else 1 for record in records}
    steps, features = min(lengths), min(widths)
    if lengths == {1} and len(records) > 1:
        yield "every sequence has one step: is a row of the data a step, and not a sequence?"
    elif len(lengths) == len(widths) == 1 and steps < features:
        yield (
            f"every sequence has {steps} steps of {features} features: are they transposed? Arrays [features, length], "
            "as aeon and sktime have them, are read with layout='channels-first' (--channels-first)"
        )


def _listed(names: Sequence[str]) -> str:
    more = len(names) - _MOST_LISTED
    return ", ".join(names[:_MOST_LISTED]) + (f" and {more} more" if more > 0 else "")
