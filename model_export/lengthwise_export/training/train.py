"""Trains the layers of the built-in architecture on labelled sequences.

```
records -> examples -> split -> [batches of like lengths -> masked loss -> step -> validation] each epoch -> best epoch
```
A run is deterministic: random numbers depend only on the seed and the number of the epoch. After each epoch the whole
state is written to one file, `state.safetensors`. At the end the probabilities are calibrated on the validation split
(`temperature`). An ensemble (`model.members`) is one run for each member, with a seed of its own, in a folder of its
own; its members share the split.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, Final, TypeAlias

import torch

from lengthwise.datasets.dataset import Record
from lengthwise.errors import ConfigurationError
from lengthwise.runtime.data_profile import DataProfile
from lengthwise_export.architecture import checkpoint, temperature, trained
from lengthwise_export.architecture.model import Classifier, Ensemble
from lengthwise_export.architecture.spec import Spec
from lengthwise_export.architecture.trained import STATE_FILE, WEIGHTS_FILE
from lengthwise_export.training.batches import Example, examples, stratified_split, stratum
from lengthwise_export.training.options import TrainingOptions
from lengthwise_export.training.run import Epoch, TrainingProgress, TrainingRun, identity
from lengthwise_export.training.scores import EvaluationScores, answers, evaluate, joined

MEMBERS: Final = "members"
"""The folder with one folder for each member of an ensemble."""

Split: TypeAlias = tuple[list[Example], list[Example]]
"""The examples of the training and of the validation split."""


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
    """

    model: Classifier
    progress: TrainingProgress
    training: EvaluationScores
    validation: EvaluationScores | None
    seconds: float = 0.0
    members: tuple[TrainingResult, ...] = ()
    temperature: float | None = None

    @property
    def splits(self) -> dict[str, EvaluationScores]:
        """The scores by split."""
        return {"training": self.training} | ({} if self.validation is None else {"validation": self.validation})

    def details(self, options: TrainingOptions) -> dict[str, Any]:
        """What `metrics.json` says of a training with these options, besides its scores."""
        return {
            "options": asdict(options),
            "best_epoch": self.progress.best + 1,
            "epochs": [asdict(epoch) for epoch in self.progress.epochs],
        }


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
        records: Labelled sequences that fit the spec; a share of them becomes the validation split.
        options: The training options.
        directory: An existing folder for the state and the weights.
        resume: Whether to continue from the state in this folder.
        on_epoch: Called after each epoch, and for the earlier epochs of a resumed run.
        split_seed: The seed of the split; None for that of the options.
        validation: Records that become the validation split, in the place of a share of `records`.
        known_temperature: The temperature where there is no validation split to calibrate on, such as that of folds.

    Raises:
        ConfigurationError: There are too few records.
        CheckpointError: There is no state to resume from, or it belongs to another spec, other records or options.
    """
    began = time.monotonic()
    spec, seed = spec.concrete(), options.seed if split_seed is None else split_seed
    given = (examples(records, spec), examples(validation, spec)) if validation else None
    parts = given or split(spec, records, options, seed)
    if not resume:
        remove_results(directory)
    if spec.model.members == 1:
        key = identity(spec, [*records, *validation], options, seed)
        model, progress = _run(spec, parts, options, directory, key, resume=resume, on_epoch=on_epoch)
        members: tuple[TrainingResult, ...] = ()
    else:
        single, made = spec.with_keys(model={"members": 1}), []
        for number in range(spec.model.members):
            folder = directory / MEMBERS / str(number)
            folder.mkdir(parents=True, exist_ok=True)
            # the members are calibrated together, below
            own = replace(options, seed=options.seed + number, calibration=False)
            again = resume and (folder / STATE_FILE).is_file()
            made.append(
                train(
                    single,
                    records,
                    own,
                    folder,
                    resume=again,
                    on_epoch=on_epoch,
                    split_seed=seed,
                    validation=validation,
                )
            )
        model, progress, members = Ensemble(spec).eval(), made[0].progress, tuple(made)
        for member, one in zip(model.members, made, strict=True):
            member.load_state_dict(one.model.state_dict())
    result = TrainingResult(
        model=model,
        progress=progress,
        temperature=_calibrated(model, parts[1], spec, known_temperature) if options.calibration else None,
        training=evaluate(model, parts[0], spec),
        validation=evaluate(model, parts[1], spec) if parts[1] else None,
        seconds=time.monotonic() - began,
        members=members,
    )
    write(directory, spec, records, result, {"seed": options.seed, "epoch": progress.best})
    return result


def _run(
    spec: Spec,
    parts: Split,
    options: TrainingOptions,
    directory: Path,
    key: dict[str, Any],
    *,
    resume: bool,
    on_epoch: Callable[[Epoch], None],
) -> tuple[Classifier, TrainingProgress]:
    """One network with the weights of its best epoch; the state is written after each epoch."""
    run, path = TrainingRun.start(spec, *parts, options), directory / STATE_FILE
    if resume:
        run.restore(path, key)
        for epoch in run.progress.epochs:
            on_epoch(epoch)
    while not run.progress.stops(options):
        epoch = run.epoch()
        run.save(path, key)
        on_epoch(epoch)
    run.model.load_state_dict(run.best)
    return run.model, run.progress


def split(spec: Spec, records: Sequence[Record], options: TrainingOptions, seed: int) -> Split:
    """The examples of the training and of the validation split.

    Raises:
        ConfigurationError: There are too few records.
    """
    members = examples(records, spec)
    strata = [stratum(example, spec.output.task) for example in members]
    first, second = stratified_split(strata, options.validation, seed=seed)
    if not first or (options.validation and not second):
        validation = " and validate; --validation 0 trains on all of them" if members and options.validation else ""
        raise ConfigurationError(f"{len(members)} records are too few to train on{validation}")
    return [members[index] for index in first], [members[index] for index in second]


def _calibrated(model: Classifier, members: Sequence[Example], spec: Spec, known: float | None) -> float | None:
    """Divides the head by the temperature that fits the probabilities to these examples, or else by a known one.

    So the logits are calibrated everywhere, with no operator more in the graph.

    Returns:
        The temperature; None if there are no examples and none is known.
    """
    scale = known
    if members:
        logits, targets = joined(answers(model, members), spec.output.task)
        scale = temperature.fit(logits.numpy(), targets.numpy(), multi_label=spec.output.task == "multi-label")
    if scale is not None:
        with torch.no_grad():
            for parameter in (parameter for one in model.networks for parameter in one.head.parameters()):
                parameter.div_(scale)
    return scale


def remove_results(directory: Path) -> None:
    """Removes the results of an earlier run."""
    for name in (WEIGHTS_FILE, STATE_FILE):
        (directory / name).unlink(missing_ok=True)


def write(directory: Path, spec: Spec, records: Sequence[Record], result: Any, more: Mapping[str, Any]) -> None:
    """Writes the weights of a result, with the record of their training."""
    splits = {name.replace("left_out", "validation"): scores for name, scores in result.splits.items()}
    state = trained.record_of(
        spec,
        accuracy={name: scores.accuracy for name, scores in splits.items()},
        answers={name: scores.answers for name, scores in splits.items()},
        temperature=result.temperature,
        profile=profile_of(records, spec.output.labels),
    )
    checkpoint.write(directory / WEIGHTS_FILE, result.model.state_dict(), state | {**more})


def profile_of(records: Sequence[Record], labels: Sequence[str]) -> DataProfile:
    """The profile of records, by which a service can tell how its sequences drift from them."""
    places = {label: place for place, label in enumerate(labels)}
    several = [one.label if isinstance(one.label, tuple) else (str(one.label),) for one in records]
    classes = [[places[label] for label in each] for each in several]
    return DataProfile.of([record.steps for record in records], classes, labels=len(labels))
