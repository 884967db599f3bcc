"""Chooses the normalisation, by answers to records that a model was not trained on.

| function | compares the leave-one-out loss of | with |
|---|---|---|
| `choose_normalisation` | small rocket models, the *probe*, in a second | each normalisation |
| `choose_with_whole_models` | rocket models of the size that is trained | the closest normalisations, and none |

The *usual* normalisation is the one that is taken if no other is clearly better: "both", or "sequence" if the scales of
the sequences differ by orders of magnitude.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from lengthwise_export.architecture.spec import Spec
from lengthwise_export.errors import ConfigurationError
from lengthwise_export.training import rocket
from lengthwise_export.training.options import TrainingOptions
from lengthwise_export.training.record_checks import Record
from lengthwise_export.training.scores import EvaluationScores
from lengthwise_export.training.train import TrainingResult

SPREAD: Final = 1.05  # sequences whose standard deviations differ by a smaller factor are of one scale
# From this factor on, the usual normalisation is `sequence`, below it `both`
ORDERS_OF_MAGNITUDE: Final = 100
TRIED: Final = ("both", "training", "sequence", "sequence-scale", "feature-scale")
PROBE_KERNELS: Final = 1000
PROBE_RECORDS: Final = 400
# The usual normalisation is kept, unless another has a loss in the probe below this share of the usual one's loss
CLEARLY: Final = 0.95
CLOSE: Final = 1.5  # whole models are compared for normalisations with at most this many times the least loss
STANDARD_ERRORS: Final = 2  # of the difference, by which the mean loss of a whole model must be lower
COMPARED_STEPS: Final = 200_000  # most steps, in all records, that whole models are compared on: each takes seconds
MOST_COMPARED: Final = 1000  # most records that whole models are compared on
FEWEST_COMPARED: Final = 100  # with fewer records the difference would be chance
ENOUGH: Final = 0.97  # with this accuracy of held-out answers, no other normalisation is tried


@dataclass(frozen=True, slots=True)
class DataFacts:
    """What the training records look like."""

    records: int  # their number
    median_length: float
    missing: float  # share of missing values, static ones included
    # The factor between the standard deviations of small and large sequences (their tenth and ninetieth percentile), of
    # the feature where it is largest; infinity if some sequences are constant. 1 for tokens
    spread: float
    shift: float  # standard deviation of the means of sequences, relative to that of all values, of the largest feature


def facts_of(records: Sequence[Record], static: Sequence[NDArray[np.float32] | str | None] = ()) -> DataFacts:
    """Measures how many records there are, their lengths and missing values, and how their levels and scales differ.

    `static` are the static values of each record, `[count]`, as `static_values_of` returns them.
    """
    lengths = [len(record.steps) for record in records]
    values = [np.asarray(record.steps, dtype=np.float64) for record in records]
    count_and_median = (len(records), float(np.median(lengths)))
    if values[0].ndim == 1:  # tokens
        return DataFacts(*count_and_median, missing=0.0, spread=1.0, shift=0.0)
    all_values: list[NDArray[Any]] = [*values, *(each for each in static if isinstance(each, np.ndarray))]
    missing = sum(int(np.isnan(each).sum()) for each in all_values) / sum(each.size for each in all_values)
    # `spread`: by feature, the ratio of a large to a small standard deviation of a sequence. It is 1 for a feature that
    # is constant in all sequences; a deviation of 0 is taken for 1e-12 of the large one, and gives infinity below
    levels = np.array([_means(steps) for steps in values])  # (records, features)
    scales = np.array([np.sqrt(_means((steps - level) ** 2)) for steps, level in zip(values, levels, strict=True)])
    low, high = np.quantile(scales, [0.1, 0.9], axis=0)
    spreads = np.divide(high, np.maximum(low, high * 1e-12), out=np.ones_like(high), where=high > 0)
    spread = float(spreads.max())
    # `shift`: how far the means of sequences scatter, by feature
    everything = np.concatenate(values)
    std = np.sqrt(_means((everything - _means(everything)) ** 2))
    shifts = levels.std(axis=0) / np.where(std > 0, std, 1.0)
    return DataFacts(*count_and_median, missing, math.inf if spread >= 1e11 else spread, float(shifts.max()))


def _means(steps: NDArray[np.float64]) -> NDArray[np.float64]:
    """The mean of each feature over the steps where its value is present, `[features]`; 0 if all are missing."""
    present = ~np.isnan(steps)
    return np.asarray(np.where(present, steps, 0.0).sum(axis=0) / np.maximum(present.sum(axis=0), 1))


@dataclass(frozen=True, slots=True)
class Plan:
    """What is trained, and why. Each function that chooses something takes a plan, and returns one with its choice."""

    spec: Spec  # at the end no key is `auto`
    options: TrainingOptions = field(default_factory=TrainingOptions)
    reasons: tuple[str, ...] = ()  # one sentence for each choice
    warnings: tuple[str, ...] = ()  # what the user should know about the data
    probe: float | None = None  # accuracy of the probe on sequences that it was not fitted to
    close: tuple[str, ...] = ()  # other normalisations whose loss in the probe is not much larger than the smallest
    fitted: TrainingResult | None = None  # the trained model, if the comparison has trained it on all records already

    def with_choice(self, why: str, **tables: dict[str, Any]) -> Plan:
        """A copy with one more reason, and with these keys set in the tables of the spec, if there are any."""
        return replace(self, spec=self.spec.with_keys(**tables) if tables else self.spec, reasons=(*self.reasons, why))


def choose_normalisation(
    plan: Plan, records: Sequence[Record], facts: DataFacts, sequence_features: Sequence[str]
) -> Plan:
    """Chooses the normalisation, if it is `auto`: by facts of the data alone, or by the losses of the probe.

    Args:
        plan: What was chosen before.
        records: The training records.
        facts: About these records.
        sequence_features: What the head of the probe's rocket models reads besides the kernels.

    Returns:
        The plan with the normalisation; where the probe ran, also with its accuracy and the close normalisations.
    """
    spec = plan.spec
    if spec.input.kind == "tokens" or spec.input.normalize != "auto":
        return plan
    # Cases that are clear without a probe
    for is_clear, why in (
        (spec.model.grid == "training", 'grid = "training" needs values that do not depend on the whole sequence'),
        (facts.median_length < 3, "most sequences have one or two steps"),
        (facts.spread < SPREAD and facts.shift < 0.05, "the sequences have one level and scale already"),
    ):
        if is_clear:
            return _with_normalisation(plan, "training", why)
    # The probe; without one, a choice by the spread
    factor = "more than 1e11" if math.isinf(facts.spread) else f"{facts.spread:.3g}"
    spread = f"standard deviations of the sequences differ by a factor of {factor}"
    if facts.missing:
        spread += f", {facts.missing:.1%} of the values are missing"
    scores_of = _probe(spec, records, sequence_features)
    if not scores_of:
        return _with_normalisation(plan, "both" if facts.spread >= 3 else "training", spread)
    # The best in the probe, if it is clearly better than the usual one
    losses = {name: scores.loss for name, scores in scores_of.items()}
    best = min(losses, key=lambda name: losses[name])
    # If values differ by orders of magnitude, those normalised by the training split are nearly 0 in most sequences
    usual = "sequence" if facts.spread >= ORDERS_OF_MAGNITUDE else "both"
    winner = best if losses[best] < CLEARLY * losses[usual] else usual
    why = f"{spread}; held-out log loss: {_losses_as_text(losses)}"
    if winner != best:
        why += f'; the usual one is "{usual}", and no other has a loss that is {1 - CLEARLY:.0%} lower'
    close = tuple(name for name in losses if name != winner and losses[name] <= CLOSE * losses[best])
    return replace(_with_normalisation(plan, winner, why), probe=scores_of[winner].accuracy, close=close)


def choose_with_whole_models(plan: Plan, records: Sequence[Record], options: TrainingOptions) -> Plan:
    """Compares the plan's normalisation with the close ones and "none", by the loss of whole rocket models.

    Another normalisation replaces the plan's if its leave-one-out loss is lower by two standard errors. None is tried
    if no other one was close in the probe, if there are few records, if nearly all answers with the plan's are right
    already, or if losses cannot be compared record by record: the task is not single-label, or a record has windows.

    Returns:
        The plan; its `fitted` is the model of the chosen normalisation, if the models were fitted to all records and
        not to a sample.
    """
    spec = plan.spec
    sample = _subsample(spec, records)
    if not plan.close or len(sample) < FEWEST_COMPARED or spec.output.task != "single-label":
        return plan
    planned = _fit_or_none(spec, sample, options)
    if planned is None:
        return plan
    plan = replace(plan, fitted=planned if len(sample) == len(records) else None)
    left_out = planned.splits["left_out"]
    # With windows there are more answers than records, so their losses cannot be compared one by one
    if left_out.accuracy >= ENOUGH or left_out.answers > len(sample):
        return plan
    names = (*plan.close, "none")  # the kernels need no scale: their biases come from the values
    fits = {name: _fit_or_none(spec.with_keys(input={"normalize": name}), sample, options) for name in names}
    results = {name: fit for name, fit in fits.items() if fit is not None}
    # For each record, by how much its loss is lower than with the plan's normalisation: a paired comparison
    gains = {name: left_out.losses - fit.splits["left_out"].losses for name, fit in results.items()}
    clear_gains = {name: float(gain.mean()) for name, gain in gains.items() if is_clear(gain)}
    if not clear_gains:
        return plan
    best = max(clear_gains, key=lambda name: clear_gains[name])
    losses = {name: fit.splits["left_out"].loss for name, fit in results.items()}
    losses[str(spec.input.normalize)] = left_out.loss
    why = f"held-out log loss of whole models on {len(sample)} records: {_losses_as_text(losses)}"
    return replace(_with_normalisation(plan, best, why), fitted=results[best] if plan.fitted else None)


def is_clear(gain: NDArray[np.float64]) -> bool:
    """Whether the mean of gains, one for each record, is above 0 by so many standard errors that it is no chance."""
    return bool(gain.mean() > STANDARD_ERRORS * gain.std(ddof=1) / math.sqrt(len(gain)))


def _with_normalisation(plan: Plan, name: str, why: str) -> Plan:
    """The plan with this normalisation in its spec, and the reason for it."""
    return plan.with_choice(f'normalize = "{name}": {why}', input={"normalize": name})


def _losses_as_text(losses: dict[str, float]) -> str:
    return ", ".join(f"{name} {loss:.3g}" for name, loss in sorted(losses.items()))


def _subsample(spec: Spec, records: Sequence[Record]) -> list[Record]:
    """Draws at most `MOST_COMPARED` records with at most `COMPARED_STEPS` steps in all; keeps the records' order."""
    order = np.random.default_rng(0).permutation(len(records))[:MOST_COMPARED]
    steps_in_all = np.cumsum([min(len(records[index].steps), spec.input.max_length) for index in order])
    return [records[index] for index in np.sort(order[steps_in_all <= COMPARED_STEPS])]


