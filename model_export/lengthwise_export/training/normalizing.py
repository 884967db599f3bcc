"""Which normalisation suits some records: a small rocket model is fitted with each, and the least held-out loss wins.

This *probe* takes a second. Where a rocket model may be what is trained, and there are enough records, whole models
with the closest normalisations are compared (`with_all_kernels`).
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Final, NamedTuple

import numpy as np

from lengthwise.datasets.dataset import Record
from lengthwise.errors import ConfigurationError
from lengthwise_export.architecture.spec import Spec
from lengthwise_export.training import rocket
from lengthwise_export.training.facts import DataFacts
from lengthwise_export.training.options import TrainingOptions
from lengthwise_export.training.rocket import RocketResult
from lengthwise_export.training.scores import EvaluationScores

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
ENOUGH: Final = 0.97
"""Where fixed kernels give so many correct held-out answers, nothing else is tried."""
ORDERS_OF_MAGNITUDE: Final = 100
"""From this factor between the standard deviations of sequences on, the usual normalisation is `sequence`, below it
`both`."""
TRIED: Final = ("both", "training", "sequence", "sequence-scale", "feature-scale")


class Normalisation(NamedTuple):
    """What was chosen.

    Attributes:
        spec: The spec with it.
        reasons: Why; none if nothing was open.
        accuracy: That of the probe; None without one.
        others: Those whose loss in the probe is not much larger than the least.
        fitted: A model of the spec that was fitted to all records; None if none was.
    """

    spec: Spec
    reasons: tuple[str, ...] = ()
    accuracy: float | None = None
    others: tuple[str, ...] = ()
    fitted: RocketResult | None = None


def chosen(
    spec: Spec, records: Sequence[Record], facts: DataFacts, *, sequence_features: Sequence[str]
) -> Normalisation:
    """The normalisation, if it is `auto`; the head of the probe reads these sequence features."""
    if spec.input.kind == "tokens" or spec.input.normalize != "auto":
        return Normalisation(spec)
    if spec.model.grid == "training":
        return _with(spec, "training", 'grid = "training" needs values that do not depend on the whole sequence')
    if facts.median_length < 3:
        return _with(spec, "training", "most sequences have one or two steps")
    if facts.spread < SPREAD and facts.shift < 0.05:
        return _with(spec, "training", "the sequences have one level and scale already")
    factor = "more than 1e11" if math.isinf(facts.spread) else f"{facts.spread:.3g}"
    seen = f"standard deviations of the sequences differ by a factor of {factor}"
    if facts.missing:
        seen += f", {facts.missing:.1%} of the values are missing"
    can_be_probed = spec.output.task != "per-step" and len(records) >= 10
    tried = _probed(spec, records, sequence_features) if can_be_probed else None
    if tried is None:
        return _with(spec, "both" if facts.spread >= 3 else "training", seen)
    best = min(tried, key=lambda name: tried[name].loss)
    # Of values that differ by orders of magnitude, the statistics of the training split leave little
    usual = "sequence" if facts.spread >= ORDERS_OF_MAGNITUDE else "both"
    winner = best if tried[best].loss < CLEARLY * tried[usual].loss else usual
    why = f"{seen}; held-out log loss: "
    why += ", ".join(f"{name} {scores.loss:.3f}" for name, scores in sorted(tried.items()))
    if winner != best:
        why += f'; the usual one is "{usual}", and no other has a loss that is {1 - CLEARLY:.0%} lower'
    others = tuple(name for name in tried if name != winner and tried[name].loss <= CLOSE * tried[best].loss)
    return _with(spec, winner, why)._replace(accuracy=tried[winner].accuracy, others=others)


def with_all_kernels(found: Normalisation, records: Sequence[Record], options: TrainingOptions) -> Normalisation:
    """The normalisation of a rocket model: another one if a whole model has a lower held-out loss with it."""
    spec = found.spec
    few = _some(spec, records)
    if not found.others or len(few) < FEWEST_COMPARED or spec.output.task != "single-label":
        return found
    first = _fitted(spec, few, options)
    if first is None:
        return found
    found = found._replace(fitted=first if len(few) == len(records) else None)
    if first.left_out.accuracy >= ENOUGH or first.left_out.answers > len(few):
        return found
    usual: str = spec.input.normalize
    means, best, winner, least = {usual: first.left_out.loss}, usual, first, 0.0
    for name in (*found.others, "none"):  # the kernels need no scale: what they compare with comes from the values
        other = _fitted(spec.with_keys(input={"normalize": name}), few, options)
        if other is None:
            continue
        means[name] = other.left_out.loss
        differences = other.left_out_losses - first.left_out_losses
        error = float(differences.std(ddof=1)) / math.sqrt(len(differences))
        if differences.mean() < min(least, -STANDARD_ERRORS * error):
            best, winner, least = name, other, float(differences.mean())
    if best == usual:
        return found
    losses = ", ".join(f"{name} {loss:.3f}" for name, loss in sorted(means.items()))
    better = _with(spec, best, f"held-out log loss of whole models on {len(few)} records: {losses}")
    fitted = winner if found.fitted else None
    return found._replace(spec=better.spec, reasons=(*found.reasons, *better.reasons), fitted=fitted)


def _with(spec: Spec, name: str, why: str) -> Normalisation:
    return Normalisation(spec.with_keys(input={"normalize": name}), (f'normalize = "{name}": {why}',))


def _some(spec: Spec, records: Sequence[Record]) -> list[Record]:
    """The records that whole models are fitted to: a random part of many, in their order."""
    steps, taken = 0, []
    for index in np.random.default_rng(0).permutation(len(records))[:MOST_COMPARED]:
        steps += min(len(records[index].steps), spec.input.max_length)
        if steps > COMPARED_STEPS:
            break
        taken.append(int(index))
    return [records[index] for index in sorted(taken)]


def _probed(
    spec: Spec, records: Sequence[Record], sequence_features: Sequence[str]
) -> dict[str, EvaluationScores] | None:
    """The held-out scores of a small rocket model with each normalisation; None if one cannot be fitted."""
    few = [records[place] for place in sorted(np.random.default_rng(0).permutation(len(records))[:PROBE_RECORDS])]
    model = {"kind": "rocket", "kernels": PROBE_KERNELS, "sequence_features": list(sequence_features)}
    small = Spec.from_table(spec.resolved() | {"model": model})
    tried = {}
    for name in TRIED:
        if name == "feature-scale" and spec.input.features == 1:  # the same as that of the sequence
            continue
        found = _fitted(small.with_keys(input={"normalize": name}), few, TrainingOptions())
        if found is None:
            return None
        tried[name] = found.left_out
    return tried


def _fitted(spec: Spec, records: Sequence[Record], options: TrainingOptions) -> RocketResult | None:
    """A rocket model, which knows what it loses on each record when that is left out; None if it cannot be fitted."""
    try:
        return rocket.fit(spec, records, options)
    except (ConfigurationError, ValueError):  # also of scikit-learn and NumPy, for features that are not finite
        return None
