"""A pipeline of scikit-learn, from sequences by their summaries to a classifier, as one ONNX graph.

`described` makes the graph of a pipeline, and the options that say what it is; so it is checked, verified and published
as an ONNX file is. Before that, the graph's answers are compared with those of the pipeline, for `TRIED` sequences.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Any, Final

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import TensorProto, helper

from lengthwise.errors import ConfigurationError, VerificationError
from lengthwise.padding import pad
from lengthwise.runtime import answers
from lengthwise.runtime.graph_inputs import feed
from lengthwise.runtime.manifest import Manifest
from lengthwise.runtime.onnx.summaries import DOMAIN
from lengthwise.verification.random_sequences import draw
from lengthwise_export.onnx_graphs.probing import open_session
from lengthwise_export.onnx_graphs.protos import IN_GRAPH, MADE, NodeWriter
from lengthwise_export.options import ExportOptions
from lengthwise_export.summaries import classifiers, series_graph
from lengthwise_export.summaries.series import Numbers
from lengthwise_export.summaries.transformer import SequenceSummaries
from lengthwise_export.summaries.trees import ML_DOMAIN
from lengthwise_export.targets.stock_folder import AnyOptions

TRIED: Final = 1000
"""Random sequences for which the graph's answers are compared with those of the pipeline."""
_CLOSE: Final = 1e-5
"""The largest difference of a probability."""
_LONGEST: Final = 64
"""Steps of the longest of these sequences."""
_ROWS: Final = 50
"""Rows of their batches."""
_OPSET, _ML_OPSET, _IR = 18, 3, 10
"""Versions of ONNX's operators, of its operators for trees, and of the file's form."""
_ABOVE_HALF: Final = float(np.nextafter(np.float32(0.5), np.float32(1)))
"""The threshold of a multi-label pipeline: scikit-learn assigns a label above 0.5, the service at the threshold too."""


def described(pipeline: Any, options: AnyOptions) -> tuple[onnx.ModelProto, AnyOptions]:
    """The graph of a fitted pipeline, and the options with what the pipeline says; an option of the user stays.

    Raises:
        ConfigurationError: A step of the pipeline cannot be exported; the message names it.
        VerificationError: The graph answers otherwise than the pipeline.
    """  # noqa: DOC502 - `_moved_labels` raises it
    summaries, steps, classifier = _steps(pipeline)
    classes = getattr(classifier, "classes_", None)
    if classes is None:
        raise ConfigurationError(f"the pipeline is not fitted: its {type(classifier).__name__} has no classes_")
    is_multi_label = isinstance(classes, list) or bool(getattr(classifier, "multilabel_", False))
    labels = [str(label) for label in (range(len(classes)) if is_multi_label else classes)]
    # 1. The graph
    writer = NodeWriter({"values", "lengths", "logits"}, "")
    table = series_graph.summarised(writer, summaries, "values", "lengths")
    description = json.dumps(summaries.description | {"table": table.name})
    for step in steps:
        table = classifiers.transformed(step, table)
    scores = classifiers.scores(classifier, table)
    numbers: Numbers = scores.numbers
    if scores.kind == "logits" and not is_multi_label:  # near 0, so that float32 rounds none that count
        numbers = numbers - numbers.emit("ReduceMax", numbers, [1])
    logits = numbers.cast(TensorProto.FLOAT)
    nodes = [*writer.nodes, helper.make_node("Identity", [logits.name], ["logits"])]
    values = helper.make_tensor_value_info("values", TensorProto.FLOAT, ["rows", "width", summaries.n_features_in_])
    lengths = helper.make_tensor_value_info("lengths", TensorProto.INT32, ["rows"])
    output = helper.make_tensor_value_info("logits", TensorProto.FLOAT, ["rows", len(labels)])
    graph = helper.make_graph(nodes, type(classifier).__name__, [values, lengths], [output], writer.constants)
    opsets = [helper.make_opsetid("", _OPSET), helper.make_opsetid(ML_DOMAIN, _ML_OPSET)]
    model = helper.make_model(graph, opset_imports=opsets, ir_version=_IR)
    # 2. What it is
    task = "multi-label" if is_multi_label else "single-label"
    manifest = summaries.manifest(labels=tuple(labels), task=task, scores=scores.kind)
    if getattr(options, "max_length", None) not in (None, *range(manifest.max_length + 1)):
        raise ConfigurationError(f"max_length: these summaries take at most {manifest.max_length} steps")
    moved = _moved_labels(pipeline, model, manifest)
    made = {"summaries": ",".join(summaries.get_feature_names_out()), "float32_labels_moved": moved}
    made["float32_labels_tried"] = TRIED
    helper.set_model_props(model, {IN_GRAPH: json.dumps(labels), MADE: json.dumps(made), DOMAIN: description})
    # 3. The options
    known = {
        "missing": "handled",
        "multi_label": is_multi_label,
        "scores": scores.kind,
        "feature_names": manifest.input.names,
        "threshold": _ABOVE_HALF if is_multi_label else None,
        "padding": summaries.padding if isinstance(options, ExportOptions) else None,
    }
    open_fields = type(options).model_fields.keys() - options.model_fields_set
    return model, options.model_copy(update={name: known[name] for name in open_fields & known.keys()})


def _steps(pipeline: Any) -> tuple[SequenceSummaries, list[Any], Any]:
    """The summaries, the steps between, and the classifier of a pipeline.

    Raises:
        ConfigurationError: It does not begin with SequenceSummaries.
    """
    first, *between = [step for _, step in pipeline.steps if step is not None and step != "passthrough"]
    if not isinstance(first, SequenceSummaries) or not between:
        raise ConfigurationError(
            f"the pipeline begins with {type(first).__name__}: to be exported, it begins with SequenceSummaries and "
            "ends with a classifier"
        )
    return first, between[:-1], between[-1]


def _moved_labels(pipeline: Any, model: onnx.ModelProto, manifest: Manifest) -> int:
    """How many of `TRIED` random sequences have another label in the graph than in the pipeline: none.

    Raises:
        VerificationError: Some have, or a probability differs by more than `_CLOSE`.
    """
    random = np.random.default_rng(0)
    sequences = draw(manifest, random.integers(1, _LONGEST + 1, TRIED).tolist(), 0, raw=True)
    session = open_session(model)
    logits = [
        session.run(["logits"], feed(manifest.graph, pad(sequences[start : start + _ROWS])))[0]
        for start in range(0, TRIED, _ROWS)
    ]
    served = answers.probabilities(np.concatenate(logits), manifest)
    expected = _probabilities(pipeline.predict_proba(sequences))
    if manifest.task == "multi-label":
        moved = ((served >= _ABOVE_HALF) != (pipeline.predict(sequences) > 0)).any(axis=1)
    else:
        moved = np.array(manifest.labels)[served.argmax(axis=1)] != pipeline.predict(sequences).astype(str)
    difference = float(np.abs(served - expected).max())
    if moved.any() or difference > _CLOSE:
        raise VerificationError(
            f"the graph gives {int(moved.sum())} of {TRIED} random sequences another label than the pipeline, and a "
            f"probability that differs by {difference:.2g}, so nothing was published"
        )
    return int(moved.sum())


def _probabilities(answer: Any) -> NDArray[np.float64]:
    """`[rows, classes]`; of a classifier with several outputs `[rows, labels]`, from one array for each of these."""
    parts: Sequence[NDArray[np.float64]] = answer
    return np.stack([part[:, 1] for part in parts], axis=1) if isinstance(answer, list) else answer
