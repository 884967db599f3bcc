"""Loads targets that are graphs: an ONNX file or an `onnx.ModelProto`, and the graph of a model directory."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any, Final

import onnx

from lengthwise.exporter_api.contract import GRAPH_FILE, MANIFEST_FILE, Manifest
from lengthwise_export.architecture import trained
from lengthwise_export.checking.recording import Subject
from lengthwise_export.checking.states import CarriedStates
from lengthwise_export.checking.trace_onnx import OnnxSubject
from lengthwise_export.errors import ConfigurationError
from lengthwise_export.layouts import StepLayout
from lengthwise_export.onnx_graphs import carried_states
from lengthwise_export.onnx_graphs.external_graph import ExternalGraph, read_graph, read_packed_graph
from lengthwise_export.onnx_graphs.protos import TRAINED, feed_zeros, labels_in, metadata_of
from lengthwise_export.options import TargetOptions
from lengthwise_export.targets.target import DirectoryTarget, GraphTarget, check_options_agree, labels_of

_TOKEN_TYPES: Final = "token_type_ids"
"""The input of Hugging Face's exports that tells the two texts of a pair apart: zeros for one text, as without it."""


def read_model(
    text: str, model: onnx.ModelProto | None, options: TargetOptions, blind: bool, layout: StepLayout | None = None
) -> GraphTarget:
    """Reads the target of a graph.

    Args:
        text: The name of the target in messages, and the path of the ONNX file if `model` is None.
        model: The graph; None to read the file.
        options: The options of the target.
        blind: Whether the graph may take the steps alone.
        layout: The layout of the steps that the user states for a check; None if there is none.

    Raises:
        ConfigurationError: The file cannot be read as ONNX, or holds no graph.
    """
    proto = onnx.ModelProto()
    if model is not None:
        proto.CopyFrom(model)
    else:
        try:
            proto = onnx.load(text)
        except Exception as error:  # protobuf's own errors, and those of files beside the graph
            raise ConfigurationError(f"{text} cannot be read as ONNX: {error}") from error
    if not proto.graph.output:
        raise ConfigurationError(f"{text} holds no graph: it has no output")
    named = (options.values, options.lengths, options.mask, getattr(layout, "packed_input", None))
    if _TOKEN_TYPES not in named:
        feed_zeros(proto.graph, _TOKEN_TYPES, like="input_ids")
    with_states, names = proto, [value.name for value in carried_states.carried(proto.graph)]
    if names:
        proto = carried_states.begun(proto, {})
    if layout is not None and layout.packed is not None:
        reading = read_packed_graph(proto, options, layout)
    else:
        reading = read_graph(proto, options, blind=blind, takes_positions=layout is not None)
    labels = labels_of(text, options, reading.classes)
    labels_in_graph = labels_in(proto)
    if labels_in_graph is not None and len(labels_in_graph) == reading.classes:
        check_options_agree(text, options, reading.steps, labels_in_graph)
        labels = labels_in_graph
    states = _states(with_states, reading, {}) if names else None
    training = trained.TrainingRecord.model_validate(metadata_of(proto, TRAINED) or {})
    return GraphTarget(text=text, labels=labels, states=states, training=training, **graph_fields(reading))


def _states(model: onnx.ModelProto, reading: ExternalGraph, initial: Mapping[str, float]) -> CarriedStates | None:
    """The states of a graph, for a check; None if it answers each step.

    Args:
        model: The graph, with its states.
        reading: The reading of the graph whose states begin with their initial numbers.
        initial: These numbers, by name; 0 where none is named.
    """
    if reading.per_step:
        return None
    names = [value.name for value in carried_states.carried(model.graph)]

    def subject(numbers: Mapping[str, float], without: str | None = None) -> Subject:
        begun = carried_states.begun(model, numbers)
        graph = carried_states.answering(begun, reading.names.logits, without=without)
        logits = reading.names.model_copy(update={"logits": graph.graph.output[0].name, "attention": None})
        return OnnxSubject(replace(reading, graph=graph, names=logits))

    return CarriedStates(
        names,
        subject(initial),
        lambda name, number: subject({**initial, name: number or initial.get(name, 0)}, name),
    )


def graph_fields(reading: ExternalGraph, *, one_by_one: bool = False) -> dict[str, Any]:
    """The fields of a `GraphTarget` that follow from the reading of its graph; `one_by_one`: each row runs alone."""
    fields = {name: getattr(reading, name) for name in ("graph", "names", "per_step", "blind")}
    return fields | {"subject": OnnxSubject(reading, one_by_one=one_by_one)}


def read_directory(text: str, options: TargetOptions) -> DirectoryTarget:
    """Reads the target of a model directory.

    Raises:
        ConfigurationError: The folder is not a model directory, or an option contradicts its manifest.
    """
    directory = Path(text)
    if not (directory / MANIFEST_FILE).exists():
        inside = sorted(
            {str(file.parent) for depth in ("*", "*/*") for file in directory.glob(f"{depth}/{MANIFEST_FILE}")}
        )
        inside = inside or sorted(map(str, directory.glob("*.onnx")))  # of optimum, if config.json stood beside them
        instead = f"; there is {', '.join(inside[:5])}: name one" if inside else ""
        raise ConfigurationError(
            f"{text} is a folder with neither {MANIFEST_FILE} (a model directory) nor {trained.WEIGHTS_FILE} (what "
            f"`lengthwise train` wrote){instead}"
        )
    manifest = Manifest.read(directory)
    manifest.read_files(directory)  # raises if a file differs from its digest in the manifest
    check_options_agree(text, options, manifest.input, manifest.labels)
    per_step, graph = manifest.task == "per-step", onnx.load(directory / GRAPH_FILE)
    with_states = graph
    initial = {} if manifest.streaming is None else {state.name: state.initial for state in manifest.streaming.states}
    if initial:
        graph = carried_states.begun(graph, initial)
    reading = ExternalGraph(graph, manifest.input, manifest.graph, manifest.classes, per_step=per_step)
    fields = graph_fields(reading, one_by_one=manifest.max_batch_rows == 1)
    fields |= {"states": _states(with_states, reading, initial)} if initial else {}
    fields |= {"min_length": manifest.min_length, "promise": promise_text(manifest)}
    return DirectoryTarget(text=text, labels=manifest.labels, **fields)


def promise_text(manifest: Manifest) -> str | None:
    """A manifest's promises as a sentence, for the widths that the service uses; None if it has none."""
    if not manifest.promises:
        return None
    multiple = manifest.width_multiple
    widths = "at every width" if multiple == 1 else f"where the width is a multiple of {multiple}, as when served"
    if manifest.max_batch_rows == 1:
        widths = "as each sequence is run by itself and without padding"
    promises = "; ".join(
        f"{'the same bits' if promise.bits else f'answers within {promise.tolerance:.2g}'} on {promise.provider}"
        for promise in manifest.promises
    )
    return f"{widths}, the manifest promises {promises}"
