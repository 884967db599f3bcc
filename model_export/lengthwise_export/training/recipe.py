"""What `train` chooses from the data: normalisation, layers, and the options of the training that are not given.

```
records -> look (spread of scales, missing share, lengths) ┬-> normalisation, by a probe
                                                           ├-> missing policy, preset, size
                                                           └-> epochs, learning rate, validation, patience
```
The *probe* is a small rocket model for each normalisation (seconds): its answers to sequences that it was not fitted
to say which one loses least. Each choice comes with its reason, and the spec that is written holds no `auto`. A key or
an option that the user gives is never changed.
"""

from __future__ import annotations

import math
import time
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, fields
from typing import Any, Final

import numpy as np
import torch
from numpy.typing import NDArray

from lengthwise.decoding.dataset import Record
from lengthwise.errors import ConfigurationError
from lengthwise_export.architecture import presets
from lengthwise_export.architecture.spec import Spec
from lengthwise_export.training import rocket
from lengthwise_export.training.batches import examples, stratified_split, stratum
from lengthwise_export.training.options import RecipeOptions, TrainingOptions
from lengthwise_export.training.run import TrainingRun

SHORT_STEPS: Final = 40
"""Up to this median length, `auto` takes recurrent layers, which are then quick to train."""
FEW_RECORDS: Final = 150
"""With fewer short sequences, `auto` takes fixed kernels: recurrent layers need more to learn from."""
MANY_RECORDS: Final = 2000
"""With fewer long sequences, `auto` takes fixed kernels: they are fitted in seconds, and layers that are trained reach
them only with more records and much more time (`benchmarks/results/accuracy.md`)."""
SMALLEST_VALIDATION: Final = 60
"""With fewer records for validation, the epoch that it chooses is mostly chance."""
NARROW_RECORDS: Final = 300
"""With fewer records, convolutions are narrow."""
SPREAD: Final = 1.05
"""Sequences whose standard deviations differ by a smaller factor are of one scale."""
SKEWED: Final = 10
"""From this ratio of the most and the least frequent class on, rare classes get a larger weight."""
DEFAULT_MEMBERS: Final = 5
PROBE_KERNELS: Final = 1000
PROBE_RECORDS: Final = 400
CLEARLY: Final = 0.95
"""A normalisation is preferred to the usual one if its loss in the probe is below this share of that one's."""
ORDERS_OF_MAGNITUDE: Final = 100
"""From this factor between the standard deviations of sequences on, the usual normalisation is `sequence`, below it
`both`."""
PATIENCE_STEPS: Final = 300
LEAST_EPOCHS: Final = 5
"""Even of many records, each is seen so many times."""


@dataclass(frozen=True, slots=True)
class Plan:
    """What is trained, and why.

    Attributes:
        spec: The spec; no key is `auto`.
        options: The options of a run.
        runs: Number of runs with different seeds, of which the best is kept. An ensemble is one run.
        reasons: One sentence for each choice.
        warnings: What the user should know about the data.
        probe: Accuracy of the probe on sequences that it was not fitted to; None without a probe.
    """

    spec: Spec
    options: TrainingOptions
    runs: int
    reasons: tuple[str, ...]
    warnings: tuple[str, ...]
    probe: float | None = None


@dataclass(frozen=True, slots=True)
class DataFacts:
    """What the training records look like.

    Attributes:
        records: Their number.
        median_length: Median number of steps.
        longest: Largest number of steps.
        missing: Share of missing values.
        spread: The factor between the standard deviations of small and large sequences (their tenth and ninetieth
            percentile), of the feature where it is largest; infinity if some sequences are constant. 1 for tokens.
        shift: Standard deviation of the means of sequences, relative to that of all values, of the largest feature.
    """

    records: int
    median_length: float
    longest: int
    missing: float
    spread: float
    shift: float


