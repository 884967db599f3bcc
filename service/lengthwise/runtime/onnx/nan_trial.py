"""Tries at load whether NaN in the values of a graph reaches its recurrent layers, for graphs with an IsNaN node.

onnxruntime's LSTM and GRU turn some NaN into numbers, and Lengthwise's kernels keep them. Only a graph that replaces
NaN before them gives the same in both. So it is run in both, with NaN at many steps; our kernels may serve it if all
answers are finite and equal within rounding. A NaN that reaches a layer all the same is refused: never a wrong number.
"""

from __future__ import annotations

from itertools import cycle
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from lengthwise.padding import PaddedBatch, Sample, batches, step_mask
from lengthwise.runtime.graph_inputs import feed
from lengthwise.runtime.manifest import GraphNames, Manifest
from lengthwise.runtime.onnx import onnx_graph

_STEPS: Final = 6  # length of the trial's sequences, if the model takes it
_MOST_FEATURES: Final = 64  # a single NaN is tried in at most this many features
_CLOSE: Final = 1e-4  # allowed difference of an answer between the kernels, times max(1, |answer|)


def passes(graph: bytes, with_kernels: Any, plain: Any, manifest: Manifest) -> bool:
    """Whether a graph gives the same finite answers to sequences with NaN in Lengthwise's kernels and onnxruntime's.

    False, without a run, for a graph without IsNaN, or of tokens.

    Args:
        graph: The ONNX file.
        with_kernels: The onnxruntime session with Lengthwise's kernels.
        plain: The session with onnxruntime's own kernels.
        manifest: The manifest of the model.
    """
    has_isnan = any(node.operator == "IsNaN" for node in onnx_graph.read(graph).walk())
    if manifest.input.kind == "tokens" or not has_isnan:
        return False
    sizes: Any = {"multiple": manifest.width_multiple, "most_rows": manifest.max_batch_rows}
    for batch in batches(_with_nan(manifest), **sizes, blank=manifest.blank):
        actual, expected = (_logits(session, batch, manifest.graph) for session in (with_kernels, plain))
        if not (
            np.isfinite(actual).all()  # before the difference: infinity minus infinity is a warning
            and (np.abs(actual - expected) <= _CLOSE * np.maximum(1, np.abs(expected))).all()
        ):
            return False
    return True


def _logits(session: Any, batch: PaddedBatch, names: GraphNames) -> NDArray[np.float32]:
    """Runs a batch; returns the logits `[rows, classes]`, or of a per-step head `[valid steps, classes]`."""
    logits: NDArray[np.float32] = session.run([names.logits], feed(names, batch))[0]
    if logits.ndim != 3:
        return logits
    if names.classes_first:
        logits = logits.swapaxes(1, 2)
    elif names.time_first:
        logits = logits.swapaxes(0, 1)
    return logits[step_mask(batch.lengths, batch.width)]


def _with_nan(manifest: Manifest) -> list[Any]:
    """Draws random sequences, each with NaN at other values; of several sequences an item, samples with NaN in each.

    - One value: of each feature, at the first, the middle and the last step.
    - All values of a step, for each step; all values of a feature, for each feature.
    - All values; all but those of the first step; all but those of the last step.
    """
    step_input = manifest.input
    features = step_input.features or 1
    length = min(max(_STEPS, manifest.min_length), manifest.max_length)
    random = np.random.default_rng(0)
    mean, std = np.asarray(step_input.mean or np.zeros(features)), np.asarray(step_input.std or np.ones(features))
    some_features = sorted({round(index) for index in np.linspace(0, features - 1, min(features, _MOST_FEATURES))})
    all_indices = slice(None)
    some_steps = {0, length // 2, length - 1}
    missing: list[tuple[Any, Any]] = [(step, feature) for feature in some_features for step in some_steps]
    missing += [(step, all_indices) for step in range(length)]
    missing += [(all_indices, feature) for feature in some_features]
    missing += [(all_indices, all_indices), (slice(1, None), all_indices), (slice(None, -1), all_indices)]
    sequences = []
    for index in missing:
        steps = (mean + std * random.standard_normal((length, features))).astype(np.float32)
        steps[index] = np.nan
        sequences.append(steps)
    if not manifest.further:
        return sequences
    others = {
        name: cycle([one.input.zeros(1)] if one.input.kind == "tokens" else _with_nan(one))
        for name, one in manifest.further.items()
    }
    return [Sample(steps, others={name: next(each) for name, each in others.items()}) for steps in sequences]
