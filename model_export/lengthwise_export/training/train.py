"""Trains the built-in architecture on labelled sequences.

```
records -> examples -> split -> [length-grouped batches -> masked loss -> clipped step -> validation] each epoch -> best
```
A run is deterministic: random numbers depend only on the seed and the number of the epoch. So a run that was
interrupted and resumed ends in the same weights as one that was not. After each epoch the whole state is written to one
file, `state.safetensors`. At the end the probabilities are calibrated on the validation split (`temperature`).
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from lengthwise.decoding.dataset import Record
from lengthwise.errors import ConfigurationError
from lengthwise_export import temperature
from lengthwise_export.architecture import checkpoint, trained
from lengthwise_export.architecture.layers import Standardize
from lengthwise_export.architecture.model import SequenceClassifier
from lengthwise_export.architecture.spec import Spec
from lengthwise_export.architecture.trained import STATE_FILE, WEIGHTS_FILE
from lengthwise_export.errors import CheckpointError, SpecError
from lengthwise_export.training import objective
from lengthwise_export.training.batches import Example, batches, examples, stratified_split, stratum
from lengthwise_export.training.objective import EvaluationScores
from lengthwise_export.training.options import TrainingOptions


@dataclass(frozen=True, slots=True)
class Epoch:
    """The metrics of one epoch; losses are means over answers. Without a validation split, its metrics are None."""

    number: int
    training_loss: float
    validation_loss: float | None
    validation_accuracy: float | None


@dataclass(slots=True)
class TrainingProgress:
    """The progress of a run between two epochs.

    Attributes:
        epochs: The finished epochs.
        best: The number of the epoch with the lowest validation loss; without a validation split, the last one.
    """

    epochs: list[Epoch] = field(default_factory=list)
    best: int = -1

    def stops(self, options: TrainingOptions) -> bool:
        """Whether training is over."""
        return len(self.epochs) >= options.epochs or len(self.epochs) - 1 - self.best >= options.patience

    def add(self, epoch: Epoch) -> bool:
        """Adds an epoch, and returns whether it is the best so far."""
        lowest = self.epochs[self.best].validation_loss if self.epochs else None
        self.epochs.append(epoch)
        if lowest is None or epoch.validation_loss is None or epoch.validation_loss < lowest:
            self.best = epoch.number
        return self.best == epoch.number


@dataclass(frozen=True, slots=True)
class TrainingResult:
    """The result of a finished run.

    Attributes:
        model: The model with the weights of the best epoch, in evaluation mode.
        progress: All epochs.
        training: Scores on the training split.
        validation: Scores on the validation split; None without one.
        temperature: The number by which the logits were divided to calibrate the probabilities; None if they were not.
    """

    model: SequenceClassifier
    progress: TrainingProgress
    training: EvaluationScores
    validation: EvaluationScores | None
    temperature: float | None = None


def train(
    spec: Spec,
    records: Sequence[Record],
    options: TrainingOptions,
    directory: Path,
    *,
    resume: bool = False,
    on_epoch: Callable[[Epoch], None] = lambda _: None,
) -> TrainingResult:
    """Trains a model of the spec, and writes `model.safetensors` with the weights of the best epoch.

    Args:
        spec: The spec of the model.
        records: Labelled sequences; a share of them becomes the validation split.
        options: The training options.
        directory: An existing folder for the state and the weights.
        resume: Whether to continue from the state in this folder.
        on_epoch: Called after each epoch, and for the earlier epochs of a resumed run.

    Raises:
        ConfigurationError: A record does not fit the spec, or there are too few.
        CheckpointError: There is no state to resume from, or it belongs to another spec, other records or options.
    """
    members = examples(records, spec)
    strata = [stratum(example, spec.output.task) for example in members]
    first, second = stratified_split(strata, options.validation, seed=options.seed)
    if not first or (options.validation and not second):
        validation = " and validate; --validation 0 trains on all of them" if members and options.validation else ""
        raise ConfigurationError(f"{len(members)} records are too few to train on{validation}")
    run = TrainingRun.start(spec, [members[index] for index in first], [members[index] for index in second], options)
    path = directory / STATE_FILE
    key = identity(spec, records, options)
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
    if options.calibration and run.validation:
        scale = calibrate(run.model, run.validation, spec)
    result = TrainingResult(
        model=run.model,
        progress=run.progress,
        training=evaluate(run.model, run.training, spec),
        validation=evaluate(run.model, run.validation, spec) if run.validation else None,
        temperature=scale,
    )
    splits = {"training": result.training, "validation": result.validation}
    measured = {name: scores for name, scores in splits.items() if scores is not None}
    accuracy = {name: scores.accuracy for name, scores in measured.items()}
    answers = {name: scores.answers for name, scores in measured.items()}
    state = trained.record_of(spec, accuracy, answers, temperature=scale)
    state |= {"seed": options.seed, "epoch": run.progress.best}
    checkpoint.write(directory / WEIGHTS_FILE, run.model.state_dict(), state)
    return result


def evaluate(model: SequenceClassifier, members: Sequence[Example], spec: Spec, *, rows: int = 64) -> EvaluationScores:
    """Computes the scores of a model on examples. The model stays in evaluation mode."""
    return objective.scores(answers_of(model, members, spec, rows=rows), len(spec.output.labels), spec.output.task)


def calibrate(model: SequenceClassifier, members: Sequence[Example], spec: Spec) -> float:
    """Divides the weights of the head by the temperature that fits the probabilities to these examples.

    So the logits are calibrated everywhere, with no operator more in the graph.

    Returns:
        The temperature.
    """
    answers = answers_of(model, members, spec)
    join = torch.cat if spec.output.task == "per-step" else torch.stack
    logits, targets = (join(list(part)).numpy() for part in zip(*answers, strict=True))
    scale = temperature.fit(logits, targets, multi_label=spec.output.task == "multi-label")
    with torch.no_grad():
        for parameter in model.head.parameters():
            parameter.div_(scale)
    return scale


def answers_of(
    model: SequenceClassifier, members: Sequence[Example], spec: Spec, *, rows: int = 64
) -> list[tuple[Tensor, Tensor]]:
    """The logits of a model and the target, for each example, in order of their lengths; see `objective.scores`."""
    model.eval()
    answers: list[tuple[Tensor, Tensor]] = []
    with torch.no_grad():
        for batch in batches(members, rows):
            logits = model(batch.steps, batch.lengths).logits
            for row, target, length in zip(logits, batch.targets, batch.lengths.tolist(), strict=True):
                per_step = spec.output.task == "per-step"
                answers.append((row[:length], target[:length]) if per_step else (row, target))
    return answers


def identity(spec: Spec, records: Sequence[Record], options: TrainingOptions) -> dict[str, Any]:
    """Everything that determines a run's result, as stored in its state: `run` is a digest of all, for a quick test."""
    run = hashlib.sha256(spec.model_dump_json().encode())
    run.update(repr(options).encode())
    data = hashlib.sha256()
    for record in records:
        for digest in (run, data):
            digest.update(repr((record.steps.shape, record.label)).encode())
            digest.update(record.steps.tobytes())
    return {
        "run": run.hexdigest(),
        "spec": spec.resolved(),
        "options": asdict(options),
        "data": data.hexdigest(),
    }


