"""Compares the spec recorded in a checkpoint with the spec that the user passes.

Most keys of a spec cannot be seen in the weights: the order of the labels, the pooling, the policy for missing values.
So `train` writes the whole spec into the same file as the weights, and an export with another spec is an error. Older
checkpoints record only their labels, and other files nothing; then only that is compared.

| key | may a given spec differ? |
|---|---|
| `input.max_length`, `input.long` | yes, with a notice: which sequences are accepted is a policy of serving |
| `model.dropout`, `model.input_dropout` | yes, with a notice: they are used in training only |
| `input.feature_names` | yes, with a notice, if one side has none |
| all others | no: they change answers, or their meaning |
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from pydantic import ValidationError

from lengthwise.runtime.data_profile import DataProfile
from lengthwise_export.architecture.spec import Spec
from lengthwise_export.errors import CheckpointError, SpecError

if TYPE_CHECKING:
    from torch import nn

WEIGHTS_FILE: Final = "model.safetensors"
"""The file with the weights, written at the end of a training run."""
STATE_FILE: Final = "state.safetensors"
"""The file with the state of a training run, for a resume."""

PROFILE: Final = "profile"
"""The key of the training data's profile in the state of a file of weights."""
FORMAT: Final = 1
"""The format version of `record_of`. Another number means a later version of lengthwise."""

MAY_DIFFER: Final = {
    "input.max_length": "which sequences are accepted is a policy of serving",
    "input.long": "the handling of longer sequences is a policy of serving",
    "model.dropout": "it is used in training only",
    "model.input_dropout": "it is used in training only",
}
"""Keys that may differ from the recorded spec, each with the reason."""

_NAMES: Final = "input.feature_names"


@dataclass(frozen=True, slots=True)
class TrainingRecord:
    """What a checkpoint records about its training.

    Attributes:
        labels: The labels in the order of the outputs; None if not recorded.
        spec: The spec; None if not recorded.
        accuracy: The accuracy by split: `training` and maybe `validation`.
        answers: By split, the number of answers that it was measured with; empty if not recorded.
        temperature: The number by which the logits were divided to calibrate the probabilities; None if they were not.
        trained: The day, as in `2026-11-23`; None if not recorded.
    """

    labels: tuple[str, ...] | None = None
    spec: Spec | None = None
    accuracy: Mapping[str, float] | None = None
    answers: Mapping[str, int] = field(default_factory=dict)
    temperature: float | None = None
    trained: str | None = None

    @property
    def expected(self) -> float | None:
        """The expected accuracy on new data: that of validation, otherwise of training; None if not recorded."""
        return (self.accuracy or {}).get(self._split)

    @property
    def expected_answers(self) -> int | None:
        """The number of answers that `expected` was measured with; None if not recorded."""
        return self.answers.get(self._split)

    @property
    def _split(self) -> str:
        return "validation" if "validation" in (self.accuracy or {}) else "training"


def profile(weights: Path) -> DataProfile | None:
    """The profile of the data that weights were trained on; None if the file has none.

    Raises:
        CheckpointError: The file cannot be read, or its profile is malformed.
    """
    from lengthwise_export.architecture import checkpoint  # imported here, because ONNX files need no torch

    recorded = checkpoint.state(weights).get(PROFILE)
    if recorded is None:
        return None
    try:
        return DataProfile.model_validate(recorded)
    except ValidationError as error:
        raise CheckpointError(f"{weights}: its profile of the training data is malformed: {error}") from error


def record_of(
    spec: Spec,
    accuracy: Mapping[str, float],
    answers: Mapping[str, int],
    *,
    temperature: float | None = None,
    profile: DataProfile | None = None,
) -> dict[str, Any]:
    """The record that `train` writes next to the weights; `read_record` reads it.

    Args:
        spec: The spec.
        accuracy: See `TrainingRecord`.
        answers: See `TrainingRecord`.
        temperature: See `TrainingRecord`.
        profile: Of the training data.
    """
    return {
        "format": FORMAT,
        "labels": list(spec.output.labels),
        "spec": spec.resolved(),
        "accuracy": dict(accuracy),
        "answers": dict(answers),
        "temperature": temperature,
        "trained": datetime.now(UTC).date().isoformat(),
        PROFILE: None if profile is None else profile.model_dump(),
    }


def checkpoint_file(path: Path) -> Path:
    """The checkpoint file, if `path` is the folder of a run; otherwise `path` itself.

    Raises:
        CheckpointError: The folder holds no checkpoint.
    """
    if not path.is_dir():
        return path
    file = path / WEIGHTS_FILE
    if file.is_file():
        return file
    if (path / STATE_FILE).is_file():
        raise CheckpointError(
            f"{path} holds an unfinished training run, and no {WEIGHTS_FILE} yet: finish it with "
            f"`lengthwise train ... --out {path} --resume`"
        )
    raise CheckpointError(f"{path} is a folder without a {WEIGHTS_FILE}: pass the checkpoint file")


