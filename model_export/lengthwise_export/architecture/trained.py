"""What a checkpoint records of its training, and the spec in it compared with one that the user passes.

Most keys of a spec cannot be seen in the weights: the order of the labels, the pooling, the policy for missing values.
So `train` writes the whole spec into the same file as the weights, and an export with another spec is an error. Other
files record nothing, or only their labels; then only that is compared. Keys that may differ stand in `MAY_DIFFER`.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Final, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from lengthwise.runtime.data_profile import DataProfile
from lengthwise_export.architecture.spec import Spec
from lengthwise_export.errors import CheckpointError, SpecError

WEIGHTS_FILE: Final = "model.safetensors"
"""The file with the weights, written at the end of a training run."""
STATE_FILE: Final = "state.safetensors"
"""The file with the state of a training run, for a resume."""

MAY_DIFFER: Final = {
    "input.max_length": "which sequences are accepted is a policy of serving",
    "input.long": "the handling of longer sequences is a policy of serving",
    "model.dropout": "it is used in training only",
    "model.input_dropout": "it is used in training only",
}
"""Keys that may differ from the recorded spec, each with the reason. So may names of features, if one side has none."""

_NAMES: Final = "input.feature_names"


class TrainingRecord(BaseModel):
    """What a checkpoint records about its training. Without a spec it has labels at most.

    Attributes:
        format: The version of this record.
        labels: The labels in the order of the outputs.
        spec: The spec.
        accuracy: The accuracy by split: `training` and maybe `validation`.
        answers: By split, the number of answers that it was measured with.
        temperature: The number by which the logits were divided to calibrate the probabilities; None if they were not.
        trained: The day, as in `2026-11-23`.
        profile: The profile of the training data.
    """

    model_config = ConfigDict(frozen=True, allow_inf_nan=False)

    format: Literal[1] = 1
    labels: tuple[str, ...] | None = None
    spec: Spec | None = None
    accuracy: dict[str, float] = {}
    answers: dict[str, int] = {}
    temperature: float | None = Field(default=None, gt=0)
    trained: str | None = None
    profile: DataProfile | None = None

    @property
    def expected(self) -> float | None:
        """The expected accuracy on new data: that of validation, otherwise of training; None if not recorded."""
        return self.accuracy.get(self._split)

    @property
    def expected_answers(self) -> int | None:
        """The number of answers that `expected` was measured with; None if not recorded."""
        return self.answers.get(self._split)

    @property
    def _split(self) -> str:
        return "validation" if "validation" in self.accuracy else "training"


def record_of(spec: Spec, **known: Any) -> dict[str, Any]:
    """The record that `train` writes next to the weights, with fields of `TrainingRecord`; `read_record` reads it."""
    record = TrainingRecord(labels=spec.output.labels, trained=datetime.now(UTC).date().isoformat(), **known)
    return record.model_dump(mode="json") | {"spec": spec.resolved()}


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
    if state.get("format", 1) != 1:
        raise CheckpointError(f"{path} was written by a later version of lengthwise: export it with that one")
    try:
        spec = state.get("spec") and Spec.from_table(state["spec"], source=f"{path}, the spec in it")
        return TrainingRecord.model_validate(state | {"spec": spec})
    except SpecError as error:
        raise CheckpointError(str(error)) from error
    except ValidationError as error:
        wrong = "; ".join(f"{'.'.join(map(str, one['loc']))}: {one['msg']}" for one in error.errors())
        raise CheckpointError(f"{path}: what it records of its training is malformed: {wrong}") from error


def settled(spec: Spec, path: Path) -> Spec:
    """The spec of a checkpoint's model, with each key that `train` chose (`auto`) as the checkpoint records it.

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


def compare_specs(record: TrainingRecord, spec: Spec, path: Path) -> list[str]:
    """Compares the record of a checkpoint with a spec.

    Returns:
        Notices about keys that differ but may, and about keys that could not be compared.

    Raises:
        CheckpointError: Other keys differ; the message names them.
    """
    notices, refused = [], []
    pairs = differences(record.spec, spec) if record.spec is not None else iter(())
    if record.spec is None:
        notices.append(
            f"{path} does not record its spec: pooling, missing and the other keys are assumed to be those of the spec "
            "that is passed"
        )
        if record.labels not in (None, spec.output.labels):
            pairs = iter([("output.labels", record.labels, spec.output.labels)])
    for key, trained, given in pairs:
        said = f"{key}: the checkpoint was trained with {as_text(trained)}, the spec says {as_text(given)}"
        if key in MAY_DIFFER:
            notices.append(f"{said}; the spec is used, because {MAY_DIFFER[key]}")
        elif key == _NAMES and (trained is None or given is None):
            notices.append(f"{said}; the spec is used, because these are only names")
        else:
            refused.append(said)
    if refused:
        raise CheckpointError(
            f"{path}: {'; '.join(refused)}. Weights are valid only with the spec of their training: pass that, or none "
            f"(`lengthwise export {path} --out ...` uses the spec in the checkpoint); to change it, train again"
        )
    return notices


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
