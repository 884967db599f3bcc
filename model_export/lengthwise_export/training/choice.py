"""Which kind of model suits some records: fixed kernels, or layers that are trained.

```
records -> fixed kernels, each record left out ─┬─> nearly all right: fixed kernels
                                                └─> folds of both kinds -> the one that is right more often
```
Every answer that counts is one to a record that the answering model was not trained on. The folds also give the
temperature for layers that are trained on all records, where no validation split is left to calibrate on.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final, TypeAlias

import numpy as np
import torch
from torch import Tensor

from lengthwise.decoding.dataset import Record
from lengthwise_export.architecture import temperature
from lengthwise_export.architecture.spec import Spec
from lengthwise_export.training import rocket
from lengthwise_export.training.batches import Example, examples, stratum
from lengthwise_export.training.options import TrainingOptions
from lengthwise_export.training.run import TrainingRun, answers

FOLDS: Final = 3
ENOUGH: Final = 0.97
"""Where fixed kernels are right so often about records that were left out, nothing else is tried."""
MOST_STEPS: Final = 2_000_000
"""Layers are tried only if their folds are trained on fewer valid steps: that is a minute or two on one core."""
FEWEST_MINUTES: Final = 3.0
"""With a smaller budget, layers are not tried."""
HOPELESS: Final = 0.08
"""After one fold, layers that are right less often than fixed kernels by this share of the records are given up."""
FEWEST_RECORDS: Final = 30
"""With fewer records, the folds would compare chance."""

Fold: TypeAlias = tuple[list[int], list[int]]
"""The places of the records to train on, and of those to answer."""


@dataclass(frozen=True, slots=True)
class KindComparison:
    """What the folds say.

    Attributes:
        rocket: Share of right answers of fixed kernels.
        layers: Share of right answers of layers.
        answers: Number of answers of each.
        temperature: The number by which to divide the logits of such layers; None if not all folds were trained.
    """

    rocket: float
    layers: float
    answers: int
    temperature: float | None

    @property
    def prefers_layers(self) -> bool:
        """Whether layers are right more often."""
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
    right_rocket = right_layers = done = 0
    pairs: list[tuple[Tensor, Tensor]] = []
    dealt = folds(strata, FOLDS, seed=options.seed)
    for number, (first, second) in enumerate(dealt):
        training, held = [records[place] for place in first], [records[place] for place in second]
        fixed = rocket.fit(rocket_spec, training, TrainingOptions(), test=examples(held, rocket_spec)).test
        found = _answered(spec, examples(training, spec), examples(held, spec), options)
        right_rocket += 0 if fixed is None else round(fixed.accuracy * fixed.answers)
        right_layers += sum(int(logits.argmax()) == int(target) for logits, target in found)
        done += len(found)
        pairs += found
        if number == 0 and right_layers < right_rocket - HOPELESS * done:
            break
    scale = None
    if done == len(strata):
        logits, targets = (torch.stack(list(part)).numpy() for part in zip(*pairs, strict=True))
        scale = temperature.fit(logits, targets, multi_label=False)
    return KindComparison(right_rocket / done, right_layers / done, done, scale)


def _answered(
    spec: Spec, training: list[Example], held: list[Example], options: TrainingOptions
) -> list[tuple[Tensor, Tensor]]:
    """The logits and the target of each example that was held back."""
    run = TrainingRun.start(spec, training, [], options)
    while not run.progress.stops(options):
        run.epoch()
    run.model.load_state_dict(run.best)
    return answers(run.model, held, spec)
