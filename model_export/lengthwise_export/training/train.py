"""Trains the layers of the built-in architecture on labelled sequences.

```
records -> examples -> split -> [batches of like lengths -> masked loss -> step -> validation] each epoch -> best epoch
```
Random numbers depend only on the seed and the number of the epoch, so a run that was interrupted and resumed ends in
the same weights as one that was not. After each epoch the whole state is written to one file, `state.safetensors`. At
the end the probabilities are calibrated on the validation split (`temperature`).
"""

from __future__ import annotations

import hashlib
import math
import time
from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any, Final

import torch
from torch import Tensor

from lengthwise_export.architecture import checkpoint, temperature, trained
from lengthwise_export.architecture.model import SequenceClassifier
from lengthwise_export.architecture.spec import Spec
from lengthwise_export.errors import CheckpointError, ConfigurationError
from lengthwise_export.training import scores
from lengthwise_export.training.batches import (
    Example,
    batches,
    make_examples,
    stratified_split,
    stratum,
    with_other_static,
)
from lengthwise_export.training.options import TrainingOptions
from lengthwise_export.training.record_checks import Record

WARM_UP: Final = 0.1  # share of the training during which the learning rate rises
AVERAGE: Final = 0.99  # decay of the running average of the weights, which is the result
LABEL_SMOOTHING: Final = 0.1  # share of the target of a sequence with one label that is spread over all labels
LARGEST_GRADIENT: Final = 1.0  # norm of all gradients together


@dataclass(frozen=True, slots=True)
class Epoch:
    """The metrics of one epoch; losses are means over answers. Without a validation split, its metrics are None."""

    number: int
    training_loss: float
    validation_loss: float | None
    validation_accuracy: float | None


