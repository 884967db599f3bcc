"""What `train` chooses from the data: normalisation, layers, and the options of the training that are not given.

```
records -> look (spread of scales, missing share, lengths) ┬-> normalisation (`normalizing`)
                                                           ├-> missing policy, fixed kernels or layers (`choice`), size
                                                           └-> epochs, validation, patience (`schedule`)
```
Each choice comes with its reason, and the spec that is written holds no `auto`. A key or an option that the user gives
is never changed.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass, fields, replace
from typing import Any, Final

from lengthwise.datasets.dataset import Record
from lengthwise.errors import ConfigurationError
from lengthwise_export.architecture.model_spec import NARROW_CONV
from lengthwise_export.architecture.spec import Spec
from lengthwise_export.training import choice, facts, normalizing, rocket, schedule
from lengthwise_export.training.batches import examples, stratum
from lengthwise_export.training.choice import KindComparison
from lengthwise_export.training.facts import DataFacts
from lengthwise_export.training.options import TrainingOptions, TrainOptions
from lengthwise_export.training.rocket import RocketResult

SHORT_STEPS: Final = 40
"""Up to this median length, `auto` takes recurrent layers, which are then quick to train."""
MANY_RECORDS: Final = 2000
"""With fewer records, `auto` begins with fixed kernels, which are fitted in seconds, and compares layers with them if
they leave something to gain. With more, it takes layers."""
NARROW_RECORDS: Final = 300
"""With fewer records, convolutions are narrow."""
DEFAULT_MEMBERS: Final = 5
ROCKET_FEATURES: Final = ("length", "level", "scale")
ROCKET_MODEL: Final[dict[str, Any]] = {"kind": "rocket", "sequence_features": list(ROCKET_FEATURES)}
"""The keys of `[model]` of fixed kernels that `auto` takes."""


@dataclass(frozen=True, slots=True)
class Choice:
    """A model that was chosen.

    Attributes:
        spec: Its spec.
        reasons: One sentence for each choice.
        probe: Accuracy of the probe on sequences that it was not fitted to; None without a probe.
        folds: What the comparison with the other kind of model says; None without one.
        fitted: The trained model, where choosing it was to train it.
    """

    spec: Spec
    reasons: tuple[str, ...] = ()
    probe: float | None = None
    folds: KindComparison | None = None
    fitted: RocketResult | None = None

    def then(self, other: Choice | normalizing.Normalisation) -> Choice:
        """The choice that was made after this one, with the reasons of both."""
        return replace(self, spec=other.spec, reasons=(*self.reasons, *other.reasons))


@dataclass(frozen=True, slots=True)
class Plan:
    """What is trained, and why.

    Attributes:
        model: The model; no key of its spec is `auto`.
        options: The options of a run.
        runs: Number of runs with different seeds, of which the best is kept. An ensemble is one run.
        reasons: One sentence for each choice.
        warnings: What the user should know about the data.
    """

    model: Choice
    options: TrainingOptions
    runs: int
    reasons: tuple[str, ...]
    warnings: tuple[str, ...]

    @property
    def spec(self) -> Spec:
        """The spec of the model."""
        return self.model.spec


def plan(spec: Spec, records: Sequence[Record], asked: TrainOptions) -> Plan:
    """Chooses everything that is not given.

    Raises:
        ConfigurationError: There are too few records, or an option is for another kind of model.
    """
    if len(records) < 2:
        raise ConfigurationError(f"{len(records)} records are too few to train on")
    if spec.model.kind == "rocket":
        require_applicable(asked)
    began = time.monotonic()
    seen, warnings = facts.look(records), tuple(facts.warnings(spec, records))
    made = _missing(spec, seen)
    members = examples(records, made.spec)
    run = TrainingOptions(**{name: value for name, value in _given(asked).items() if name in rocket.APPLICABLE})
    trains_layers = _for_layers(asked) or bool(spec.model.model_fields_set - {"preset"})
    if spec.model.is_auto and not trains_layers and _can_be_rocket(made.spec, seen, len(members)):
        made = _rocket_or_layers(made, records, seen, asked, _calibrated(run))
    else:
        found = normalizing.chosen(made.spec, records, seen, sequence_features=spec.model.sequence_features)
        if spec.model.kind == "rocket":
            found = normalizing.with_all_kernels(found, records, _calibrated(run))
        made = replace(made.then(found), probe=found.accuracy, fitted=found.fitted)
        made = made.then(_layers(made.spec, seen)) if spec.model.is_auto else made
    if made.spec.model.kind == "rocket":
        made = made if run == _calibrated(run) else replace(made, fitted=None)
        return Plan(made, run, 1, made.reasons, warnings)
    if asked.ensemble:
        count = asked.seeds if asked.seeds > 1 else DEFAULT_MEMBERS
        why = f"members = {count}: --ensemble, one graph that averages them"
        made = made.then(Choice(made.spec.with_keys(model={"members": count}), (why,)))
    strata = [stratum(example, spec.output.task) for example in members]
    found_options = schedule.chosen(made.spec, strata, _given(asked))
    runs = 1 if asked.ensemble else asked.seeds
    if asked.budget_minutes and asked.epochs is None:
        networks, spent = runs * made.spec.model.members, time.monotonic() - began
        found_options = schedule.within_budget(
            made.spec, records, found_options, runs=networks, minutes=asked.budget_minutes, spent=spent
        )
    reasons = (*made.reasons, *found_options.reasons)
    return Plan(made, found_options.options, runs, reasons, (*warnings, *found_options.warnings))


def require_applicable(asked: TrainOptions) -> None:
    """Refuses options that a spec with `kind = "rocket"` cannot have.

    Raises:
        ConfigurationError: There is such an option.
    """
    for name in [*_for_layers(asked), *(["budget_minutes"] if asked.budget_minutes else [])]:
        flag = f"--{name.replace('_', '-')}"
        raise ConfigurationError(f"{flag} has no meaning with kind = 'rocket': it is for gradient descent")


def _given(asked: TrainOptions) -> dict[str, Any]:
    """The options of a run that the user gives, by their names."""
    given = {
        one.name: getattr(asked, one.name) for one in fields(TrainingOptions) if one.name in asked.model_fields_set
    }
    return {name: value for name, value in given.items() if value is not None}


def _for_layers(asked: TrainOptions) -> list[str]:
    """The options of the user that ask for layers."""
    whole = {"seeds": asked.seeds > 1, "ensemble": asked.ensemble}
    return sorted(_given(asked).keys() - rocket.APPLICABLE) + [name for name, is_given in whole.items() if is_given]


def _missing(spec: Spec, facts: DataFacts) -> Choice:
    """The policy for missing values, only where the user writes `preset = "auto"` and no policy."""
    if not facts.missing or spec.model.preset != "auto" or spec.input.says("missing"):
        return Choice(spec)
    why = f'missing = "indicator": {facts.missing:.1%} of the values are missing'
    return Choice(spec.with_keys(input={"missing": "indicator"}), (why,))


def _can_be_rocket(spec: Spec, facts: DataFacts, examples: int) -> bool:
    """Whether fixed kernels can be fitted; each window of a long sequence is an example."""
    suits = spec.input.kind == "values" and spec.output.task == "single-label" and facts.records <= MANY_RECORDS
    return suits and rocket.fits_in_memory(examples, spec.model.kernels)


def _calibrated(run: TrainingOptions) -> TrainingOptions:
    """The options with which models are compared: log losses mean little without calibration."""
    return replace(run, calibration=True)


def _rocket_or_layers(
    before: Choice, records: Sequence[Record], facts: DataFacts, asked: TrainOptions, run: TrainingOptions
) -> Choice:
    """Fixed kernels, fitted with the options `run`, or layers where their accuracy on folds is higher."""
    kernels, fixed = _rocket(before, records, facts, asked, run)
    seen = f"MiniRocket is correct on {fixed.left_out.accuracy:.1%} of the records (leave-one-out)"
    other = _layers(before.spec, facts)
    strata = [stratum(example, "single-label") for example in examples(records, other.spec)]
    options = schedule.chosen(other.spec, strata, {"validation": 0.0}).options
    preset = other.spec.model.preset
    why_not = _why_no_folds(records, fixed, f'`preset = "{preset}"` in [model] trains them', options, asked)
    if why_not:
        return kernels.then(Choice(kernels.spec, (f'kind = "rocket": {seen}; {why_not}',)))
    layers = before.then(normalizing.chosen(before.spec, records, facts, sequence_features=()))
    layers = layers.then(_layers(layers.spec, facts))
    compared = choice.compare(kernels.spec, layers.spec, records, options)
    seen = (
        f"on {compared.answers} held-out records MiniRocket is correct on {compared.rocket:.1%}, a neural network "
        f"(preset {preset!r}) on {compared.layers:.1%}"
    )
    if compared.prefers_layers:
        why = f'preset = "{preset}" and not kind = "rocket": {seen}'
        return replace(layers.then(Choice(layers.spec, (why,))), probe=kernels.probe, folds=compared)
    return kernels.then(Choice(kernels.spec, (f'kind = "rocket": {seen}',)))


def _rocket(
    before: Choice, records: Sequence[Record], facts: DataFacts, asked: TrainOptions, run: TrainingOptions
) -> tuple[Choice, RocketResult]:
    """The best fixed kernels, and a model that was fitted with them."""
    features = (*ROCKET_FEATURES, *(["missing"] if facts.missing else []))
    found = normalizing.chosen(before.spec, records, facts, sequence_features=features)
    model = {"preset": None} | ROCKET_MODEL | {"sequence_features": list(features)}
    found = found._replace(spec=found.spec.with_keys(model=model))
    if not 0 < asked.budget_minutes < choice.FEWEST_MINUTES:
        found = normalizing.with_all_kernels(found, records, run)
    made = replace(before.then(found), probe=found.accuracy)
    fixed = found.fitted or rocket.fit(made.spec, records, run)
    if before.reasons:  # the policy for missing values was open
        filled = made.spec.with_keys(input={"missing": "mean"})
        other = rocket.fit(filled, records, run)
        if other.left_out.loss < fixed.left_out.loss:
            why = 'missing = "mean": MiniRocket has a lower loss with it'
            made, fixed = made.then(Choice(filled, (why,))), other
    return replace(made, fitted=fixed), fixed


def _why_no_folds(
    records: Sequence[Record], fixed: RocketResult, ask_for_them: str, options: TrainingOptions, asked: TrainOptions
) -> str:
    """Why layers need not be compared with fixed kernels, or would take too long; empty if they should be compared."""
    steps = choice.steps_of_folds(records, options)
    if fixed.left_out.accuracy >= normalizing.ENOUGH:
        return "a neural network could gain little"
    if len(records) < choice.FEWEST_RECORDS:
        return f"{len(records)} records are too few to compare a neural network with it"
    if len(fixed.left_out.of) > len(records):
        return "neural networks are not compared where sequences are cut into windows"
    if 0 < asked.budget_minutes < choice.FEWEST_MINUTES:
        return f"neural networks are not tried below --budget-minutes {choice.FEWEST_MINUTES:g}; {ask_for_them}"
    if steps > choice.MOST_STEPS:
        return (
            f"neural networks are not tried, because that would take {steps / 1e6:.1f} million training steps; "
            f"{ask_for_them}"
        )
    return ""


def _layers(spec: Spec, facts: DataFacts) -> Choice:
    """The layers, by the lengths."""
    name, why = "conv", f"a median of {facts.median_length:g} steps"
    if spec.input.kind == "tokens" or spec.output.task == "per-step":
        name, why = "rnn", "tokens" if spec.input.kind == "tokens" else "an answer for each step"
    elif facts.median_length <= SHORT_STEPS:
        name = "rnn"
    keys: dict[str, Any] = {"preset": name}
    if name == "conv" and facts.records < NARROW_RECORDS:
        keys |= NARROW_CONV
        why += f", and narrow layers for {facts.records} records"
    return Choice(spec.with_keys(model=keys), (f'preset = "{name}": {why}',))
