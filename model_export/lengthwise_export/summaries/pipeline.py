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

from lengthwise.exporter_api.contract import Manifest, answers, draw, feed, pad
from lengthwise.exporter_api.graphs import DOMAIN
from lengthwise_export.errors import ConfigurationError, VerificationError
from lengthwise_export.onnx_graphs.probing import open_session
from lengthwise_export.onnx_graphs.protos import IN_GRAPH, MADE, NodeWriter
from lengthwise_export.options import ExportOptions
from lengthwise_export.summaries import classifiers, series_graph
from lengthwise_export.summaries.transformer import SequenceSummaries
from lengthwise_export.summaries.trees import ML_DOMAIN
from lengthwise_export.targets.stock_folder import AnyOptions
from lengthwise_export.targets.target import ScoreKind

TRIED: Final = 1000
"""Random sequences for which the graph's answers are compared with those of the pipeline."""
_CLOSE: Final = 1e-5
"""The largest difference of a probability, and of two that tie."""
_LONGEST: Final = 64
"""Steps of the longest of these sequences."""
_ROWS: Final = 50
"""Rows of their batches."""
_OPSET, _ML_OPSET, _IR = 18, 3, 10
"""Versions of ONNX's operators, of its operators for trees, and of the file's form."""
ABOVE_HALF: Final = float(np.nextafter(np.float32(0.5), np.float32(1)))
"""The threshold of a multi-label pipeline: scikit-learn assigns a label above 0.5, the service at the threshold too."""


def described(pipeline: Any, options: AnyOptions) -> tuple[onnx.ModelProto, AnyOptions]:
    """The graph of a fitted pipeline, and the options with what the pipeline says; an option of the user stays.

    Raises:
        ConfigurationError: A step of the pipeline, or a label, cannot be exported; the message names it.
        VerificationError: The graph answers otherwise than the pipeline.
    """  # noqa: DOC502 - `_require_same_answers` raises it
    summaries, steps, classifier = _steps(pipeline)
    classes = getattr(classifier, "classes_", None)
    if classes is None:
        raise ConfigurationError(f"the pipeline is not fitted: its {type(classifier).__name__} has no classes_")
    # 1. What it is
    is_multi_label = isinstance(classes, list) or bool(getattr(classifier, "multilabel_", False))
    if is_multi_label:
        _require_both_values(classifier)
    said = tuple(getattr(options, "labels", None) or ())  # by which the columns of a matrix get names
    columns = said if len(said) == len(classes) else range(len(classes))
    labels = tuple(str(label) for label in (columns if is_multi_label else classes))
    manifest = summaries.manifest(labels=labels, task="multi-label" if is_multi_label else "single-label")
    if (getattr(options, "max_length", None) or 1) > manifest.max_length:
        raise ConfigurationError(f"max_length: these summaries take at most {manifest.max_length} steps")
    # 2. The graph
    model, kind = _graph(summaries, steps, classifier, manifest)
    manifest = manifest.model_copy(update={"scores": kind})
    tied = _require_same_answers(pipeline, model, manifest)
    made: dict[str, str | int] = {"summaries": ",".join(summaries.get_feature_names_out())}
    made |= {"float32_labels_moved": 0, "float32_labels_tied": tied, "float32_labels_tried": TRIED}
    for key, entry in ((IN_GRAPH, labels), (MADE, made)):
        model.metadata_props.add(key=key, value=json.dumps(entry))
    # 3. The options
    known = {
        "missing": "handled",
        "multi_label": is_multi_label,
        "scores": kind,
        "feature_names": manifest.input.names,
        "threshold": ABOVE_HALF if is_multi_label else None,
        "padding": summaries.padding if isinstance(options, ExportOptions) else None,
    }
    open_fields = type(options).model_fields.keys() - options.model_fields_set
    return model, options.model_copy(update={name: known[name] for name in open_fields & known.keys()})