@dataclass(slots=True)
class TrainingProgress:
    """The finished epochs of a run, and the best: the lowest validation loss; without validation, the last one."""

    epochs: list[Epoch] = field(default_factory=list)
    best: int = -1

    def stops(self, options: TrainingOptions) -> bool:
        """Whether training is over: all epochs are done, or the last `patience` of them were no better."""
        return len(self.epochs) >= options.epochs or len(self.epochs) - 1 - self.best >= options.patience

    def add(self, epoch: Epoch) -> bool:
        """Adds an epoch, and returns whether it is the best so far."""
        lowest = self.epochs[self.best].validation_loss if self.epochs else None
        self.epochs.append(epoch)
        if lowest is None or epoch.validation_loss is None or epoch.validation_loss < lowest:
            self.best = epoch.number
        return self.best == epoch.number

    def still_improves(self, options: TrainingOptions) -> bool:
        """Whether the loss fell in the last tenth of all epochs, so that more of them would probably help.

        False if training stopped before the last epoch.
        """
        finished, tenth = len(self.epochs), max(len(self.epochs) // 10, 1)
        if finished < options.epochs or finished < 4:
            return False
        validated = self.epochs[-1].validation_loss is not None
        if validated and self.best < finished - tenth:  # the best epoch is not among the last ones
            return False
        losses = [(epoch.validation_loss if validated else epoch.training_loss) or 0.0 for epoch in self.epochs]
        return sum(losses[-tenth:]) < 0.95 * sum(losses[-2 * tenth : -tenth])


@dataclass(frozen=True, slots=True)
class TrainingResult:
    """The result of a training, of layers or of fixed kernels; the model is in evaluation mode."""

    model: trained.BuiltInModel
    # The scores of `training`, and of `validation` or `left_out`, where there is one
    splits: Mapping[str, scores.EvaluationScores]
    temperature: float | None  # by which the logits were divided; None if they were not calibrated
    seconds: float
    details: Mapping[str, Any]  # further entries of `metrics.json`
    progress: TrainingProgress | None = None  # of layers


class TrainingRun:
    """The state of a run between two epochs, including everything that a resume needs."""

    def __init__(
        self, spec: Spec, training: list[Example], validation: list[Example], options: TrainingOptions
    ) -> None:
        self.spec, self.options = spec, options
        self.training, self.validation = training, validation
        torch.manual_seed(options.seed)
        self.model = model = SequenceClassifier(spec)
        static = [example.static for example in training if example.static is not None]
        model.fit([example.steps for example in training], static or None)
        self.optimizer = torch.optim.AdamW(
            model.parameters(), lr=options.learning_rate, weight_decay=options.weight_decay
        )
        labels, task = spec.output.labels, spec.output.task
        self.weights = scores.class_weights(training, len(labels), task) if options.class_weights else None
        self.average = _copy(model.state_dict())  # the running average of the weights, which is validated
        self.best: dict[str, Tensor] = {}  # the weights of the best epoch
        self.progress = TrainingProgress()
        self.steps = 0  # of the optimiser, in all epochs

    def epoch(self) -> Epoch:
        """Trains and validates one epoch, and adds it to `progress`; `best` becomes its weights if no epoch was better.

        Validated, and kept, is the running average of the weights; training goes on with the weights themselves.
        """
        number, options = len(self.progress.epochs), self.options
        torch.manual_seed(options.seed * 1_000_003 + number)  # so dropout does not depend on earlier epochs
        self.model.train()
        task = self.spec.output.task
        smoothing = LABEL_SMOOTHING if task == "single-label" else 0.0
        total, rows = 0.0, 0
        for batch in batches(self.training, options.batch_rows, seed=(options.seed, number)):
            for group in self.optimizer.param_groups:
                group["lr"] = learning_rate(options, number, rows / len(self.training))
            logits = self.model(batch.steps, batch.lengths, batch.static).logits
            loss = scores.loss(logits, batch.targets, task, self.weights, label_smoothing=smoothing)
            self.optimizer.zero_grad()
            loss.backward()  # type: ignore[no-untyped-call]  # torch leaves it without types
            torch.nn.utils.clip_grad_norm_(self.model.parameters(), LARGEST_GRADIENT)
            self.optimizer.step()
            self._update_average()
            total += loss.item() * len(batch.lengths)
            rows += len(batch.lengths)
        epoch = Epoch(number, total / rows, None, None)
        if self.validation:
            state = _copy(self.model.state_dict())
            self.model.load_state_dict(self.average)
            validated = scores.evaluate(self.model, self.validation, self.spec)
            self.model.load_state_dict(state)
            epoch = replace(epoch, validation_loss=validated.loss, validation_accuracy=validated.accuracy)
        if self.progress.add(epoch):
            self.best = _copy(self.average)
        return epoch

    def _update_average(self) -> None:
        """Moves the running average towards the weights; at first faster, so that it forgets the initial weights."""
        self.steps += 1
        decay = min(AVERAGE, (1 + self.steps) / (10 + self.steps))
        with torch.no_grad():
            for name, tensor in self.model.state_dict().items():
                self.average[name].lerp_(tensor, 1 - decay)

    def epochs(self) -> Iterator[Epoch]:
        """Trains the remaining epochs, and yields each; at the end, loads the best epoch's weights into the model."""
        while not self.progress.stops(self.options):
            yield self.epoch()
        self.model.load_state_dict(self.best)

    def save(self, path: Path, key: dict[str, Any]) -> None:
        """Writes the state of the run to a file: all tensors, the finished epochs, and the run's `key`.

        The key, from `run_key`, says what determines the result; `restore` compares it.
        """
        parts = {"model": self.model.state_dict(), "best": self.best, "average": self.average}
        parts |= {f"optimizer.{index}": moments for index, moments in self.optimizer.state_dict()["state"].items()}
        tensors = {
            f"{part}.{name}": tensor
            for part, tensors_of_part in parts.items()
            for name, tensor in tensors_of_part.items()
        }
        epochs = [asdict(epoch) for epoch in self.progress.epochs]
        state = key | {"run": True, "best": self.progress.best, "epochs": epochs, "steps": self.steps}
        checkpoint.write(path, tensors, state)

    def restore(self, path: Path, key: dict[str, Any]) -> None:
        """Loads the state of an interrupted run that `save` wrote with the same `key`.

        Raises:
            CheckpointError: There is no state, or it belongs to another run.
        """
        if not path.is_file():
            raise CheckpointError(f"{path}: there is no state to resume from; leave --resume out to start")
        tensors, state = checkpoint.read(path)
        if any(state.get(name) != value for name, value in key.items()):
            raise CheckpointError(
                f"{path} is the state of another run: {_differences(state, key)}. Use the same spec, data and options, "
                "or start a new run with another --out"
            )
        parts = _by_prefix(tensors)
        moments = {int(index): part for index, part in _by_prefix(parts["optimizer"]).items()}
        self.progress = TrainingProgress([Epoch(**epoch) for epoch in state["epochs"]], state["best"])
        self.best, self.average, self.steps = parts["best"], parts["average"], state["steps"]
        self.model.load_state_dict(parts["model"])
        self.optimizer.load_state_dict({**self.optimizer.state_dict(), "state": moments})


def learning_rate(options: TrainingOptions, number: int, share: float) -> float:
    """The learning rate after `number` whole epochs and a share 0..1 of the next: a warm-up, times half a cosine."""
    progress = (number + share) / options.epochs
    rising = min(1.0, (progress + 1e-3) / WARM_UP)
    return options.learning_rate * rising * 0.5 * (1 + math.cos(math.pi * progress))


def train(
    spec: Spec,
    records: Sequence[Record],
    options: TrainingOptions,
    directory: Path,
    *,
    resume: bool = False,
    on_epoch: Callable[[Epoch], None] = lambda _: None,
    validation: Sequence[Record] = (),
    columns: Mapping[str, str] | None = None,
) -> TrainingResult:
    """Trains a model of the spec, and writes `model.safetensors` with the weights of the best epoch.

    Args:
        spec: What is trained; `auto` becomes what it is without data.
        records: The labelled sequences.
        options: How it is trained.
        directory: The folder of the run, in which the state of each epoch is written too.
        resume: Whether to continue from the state in `directory`.
        on_epoch: Called after each epoch, and for the earlier ones of a resumed run.
        validation: The validation split; by default the share `options.validation` of the records.
        columns: The columns of the table of the records, by role, which the file of the weights records.

    Raises:
        ConfigurationError: There are too few records.
        CheckpointError: There is no state to resume from, or that of another spec, other records or options.
    """  # noqa: DOC502 - what it calls raises them
    # Split, and continue a run that is resumed
    began = time.monotonic()
    spec = spec.concrete()
    examples = make_examples(records, spec)
    training, held_out = (
        (examples, make_examples(validation, spec)) if validation else _split_examples(examples, spec, options)
    )
    key = run_key(spec, [*records, *validation], options)
    run, path = TrainingRun(spec, training, held_out, options), directory / trained.STATE_FILE
    if resume:
        run.restore(path, key)
        for epoch in run.progress.epochs:
            on_epoch(epoch)
    # Train; the state is saved after each epoch
    for epoch in run.epochs():
        run.save(path, key)
        on_epoch(epoch)
    # Calibrate, score, and write
    scale = _calibrate(run.model, held_out, spec) if options.calibration else None
    splits = {"training": training, "validation": held_out}
    result = TrainingResult(
        run.model,
        {name: scores.evaluate(run.model, split, spec) for name, split in splits.items() if split},
        scale,
        seconds=time.monotonic() - began,
        details=_details(run, held_out or training),
        progress=run.progress,
    )
    write(directory, spec, result, seed=options.seed, columns=columns or {})
    return result


def _details(run: TrainingRun, examples: Sequence[Example]) -> dict[str, Any]:
    """Further entries of the report of a run; `examples` show what static values add."""
    progress = run.progress
    details: dict[str, Any] = {"best_epoch": progress.best + 1, "epochs": [asdict(epoch) for epoch in progress.epochs]}
    if (shuffled := with_other_static(examples, run.options.seed)) is not None:
        details["accuracy_without_static"] = scores.evaluate(run.model, shuffled, run.spec).accuracy
    return details


def _split_examples(
    examples: list[Example], spec: Spec, options: TrainingOptions
) -> tuple[list[Example], list[Example]]:
    """Splits examples into those of training and those of validation, stratified by their targets.

    Raises:
        ConfigurationError: There are too few.
    """
    strata = [stratum(example, spec.output.task) for example in examples]
    training, validation = stratified_split(strata, options.validation, seed=options.seed)
    if not training or (options.validation and not validation):
        reason = " and validate; --validation 0 trains on all of them" if examples and options.validation else ""
        raise ConfigurationError(f"{len(examples)} records are too few to train on{reason}")
    return [examples[index] for index in training], [examples[index] for index in validation]


def _calibrate(model: SequenceClassifier, examples: Sequence[Example], spec: Spec) -> float | None:
    """Calibrates a model in place by temperature scaling, and returns the temperature; None with too few examples.

    The weights and biases of the head are divided by it, so the exported graph needs no further operator.
    """
    if not examples:
        return None
    logits, targets = scores.join_answers(scores.answer_each(model, examples), spec.output.task)
    scale = temperature.fit(logits.numpy(), targets.numpy(), multi_label=spec.output.task == "multi-label")
    with torch.no_grad():
        for parameter in model.head.parameters():
            parameter.div_(scale or 1.0)
    return scale


def write(directory: Path, spec: Spec, result: TrainingResult, **more: Any) -> None:
    """Writes `model.safetensors`: the weights of a result, and what they were trained with.

    Args:
        directory: The folder of the run.
        spec: That of the model.
        result: The model and its scores.
        more: Further entries of the record in the file, such as the seed.
    """
    splits = {
        name.replace("left_out", "validation"): scores_of_split for name, scores_of_split in result.splits.items()
    }
    state = trained.record_of(
        spec,
        accuracy={name: scores_of_split.accuracy for name, scores_of_split in splits.items()},
        answers={name: scores_of_split.answers for name, scores_of_split in splits.items()},
        temperature=result.temperature,
    )
    checkpoint.write(directory / trained.WEIGHTS_FILE, result.model.state_dict(), state | more)


def run_key(spec: Spec, records: Sequence[Record], options: TrainingOptions) -> dict[str, Any]:
    """What determines a run's result, as JSON values: its spec, its options, and a SHA-256 digest of its records."""
    data = hashlib.sha256()
    for record in records:
        data.update(repr((record.steps.shape, record.label)).encode())
        data.update(record.steps.tobytes())
    return {"spec": spec.resolved(), "options": options.model_dump(), "data": data.hexdigest()}


def _differences(state: dict[str, Any], key: dict[str, Any]) -> str:
    """Says how the run of a saved state and this run differ: in keys of the spec, options, or records.

    Args:
        state: What the state's file records of its run.
        key: That of this run, from `run_key`.
    """
    if not state.keys() >= key.keys():
        return "it does not say its spec, its options and its data"
    keys = trained.differences(Spec.from_table(state["spec"]), Spec.from_table(key["spec"]))
    saved_options, current_options = state["options"], key["options"]
    options = (
        (f"--{name.replace('_', '-')}", saved_options.get(name), value) for name, value in current_options.items()
    )
    texts = [
        f"{name}: it was started with {trained.as_text(saved_value)}, now it is {trained.as_text(current_value)}"
        for name, saved_value, current_value in (*keys, *options)
        if saved_value != current_value
    ]
    return "; ".join([*texts, *(["the records differ"] if state["data"] != key["data"] else [])])


def _by_prefix(tensors: Mapping[str, Tensor]) -> dict[str, dict[str, Tensor]]:
    """Groups tensors by their names' part before the first dot; in a group they have the rest of their names.

    For example, `{"a.x": t, "a.y": u, "b.x": v}` becomes `{"a": {"x": t, "y": u}, "b": {"x": v}}`.
    """
    groups: dict[str, dict[str, Tensor]] = defaultdict(dict)
    for name, tensor in tensors.items():
        prefix, _, rest = name.partition(".")
        groups[prefix][rest] = tensor
    return groups


def _copy(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    return {name: tensor.detach().clone() for name, tensor in tensors.items()}
