"""Checks whether records can be trained on by a spec. Nothing here imports torch, which would take seconds.

The policy for missing values is *open* if the spec has `preset = "auto"` and no policy: it is chosen from the data
later, so records with missing values fit until then.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator

import numpy as np
from numpy.typing import NDArray

from lengthwise.exporter_api.data import (
    ADVICE_ON_TAILS,
    BadRecord,
    InputSequence,
    Record,
    arrays,
    first_fault,
    is_tail,
    label_mismatch,
    unknown_labels,
    valid_records,
)
from lengthwise_export.architecture.spec import Spec
from lengthwise_export.errors import ConfigurationError, counted

__all__ = [
    "Record",
    "allow_open_missing",
    "check",
    "fitting_records",
    "missing_is_open",
    "static_values_of",
    "why_unfit",
]


def check(record: Record, spec: Spec) -> None:
    """Makes sure that a record fits the spec.

    Raises:
        ConfigurationError: It does not; the message names its file and line.
    """
    if wrong := why_unfit(record, spec):
        raise ConfigurationError(f"{record.source_line}: {wrong}")


def fitting_records(records: Iterable[Record | BadRecord], spec: Spec) -> Iterator[Record]:
    """Yields the records; raises a ConfigurationError at the first that cannot be read or does not fit the spec.

    The error names the first few of these. Missing values are allowed if their policy is open.
    """
    spec_before_choice = allow_open_missing(spec)
    return valid_records(iter(records), lambda record: check(record, spec_before_choice))


def why_unfit(record: Record, spec: Spec) -> str | None:
    """Why a model of the spec cannot be trained on a record, as a text for the user; None if it can."""
    steps, step_spec = record.steps, spec.input
    if step_spec.features is not None and steps.shape[1] != step_spec.features:
        return f"{steps.shape[1]} features a step, the spec says {step_spec.features}"
    fault = first_fault(steps, vocabulary=step_spec.vocabulary, takes_missing=step_spec.missing != "refuse")
    if fault is not None:
        index, kind = fault
        if kind == "no token":
            return f"token {steps[index]} in a vocabulary of {step_spec.vocabulary}"
        policies = "'handled'" if spec.model.kind == "summaries" else "'zero', 'mean' or 'indicator'"
        cure = f"to train on missing values, set it to {policies}"
        if is_tail(steps, index):
            cure = f"from step {index} on there is none: {ADVICE_ON_TAILS}"
        return f"a value is missing (NaN), and input.missing = 'refuse'; {cure}"
    if len(steps) < step_spec.min_length:
        return (
            f"{counted(len(steps), 'step')}, and input.min_length = {step_spec.min_length}; leave it out, or lower that"
        )
    if len(steps) > step_spec.max_length and step_spec.long == "reject":
        return f"{len(steps)} steps, and input.max_length = {step_spec.max_length}; raise it, or set input.long"
    if record.label is None:
        return f"there is no label to train on: sequence {record.id!r} has none; give one, or leave the sequence out"
    return (
        _why_static_unfit(record, spec)
        or label_mismatch(record, spec.output.task)
        or unknown_labels(record.label, spec.output.labels, "output.labels")
    )


def _why_static_unfit(record: Record, spec: Spec) -> str | None:
    """Why the static values of a record do not fit the spec, as a text for the user; None if they do."""
    static = static_values_of(record, spec)
    return static if isinstance(static, str) else None


def static_values_of(record: Record, spec: Spec) -> NDArray[np.float32] | str | None:
    """The static values of a record, `[count]`; a text with the reason if they do not fit the spec.

    None if the spec has none.
    """
    if spec.input.static_input is None:
        return None
    sequence = InputSequence(record.steps, static=record.static)
    item = arrays.item(sequence, spec.manifest(name="model", version=1))
    return item if isinstance(item, str) else item.steps.beside["static"]  # type: ignore[union-attr]  # it is a sample


def allow_open_missing(spec: Spec) -> Spec:
    """The spec that records must fit before the policy for missing values is chosen: until then they are allowed.

    The spec itself, if it has a policy.
    """
    return spec.with_keys(input={"missing": "indicator"}) if missing_is_open(spec) else spec


def missing_is_open(spec: Spec) -> bool:
    """Whether the policy for missing values is chosen later: the user wrote `preset = "auto"`, and no policy."""
    return spec.model.preset == "auto" and spec.input.kind == "values" and not spec.input.first_stated("missing")