def read_record(path: Path) -> TrainingRecord:
    """Reads the record of a checkpoint.

    Raises:
        CheckpointError: It cannot be read, is of a later version, or is malformed.
    """
    from lengthwise_export.architecture import checkpoint  # imported here, because ONNX files need no torch

    state = checkpoint.state(path)
    if "run" in state:
        raise CheckpointError(
            f"{path} is the state of a training run, not its result: pass {path.with_name(WEIGHTS_FILE)}, which "
            f"`lengthwise train ... --out {path.parent} --resume` writes at its end"
        )
    if state.get("format", FORMAT) != FORMAT:
        raise CheckpointError(f"{path} was written by a later version of lengthwise: export it with that one")
    labels, spec, accuracy = state.get("labels"), state.get("spec"), state.get("accuracy")
    if labels is not None and not (isinstance(labels, list) and all(isinstance(label, str) for label in labels)):
        raise CheckpointError(f"{path}: its labels are not a list of strings")
    try:
        read = None if spec is None else Spec.from_table(spec, source=f"{path}, the spec in it")
    except SpecError as error:
        raise CheckpointError(str(error)) from error
    figures = accuracy if isinstance(accuracy, dict) else {}
    counts = state.get("answers")
    return TrainingRecord(
        labels=None if labels is None else tuple(labels),
        spec=read,
        accuracy={
            name: float(figure)
            for name, figure in figures.items()
            if isinstance(figure, int | float) and math.isfinite(figure)
        },
        answers={
            name: count
            for name, count in (counts if isinstance(counts, dict) else {}).items()
            if isinstance(count, int) and not isinstance(count, bool) and count > 0
        },
        temperature=_temperature(state.get("temperature")),
        trained=day if isinstance(day := state.get("trained"), str) else None,
    )


def _temperature(value: Any) -> float | None:
    is_number = isinstance(value, int | float) and not isinstance(value, bool)
    return float(value) if is_number and math.isfinite(value) and value > 0 else None


def settled(spec: Spec, path: Path) -> Spec:
    """The spec of a checkpoint's model, with each key that `train` chose (`auto`) as the checkpoint records it.

    Args:
        spec: The spec that the user passes.
        path: The checkpoint.

    Raises:
        CheckpointError: The checkpoint cannot be read.
    """
    record = read_record(path).spec
    if record is None:
        return spec.concrete()
    tables: dict[str, dict[str, Any]] = {"input": {}, "model": {}}
    chosen = record.resolved()
    if spec.input.kind == record.input.kind == "values":
        if spec.input.normalize == "auto":
            tables["input"]["normalize"] = chosen["input"]["normalize"]
        if spec.model.preset == "auto" and not spec.input.says("missing"):
            tables["input"]["missing"] = chosen["input"]["missing"]
    if spec.model.is_auto and spec.output.task == record.output.task:
        given = spec.model.says(*type(spec.model).model_fields)
        tables["model"] = {key: value for key, value in chosen["model"].items() if key not in given}
        tables["model"]["preset"] = None
    return spec.with_keys(**tables)


def load(module: nn.Module, spec: Spec, path: Path) -> list[str]:
    """Loads a checkpoint into a module of the built-in architecture, after comparing the specs.

    Returns:
        Notices about keys that differ but may, and about keys that could not be compared.

    Raises:
        CheckpointError: It cannot be read, or was trained with another spec; the message names the keys that differ.
    """
    from lengthwise_export.architecture import checkpoint

    notices = compare_specs(read_record(path), spec, path)
    return [*notices, *checkpoint.load(module, path)]


def compare_specs(record: TrainingRecord, spec: Spec, path: Path) -> list[str]:
    """Compares the record of a checkpoint with a spec; see `load`."""
    if record.spec is None:
        if record.labels is None:
            return [
                f"{path} does not record its spec: labels, pooling, missing and the other keys are assumed to be "
                "those of the spec that is passed"
            ]
        require_same(
            [_differs("output.labels", record.labels, spec.output.labels)]
            if record.labels != spec.output.labels
            else [],
            path,
        )
        return [
            f"{path} records only its labels, as older checkpoints do: pooling, missing and the other keys are assumed "
            "to be those of the spec that is passed"
        ]
    notices, refused = [], []
    for key, trained, given in differences(record.spec, spec):
        if key in MAY_DIFFER:
            notices.append(f"{_differs(key, trained, given)}; the spec is used, because {MAY_DIFFER[key]}")
        elif key == _NAMES and (trained is None or given is None):
            notices.append(f"{_differs(key, trained, given)}; the spec is used, because these are only names")
        else:
            refused.append(_differs(key, trained, given))
    require_same(refused, path)
    return notices


def require_same(wrong: list[str], path: Path) -> None:
    """Raises an error if there are differences that are not allowed."""
    if wrong:
        raise CheckpointError(
            f"{path}: {'; '.join(wrong)}. Weights are valid only with the spec of their training: pass that, or none "
            f"(`lengthwise export {path} --out ...` uses the spec in the checkpoint); to change it, train again"
        )


def differences(trained: Spec, given: Spec) -> Iterator[tuple[str, Any, Any]]:
    """The keys that differ between two specs, with both values; None for a key that one side does not have."""
    one, other = trained.resolved(), given.resolved()
    for table in dict.fromkeys([*one, *other]):
        left, right = one.get(table, {}), other.get(table, {})
        for key in dict.fromkeys([*left, *right]):
            if left.get(key) != right.get(key):
                yield f"{table}.{key}", left.get(key), right.get(key)


def as_text(value: Any) -> str:
    """A value of a spec as text."""
    return "nothing" if value is None else json.dumps(value, ensure_ascii=False)


def _differs(key: str, trained: Any, given: Any) -> str:
    return f"{key}: the checkpoint was trained with {as_text(trained)}, the spec says {as_text(given)}"
