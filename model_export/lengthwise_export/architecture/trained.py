"""The record that a checkpoint holds of its training: reads it, compares its spec with the user's, and loads the model.

Most keys of a spec cannot be seen in the weights: the order of the labels, the pooling, the policy for missing values.
So `train` writes the whole spec into the same file as the weights, and an export with another spec is an error. Other
files record nothing, or only their labels; then only that is compared. Keys that may differ stand in `MAY_DIFFER`. In
comparisons, *trained* is the recorded value of a key, and *stated* that of the spec that the user passes.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, Literal, TypeAlias

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from lengthwise.exporter_api.contract import files
from lengthwise_export.architecture.spec import Spec
from lengthwise_export.errors import CheckpointError, ConfigurationError, SpecError

if TYPE_CHECKING:
    from lengthwise_export.architecture.model import SequenceClassifier
    from lengthwise_export.architecture.pipeline import TrainedPipeline
    from lengthwise_export.architecture.rocket import RocketClassifier

WEIGHTS_FILE: Final = "model.safetensors"  # written at the end of a training run
UNTRAINED: Final = "untrained"  # the value of `weights` in the manifest's `made`, for a spec without a checkpoint
STATE_FILE: Final = "state.safetensors"  # of a training run, for a resume

# Keys that may differ from the recorded spec, each with the reason. So may names of features, if one side has none
MAY_DIFFER: Final = {
    "input.padding": "it says how data files are read",
    "input.min_length": "which sequences are accepted is a policy of serving",
    "input.max_length": "which sequences are accepted is a policy of serving",
    "input.long": "the handling of longer sequences is a policy of serving",
    "output.stop_probability": "it changes no answer",
    "output.stop_steps": "it changes no answer",
    "model.dropout": "it is used in training only",
    "model.input_dropout": "it is used in training only",
}
_NAMES: Final = "input.feature_names"

# Maps steps and lengths to a `ClassifierOutput`
BuiltInModel: TypeAlias = "SequenceClassifier | RocketClassifier | TrainedPipeline"


class TrainingRecord(BaseModel):
    """What a checkpoint records about its training. Without a spec it has labels at most."""

    model_config = ConfigDict(frozen=True, allow_inf_nan=False)

    format: Literal[1] = 1
    labels: tuple[str, ...] | None = None
    spec: Spec | None = None
    accuracy: dict[str, float] = {}  # by split: `training` and maybe `validation`
    answers: dict[str, int] = {}  # by split, the number of answers that `accuracy` was measured with
    temperature: float | None = Field(default=None, gt=0)  # by which the logits were divided to calibrate them
    trained: str | None = None  # the day, as in `2026-11-23`
    # The columns of ids, times and labels of the table that was trained on, by their roles
    columns: dict[str, str] = {}

    @property
    def expected(self) -> float | None:
        """The expected accuracy on new data: that of validation, otherwise of training; None if not recorded."""
        return self.accuracy.get("validation", self.accuracy.get("training"))

    @property
    def expected_answers(self) -> int | None:
        """The number of answers that `expected` was measured with; None if not recorded."""
        return self.answers.get("validation" if "validation" in self.accuracy else "training")


def record_of(spec: Spec, **known: Any) -> dict[str, Any]:
    """The record that `train` writes into the file of the weights, as JSON values; `read_record` reads it.

    `known`: further fields of `TrainingRecord`.
    """
    record = TrainingRecord(labels=spec.output.labels, trained=datetime.now(UTC).date().isoformat(), **known)
    return record.model_dump(mode="json") | {"spec": spec.resolved()}


def run_files(out: Path) -> list[Path]:
    """The paths of the weights and of the state of a run in a folder, of those that exist."""
    return [path for name in (WEIGHTS_FILE, STATE_FILE) if (path := out / name).is_file()]


def refuse_to_overwrite(out: Path, instead: str) -> None:
    """Makes sure that a folder holds no run, which a new one would overwrite, and can be written.

    Raises:
        ConfigurationError: It holds a run; the message ends with `instead`, which says what to do. Or it cannot be
            written.
    """
    try:
        files.try_to_write(out)
    except OSError as error:
        raise ConfigurationError(f"--out {out} cannot be written: {error.strerror}") from error
    if existing := run_files(out):
        raise ConfigurationError(f"{out} holds a run ({existing[0].name}): {instead}")


def checkpoint_file(path: Path) -> Path:
    """The path of the checkpoint in the folder of a run; a path that is no folder is returned as it is.

    Raises:
        CheckpointError: The folder holds no checkpoint, or only that of an unfinished run.
    """
    if not path.is_dir():
        return path
    if (path / WEIGHTS_FILE).is_file():
        return path / WEIGHTS_FILE
    if (path / STATE_FILE).is_file():
        raise CheckpointError(
            f"{path} holds an unfinished training run, and no {WEIGHTS_FILE} yet: finish it with "
            f"`lengthwise train ... --out {path} --resume`"
        )
    raise CheckpointError(f"{path} is a folder without a {WEIGHTS_FILE}: pass the checkpoint file")


def read_record(path: Path) -> TrainingRecord:
    """Reads the record of a checkpoint, whose fields are empty where the file says nothing.

    Raises:
        CheckpointError: It cannot be read, is the state of an unfinished run, was written by a later version, or is
            malformed.
    """
    from lengthwise_export.architecture import checkpoint  # imported here, because ONNX files need no torch

    state = checkpoint.state(path)
    if "run" in state:
        raise CheckpointError(
            f"{path} is the state of a training run, not its result: pass {path.parent / WEIGHTS_FILE}, which "
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
        wrong = "; ".join(f"{'.'.join(map(str, problem['loc']))}: {problem['msg']}" for problem in error.errors())
        raise CheckpointError(f"{path}: what it records of its training is malformed: {wrong}") from error


def with_chosen_keys(spec: Spec, path: Path) -> Spec:
    """Completes a user's spec from a checkpoint: keys that are open get the values of the spec that it records.

    These are the feature names, the normalisation, the policy for missing values and the keys of the model, as far as
    the user leaves them out or to `auto`, and if both specs have the same kind of step and the same task. Without a
    recorded spec, open keys get fixed values (`Spec.concrete`).
    """
    recorded = read_record(path).spec
    if recorded is None:
        return spec.concrete()
    tables: dict[str, dict[str, Any]] = {"input": {}, "model": {}}
    chosen = recorded.resolved()
    if spec.input.kind == recorded.input.kind == "values":
        if spec.input.feature_names is None and spec.input.features == recorded.input.features:
            tables["input"]["feature_names"] = recorded.input.feature_names
        if spec.input.normalize == "auto":
            tables["input"]["normalize"] = chosen["input"].get("normalize", "auto")
        if spec.model.preset == "auto" and not spec.input.first_stated("missing"):
            tables["input"]["missing"] = chosen["input"]["missing"]
    if spec.model.is_auto and spec.output.task == recorded.output.task:
        stated_keys = spec.model.model_fields_set
        tables["model"] = {key: value for key, value in chosen["model"].items() if key not in stated_keys}
        tables["model"]["preset"] = None  # removes it: all its keys are written out
    return spec.with_keys(**tables)


def load(spec: Spec, weights: Path | None) -> tuple[BuiltInModel, list[str]]:
    """Makes the module of a spec in evaluation mode, with the weights of a checkpoint.

    Returns:
        The module, and notices for the user about its checkpoint: what differs or could not be compared. If `weights`
        is None, the module is untrained, with the same weights at each call, and there is no notice.

    Raises:
        CheckpointError: The checkpoint cannot be read, or was trained with another spec.
    """
    import torch

    from lengthwise_export.architecture import checkpoint, pipeline, rocket
    from lengthwise_export.architecture.model import SequenceClassifier

    torch.manual_seed(0)
    if spec.model.kind == "summaries":
        module = pipeline.load(weights)
        return module, [] if weights is None else _compare_specs(read_record(weights), spec, weights)
    is_rocket = spec.model.kind == "rocket"
    if weights is None:
        return (rocket.untrained(spec) if is_rocket else SequenceClassifier(spec)).eval(), []
    notices = _compare_specs(read_record(weights), spec, weights)
    try:
        model = rocket.from_tensors(spec, checkpoint.weights(weights)) if is_rocket else SequenceClassifier(spec)
    except CheckpointError as error:
        raise CheckpointError(f"{weights}: {error}") from error
    return model.eval(), [*notices, *checkpoint.load(model, weights)]


def _compare_specs(record: TrainingRecord, spec: Spec, path: Path) -> list[str]:
    """Compares the spec that a checkpoint records with the one that is passed; returns notices for the user.

    They are about keys that may differ, and about a checkpoint that records no spec: then only labels are compared.

    Raises:
        CheckpointError: Keys differ that must not; the message names them.
    """
    notices, errors = [], []
    if record.spec is not None:
        different_keys = [*differences(record.spec, spec)]
    else:
        notices.append(
            f"{path} does not record its spec: pooling, missing and the other keys are assumed to be those of the spec "
            "that is passed"
        )
        has_same_labels = record.labels in (None, spec.output.labels)
        different_keys = [] if has_same_labels else [("output.labels", record.labels, spec.output.labels)]
    for key, trained, stated in different_keys:
        difference = f"{key}: the checkpoint was trained with {as_text(trained)}, the spec says {as_text(stated)}"
        if key in MAY_DIFFER:
            notices.append(f"{difference}; the spec is used, because {MAY_DIFFER[key]}")
        elif key == _NAMES and (trained is None or stated is None):
            notices.append(f"{difference}; the spec is used, because these are only names")
        else:
            errors.append(difference)
    if errors:
        raise CheckpointError(
            f"{path}: {'; '.join(errors)}. Weights are valid only with the spec of their training: pass that, or none "
            f"(`lengthwise export {path} --out ...` uses the spec in the checkpoint); to change it, train again"
        )
    return notices


def differences(trained: Spec, stated: Spec) -> Iterator[tuple[str, Any, Any]]:
    """Yields each key that differs between two specs, such as "input.missing", with the trained and the stated value.

    None stands for a key that a spec does not have.
    """
    trained_values, stated_values = (
        {f"{name}.{key}": value for name, table in spec.resolved().items() for key, value in table.items()}
        for spec in (trained, stated)
    )
    yield from (
        (key, trained_values.get(key), stated_values.get(key))
        for key in trained_values | stated_values
        if trained_values.get(key) != stated_values.get(key)
    )


def as_text(value: Any) -> str:
    """A value of a spec as JSON, for messages; "nothing" for None."""
    return "nothing" if value is None else json.dumps(value, ensure_ascii=False)
