"""What `train` chooses from the data: normalisation, layers, and the options of the training that are not given.

```
records -> look (spread of scales, missing share, lengths) ┬-> normalisation (`normalizing`)
                                                           ├-> missing policy, fixed kernels or layers (`choice`), size
                                                           └-> epochs, learning rate, validation, patience (`schedule`)
```
Each choice comes with its reason, and the spec that is written holds no `auto`. A key or an option that the user gives
is never changed.
"""

from __future__ import annotations

import time
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, fields
from typing import Any, Final

from lengthwise.decoding.dataset import Record
from lengthwise.errors import ConfigurationError
from lengthwise_export.architecture import presets
from lengthwise_export.architecture.spec import Spec
from lengthwise_export.training import choice, data_warnings, normalizing, rocket, schedule
from lengthwise_export.training.batches import examples, stratum
from lengthwise_export.training.facts import DataFacts, look
from lengthwise_export.training.objective import EvaluationScores
from lengthwise_export.training.options import RecipeOptions, TrainingOptions

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
class Plan:
    """What is trained, and why.

    Attributes:
        spec: The spec; no key is `auto`.
        options: The options of a run.
        runs: Number of runs with different seeds, of which the best is kept. An ensemble is one run.
        reasons: One sentence for each choice.
        warnings: What the user should know about the data.
        probe: Accuracy of the probe on sequences that it was not fitted to; None without a probe.
        temperature: The number that calibrates the layers where there is no validation split, from folds; or None.
        held_back: Accuracy of such layers on the records that the folds held back; None without folds.
    """

    spec: Spec
    options: TrainingOptions
    runs: int
    reasons: tuple[str, ...]
    warnings: tuple[str, ...]
    probe: float | None = None
    temperature: float | None = None
    held_back: float | None = None


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
    began = time.monotonic()
    facts = look(records)
    reasons: list[str] = []
    warnings = data_warnings.about(spec, records)
    began_with_policy = bool(spec.input.says("missing"))
    spec = _missing(spec, facts, reasons)
    members = examples(records, spec)  # every record fits
    trains_layers = recipe.ensemble or recipe.seeds > 1 or bool(given.keys() - rocket.APPLICABLE)
    trains_layers = trains_layers or bool(spec.model.model_fields_set - {"preset"})
    compared: choice.KindComparison | None = None
    if spec.model.is_auto and not trains_layers and _can_be_rocket(spec, facts, len(members)):
        policy_is_open = bool(facts.missing) and spec.model.preset == "auto" and not began_with_policy
        spec, probe, compared = _rocket_or_layers(spec, records, facts, recipe, reasons, policy_is_open=policy_is_open)
    else:
        found = normalizing.chosen(spec, records, facts, reasons, sequence_features=spec.model.sequence_features)
        spec, probe = found.spec, found.accuracy
        if spec.model.kind == "rocket":
            weighted = bool(given.get("class_weights"))
            spec = normalizing.with_all_kernels(spec, found.others, records, reasons, class_weights=weighted)
        spec = _layers(spec, facts, reasons) if spec.model.is_auto else spec
    if spec.model.kind == "rocket":
        if recipe.ensemble or recipe.seeds > 1:
            raise ConfigurationError(
                "--seeds and --ensemble are for layers that are trained: the kernels of kind = 'rocket' are fixed"
            )
        applicable = {name: value for name, value in given.items() if name in rocket.APPLICABLE}
        return Plan(spec, TrainingOptions(**applicable), 1, tuple(reasons), tuple(warnings), probe)
    if recipe.ensemble:
        count = recipe.seeds if recipe.seeds > 1 else DEFAULT_MEMBERS
        spec = spec.with_keys(model={"members": count})
        reasons.append(f"members = {count}: --ensemble, one graph that averages them")
    strata = [stratum(example, spec.output.task) for example in members]
    options, of_split = schedule.chosen(spec, strata, given, recipe, reasons)
    runs = 1 if recipe.ensemble else recipe.seeds
    if recipe.budget_minutes and "epochs" not in given:
        spent = time.monotonic() - began
        trainings = runs * spec.model.members
        options = schedule.within_budget(spec, records, options, trainings, recipe, reasons, spent=spent)
    folds = (None, None) if compared is None else (compared.temperature, compared.layers)
    return Plan(spec, options, runs, tuple(reasons), (*warnings, *of_split), probe, *folds)


def inapplicable(given: Iterable[str], recipe: RecipeOptions) -> str | None:
    """The first of these options that a spec with `kind = "rocket"` cannot have; None if it can have all.

    Args:
        given: The names of the training options that the user gives.
        recipe: The options about the whole training.
    """
    others = [name for name in given if name not in rocket.APPLICABLE]
    others += [field.name for field in fields(RecipeOptions) if getattr(recipe, field.name) != field.default]
    return next(iter(others), None)


