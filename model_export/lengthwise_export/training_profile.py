"""The profile of labelled data that the manifest keeps, so that a service can tell how its sequences drift from it."""

from __future__ import annotations

from collections.abc import Sequence

from lengthwise.data_profile import DataProfile
from lengthwise.decoding.dataset import Record


def profile_of(records: Sequence[Record], labels: Sequence[str]) -> DataProfile:
    """The profile of records.

    Args:
        records: At least one; with labels or without.
        labels: The model's labels; others in the records are not counted.
    """
    places = {label: place for place, label in enumerate(labels)}
    classes = [[places[label] for label in _labels(record) if label in places] for record in records]
    return DataProfile.of([record.steps for record in records], classes if any(classes) else None, labels=len(labels))


def _labels(record: Record) -> Sequence[str]:
    """A record's labels: none, one, several, or one for each step."""
    if record.label is None:
        return ()
    return (record.label,) if isinstance(record.label, str) else record.label
