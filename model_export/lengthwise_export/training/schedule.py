"""The options of a training run that are not given: epochs, patience, the validation split, class weights."""

from __future__ import annotations

import math
import time
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any, Final, NamedTuple

import torch

from lengthwise.datasets.dataset import Record
from lengthwise_export.architecture.spec import Spec
from lengthwise_export.training.batches import examples, stratified_split
from lengthwise_export.training.options import TrainingOptions
from lengthwise_export.training.run import TrainingRun

SMALLEST_VALIDATION: Final = 60
"""With fewer records for validation, the epoch that it chooses is mostly chance."""
SKEWED: Final = 10
"""From this ratio of the most and the least frequent class on, rare classes get a larger weight."""
LEAST_STEPS: Final = 600
"""Minimum number of optimiser steps, which raises the number of epochs for small data sets."""
PATIENCE_STEPS: Final = 300
LEAST_EPOCHS: Final = 5
"""Even of many records, each is seen so many times."""


class ChosenOptions(NamedTuple):
    """The options of a run, why they were chosen, and what the user should know about the split."""

    options: TrainingOptions
    reasons: tuple[str, ...] = ()
    warnings: tuple[str, ...] = ()


def chosen(spec: Spec, strata: Sequence[object], given: Mapping[str, Any]) -> ChosenOptions:
    """The options of a run.

    Args:
        spec: The spec of layers.
        strata: Of each example, what a split keeps the shares of: see `batches.stratum`.
        given: The options that the user gives, by their names.
    """
    reasons, warnings = [], []
    options = TrainingOptions(**given)
    held = len(stratified_split(strata, options.validation, seed=0)[1])
    if "validation" not in given and held < SMALLEST_VALIDATION:
        reasons.append(
            f"validation = 0: {options.validation:.0%} of {len(strata)} records would be {held}, too few to choose an "
            "epoch by; all records are trained on, with a fixed schedule"
        )
        options, held = replace(options, validation=0.0), 0
    elif options.validation and held < SMALLEST_VALIDATION:
        warnings.append(
            f"validation has {held} records: the epoch that it chooses, and its accuracy, are mostly chance; leave "
            "--validation out to train on all records with a fixed schedule"
        )
    counts = Counter(strata).values()
    if "class_weights" not in given and spec.output.task == "single-label" and max(counts) >= SKEWED * min(counts):
        ratio = max(counts) / min(counts)
        reasons.append(f"class weights: the most frequent class has {ratio:.0f} times the records of the rarest")
        options = replace(options, class_weights=True)
    steps = max(math.ceil((len(strata) - held) / options.batch_rows), 1)
    if "epochs" not in given:
        options = replace(options, epochs=max(math.ceil(LEAST_STEPS / steps), LEAST_EPOCHS))
        reasons.append(f"{options.epochs} epochs of {steps} steps: at least {LEAST_STEPS} steps in all")
    if "patience" not in given:
        options = replace(options, patience=max(math.ceil(PATIENCE_STEPS / steps), options.epochs // 4, 10))
    return ChosenOptions(options, tuple(reasons), tuple(warnings))


def within_budget(
    spec: Spec, records: Sequence[Record], found: ChosenOptions, *, runs: int, minutes: float, spent: float
) -> ChosenOptions:
    """Fewer epochs, if what is left of the budget would not hold all; measured with an epoch that is thrown away.

    Args:
        spec: The spec.
        records: The training records.
        found: The schedule without a budget.
        runs: Number of networks to train.
        minutes: The budget.
        spent: Seconds of it that are spent.
    """
    members = examples(records, spec)
    kept = torch.get_rng_state()
    began = time.monotonic()
    TrainingRun.start(spec.with_keys(model={"members": 1}), members, [], found.options).epoch()
    seconds = time.monotonic() - began
    torch.set_rng_state(kept)
    most = max(int((minutes * 60 - spent) / (seconds * runs)), 1)
    if most >= found.options.epochs:
        return found
    reason = (
        f"{most} epochs in the place of {found.options.epochs}: an epoch takes {seconds:.2f} s here, and "
        f"--budget-minutes is {minutes:g}"
        + (f" for {runs} runs" if runs > 1 else "")
        + (f", of which the choice took {spent:.0f} s" if spent >= 1 else "")
    )
    return found._replace(options=replace(found.options, epochs=most), reasons=(*found.reasons, reason))