def look(records: Sequence[Record]) -> DataFacts:
    """Computes the facts about records."""
    lengths = [len(record.steps) for record in records]
    values = [np.asarray(record.steps, dtype=np.float64) for record in records]
    facts = (len(records), float(np.median(lengths)), max(lengths))
    if values[0].ndim == 1:
        return DataFacts(*facts, missing=0.0, spread=1.0, shift=0.0)
    missing = sum(int(np.isnan(steps).sum()) for steps in values) / sum(steps.size for steps in values)
    levels = np.array([_means(steps) for steps in values])  # (records, features)
    scales = np.array([np.sqrt(_means((steps - level) ** 2)) for steps, level in zip(values, levels, strict=True)])
    low, high = np.quantile(scales, [0.1, 0.9], axis=0)
    spreads = np.where(high > 0, high / np.maximum(low, high * 1e-12), 1.0)
    everything = np.concatenate(values)
    std = np.sqrt(_means((everything - _means(everything)) ** 2))
    shifts = levels.std(axis=0) / np.where(std > 0, std, 1.0)
    spread = float(spreads.max())
    return DataFacts(*facts, missing, math.inf if spread >= 1e11 else spread, float(shifts.max()))


def _means(steps: NDArray[np.float64]) -> NDArray[np.float64]:
    """`[features]`, the mean of the values that are present; 0 if none is."""
    present = ~np.isnan(steps)
    return np.asarray(np.where(present, steps, 0.0).sum(axis=0) / np.maximum(present.sum(axis=0), 1))


def plan(spec: Spec, records: Sequence[Record], given: Mapping[str, Any], recipe: RecipeOptions) -> Plan:
    """Chooses everything that is not given.

    Args:
        spec: The user's spec.
        records: The training records.
        given: The options of `TrainingOptions` that the user gives, by their names.
        recipe: The options about the whole training.

    Raises:
        ConfigurationError: A record does not fit the spec.
    """
    if len(records) < 2:
        raise ConfigurationError(f"{len(records)} records are too few to train on")
    facts = look(records)
    reasons: list[str] = []
    spec = _missing(spec, facts, reasons)
    members = examples(records, spec)  # every record fits
    spec, probe = _normalize(spec, records, facts, reasons)
    trains_layers = recipe.ensemble or recipe.seeds > 1 or bool(given.keys() - rocket.APPLICABLE)
    spec = _layers(spec, facts, reasons, trains_layers=trains_layers)
    if spec.model.kind == "rocket":
        if recipe.ensemble or recipe.seeds > 1:
            raise ConfigurationError(
                "--seeds and --ensemble are for layers that are trained: the kernels of kind = 'rocket' are fixed"
            )
        applicable = {name: value for name, value in given.items() if name in rocket.APPLICABLE}
        return Plan(spec, TrainingOptions(**applicable), 1, tuple(reasons), (), probe)
    if recipe.ensemble:
        count = recipe.seeds if recipe.seeds > 1 else DEFAULT_MEMBERS
        spec = spec.with_keys(model={"members": count})
        reasons.append(f"members = {count}: --ensemble, one graph that averages them")
    strata = [stratum(example, spec.output.task) for example in members]
    options, warnings = _options(spec, strata, given, recipe, reasons)
    runs = 1 if recipe.ensemble else recipe.seeds
    if recipe.budget_minutes and "epochs" not in given:
        options = _within_budget(spec, records, options, runs * spec.model.members, recipe, reasons)
    return Plan(spec, options, runs, tuple(reasons), tuple(warnings), probe)


def inapplicable(given: Iterable[str], recipe: RecipeOptions) -> str | None:
    """The first of these options that a spec with `kind = "rocket"` cannot have; None if it can have all.

    Args:
        given: The names of the training options that the user gives.
        recipe: The options about the whole training.
    """
    others = [name for name in given if name not in rocket.APPLICABLE]
    others += [field.name for field in fields(RecipeOptions) if getattr(recipe, field.name) != field.default]
    return next(iter(others), None)


def settled_input(spec: Spec, records: Sequence[Record]) -> Spec:
    """The spec with its keys of `[input]` chosen, as `plan` does."""
    facts = look(records)
    reasons: list[str] = []
    spec = _missing(spec, facts, reasons)
    examples(records, spec)  # every record fits
    return _normalize(spec, records, facts, reasons)[0]


def fixed_schedule(spec: Spec, strata: Sequence[object], recipe: RecipeOptions, *, seed: int) -> TrainingOptions:
    """The options of a run on these examples without validation."""
    return _options(spec, strata, {"validation": 0.0, "seed": seed}, recipe, [])[0]


