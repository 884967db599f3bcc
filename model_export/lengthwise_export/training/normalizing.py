"""Which normalisation suits some records: a small rocket model with each of them says which one loses least.

This *probe* takes a second. Its answers to sequences that it was not fitted to count. Where a rocket model may be
what is trained, and there are enough records, whole models with the closest normalisations are compared
(`with_all_kernels`).
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Final, NamedTuple

import numpy as np

from lengthwise.decoding.dataset import Record
from lengthwise.errors import ConfigurationError
from lengthwise_export.architecture.spec import Spec
from lengthwise_export.training import choice, rocket
from lengthwise_export.training.facts import DataFacts
from lengthwise_export.training.options import TrainingOptions
from lengthwise_export.training.rocket import RocketResult

SPREAD: Final = 1.05
"""Sequences whose standard deviations differ by a smaller factor are of one scale."""
PROBE_KERNELS: Final = 1000
PROBE_RECORDS: Final = 400
CLEARLY: Final = 0.95
"""A normalisation is preferred to the usual one if its loss in the probe is below this share of that one's."""
STANDARD_ERRORS: Final = 2
"""A whole rocket model is preferred to that of the probe if its mean loss is lower by so many standard errors of the
difference."""
CLOSE: Final = 1.5
"""Whole rocket models are compared where the loss in the probe is at most this many times the least."""
COMPARED_STEPS: Final = 200_000
"""Whole models are fitted to so many steps at most: each takes some seconds."""
MOST_COMPARED: Final = 1000
"""And to so many records at most."""
FEWEST_COMPARED: Final = 100
"""With fewer records whole models are not compared, because the difference would be chance."""
ORDERS_OF_MAGNITUDE: Final = 100
"""From this factor between the standard deviations of sequences on, the usual normalisation is `sequence`, below it
`both`."""


class Normalisation(NamedTuple):
    """What was chosen.

    Attributes:
        spec: The spec with it.
        accuracy: That of the probe; None without one.
        others: Those whose loss in the probe is not much larger than the least.
    """

    spec: Spec
    accuracy: float | None = None
    others: tuple[str, ...] = ()


def chosen(
    spec: Spec, records: Sequence[Record], facts: DataFacts, reasons: list[str], *, sequence_features: Sequence[str]
) -> Normalisation:
    """The normalisation, if it is `auto`; the head of the probe reads these sequence features."""
    if spec.input.kind == "tokens" or spec.input.normalize != "auto":
        return Normalisation(spec)
    seen = f"standard deviations of the sequences differ by a factor of {_factor(facts.spread)}"
    if facts.missing:
        seen += f", {facts.missing:.1%} of the values are missing"
    if facts.median_length < 3:
        return Normalisation(_chosen(spec, "training", "most sequences have one or two steps", reasons))
    if facts.spread < SPREAD and facts.shift < 0.05:
        return Normalisation(_chosen(spec, "training", "the sequences have one level and scale already", reasons))
    by_spread = "both" if facts.spread >= 3 else "training"
    if spec.output.task == "per-step" or len(records) < 10:
        return Normalisation(_chosen(spec, by_spread, seen, reasons))
    tried = {}
    for name in ("both", "training", "sequence", "sequence-scale", "feature-scale"):
        if name == "feature-scale" and spec.input.features == 1:  # the same as that of the sequence
            continue
        found = _probe(spec.with_keys(input={"normalize": name}), records, sequence_features)
        if found is None:
            return Normalisation(_chosen(spec, by_spread, seen, reasons))
        tried[name] = found
    best = min(tried, key=lambda name: tried[name][1])
    # Of values that differ by orders of magnitude, the statistics of the training split leave little
    usual = "sequence" if facts.spread >= ORDERS_OF_MAGNITUDE else "both"
    winner = best if tried[best][1] < CLEARLY * tried[usual][1] else usual
    losses = ", ".join(f"{name} {loss:.3f}" for name, (_, loss) in sorted(tried.items()))
    why = f"{seen}; held-out log loss: {losses}"
    if winner != best:
        why += f'; the usual one is "{usual}", and no other has a loss that is {1 - CLEARLY:.0%} lower'
    others = tuple(name for name in tried if name != winner and tried[name][1] <= CLOSE * tried[best][1])
    return Normalisation(_chosen(spec, winner, why, reasons), tried[winner][0], others)


def with_all_kernels(
    spec: Spec, others: Sequence[str], records: Sequence[Record], reasons: list[str], *, class_weights: bool = False
) -> Spec:
    """The spec of a rocket model, with another normalisation if a whole model loses less with that.

    Args:
        spec: The spec, with the normalisation that the probe prefers.
        others: The normalisations to compare, beside none at all.
        records: The training records.
        reasons: The reason for a change is added.
        class_weights: Whether rare classes get a larger weight.
    """
    few = _some(spec, records)
    if not others or len(few) < FEWEST_COMPARED or spec.output.task != "single-label":
        return spec
    first = _left_out(spec, few, class_weights=class_weights)
    if first is None or first.left_out.accuracy >= choice.ENOUGH or len(first.left_out_losses) > len(few):
        return spec
    usual: str = spec.input.normalize
    means, best, least = {usual: first.left_out.loss}, usual, 0.0
    for name in (*others, "none"):  # fixed kernels need no scale: what they compare with comes from the values
        found = _left_out(spec.with_keys(input={"normalize": name}), few, class_weights=class_weights)
        if found is None:
            continue
        means[name] = found.left_out.loss
        differences = found.left_out_losses - first.left_out_losses
        error = float(differences.std(ddof=1)) / math.sqrt(len(differences))
        if differences.mean() < min(least, -STANDARD_ERRORS * error):
            best, least = name, float(differences.mean())
    if best == usual:
        return spec
    shares = ", ".join(f"{name} {loss:.3f}" for name, loss in sorted(means.items()))
    why = f"held-out log loss of whole models on {len(few)} records: {shares}"
    return _chosen(spec, best, why, reasons)


def _some(spec: Spec, records: Sequence[Record]) -> list[Record]:
    """The records that whole models are fitted to: a random part of many, in their order."""
    steps, taken = 0, []
    for index in np.random.default_rng(0).permutation(len(records))[:MOST_COMPARED]:
        steps += min(len(records[index].steps), spec.input.max_length)
        if steps > COMPARED_STEPS:
            break
        taken.append(int(index))
    return [records[index] for index in sorted(taken)]


def _left_out(spec: Spec, records: Sequence[Record], *, class_weights: bool) -> RocketResult | None:
    """A whole model, which says what it loses about each record when that is left out; None if it cannot be fitted."""
    try:
        return rocket.fit(spec, records, TrainingOptions(class_weights=class_weights))
    except (ConfigurationError, np.linalg.LinAlgError):
        return None


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
