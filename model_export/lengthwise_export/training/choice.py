"""Compares both kinds of model, fixed kernels and layers that are trained, on the same folds.

Only answers to records that a model was not trained on count. They also give the temperature for layers that are then
trained on all records, where no validation split is left to calibrate on.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final, TypeAlias

import numpy as np

from lengthwise.datasets.dataset import Record
from lengthwise_export.architecture import temperature
from lengthwise_export.architecture.spec import Spec
from lengthwise_export.training import rocket
from lengthwise_export.training.batches import examples, stratum
from lengthwise_export.training.options import TrainingOptions
from lengthwise_export.training.run import TrainingRun
from lengthwise_export.training.scores import ScoredAnswer, answers, joined, scores

FOLDS: Final = 3
MOST_STEPS: Final = 2_000_000
"""Layers are tried only if their folds are trained on fewer valid steps: that is a minute or two on one core."""
FEWEST_MINUTES: Final = 3.0
"""With a smaller budget, layers are not tried."""
HOPELESS: Final = 0.08
"""After one fold, layers whose accuracy is this much below that of fixed kernels are given up."""
FEWEST_RECORDS: Final = 30
"""With fewer records, the folds would compare chance."""

Fold: TypeAlias = tuple[list[int], list[int]]
"""The places of the records to train on, and of those to answer."""


@dataclass(frozen=True, slots=True)
class KindComparison:
    """What the folds say.

    Attributes:
        rocket: Accuracy of fixed kernels.
        layers: Accuracy of layers.
        answers: Number of answers of each.
        temperature: The number by which to divide the logits of such layers; None if not all folds were trained.
    """

    rocket: float
    layers: float
    answers: int
    temperature: float | None

    @property
    def prefers_layers(self) -> bool:
        """Whether layers have the higher accuracy."""
        return self.layers > self.rocket


def folds(strata: Sequence[object], count: int, *, seed: int) -> list[Fold]:
    """Deals places into folds, each with its share of each stratum."""
    random = np.random.default_rng(seed)
    kinds: dict[object, list[int]] = {}
    for place, kind in enumerate(strata):
        kinds.setdefault(kind, []).append(place)
    dealt = [int(place) for kind in kinds.values() for place in random.permutation(kind)]
    fold_of = {place: turn % count for turn, place in enumerate(dealt)}
    places = range(len(strata))
    return [
        ([place for place in places if fold_of[place] != fold], [place for place in places if fold_of[place] == fold])
        for fold in range(count)
    ]


def steps_of_folds(records: Sequence[Record], options: TrainingOptions) -> int:
    """The valid steps that the layers of all folds would be trained on, each as often as it is seen.

    It is a count and not a time, so that a plan is the same on every machine and when a run is resumed.
    """
    return sum(len(record.steps) for record in records) * options.epochs * (FOLDS - 1)


def compare(rocket_spec: Spec, spec: Spec, records: Sequence[Record], options: TrainingOptions) -> KindComparison:
    """Trains both kinds on the same folds.

    Args:
        rocket_spec: The spec of fixed kernels.
        spec: The spec of layers.
        records: Labelled sequences; no sequence is longer than both specs allow.
        options: The options of a run of the layers, without validation.
    """
    strata = [stratum(example, spec.output.task) for example in examples(records, spec)]
    correct, layers = 0, 0.0
    found: list[ScoredAnswer] = []
    for number, (first, second) in enumerate(folds(strata, FOLDS, seed=options.seed)):
        training, held = [records[place] for place in first], [records[place] for place in second]
        fixed = rocket.fit(rocket_spec, training, TrainingOptions())
        correct += round(rocket.evaluate(fixed.model, examples(held, rocket_spec), rocket_spec).accuracy * len(held))
        run = TrainingRun.start(spec, examples(training, spec), [], options)
        while not run.progress.stops(options):
            run.epoch()
        run.model.load_state_dict(run.best)
        found += answers(run.model, examples(held, spec))
        layers = scores(found, len(spec.output.labels), spec.output.task).accuracy
        if number == 0 and layers < correct / len(found) - HOPELESS:
            break
    scale = None
    if len(found) == len(strata):
        logits, targets = joined(found, spec.output.task)
        scale = temperature.fit(logits.numpy(), targets.numpy(), multi_label=False)
    return KindComparison(correct / len(found), layers, len(found), scale)