def _missing(spec: Spec, facts: DataFacts, reasons: list[str]) -> Spec:
    """The policy for missing values, only where the user writes `preset = "auto"` and no policy."""
    if not facts.missing or spec.model.preset != "auto" or spec.input.says("missing"):
        return spec
    reasons.append(f'missing = "indicator": {facts.missing:.1%} of the values are missing')
    return spec.with_keys(input={"missing": "indicator"})


def _normalize(
    spec: Spec, records: Sequence[Record], facts: DataFacts, reasons: list[str]
) -> tuple[Spec, float | None]:
    """The normalisation, if it is `auto`, and the accuracy of the probe."""
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
        choice = "both" if facts.spread >= 3 else "training"
        return _chosen(spec, choice, seen, reasons), None
    tried = {}
    for choice in ("both", "training", "sequence"):
        found = _probe(spec.with_keys(input={"normalize": choice}), records)
        if found is None:
            return _chosen(spec, "both" if facts.spread >= 3 else "training", seen, reasons), None
        tried[choice] = found
    best = min(tried, key=lambda choice: tried[choice][1])
    # Of values that differ by orders of magnitude, the statistics of the training split leave little
    usual = "sequence" if facts.spread >= ORDERS_OF_MAGNITUDE else "both"
    chosen = best if tried[best][1] < CLEARLY * tried[usual][1] else usual
    shares = ", ".join(f"{choice} {accuracy:.3f} ({loss:.3f})" for choice, (accuracy, loss) in sorted(tried.items()))
    why = f"{seen}; accuracy (log loss) of a quick probe on sequences that it was not fitted to: {shares}"
    return _chosen(spec, chosen, why, reasons), tried[chosen][0]


def _chosen(spec: Spec, choice: str, why: str, reasons: list[str]) -> Spec:
    reasons.append(f'normalize = "{choice}": {why}')
    return spec.with_keys(input={"normalize": choice})


def _probe(spec: Spec, records: Sequence[Record]) -> tuple[float, float] | None:
    """Accuracy and log loss of a small rocket model on what it was not fitted to; None if it cannot be fitted."""
    table = spec.resolved() | {"model": {"kind": "rocket", "kernels": PROBE_KERNELS}}
    random = np.random.default_rng(0)
    few = [records[index] for index in sorted(random.permutation(len(records))[:PROBE_RECORDS])]
    try:
        scores = rocket.fit(Spec.from_table(table), few, TrainingOptions()).left_out
    except (ConfigurationError, np.linalg.LinAlgError):
        return None
    return scores.accuracy, scores.loss


def _layers(spec: Spec, facts: DataFacts, reasons: list[str], *, trains_layers: bool) -> Spec:
    """The layers, if they are `auto`. An option that only such layers have asks for them."""
    if not spec.model.is_auto:
        return spec
    trains_layers = trains_layers or bool(spec.model.model_fields_set - {"preset"})
    can_be_rocket = spec.input.kind == "values" and spec.output.task == "single-label" and not trains_layers
    enough = FEW_RECORDS if facts.median_length <= SHORT_STEPS else MANY_RECORDS
    if facts.records < enough and can_be_rocket:
        reasons.append(
            f'kind = "rocket": {facts.records} records with a median of {facts.median_length:g} steps; below {enough}, '
            "fixed kernels with a linear head usually learn more than layers that are trained"
        )
        return spec.with_keys(model={"preset": None, "kind": "rocket"})
    name, why = "conv", f"a median of {facts.median_length:g} steps"
    if spec.input.kind == "tokens" or spec.output.task == "per-step":
        name, why = "rnn", "tokens" if spec.input.kind == "tokens" else "an answer for each step"
    elif facts.median_length <= SHORT_STEPS:
        name = "rnn"
    keys: dict[str, Any] = {"preset": name}
    if name == "conv" and facts.records < NARROW_RECORDS:
        keys |= presets.narrow_conv()
        why += f", and narrow layers for {facts.records} records"
    reasons.append(f'preset = "{name}": {why}')
    return spec.with_keys(model=keys)


