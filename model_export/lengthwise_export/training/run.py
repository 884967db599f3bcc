"""One training run: its state between two epochs, and what an epoch does.

Random numbers depend only on the seed and the number of the epoch, so a run that was interrupted and resumed ends in
the same weights as one that was not.
"""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any, Final

import torch
from torch import Tensor

from lengthwise.datasets.dataset import Record
from lengthwise_export.architecture import checkpoint, trained
from lengthwise_export.architecture.model import SequenceClassifier
from lengthwise_export.architecture.spec import Spec
from lengthwise_export.errors import CheckpointError
from lengthwise_export.training import scores
from lengthwise_export.training.batches import Example, batches
from lengthwise_export.training.options import TrainingOptions

WARM_UP: Final = 0.1
"""Share of the training during which the learning rate rises."""
AVERAGE: Final = 0.99
"""Decay of the running average of the weights, which is the result."""
LABEL_SMOOTHING: Final = 0.1
"""Share of the target of a sequence with one label that is spread over all labels."""
LARGEST_GRADIENT: Final = 1.0
"""Maximum norm of all gradients together."""


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

    def still_improves(self, options: TrainingOptions) -> bool:
        """Whether the loss was still falling when the epochs ended, so that more of them would probably help.

        The last tenth of the epochs is compared with the tenth before it. The loss is that of validation, or without
        a validation split that of training.
        """
        done = len(self.epochs)
        if done < options.epochs or done < 4:
            return False
        if self.epochs[-1].validation_loss is not None and self.best < done - max(done // 10, 1):
            return False
        losses = [
            epoch.training_loss if epoch.validation_loss is None else epoch.validation_loss for epoch in self.epochs
        ]
        tenth = max(done // 10, 1)
        before, last = sum(losses[-2 * tenth : -tenth]) / tenth, sum(losses[-tenth:]) / tenth
        return last < 0.95 * before


def identity(spec: Spec, records: Sequence[Record], options: TrainingOptions, split_seed: int) -> dict[str, Any]:
    """Everything that determines a run's result, as JSON and stored in its state."""
    data = hashlib.sha256()
    for record in records:
        data.update(repr((record.steps.shape, record.label)).encode())
        data.update(record.steps.tobytes())
    made = {"spec": spec.resolved(), "options": asdict(options) | {"split_seed": split_seed}, "data": data.hexdigest()}
    return dict(json.loads(json.dumps(made)))


@dataclass(slots=True)
class TrainingRun:
    """The state of a run between two epochs, including everything that a resume needs.

    Attributes:
        average: The running average of the weights.
        best: The weights of the best epoch.
    """

    spec: Spec
    options: TrainingOptions
    training: list[Example]
    validation: list[Example]
    model: SequenceClassifier
    optimizer: torch.optim.AdamW
    weights: Tensor | None
    progress: TrainingProgress
    best: dict[str, Tensor]
    average: dict[str, Tensor]
    steps: int = 0

    @classmethod
    def start(
        cls, spec: Spec, training: list[Example], validation: list[Example], options: TrainingOptions
    ) -> TrainingRun:
        """Creates a run before its first epoch."""
        torch.manual_seed(options.seed)
        model = SequenceClassifier(spec)
        model.fit([example.steps for example in training])
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
            weights=scores.class_weights(training, classes, task) if options.class_weights else None,
            progress=TrainingProgress(),
            best={},
            average=_copied(model.state_dict()),
        )

    def epoch(self) -> Epoch:
        """Trains and validates one epoch."""
        number, options = len(self.progress.epochs), self.options
        torch.manual_seed(options.seed * 1_000_003 + number)  # so dropout does not depend on earlier epochs
        self.model.train()
        task = self.spec.output.task
        smoothing = LABEL_SMOOTHING if task == "single-label" else 0.0
        total, rows = 0.0, 0
        for batch in batches(self.training, options.batch_rows, seed=(options.seed, number)):
            for group in self.optimizer.param_groups:
                group["lr"] = learning_rate(options, number, rows / len(self.training))
            logits = self.model(batch.steps, batch.lengths).logits
            loss = scores.loss(logits, batch.targets, task, self.weights, label_smoothing=smoothing)
            self.optimizer.zero_grad()
            loss.backward()  # type: ignore[no-untyped-call]  # torch leaves it without types
            torch.nn.utils.clip_grad_norm_(self.model.parameters(), LARGEST_GRADIENT)
            self.optimizer.step()
            self._average()
            total += loss.item() * len(batch.lengths)
            rows += len(batch.lengths)
        epoch = Epoch(number, total / rows, None, None)
        if self.validation:
            state = _copied(self.model.state_dict())
            self.model.load_state_dict(self.average)
            found = scores.evaluate(self.model, self.validation, self.spec)
            self.model.load_state_dict(state)
            epoch = replace(epoch, validation_loss=found.loss, validation_accuracy=found.accuracy)
        if self.progress.add(epoch):
            self.best = _copied(self.average)
        return epoch

    def _average(self) -> None:
        """Moves the average towards the weights; at first faster, so that it forgets the initial weights."""
        self.steps += 1
        decay = min(AVERAGE, (1 + self.steps) / (10 + self.steps))
        with torch.no_grad():
            for name, tensor in self.model.state_dict().items():
                self.average[name].lerp_(tensor, 1 - decay)

    def save(self, path: Path, key: dict[str, Any]) -> None:
        """Writes the state."""
        tensors = {f"model.{name}": tensor for name, tensor in self.model.state_dict().items()}
        tensors |= {f"best.{name}": tensor for name, tensor in self.best.items()}
        tensors |= {f"average.{name}": tensor for name, tensor in self.average.items()}
        for index, moments in self.optimizer.state_dict()["state"].items():
            tensors |= {f"optimizer.{index}.{name}": tensor for name, tensor in moments.items()}
        epochs = [asdict(epoch) for epoch in self.progress.epochs]
        state = key | {"run": True, "best": self.progress.best, "epochs": epochs, "steps": self.steps}
        checkpoint.write(path, tensors, state)

    def restore(self, path: Path, key: dict[str, Any]) -> None:
        """Loads the state.

        Raises:
            CheckpointError: There is none, or it belongs to another run.
        """
        if not path.is_file():
            raise CheckpointError(f"{path}: there is no state to resume from; leave --resume out to start")
        tensors, state = checkpoint.read(path)
        if any(state.get(name) != value for name, value in key.items()):
            raise CheckpointError(
                f"{path} is the state of another run: {_changed(state, key)}. Use the same spec, data and options, or "
                "start a new run with another --out, or with --overwrite, which deletes this one"
            )
        self.progress = TrainingProgress([Epoch(**epoch) for epoch in state["epochs"]], state["best"])
        self.best = _under("best.", tensors)
        self.average = _under("average.", tensors)
        self.steps = state["steps"]
        self.model.load_state_dict(_under("model.", tensors))
        moments: dict[int, dict[str, Any]] = {}
        for name, tensor in _under("optimizer.", tensors).items():
            index, _, moment = name.partition(".")
            moments.setdefault(int(index), {})[moment] = tensor
        self.optimizer.load_state_dict({**self.optimizer.state_dict(), "state": moments})


def learning_rate(options: TrainingOptions, number: int, share: float) -> float:
    """The learning rate in an epoch: it rises first, and follows half a cosine over all epochs.

    `number` is that of the epoch, from 0, and `share` the share of it that is done.
    """
    done = (number + share) / options.epochs
    rising = min(1.0, (done + 1e-3) / WARM_UP)
    return options.learning_rate * rising * 0.5 * (1 + math.cos(math.pi * done))


def _changed(state: dict[str, Any], key: dict[str, Any]) -> str:
    """The differences between the run of a state and this one, as text."""
    if not state.keys() >= key.keys():
        return "it does not say its spec, its options and its data"
    pairs = list(trained.differences(Spec.from_table(state["spec"]), Spec.from_table(key["spec"])))
    options = {**state["options"]}
    pairs += [
        (f"--{name.replace('_', '-')}", options.get(name), value)
        for name, value in key["options"].items()
        if options.get(name) != value
    ]
    texts = [
        f"{name}: it was started with {trained.as_text(before)}, now it is {trained.as_text(after)}"
        for name, before, after in pairs
    ]
    return "; ".join([*texts, *(["the records differ"] if state["data"] != key["data"] else [])])


def _copied(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    return {name: tensor.detach().clone() for name, tensor in tensors.items()}


def _under(prefix: str, tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    return {name.removeprefix(prefix): tensor for name, tensor in tensors.items() if name.startswith(prefix)}
