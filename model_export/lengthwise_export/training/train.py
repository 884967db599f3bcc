"""Trains the built-in architecture on labelled sequences.

```
records -> examples -> split -> [length-grouped batches -> masked loss -> clipped step -> validation] each epoch -> best
```
A run is deterministic: random numbers depend only on the seed and the number of the epoch. After each epoch the whole
state is written to one file, `state.safetensors`. At the end the probabilities are calibrated on the validation split
(`temperature`). An ensemble (`model.members`) is one run for each member, with a seed of its own, in a folder of its
own; its members share the split.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import torch
from torch import nn

from lengthwise.decoding.dataset import Record
from lengthwise.errors import ConfigurationError
from lengthwise_export.architecture import checkpoint, temperature, trained
from lengthwise_export.architecture.model import Classifier, Ensemble
from lengthwise_export.architecture.spec import Spec
from lengthwise_export.architecture.trained import STATE_FILE, WEIGHTS_FILE
from lengthwise_export.architecture.training_profile import profile_of
from lengthwise_export.training.batches import Example, examples, stratified_split, stratum
from lengthwise_export.training.objective import EvaluationScores
from lengthwise_export.training.options import TrainingOptions as TrainingOptions
from lengthwise_export.training.run import Epoch as Epoch
from lengthwise_export.training.run import TrainingProgress as TrainingProgress
from lengthwise_export.training.run import TrainingRun as TrainingRun
from lengthwise_export.training.run import answers, identity
from lengthwise_export.training.run import evaluate as evaluate

MEMBERS = "members"
"""The folder with one folder for each member of an ensemble."""


@dataclass(frozen=True, slots=True)
class TrainingResult:
    """The result of a finished run.

    Attributes:
        model: The model with the weights of the best epoch, in evaluation mode.
        progress: All epochs; of an ensemble, those of the first member.
        training: Scores on the training split.
        validation: Scores on the validation split; None without one.
        seconds: Time of this call.
        members: For an ensemble, the result of each member.
        temperature: The number by which the logits were divided to calibrate the probabilities; None if they were not.
        split: The examples of the training and of the validation split.
    """

    model: Classifier
    progress: TrainingProgress
    training: EvaluationScores
    validation: EvaluationScores | None
    seconds: float = 0.0
    members: tuple[TrainingResult, ...] = ()
    temperature: float | None = None
    split: tuple[Sequence[Example], Sequence[Example]] = ((), ())


def train(
    spec: Spec,
    records: Sequence[Record],
    options: TrainingOptions,
    directory: Path,
    *,
    resume: bool = False,
    on_epoch: Callable[[Epoch], None] = lambda _: None,
    split_seed: int | None = None,
    validation: Sequence[Record] = (),
    known_temperature: float | None = None,
) -> TrainingResult:
    """Trains a model of the spec, and writes `model.safetensors` with the weights of the best epoch.

    Args:
        spec: The spec of the model.
        records: Labelled sequences; a share of them becomes the validation split.
        options: The training options.
        directory: An existing folder for the state and the weights.
        resume: Whether to continue from the state in this folder.
        on_epoch: Called after each epoch, and for the earlier epochs of a resumed run.
        split_seed: The seed of the split; None for that of the options.
        validation: Records that become the validation split, in the place of a share of `records`.
        known_temperature: The temperature where there is no validation split to calibrate on, such as that of folds.

    Raises:
        ConfigurationError: A record does not fit the spec, or there are too few.
        CheckpointError: There is no state to resume from, or it belongs to another spec, other records or options.
    """
    began = time.monotonic()
    spec = spec.concrete()
    if validation:
        first, second = examples(records, spec), examples(validation, spec)
    else:
        first, second = split(spec, records, options, options.seed if split_seed is None else split_seed)
    if spec.model.members > 1:
        return _ensemble(spec, records, options, directory, resume, on_epoch, split_seed, validation, began)
    run = TrainingRun.start(spec, first, second, options)
    path = directory / STATE_FILE
    key = identity(spec, [*records, *validation], options, split_seed)
    if resume:
        run.restore(path, key)
        for epoch in run.progress.epochs:
            on_epoch(epoch)
    else:  # remove the results of an earlier run
        (directory / WEIGHTS_FILE).unlink(missing_ok=True)
        path.unlink(missing_ok=True)
    while not run.progress.stops(options):
        epoch = run.epoch()
        run.save(path, key)
        on_epoch(epoch)
    run.model.load_state_dict(run.best)
    scale = None
    if options.calibration and second:
        scale = calibrate(run.model, second, spec)
    elif options.calibration and known_temperature is not None:
        scale = known_temperature
        divide_logits(run.model, scale)
    result = TrainingResult(
        model=run.model,
        progress=run.progress,
        training=evaluate(run.model, run.training, spec),
        validation=evaluate(run.model, run.validation, spec) if run.validation else None,
        seconds=time.monotonic() - began,
        temperature=scale,
        split=(first, second),
    )
    write(directory / WEIGHTS_FILE, spec, records, result, options)
    return result


def split(
    spec: Spec, records: Sequence[Record], options: TrainingOptions, seed: int
) -> tuple[list[Example], list[Example]]:
    """The examples of the training and of the validation split.

    Raises:
        ConfigurationError: A record does not fit the spec, or there are too few.
    """
    members = examples(records, spec)
    strata = [stratum(example, spec.output.task) for example in members]
    first, second = stratified_split(strata, options.validation, seed=seed)
    if not first or (options.validation and not second):
        validation = " and validate; --validation 0 trains on all of them" if members and options.validation else ""
        raise ConfigurationError(f"{len(members)} records are too few to train on{validation}")
    return [members[index] for index in first], [members[index] for index in second]


def calibrate(model: Classifier, members: Sequence[Example], spec: Spec) -> float:
    """Divides the weights of the head by the temperature that fits the probabilities to these examples.

    So the logits are calibrated everywhere, with no operator more in the graph.

    Returns:
        The temperature.
    """
    pairs = answers(model, members, spec)
    join = torch.cat if spec.output.task == "per-step" else torch.stack
    logits, targets = (join(list(part)).numpy() for part in zip(*pairs, strict=True))
    scale = temperature.fit(logits, targets, multi_label=spec.output.task == "multi-label")
    divide_logits(model, scale)
    return scale


def divide_logits(model: Classifier, scale: float) -> None:
    """Divides the weights of the head, and so all logits."""
    heads: list[nn.Linear] = [one.head for one in model.networks]
    with torch.no_grad():
        for parameter in (parameter for head in heads for parameter in head.parameters()):
            parameter.div_(scale)


def write(path: Path, spec: Spec, records: Sequence[Record], result: TrainingResult, options: TrainingOptions) -> None:
    """Writes the weights, with the record of their training."""
    splits = {"training": result.training, "validation": result.validation}
    measured = {name: scores for name, scores in splits.items() if scores is not None}
    accuracy = {name: scores.accuracy for name, scores in measured.items()}
    counts = {name: scores.answers for name, scores in measured.items()}
    profile = profile_of(records, spec.output.labels)
    state = trained.record_of(spec, accuracy, counts, temperature=result.temperature, profile=profile)
    state |= {"seed": options.seed, "epoch": result.progress.best}
    checkpoint.write(path, result.model.state_dict(), state)


def _ensemble(
    spec: Spec,
    records: Sequence[Record],
    options: TrainingOptions,
    directory: Path,
    resume: bool,
    on_epoch: Callable[[Epoch], None],
    split_seed: int | None,
    validation: Sequence[Record],
    began: float,
) -> TrainingResult:
    single = spec.with_keys(model={"members": 1})
    (directory / WEIGHTS_FILE).unlink(missing_ok=True)
    results = []
    for number in range(spec.model.members):
        folder = directory / MEMBERS / str(number)
        folder.mkdir(parents=True, exist_ok=True)
        results.append(
            train(
                single,
                records,
                replace(options, seed=options.seed + number, calibration=False),  # calibrated together, below
                folder,
                resume=resume and (folder / STATE_FILE).is_file(),
                on_epoch=on_epoch,
                split_seed=options.seed if split_seed is None else split_seed,
                validation=validation,
            )
        )
    model = Ensemble(spec).eval()
    for member, result in zip(model.members, results, strict=True):
        member.load_state_dict(result.model.state_dict())
    first, second = results[0].split
    scale = calibrate(model, second, spec) if options.calibration and second else None
    together = TrainingResult(
        model=model,
        progress=results[0].progress,
        training=evaluate(model, first, spec),
        validation=evaluate(model, second, spec) if second else None,
        seconds=time.monotonic() - began,
        members=tuple(results),
        temperature=scale,
        split=(first, second),
    )
    write(directory / WEIGHTS_FILE, spec, records, together, options)
    return together