def _options(
    spec: Spec, strata: Sequence[object], given: Mapping[str, Any], recipe: RecipeOptions, reasons: list[str]
) -> tuple[TrainingOptions, list[str]]:
    """The options of a run, and warnings about the split."""
    warnings: list[str] = []
    options: dict[str, Any] = {"warm_up": 0.1, "average": 0.99, "label_smoothing": 0.1, "learning_rate": 2e-3}
    if spec.output.task != "single-label":
        options["label_smoothing"] = 0.0
    options |= given
    records = len(strata)
    counts = Counter(strata)
    share = options.get("validation")
    if share is None:
        default = _default_of("validation")
        held = len(stratified_split(strata, default, seed=0)[1])
        options["validation"] = share = default if held >= SMALLEST_VALIDATION else 0.0
        if not share:
            reasons.append(
                f"validation = 0: {default:.0%} of {records} records would be {held}, too few to choose an epoch by; "
                "all records are trained on, with a fixed schedule"
            )
    elif share:
        held = len(stratified_split(strata, share, seed=0)[1])
        if held < SMALLEST_VALIDATION:
            warnings.append(
                f"validation has {held} records: the epoch that it chooses, and its accuracy, are mostly chance; "
                "leave --validation out to train on all records with a fixed schedule"
            )
    warnings += _classes(spec, counts, share)
    if "class_weights" not in given and spec.output.task == "single-label" and len(counts) > 1:
        ratio = max(counts.values()) / min(counts.values())
        if ratio >= SKEWED:
            options["class_weights"] = True
            reasons.append(f"class weights: the most frequent class has {ratio:.0f} times the records of the rarest")
    rows = options.get("batch_rows", _default_of("batch_rows"))
    training = records - len(stratified_split(strata, share, seed=0)[1])
    steps = max(math.ceil(training / rows), 1)
    if "epochs" not in given:
        options["epochs"] = epochs = max(math.ceil(recipe.min_steps / steps), LEAST_EPOCHS)
        reasons.append(f"{epochs} epochs of {steps} steps: at least {recipe.min_steps} steps in all")
    if "patience" not in given:
        options["patience"] = max(math.ceil(PATIENCE_STEPS / steps), options["epochs"] // 4, 10)
    return TrainingOptions(**options), warnings


def _classes(spec: Spec, counts: Mapping[object, int], validation: float) -> list[str]:
    """Warnings about labels that a split lacks."""
    if spec.output.task != "single-label":
        return []
    labels = spec.output.labels
    absent = [label for index, label in enumerate(labels) if not counts.get(index)]
    lonely = [label for index, label in enumerate(labels) if counts.get(index) == 1]
    said = []
    if absent:
        said.append(f"no record has the label {_listed(absent)}: the model cannot learn it")
    if lonely and validation:
        said.append(f"only one record has the label {_listed(lonely)}: it is in training, and not in validation")
    return said


def _within_budget(
    spec: Spec,
    records: Sequence[Record],
    options: TrainingOptions,
    runs: int,
    recipe: RecipeOptions,
    reasons: list[str],
) -> TrainingOptions:
    """Fewer epochs, if the budget would not hold all; measured with one epoch of a run that is thrown away."""
    from dataclasses import replace

    members = examples(records, spec)
    single = spec.with_keys(model={"members": 1})
    kept = torch.get_rng_state()
    began = time.monotonic()
    TrainingRun.start(single, members, [], options).epoch()
    seconds = time.monotonic() - began
    torch.set_rng_state(kept)
    most = max(int(recipe.budget_minutes * 60 / (seconds * runs)), 1)
    if most >= options.epochs:
        return options
    reasons.append(
        f"{most} epochs in the place of {options.epochs}: an epoch takes {seconds:.2f} s here, and "
        f"--budget-minutes is {recipe.budget_minutes:g}" + (f" for {runs} runs" if runs > 1 else "")
    )
    return replace(options, epochs=most)


def _default_of(name: str) -> Any:
    return next(field.default for field in fields(TrainingOptions) if field.name == name)


def _listed(labels: Sequence[str]) -> str:
    rest = f" and {len(labels) - 5} more" if len(labels) > 5 else ""
    return ", ".join(labels[:5]) + rest


def _factor(spread: float) -> str:
    return "more than 1e11" if math.isinf(spread) else f"{spread:.3g}"
