"""What a user should know about training records, whatever is trained on them."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from typing import Final

from lengthwise.decoding.dataset import Record
from lengthwise_export.architecture.spec import Spec

FEW_RECORDS: Final = 10
"""With fewer records, no accuracy says anything."""
_MOST_LISTED: Final = 5


def about(spec: Spec, records: Sequence[Record]) -> list[str]:
    """Warnings about the records: their number, their ids, their labels, and their axes.

    Args:
        spec: The spec that they are for.
        records: At least one.
    """
    return [*_number(records), *_labels(spec, records), *_ids(records), *_axes(records)]


def _number(records: Sequence[Record]) -> list[str]:
    if len(records) >= FEW_RECORDS:
        return []
    return [f"{len(records)} records are few: no accuracy that is measured with them says how good the model is"]


def _labels(spec: Spec, records: Sequence[Record]) -> list[str]:
    """Labels that no record or only one has, and a label that all have."""
    counts: Counter[str] = Counter()
    for record in records:
        counts.update({record.label} if isinstance(record.label, str) else {*(record.label or ())})
    said = []
    absent = [label for label in spec.output.labels if not counts[label]]
    lonely = [label for label in spec.output.labels if counts[label] == 1]
    if len(counts) == 1 and spec.output.task != "multi-label":
        said.append(f"every record has the label {_listed([*counts])}: there is nothing to tell apart")
    if absent:
        said.append(f"no record has the label {_listed(absent)}: the model cannot learn it")
    if lonely and len(records) > 1:
        said.append(f"only one record has the label {_listed(lonely)}: nothing measures whether the model learns it")
    return said


def _ids(records: Sequence[Record]) -> list[str]:
    twice = [name for name, count in Counter(record.id for record in records).items() if count > 1]
    if not twice:
        return []
    return [f"several records have the id {_listed(twice)}: if they are copies, validation measures what was learned"]


def _axes(records: Sequence[Record]) -> list[str]:
    """Sequences that may be transposed, or rows of a table that were taken for sequences."""
    lengths = {len(record.steps) for record in records}
    if lengths == {1} and len(records) > 1:
        return ["every sequence has one step: is a row of the data a step, and not a sequence?"]
    widths = {record.steps.shape[1] if record.steps.ndim == 2 else 1 for record in records}
    if len(lengths) > 1 or len(widths) > 1 or min(lengths) >= min(widths):
        return []
    steps, features = min(lengths), min(widths)
    return [
        f"every sequence has {steps} steps of {features} features: are they transposed? Arrays [features, length], as "
        "aeon and sktime have them, are read with layout='channels-first' (--channels-first)"
    ]


def _listed(names: Sequence[str]) -> str:
    more = len(names) - _MOST_LISTED
    return ", ".join(names[:_MOST_LISTED]) + (f" and {more} more" if more > 0 else "")