def _graph(
    summaries: SequenceSummaries, steps: Sequence[Any], classifier: Any, manifest: Manifest
) -> tuple[onnx.ModelProto, ScoreKind]:
    """The graph of summaries, steps between and a classifier, with the names of the manifest; and what it answers."""
    names = manifest.graph
    inputs = (names.sequences, str(names.lengths))
    writer = NodeWriter({*inputs, names.logits}, "")
    table = series_graph.summarised(writer, summaries, *inputs)
    description = json.dumps(summaries.description | {"table": table.name})
    for step in steps:
        table = classifiers.transformed(step, table)
    numbers, score_kind = classifiers.scores(classifier, table)
    if score_kind == "logits" and manifest.task == "single-label":  # near 0, so that float32 rounds none that count
        numbers = numbers - numbers.emit("ReduceMax", numbers, [1])
    nodes = [*writer.nodes, helper.make_node("Cast", [numbers.name], [names.logits], to=TensorProto.FLOAT)]
    shapes: list[list[str | int | None]] = [
        ["rows", "width", summaries.n_features_in_],
        ["rows"],
        ["rows", manifest.classes],
    ]
    kinds = (TensorProto.FLOAT, TensorProto.INT32, TensorProto.FLOAT)
    descriptions = zip((*inputs, names.logits), kinds, shapes, strict=True)
    *graph_inputs, output = [helper.make_tensor_value_info(name, kind, shape) for name, kind, shape in descriptions]
    graph = helper.make_graph(nodes, type(classifier).__name__, graph_inputs, [output], writer.constants)
    opsets = [helper.make_opsetid("", _OPSET), helper.make_opsetid(ML_DOMAIN, _ML_OPSET)]
    model = helper.make_model(graph, opset_imports=opsets, ir_version=_IR)
    model.metadata_props.add(key=DOMAIN, value=description)
    return model, score_kind


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


def _require_both_values(classifier: Any) -> None:
    """Makes sure that each label of a multi-label classifier was assigned to some sequences of `fit`, but not to all.

    Raises:
        ConfigurationError: One was not: for such a label libraries answer in different ways, or only with a constant.
    """
    is_list = isinstance(classifier.classes_, list)
    of_labels = classifier.classes_ if is_list else [getattr(part, "classes_", ()) for part in classifier.estimators_]
    for label, values in enumerate(of_labels):
        if [*values] != [0, 1]:
            raise ConfigurationError(
                f"column {label} of y: to be exported, each label needs both 0 and 1 in fit; leave out a column that "
                "never changes"
            )


def _require_same_answers(pipeline: Any, model: onnx.ModelProto, manifest: Manifest) -> int:
    """Makes sure that the graph answers `TRIED` random sequences as the pipeline does.

    Returns:
        How many have another label only because scikit-learn's rounding tells equal probabilities apart: with
        several threads not even it does so in the same way each time.

    Raises:
        VerificationError: A label is another one without such a tie, or a probability differs by more than `_CLOSE`.
    """
    random = np.random.default_rng(0)
    sequences = draw(manifest, random.integers(1, _LONGEST + 1, TRIED).tolist(), 0, raw=True)
    session = open_session(model)
    batches = [pad(sequences[start : start + _ROWS]) for start in range(0, TRIED, _ROWS)]
    logits = [session.run([manifest.graph.logits], feed(manifest.graph, batch))[0] for batch in batches]
    served = answers.probabilities(np.concatenate(logits), manifest)
    # In float64: a logistic regression that was fitted to float32 rounds more than is allowed in its own products
    expected = _probabilities(pipeline[-1].predict_proba(pipeline[:-1].transform(sequences).astype(np.float64)))
    difference = float(np.abs(served - expected).max())
    predicted = pipeline.predict(sequences)
    if manifest.task == "multi-label":
        is_other = (served >= ABOVE_HALF) != (predicted > 0)
        is_tie = np.abs(expected - 0.5) <= _CLOSE
    else:
        chosen = served.argmax(axis=1)[:, None]  # (rows, 1)
        is_other = np.array(manifest.labels)[chosen] != predicted.astype(str)[:, None]
        is_tie = expected.max(axis=1, keepdims=True) - np.take_along_axis(expected, chosen, axis=1) <= _CLOSE
    moved = (is_other & ~is_tie).any(axis=1)
    if moved.any() or difference > _CLOSE:
        raise VerificationError(
            f"the graph gives {int(moved.sum())} of {TRIED} random sequences another label than the pipeline, and a "
            f"probability that differs by {difference:.2g}, so nothing was published"
        )
    return int((is_other.any(axis=1) & ~moved).sum())


def _probabilities(answer: Any) -> NDArray[np.float64]:
    """`[rows, classes]`; of a classifier with several outputs `[rows, labels]`, from one array for each of these."""
    parts: Sequence[NDArray[np.float64]] = answer
    return np.stack([part[:, 1] for part in parts], axis=1) if isinstance(answer, list) else answer
