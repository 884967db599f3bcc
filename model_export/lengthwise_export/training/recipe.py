"""What `train` chooses from the data: normalisation, layers, and the options of the training that are not given.

```
records -> facts (spread of scales, missing share, lengths) ┬-> normalisation (`choice`)
                                                           ├-> missing policy, fixed kernels or layers (`choice`), size
                                                           └-> epochs, validation, patience, class weights
```
Each choice comes with its reason, and the spec that is written holds no `auto`. A key or an option that the user gives
is never changed.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from typing import Any, Final

from lengthwise.exporter_api.data import Record, doubts
from lengthwise_export.architecture.model_spec import NARROW_CONV
from lengthwise_export.architecture.spec import Spec
from lengthwise_export.errors import ConfigurationError, first_of
from lengthwise_export.training import choice, rocket
from lengthwise_export.training.batches import make_examples, stratified_split, stratum
from lengthwise_export.training.choice import DataFacts, Plan
from lengthwise_export.training.options import ROCKET_OPTIONS, TrainingOptions, TrainOptions, options_of_layers
from lengthwise_export.training.record_checks import allow_open_missing, missing_is_open, static_values_of
from lengthwise_export.training.streamable import ROCKET_KEYS, with_streaming_choices

FEW_RECORDS: Final = 10  # with fewer records, no accuracy says anything
SHORT_STEPS: Final = 40  # up to this median length, `auto` takes recurrent layers, which are then quick to train
# Up to this number of records, `auto` takes fixed kernels, which are fitted in seconds; with more, layers
MANY_RECORDS: Final = 2000
NARROW_RECORDS: Final = 300  # with fewer records, convolutions are narrow
ROCKET_FEATURES: Final = ("length", "level", "scale")
# The keys of `[model]` of fixed kernels that `auto` takes
ROCKET_MODEL: Final[dict[str, Any]] = {"kind": "rocket", "sequence_features": list(ROCKET_FEATURES)}
# Those of summaries
SUMMARIES_MODEL: Final[dict[str, Any]] = {"kind": "summaries", "classifier": "extra-trees"}
LARGE_TABLE: Final = 10_000  # with more records, boosted trees are taken: those of a forest grow with the records

SMALLEST_VALIDATION: Final = 60  # with fewer records for validation, the epoch that it chooses is mostly chance
SKEWED: Final = 10  # from this ratio of the most and the least frequent class on, rare classes get a larger weight
LEAST_STEPS: Final = 600  # of the optimiser, which raises the number of epochs for small data sets
PATIENCE_STEPS: Final = 300
LEAST_EPOCHS: Final = 5  # however many records there are


def plan(spec: Spec, records: Sequence[Record], user_options: TrainOptions) -> Plan:
    """Chooses what the spec and the options leave open: normalisation, policy, layers, and the run's options.

    Args:
        spec: The user's spec, complete but for what is chosen here.
        records: The training records.
        user_options: What the user gives; None or unset is open.

    Raises:
        ConfigurationError: There are fewer than two records, or an option of gradient descent for fixed kernels.
    """
    if (count := sum(record.has_label for record in records)) < 2:
        raise ConfigurationError(f"{count} records are too few to train on")
    if user_options.streaming:
        spec = with_streaming_choices(spec)
    settings = user_options.model_dump(include={*TrainingOptions.model_fields}, exclude_unset=True, exclude_none=True)
    for_layers = options_of_layers(user_options, spec.model.kind)
    # The policy for missing values
    opened = allow_open_missing(spec)
    static = [static_values_of(record, opened) for record in records] if spec.input.static_input else []
    facts, start = choice.facts_of(records, static), Plan(spec, warnings=tuple(_warnings_of(spec, records)))
    chooses_missing = facts.missing > 0 and missing_is_open(spec)
    if chooses_missing:
        why = f'missing = "indicator": {facts.missing:.1%} of the values are missing'
        start = start.with_choice(why, input={"missing": "indicator"})
    if spec.model.kind == "summaries":
        chosen = _with_classifier(start, facts) if spec.model.classifier is None else start
        known = {name: value for name, value in settings.items() if name in ROCKET_OPTIONS}
        return replace(chosen, options=TrainingOptions(**known))
    # Fixed kernels or layers: the user asks for layers by an option or a key of `[model]` that only layers have
    examples = make_examples(records, start.spec)
    options = TrainingOptions(**{name: value for name, value in settings.items() if name in ROCKET_OPTIONS})
    # Models that are compared are calibrated, whatever the user wants, as their log losses mean little otherwise
    calibrated = options.model_copy(update={"calibration": True})
    asks_for_layers = for_layers or spec.model.model_fields_set - {"preset"}
    if spec.model.is_auto and not asks_for_layers and _can_be_rocket(start.spec, facts, len(examples)):
        further = ROCKET_KEYS if user_options.streaming else {}
        chosen = _best_rocket(start, records, facts, calibrated, chooses_missing=chooses_missing, further=further)
        if not user_options.streaming:
            chosen = _or_summaries(chosen, spec, records, calibrated, facts.missing if chooses_missing else 0.0)
    else:
        chosen = choice.choose_normalisation(start, records, facts, spec.model.sequence_features)
        if spec.model.kind != "rocket":
            layers = chosen
            if spec.model.is_auto:
                layers = _with_layers(chosen, facts, streaming=user_options.streaming)
            return _with_schedule(layers, [stratum(example, spec.output.task) for example in examples], settings)
        chosen = choice.choose_with_whole_models(chosen, records, calibrated)
    # `fitted`, a model of the comparison, is calibrated: without calibration, the model is fitted again
    return replace(chosen, options=options, fitted=chosen.fitted if options.calibration else None)


def _can_be_rocket(spec: Spec, facts: DataFacts, examples: int) -> bool:
    """Whether `auto` may take fixed kernels for this spec and data; `examples` counts windows of long sequences."""
    suits = spec.input.kind == "values" and spec.output.task == "single-label" and facts.records <= MANY_RECORDS
    return suits and rocket.fits_in_memory(examples, spec.model.kernels)


def _best_rocket(
    start: Plan,
    records: Sequence[Record],
    facts: DataFacts,
    options: TrainingOptions,
    *,
    chooses_missing: bool,
    further: Mapping[str, Any],
) -> Plan:
    """Chooses the keys of a rocket model, and fits it; the returned plan holds it as `fitted`.

    Args:
        start: What was chosen before.
        records: The training records.
        facts: About these records.
        options: Those of the fit.
        chooses_missing: Whether the policy for missing values, `indicator` in `start`, may still be replaced: by
            `mean`, if the leave-one-out loss with it is lower.
        further: Keys of `[model]` that are not to be chosen.
    """
    features = [*ROCKET_FEATURES, *(["missing"] if facts.missing else [])]
    normalised = choice.choose_normalisation(start, records, facts, features)
    model = {"preset": None} | ROCKET_MODEL | {"sequence_features": features} | dict(further)
    plan = replace(normalised, spec=normalised.spec.with_keys(model=model))
    plan = choice.choose_with_whole_models(plan, records, options)
    fitted = plan.fitted or rocket.fit(plan.spec, records, options)
    if chooses_missing:
        filled = plan.with_choice('missing = "mean": MiniRocket has a lower loss with it', input={"missing": "mean"})
        fitted_to_filled = rocket.fit(filled.spec, records, options)
        if fitted_to_filled.splits["left_out"].loss < fitted.splits["left_out"].loss:
            plan, fitted = filled, fitted_to_filled
    # The reason names a preset of layers that the user may try instead
    correct = f"MiniRocket is correct on {fitted.splits['left_out'].accuracy:.1%} of the records (leave-one-out)"
    preset = _with_layers(start, facts).spec.model.preset
    why = f'kind = "rocket": {correct}; `preset = "{preset}"` in [model] trains a neural network'
    return replace(plan.with_choice(why), fitted=fitted)


def _or_summaries(
    rocket_plan: Plan, spec: Spec, records: Sequence[Record], options: TrainingOptions, missing: float
) -> Plan:
    """The plan of fixed kernels, or one of summaries if their held-out loss is lower by two standard errors.

    Summaries are not tried if there are few records or nearly all answers are right already, or if a key of the user's
    has no meaning for them.

    Args:
        rocket_plan: The plan of fixed kernels, with its fitted model.
        spec: The spec before anything was chosen.
        records: The training records.
        options: Those of the fit.
        missing: The share of missing values, if their policy is open; otherwise 0.
    """
    assert rocket_plan.fitted is not None
    left_out = rocket_plan.fitted.splits["left_out"]
    if left_out.accuracy >= choice.ENOUGH or not choice.FEWEST_COMPARED <= left_out.answers == len(records):
        return rocket_plan
    from lengthwise_export.training import summaries  # brings scikit-learn's trees along

    plan = Plan(spec, warnings=rocket_plan.warnings)
    if missing:
        plan = plan.with_choice(f'missing = "handled": {missing:.1%} of the values are missing')
    try:
        chosen = spec.with_keys(
            model={"preset": None} | SUMMARIES_MODEL, input={"missing": "handled"} if missing else {}
        )
        fitted = summaries.fit(chosen, records, options)
    except ConfigurationError:
        return rocket_plan
    scores = fitted.splits["left_out"]
    if not choice.is_clear(left_out.losses - scores.losses):
        return rocket_plan
    why = f'kind = "summaries": held-out log loss {scores.loss:.3g}, of MiniRocket {left_out.loss:.3g}'
    return replace(plan.with_choice(why), spec=chosen, fitted=fitted.result())


def _with_classifier(plan: Plan, facts: DataFacts) -> Plan:
    """The plan with trees for summaries, chosen by the number of records."""
    is_large = facts.records > LARGE_TABLE and plan.spec.output.task == "single-label"
    name = "boosted-trees" if is_large else "extra-trees"
    return plan.with_choice(f'classifier = "{name}": {facts.records} records', model={"classifier": name})


def _with_layers(plan: Plan, facts: DataFacts, *, streaming: bool = False) -> Plan:
    """The plan with a preset of layers, chosen by the task, the kind of a step and the median length.

    With `streaming` it is recurrent layers that read forward only.
    """
    if streaming:
        why = 'preset = "rnn", bidirectional = false: they stream'
        return plan.with_choice(why, model={"preset": "rnn", "bidirectional": False})
    name, why = "conv", f"a median of {facts.median_length:g} steps"
    if plan.spec.input.kind == "tokens" or plan.spec.output.task == "per-step":
        name, why = "rnn", "tokens" if plan.spec.input.kind == "tokens" else "an answer for each step"
    elif facts.median_length <= SHORT_STEPS:
        name = "rnn"
    keys: dict[str, Any] = {"preset": name}
    if name == "conv" and facts.records < NARROW_RECORDS:
        keys |= NARROW_CONV
        why += f", and narrow layers for {facts.records} records"
    return plan.with_choice(f'preset = "{name}": {why}', model=keys)


def _with_schedule(plan: Plan, strata: Sequence[object], settings: Mapping[str, Any]) -> Plan:
    """The plan of layers with all options of the run: validation split, class weights, epochs and patience.

    Args:
        plan: What is trained.
        strata: What `stratum` returns for each example.
        settings: The options that the user gives, by name, which are kept.
    """
    options = TrainingOptions(**settings)
    chosen: dict[str, Any] = {}  # options by name
    # The validation split: none if too few examples would be held out
    held_out = len(stratified_split(strata, options.validation, seed=0)[1])
    if "validation" not in settings and held_out < SMALLEST_VALIDATION:
        plan = plan.with_choice(
            f"validation = 0: {options.validation:.0%} of {len(strata)} records would be {held_out}, too few to "
            "choose an epoch by; all records are trained on, with a fixed schedule"
        )
        chosen["validation"], held_out = 0.0, 0
    elif options.validation and held_out < SMALLEST_VALIDATION:
        warning = (
            f"validation has {held_out} records: the epoch that it chooses, and its accuracy, are mostly chance; "
            "leave --validation out to train on all records with a fixed schedule"
        )
        plan = replace(plan, warnings=(*plan.warnings, warning))
    # Class weights
    counts = Counter(strata).values()
    ratio = max(counts) / min(counts)
    if "class_weights" not in settings and plan.spec.output.task == "single-label" and ratio >= SKEWED:
        plan = plan.with_choice(
            f"class weights: the most frequent class has {ratio:.0f} times the records of the rarest"
        )
        chosen["class_weights"] = True
    # Epochs and patience, from the steps of the optimiser in an epoch
    steps = max(math.ceil((len(strata) - held_out) / options.batch_rows), 1)
    epochs = max(math.ceil(LEAST_STEPS / steps), LEAST_EPOCHS)
    if "epochs" not in settings:
        plan = plan.with_choice(f"{epochs} epochs of {steps} steps: at least {LEAST_STEPS} steps in all")
    chosen |= {
        "epochs": epochs,
        "patience": max(math.ceil(PATIENCE_STEPS / steps), settings.get("epochs", epochs) // 4, 10),
    }
    return replace(plan, options=options.model_copy(update=chosen | dict(settings)))


def _warnings_of(spec: Spec, records: Sequence[Record]) -> Iterator[str]:
    """Yields warnings about the records: their number, their labels, their ids, their axes, and doubtful ends."""
    counts: Counter[str] = Counter()  # the number of records with each label
    for record in records:
        labels_of_record = record.label if isinstance(record.label, tuple) else (record.label,)
        counts.update({label for label in labels_of_record if label is not None})
    absent = [label for label in spec.output.labels if counts[label] == 0]
    single = [label for label in spec.output.labels if counts[label] == 1]
    repeated = [name for name, count in Counter(record.id for record in records).items() if count > 1]
    doubtful = (
        (
            len(records) < FEW_RECORDS,
            f"{len(records)} records are few: no accuracy that is measured with them says how good the model is",
        ),
        (
            len(counts) == 1 and spec.output.task != "multi-label",
            f"every record has the label {first_of([*counts])}: there is nothing to tell apart",
        ),
        (absent, f"no record has the label {first_of(absent)}: the model cannot learn it"),
        (
            single and len(records) > 1,
            f"only one record has the label {first_of(single)}: nothing measures whether the model learns it",
        ),
        (
            repeated,
            f"several records have the id {first_of(repeated)}: if they are copies, validation measures what was "
            "learned",
        ),
    )
    yield from (text for is_doubtful, text in doubtful if is_doubtful)
    yield from _warnings_of_axes(records)
    yield from doubts([record.steps for record in records])


def _warnings_of_axes(records: Sequence[Record]) -> Iterator[str]:
    """Yields at most one warning: each row of a table may have become a sequence, or the arrays may be transposed."""
    lengths = {len(record.steps) for record in records}
    widths = {record.steps.shape[1] if record.steps.ndim == 2 else 1 for record in records}
    steps, features = min(lengths), min(widths)
    if lengths == {1} and len(records) > 1:
        yield "every sequence has one step: is a row of the data a step, and not a sequence?"
    elif len(lengths) == len(widths) == 1 and steps < features:
        yield (
            f"every sequence has {steps} steps of {features} features: are they transposed? Arrays [features, length], "
            "as aeon and sktime have them, are read with layout='channels-first' (--channels-first)"
        )