def _changed(state: dict[str, Any], key: dict[str, Any]) -> str:
    """The differences between the run of a state and this one, as text; older states do not record them."""
    try:
        begun, now = Spec.from_table(state["spec"]), Spec.from_table(key["spec"])
        options, data = dict(state["options"]), state["data"]
    except (KeyError, TypeError, ValueError, SpecError):
        return "its spec, its data or its options differ"
    pairs = list(trained.differences(begun, now))
    pairs += [
        (f"--{name.replace('_', '-')}", options.get(name), value)
        for name, value in key["options"].items()
        if options.get(name) != value
    ]
    texts = [
        f"{name}: it was started with {trained.as_text(before)}, now it is {trained.as_text(after)}"
        for name, before, after in pairs
    ]
    return "; ".join([*texts, *(["the records differ"] if data != key["data"] else [])])


@dataclass(slots=True)
class TrainingRun:
    """The state of a run between two epochs, including everything that a resume needs."""

    spec: Spec
    options: TrainingOptions
    training: list[Example]
    validation: list[Example]
    model: SequenceClassifier
    optimizer: torch.optim.AdamW
    weights: Tensor | None
    progress: TrainingProgress
    best: dict[str, Tensor]

    @classmethod
    def start(
        cls, spec: Spec, training: list[Example], validation: list[Example], options: TrainingOptions
    ) -> TrainingRun:
        """Creates a run before its first epoch."""
        torch.manual_seed(options.seed)
        model = SequenceClassifier(spec)
        if isinstance(model.first, Standardize):
            model.first.fit([example.steps for example in training], normalize=spec.input.normalize)
        task, classes = spec.output.task, len(spec.output.labels)
        return cls(
            spec=spec,
            options=options,
            training=training,
            validation=validation,
            model=model,
            optimizer=torch.optim.AdamW(
                model.parameters(), lr=options.learning_rate, weight_decay=options.weight_decay
            ),
            weights=objective.class_weights(training, classes, task) if options.class_weights else None,
            progress=TrainingProgress(),
            best={},
        )

    def epoch(self) -> Epoch:
        """Trains and validates one epoch."""
        number, options = len(self.progress.epochs), self.options
        torch.manual_seed(options.seed * 1_000_003 + number)  # so dropout does not depend on earlier epochs
        rate = options.learning_rate * 0.5 * (1 + math.cos(math.pi * number / options.epochs))
        for group in self.optimizer.param_groups:
            group["lr"] = rate
        self.model.train()
        total, rows = 0.0, 0
        for batch in batches(self.training, options.batch_rows, seed=(options.seed, number)):
            logits = self.model(batch.steps, batch.lengths).logits
            loss = objective.loss(logits, batch.targets, self.spec.output.task, self.weights)
            self.optimizer.zero_grad()
            loss.backward()  # type: ignore[no-untyped-call]  # torch leaves it without types
            torch.nn.utils.clip_grad_norm_(self.model.parameters(), options.clip)
            self.optimizer.step()
            total += loss.item() * len(batch.lengths)
            rows += len(batch.lengths)
        epoch = Epoch(number, total / rows, None, None)
        if self.validation:
            scores = evaluate(self.model, self.validation, self.spec)
            epoch = replace(epoch, validation_loss=scores.loss, validation_accuracy=scores.accuracy)
        if self.progress.add(epoch):
            self.best = {name: tensor.clone() for name, tensor in self.model.state_dict().items()}
        return epoch

    def save(self, path: Path, key: dict[str, Any]) -> None:
        """Writes the state."""
        tensors = {f"model.{name}": tensor for name, tensor in self.model.state_dict().items()}
        tensors |= {f"best.{name}": tensor for name, tensor in self.best.items()}
        for index, moments in self.optimizer.state_dict()["state"].items():
            tensors |= {f"optimizer.{index}.{name}": tensor for name, tensor in moments.items()}
        epochs = [asdict(epoch) for epoch in self.progress.epochs]
        state = key | {"best": self.progress.best, "epochs": epochs}
        checkpoint.write(path, tensors, state)

    def restore(self, path: Path, key: dict[str, Any]) -> None:
        """Loads the state.

        Raises:
            CheckpointError: There is none, or it belongs to another run.
        """
        if not path.is_file():
            raise CheckpointError(f"{path}: there is no state to resume from; leave --resume out to start")
        tensors, state = checkpoint.read(path)
        if state.get("run") != key["run"]:
            raise CheckpointError(
                f"{path} is the state of another run: {_changed(state, key)}. Use the same spec, data and options, or "
                "start a new run with another --out, or with --overwrite, which deletes this one"
            )
        self.progress = TrainingProgress([Epoch(**epoch) for epoch in state["epochs"]], state["best"])
        self.best = _under("best.", tensors)
        self.model.load_state_dict(_under("model.", tensors))
        moments: dict[int, dict[str, Any]] = {}
        for name, tensor in _under("optimizer.", tensors).items():
            index, _, moment = name.partition(".")
            moments.setdefault(int(index), {})[moment] = tensor
        self.optimizer.load_state_dict({**self.optimizer.state_dict(), "state": moments})


def _under(prefix: str, tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    return {name.removeprefix(prefix): tensor for name, tensor in tensors.items() if name.startswith(prefix)}
