"""Which normalisation suits some records: a small rocket model with each of them says which one loses least.

This *probe* takes a second. Its answers to sequences that it was not fitted to count.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Final

import numpy as np

from lengthwise.decoding.dataset import Record
from lengthwise.errors import ConfigurationError
from lengthwise_export.architecture.spec import Spec
from lengthwise_export.training import rocket
from lengthwise_export.training.facts import DataFacts
from lengthwise_export.training.options import TrainingOptions

SPREAD: Final = 1.05
"""Sequences whose standard deviations differ by a smaller factor are of one scale."""
PROBE_KERNELS: Final = 1000
PROBE_RECORDS: Final = 400
CLEARLY: Final = 0.95
"""A normalisation is preferred to the usual one if its loss in the probe is below this share of that one's."""
ORDERS_OF_MAGNITUDE: Final = 100
"""From this factor between the standard deviations of sequences on, the usual normalisation is `sequence`, below it
`both`."""


def chosen(
    spec: Spec, records: Sequence[Record], facts: DataFacts, reasons: list[str], *, sequence_features: Sequence[str]
) -> tuple[Spec, float | None]:
    """The normalisation, if it is `auto`, and the accuracy of the probe, whose head reads these sequence features."""
    if spec.input.kind == "tokens" or spec.input.normalize != "auto":
        return spec, None
    seen = f"standard deviations of the sequences differ by a factor of {_factor(facts.spread)}"
    if facts.missing:
        seen += f", {facts.missing:.1%} of the values are missing"
    if facts.median_length < 3:
        return _chosen(spec, "training", "most sequences have one or two steps", reasons), None
    if facts.spread < SPREAD and facts.shift < 0.05:
        return _chosen(spec, "training", "the sequences have one level and scale already", reasons), None
    if spec.output.task == "per-step" or len(records) < 10:
        return _chosen(spec, "both" if facts.spread >= 3 else "training", seen, reasons), None
    tried = {}
    for name in ("both", "training", "sequence", "sequence-scale", "feature-scale"):
        if name == "feature-scale" and spec.input.features == 1:  # the same as that of the sequence
            continue
        found = _probe(spec.with_keys(input={"normalize": name}), records, sequence_features)
        if found is None:
            return _chosen(spec, "both" if facts.spread >= 3 else "training", seen, reasons), None
        tried[name] = found
    best = min(tried, key=lambda name: tried[name][1])
    # Of values that differ by orders of magnitude, the statistics of the training split leave little
    usual = "sequence" if facts.spread >= ORDERS_OF_MAGNITUDE else "both"
    winner = best if tried[best][1] < CLEARLY * tried[usual][1] else usual
    shares = ", ".join(f"{name} {accuracy:.3f} ({loss:.3f})" for name, (accuracy, loss) in sorted(tried.items()))
    why = f"{seen}; accuracy (log loss) of a quick probe on sequences that it was not fitted to: {shares}"
    if winner != best:
        why += f'; the usual one is "{usual}", and no other has a loss that is {1 - CLEARLY:.0%} lower'
    return _chosen(spec, winner, why, reasons), tried[winner][0]


def _chosen(spec: Spec, name: str, why: str, reasons: list[str]) -> Spec:
    reasons.append(f'normalize = "{name}": {why}')
    return spec.with_keys(input={"normalize": name})


def _probe(spec: Spec, records: Sequence[Record], sequence_features: Sequence[str]) -> tuple[float, float] | None:
    """Accuracy and log loss of a small rocket model on what it was not fitted to; None if it cannot be fitted."""
    model = {"kind": "rocket", "kernels": PROBE_KERNELS, "sequence_features": list(sequence_features)}
    table = spec.resolved() | {"model": model}
    random = np.random.default_rng(0)
    few = [records[index] for index in sorted(random.permutation(len(records))[:PROBE_RECORDS])]
    try:
        scores = rocket.fit(Spec.from_table(table), few, TrainingOptions()).left_out
    except (ConfigurationError, np.linalg.LinAlgError):
        return None
    return scores.accuracy, scores.loss


def _factor(spread: float) -> str:
    return "more than 1e11" if math.isinf(spread) else f"{spread:.3g}"