def _probe(spec: Spec, records: Sequence[Record], sequence_features: Sequence[str]) -> dict[str, EvaluationScores]:
    """Fits a small rocket model with each normalisation, and returns its leave-one-out scores by normalisation.

    Empty for a per-step model, for fewer than ten records, or if one of the models cannot be fitted.
    """
    if spec.output.task == "per-step" or len(records) < 10:
        return {}
    sample = [records[index] for index in sorted(np.random.default_rng(0).permutation(len(records))[:PROBE_RECORDS])]
    model = {"kind": "rocket", "kernels": PROBE_KERNELS, "sequence_features": list(sequence_features)}
    small = Spec.from_table(spec.resolved() | {"model": model})
    scores_of = {}
    for name in TRIED:
        if name == "feature-scale" and spec.input.features == 1:  # of one feature the same as "sequence-scale"
            continue
        result = _fit_or_none(small.with_keys(input={"normalize": name}), sample, TrainingOptions())
        if result is None:
            return {}
        scores_of[name] = result.splits["left_out"]
    return scores_of


def _fit_or_none(spec: Spec, records: Sequence[Record], options: TrainingOptions) -> TrainingResult | None:
    """Fits a rocket model, and scores its leave-one-out answers; None if it cannot be fitted."""
    try:
        return rocket.fit(spec, records, options)
    except (ConfigurationError, ValueError):  # also of NumPy, for features that are not finite
        return None
