"""Checks whether records can be trained on by a spec. Nothing here imports torch, which would take seconds.

The policy for missing values is *open* with `preset = "auto"`: it is chosen later, so checks allow missing values.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator

from lengthwise.datasets.dataset import BadRecord, Record, valid_records
from lengthwise.datasets.record_fields import label_mismatch, unknown_labels
from lengthwise.decoding.calls import ADVICE_ON_TAILS, first_fault, is_tail
from lengthwise.errors import ConfigurationError
from lengthwise_export.architecture.spec import Spec


def check(record: Record, spec: Spec) -> None:
    """Makes sure that a record fits the spec.

    Raises:
        ConfigurationError: It does not; the message names its file and line.
    """
    if wrong := why_unfit(record, spec):
        raise ConfigurationError(f"{record.source_line}: {wrong}")


def fitting_records(records: Iterable[Record | BadRecord], spec: Spec) -> Iterator[Record]:
    """Yields the records that can be trained on; raises a ConfigurationError if some cannot.

    It names the first that cannot be read or do not fit the spec. Missing values are allowed if their policy is open.
    """
    open_spec = lenient_spec(spec)
    return valid_records(iter(records), lambda record: check(record, open_spec))


def why_unfit(record: Record, spec: Spec) -> str | None:
    """Why a model of the spec cannot be trained on a record, as a text for the user; None or empty if it can."""
    steps, takes = record.steps, spec.input
    if takes.features is not None and steps.shape[1] != takes.features:
        return f"{steps.shape[1]} features a step, the spec says {takes.features}"
    fault = first_fault(steps, vocabulary=takes.vocabulary, takes_missing=takes.missing != "refuse")
    if fault is not None and fault[1] == "no token":
        return f"token {steps[fault[0]]} in a vocabulary of {takes.vocabulary}"
    if fault is not None:
        cure = "to train on missing values, set it to 'zero', 'mean' or 'indicator'"
        if is_tail(steps, fault[0]):
            cure = f"from step {fault[0]} on there is none: {ADVICE_ON_TAILS}"
        return f"a value is missing (NaN), and input.missing = 'refuse'; {cure}"
    if len(steps) > takes.max_length and takes.long == "reject":
        return f"{len(steps)} steps, and input.max_length = {takes.max_length}; raise it, or set input.long"
    if record.label is None:
        return 'there is no label to train on: "label" is missing'
    return label_mismatch(record, spec.output.task) or unknown_labels(record, spec.output.labels, "output.labels")


def lenient_spec(spec: Spec) -> Spec:
    """The spec that records are checked against: it allows missing values where their policy is open."""
    return spec.with_keys(input={"missing": "indicator"}) if missing_is_open(spec) else spec


def missing_is_open(spec: Spec) -> bool:
    """Whether the policy for missing values is chosen later: the user wrote `preset = "auto"`, and no policy."""
    return spec.model.preset == "auto" and spec.input.kind == "values" and not spec.input.first_stated("missing")
