"""The options of a training run that are not given: epochs, patience, the validation split, class weights."""

from __future__ import annotations

import math
import time
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import fields, replace
from typing import Any, Final

import torch

from lengthwise.decoding.dataset import Record
from lengthwise_export.architecture.spec import Spec
from lengthwise_export.training.batches import examples, stratified_split
from lengthwise_export.training.options import RecipeOptions, TrainingOptions
from lengthwise_export.training.run import TrainingRun

SMALLEST_VALIDATION: Final = 60
"""With fewer records for validation, the epoch that it chooses is mostly chance."""
SKEWED: Final = 10
"""From this ratio of the most and the least frequent class on, rare classes get a larger weight."""
PATIENCE_STEPS: Final = 300
LEAST_EPOCHS: Final = 5
"""Even of many records, each is seen so many times."""


def chosen(
    spec: Spec, strata: Sequence[object], given: Mapping[str, Any], recipe: RecipeOptions, reasons: list[str]
) -> tuple[TrainingOptions, list[str]]:
    """The options of a run, and warnings about the split.

    Args:
        spec: The spec of layers.
        strata: Of each example, what a split keeps the shares of: see `batches.stratum`.
        given: The options that the user gives, by their names.
        recipe: The options about the whole training.
        reasons: The reason for each choice is added.
    """
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


def without_validation(spec: Spec, strata: Sequence[object], recipe: RecipeOptions, *, seed: int) -> TrainingOptions:
    """The options of a run on these examples without validation."""
    return chosen(spec, strata, {"validation": 0.0, "seed": seed}, recipe, [])[0]


def within_budget(
    spec: Spec,
    records: Sequence[Record],
    options: TrainingOptions,
    runs: int,
    recipe: RecipeOptions,
    reasons: list[str],
    *,
    spent: float,
) -> TrainingOptions:
    """Fewer epochs, if what is left of the budget would not hold all; measured with an epoch that is thrown away."""
    members = examples(records, spec)
    single = spec.with_keys(model={"members": 1})
    kept = torch.get_rng_state()
    began = time.monotonic()
    TrainingRun.start(single, members, [], options).epoch()
    seconds = time.monotonic() - began
    torch.set_rng_state(kept)
    most = max(int((recipe.budget_minutes * 60 - spent) / (seconds * runs)), 1)
    if most >= options.epochs:
        return options
    reasons.append(
        f"{most} epochs in the place of {options.epochs}: an epoch takes {seconds:.2f} s here, and "
        f"--budget-minutes is {recipe.budget_minutes:g}"
        + (f" for {runs} runs" if runs > 1 else "")
        + (f", of which the choice took {spent:.0f} s" if spent >= 1 else "")
    )
    return replace(options, epochs=most)


def _default_of(name: str) -> Any:
    return next(field.default for field in fields(TrainingOptions) if field.name == name)
