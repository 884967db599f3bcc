"""What a checkpoint says of its own training, held against the spec that is given for it.

Most of a spec leaves no trace in the weights: the order of the labels, how steps are pooled, what becomes of a missing
value. So `train` writes the whole spec beside the weights, into the same file, and nobody exports them under another
one. Older checkpoints say their labels only, those made elsewhere nothing; then that much is compared.

| key | may a given spec differ? |
|---|---|
| `input.max_length`, `input.long` | yes, with a notice: which sequences are taken is a policy of serving |
| `model.dropout` | yes, with a notice: it acts in training only |
| `input.feature_names` | yes, with a notice, where one side names none |
| all others | no: they change a number that is answered, or what it means |
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from lengthwise_export.architecture.spec import Spec
from lengthwise_export.errors import CheckpointError, SpecError

if TYPE_CHECKING:
    from torch import nn

WEIGHTS_FILE: Final = "model.safetensors"
"""What a training run ends in, in its folder."""
STATE_FILE: Final = "state.safetensors"
"""What an interrupted one goes on from."""

FORMAT: Final = 1
"""Of what `described` writes; a number that is not known here is a later version's."""

MAY_DIFFER: Final = {
    "input.max_length": "which sequences are taken is a policy of serving",
    "input.long": "what becomes of longer sequences is a policy of serving",
    "model.dropout": "it acts in training only",
}
"""Keys that a given spec may say otherwise, and why."""

_NAMES: Final = "input.feature_names"


@dataclass(frozen=True, slots=True)
class TrainingRecord:
    """What a checkpoint says.

    Attributes:
        labels: In the order of the outputs; None where it says nothing.
        spec: What was trained; None where it was not kept.
        accuracy: By split, `training` and maybe `validation`.
    """

    labels: tuple[str, ...] | None = None
    spec: Spec | None = None
    accuracy: Mapping[str, float] | None = None

    @property
    def expected(self) -> float | None:
        """The accuracy to expect of new data: that of validation, else of training; None where none was kept."""
        accuracy = self.accuracy or {}
        return accuracy.get("validation", accuracy.get("training"))


def record_of(spec: Spec, accuracy: Mapping[str, float]) -> dict[str, Any]:
    """What `train` writes beside the weights; `recorded` reads it."""
    return {
        "format": FORMAT,
        "labels": list(spec.output.labels),
        "spec": spec.resolved(),
        "accuracy": dict(accuracy),
    }


def checkpoint_file(path: Path) -> Path:
    """The checkpoint itself, where a run's folder may be named for it.

    Raises:
        CheckpointError: The folder holds none.
    """
    if not path.is_dir():
        return path
    file = path / WEIGHTS_FILE
    if file.is_file():
        return file
    if (path / STATE_FILE).is_file():
        raise CheckpointError(
            f"{path} holds a training that has not ended, and no {WEIGHTS_FILE} yet: "
            f"`lengthwise train ... --out {path} --resume` ends it"
        )
    raise CheckpointError(f"{path} is a folder without a {WEIGHTS_FILE}: name the checkpoint's file")


def read_record(path: Path) -> TrainingRecord:
    """Reads what a checkpoint says.

    Raises:
        CheckpointError: It cannot be read, is of a later version, or what it says is malformed.
    """
    from lengthwise_export.architecture import checkpoint  # brings torch along, which a graph does without

    state = checkpoint.state(path)
    if "run" in state:
        raise CheckpointError(
            f"{path} is the state of a training, not its result: give {path.with_name(WEIGHTS_FILE)}, which "
            f"`lengthwise train ... --out {path.parent} --resume` writes at its end"
        )
    if state.get("format", FORMAT) != FORMAT:
        raise CheckpointError(f"{path} was written by a later version of lengthwise: export it with that one")
    labels, spec, accuracy = state.get("labels"), state.get("spec"), state.get("accuracy")
    if labels is not None and not (isinstance(labels, list) and all(isinstance(label, str) for label in labels)):
        raise CheckpointError(f"{path}: the labels that it says are no list of strings")
    try:
        read = None if spec is None else Spec.from_table(spec, source=f"{path}, the spec in it")
    except SpecError as error:
        raise CheckpointError(str(error)) from error
    figures = accuracy if isinstance(accuracy, dict) else {}
    return TrainingRecord(
        labels=None if labels is None else tuple(labels),
        spec=read,
        accuracy={
            name: float(figure)
            for name, figure in figures.items()
            if isinstance(figure, int | float) and math.isfinite(figure)
        },
    )


def load(module: nn.Module, spec: Spec, path: Path) -> list[str]:
    """Puts a checkpoint's weights into a module of the built-in architecture, once the two specs agree.

    Returns:
        Notices: what differs and may, and what could not be compared.

    Raises:
        CheckpointError: It cannot be read, or was trained with another spec; names each key that differs.
    """
    from lengthwise_export.architecture import checkpoint

    notices = compare_specs(read_record(path), spec, path)
    checkpoint.load(module, path)
    return notices


def compare_specs(found: TrainingRecord, spec: Spec, path: Path) -> list[str]:
    """Compares what a checkpoint says with the spec that is given for it; see `load`."""
    if found.spec is None:
        if found.labels is None:
            return [
                f"{path} does not say what it was trained with: that labels, pooling, missing and the other keys of "
                "the spec are those of its training is taken from the spec"
            ]
        refuse(
            [_differs("output.labels", found.labels, spec.output.labels)] if found.labels != spec.output.labels else [],
            path,
        )
        return [
            f"{path} says its labels only, as older checkpoints do: that pooling, missing and the other keys of the "
            "spec are those of its training is taken from the spec"
        ]
    notices, refused = [], []
    for key, trained, said in differences(found.spec, spec):
        if key in MAY_DIFFER:
            notices.append(f"{_differs(key, trained, said)}; the spec's counts, {MAY_DIFFER[key]}")
        elif key == _NAMES and (trained is None or said is None):
            notices.append(f"{_differs(key, trained, said)}; the spec's counts, they are names only")
        else:
            refused.append(_differs(key, trained, said))
    refuse(refused, path)
    return notices


def refuse(wrong: list[str], path: Path) -> None:
    """Refuses a spec for what differs, if anything does, and says what to do."""
    if wrong:
        raise CheckpointError(
            f"{path}: {'; '.join(wrong)}. Weights answer rightly only as they were trained: give the spec of the "
            f"training, or none (`lengthwise export {path} --out ...` takes the checkpoint's own); to have it the "
            "other way, train again"
        )


def differences(trained: Spec, said: Spec) -> Iterator[tuple[str, Any, Any]]:
    """Each key that two specs say differently, with both values; None where a side has no such key."""
    one, other = trained.resolved(), said.resolved()
    for table in dict.fromkeys([*one, *other]):
        left, right = one.get(table, {}), other.get(table, {})
        for key in dict.fromkeys([*left, *right]):
            if left.get(key) != right.get(key):
                yield f"{table}.{key}", left.get(key), right.get(key)


def as_text(value: Any) -> str:
    """A value of a spec, for a sentence."""
    return "nothing" if value is None else json.dumps(value, ensure_ascii=False)


def _differs(key: str, trained: Any, said: Any) -> str:
    return f"{key}: the checkpoint was trained with {as_text(trained)}, the spec says {as_text(said)}"
