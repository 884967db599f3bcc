"""What `train` made with `kind = "summaries"`, as a target: its graph, and the options with what its spec says."""

from __future__ import annotations

from pathlib import Path

import onnx
from google.protobuf.message import DecodeError

from lengthwise_export.architecture import pipeline, trained
from lengthwise_export.architecture.spec import Spec
from lengthwise_export.errors import CheckpointError, ConfigurationError
from lengthwise_export.onnx_graphs.protos import TRAINED
from lengthwise_export.options import ExportOptions
from lengthwise_export.summaries.pipeline import ABOVE_HALF
from lengthwise_export.summaries.series import MOST_STEPS_OF_SPECTRUM
from lengthwise_export.targets.stock_folder import AnyOptions


def described(spec: Spec, weights: Path, options: AnyOptions) -> tuple[onnx.ModelProto, AnyOptions]:
    """The graph in a checkpoint, and the options with what the spec says; an option of the user stays.

    Args:
        spec: The spec of the model: that of the checkpoint, or the user's.
        weights: The checkpoint.
        options: The options of the user.

    Raises:
        ConfigurationError: The user asks for longer sequences than the spec does, or the spec for too long ones.
        CheckpointError: The checkpoint is damaged, or that of another spec.
    """
    trained.load(spec, weights)  # compares the specs
    try:
        graph = onnx.load_model_from_string(pipeline.load(weights).content)
    except DecodeError as error:
        raise CheckpointError(f"{weights}: its graph is damaged") from error
    record = trained.read_record(weights)
    graph.metadata_props.add(key=TRAINED, value=record.model_dump_json(exclude={"spec"}))
    # What was trained for longer sequences has no spectrum, and takes them
    most = max(MOST_STEPS_OF_SPECTRUM, record.spec.input.max_length if record.spec else 0)
    if spec.input.max_length > most:
        raise ConfigurationError(f"input.max_length = {spec.input.max_length}: these summaries take {most} steps")
    step, is_multi_label, stated = spec.input, spec.output.task == "multi-label", options.model_fields_set
    if "max_length" in stated and (getattr(options, "max_length", None) or 0) > step.max_length:
        raise ConfigurationError(f"max_length: the spec has input.max_length = {step.max_length}")
    known = {
        "missing": step.missing,
        "multi_label": is_multi_label,
        "scores": "logits",
        "labels": spec.output.labels,
        "feature_names": step.feature_names,
        "threshold": ABOVE_HALF if is_multi_label else None,
        "min_length": step.min_length,
        "max_length": step.max_length,
        "padding": step.padding if isinstance(options, ExportOptions) else None,
    }
    open_fields = type(options).model_fields.keys() - stated
    update = {name: known[name] for name in open_fields & known.keys()}
    return graph, options.model_copy(update=update | {"checkpoint": None})