def _missing(spec: Spec, facts: DataFacts, reasons: list[str]) -> Spec:
    """The policy for missing values, only where the user writes `preset = "auto"` and no policy."""
    if not facts.missing or spec.model.preset != "auto" or spec.input.says("missing"):
        return spec
    reasons.append(f'missing = "indicator": {facts.missing:.1%} of the values are missing')
    return spec.with_keys(input={"missing": "indicator"})


def _can_be_rocket(spec: Spec, facts: DataFacts, examples: int) -> bool:
    """Whether fixed kernels can be fitted; each window of a long sequence is an example."""
    suits = spec.input.kind == "values" and spec.output.task == "single-label" and facts.records <= MANY_RECORDS
    return suits and rocket.fits_in_memory(examples, spec.model.kernels)


def _rocket_or_layers(
    spec: Spec,
    records: Sequence[Record],
    facts: DataFacts,
    recipe: RecipeOptions,
    reasons: list[str],
    *,
    policy_is_open: bool,
) -> tuple[Spec, float | None, choice.KindComparison | None]:
    """Fixed kernels, or layers where folds say that they are right more often.

    Returns:
        The spec, the accuracy of the probe, and what the folds say of the layers; None if fixed kernels are chosen.
    """
    of_rocket: list[str] = []
    normalised = normalizing.chosen(spec, records, facts, of_rocket, sequence_features=ROCKET_FEATURES)
    rocket_spec = normalised.spec.with_keys(model={"preset": None} | ROCKET_MODEL)
    if not 0 < recipe.budget_minutes < choice.FEWEST_MINUTES:
        rocket_spec = normalizing.with_all_kernels(rocket_spec, normalised.others, records, of_rocket)
    fixed = rocket.fit(rocket_spec, records, TrainingOptions()).left_out
    if policy_is_open:
        filled = rocket_spec.with_keys(input={"missing": "mean"})
        found = rocket.fit(filled, records, TrainingOptions()).left_out
        if found.loss < fixed.loss:
            rocket_spec, fixed = filled, found
            of_rocket.append('missing = "mean": MiniRocket has a lower loss with it')
    seen = f"MiniRocket is correct on {fixed.accuracy:.1%} of the records (leave-one-out)"
    why_not = _not_tried(records, fixed)
    if not why_not:
        of_layers: list[str] = []
        layers_spec = normalizing.chosen(spec, records, facts, of_layers, sequence_features=()).spec
        layers_spec = _layers(layers_spec, facts, of_layers)
        members = examples(records, layers_spec)
        strata = [stratum(example, spec.output.task) for example in members]
        options = schedule.without_validation(layers_spec, strata, recipe, seed=0)
        steps = choice.steps_of_folds(records, options)
        ask_for_them = f'`preset = "{layers_spec.model.preset}"` in [model] trains them'
        if len(members) > len(records):
            why_not = "neural networks are not compared where sequences are cut into windows"
        elif 0 < recipe.budget_minutes < choice.FEWEST_MINUTES:
            why_not = f"neural networks are not tried below --budget-minutes {choice.FEWEST_MINUTES:g}; {ask_for_them}"
        elif steps > choice.MOST_STEPS:
            why_not = (
                f"neural networks are not tried, because that would take {steps / 1e6:.1f} million training steps; "
                f"{ask_for_them}"
            )
        else:
            compared = choice.compare(rocket_spec, layers_spec, records, options)
            seen = (
                f"on {compared.answers} held-out records MiniRocket is correct on {compared.rocket:.1%}, "
                f"a neural network (preset {layers_spec.model.preset!r}) on {compared.layers:.1%}"
            )
            if compared.prefers_layers:
                reasons += [*of_layers, f'preset = "{layers_spec.model.preset}" and not kind = "rocket": {seen}']
                return layers_spec, normalised.accuracy, compared
    reasons += [*of_rocket, f'kind = "rocket": {seen}' + (f"; {why_not}" if why_not else "")]
    return rocket_spec, normalised.accuracy, None


def _not_tried(records: Sequence[Record], fixed: EvaluationScores) -> str:
    """Why layers need not be compared with fixed kernels; empty if they should be."""
    if fixed.accuracy >= choice.ENOUGH:
        return "layers could gain little"
    if len(records) < choice.FEWEST_RECORDS:
        return f"{len(records)} records are too few to compare layers with them"
    return ""


def _layers(spec: Spec, facts: DataFacts, reasons: list[str]) -> Spec:
    """The layers, by the lengths."""
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
