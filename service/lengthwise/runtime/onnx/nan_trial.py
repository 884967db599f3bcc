"""Whether NaN in the values of a graph reaches its recurrent layers: a trial at load, for graphs with an IsNaN node.

onnxruntime's LSTM and GRU turn some NaN into numbers, and Lengthwise's kernels keep them. Only a graph that replaces
NaN before them gives the same in both. So it is run in both, with NaN at many steps; our kernels may serve it if all
answers are finite and equal within rounding. A NaN that reaches a layer all the same is refused: never a wrong number.
"""

from __future__ import annotations

from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from lengthwise.padding import PaddedBatch, pad, step_mask
from lengthwise.runtime.graph_inputs import feed
from lengthwise.runtime.manifest import GraphNames, Manifest
from lengthwise.runtime.onnx import onnx_graph

_STEPS: Final = 6
_MOST_FEATURES: Final = 64  # A single NaN is tried in at most this many features
_CLOSE: Final = 1e-4  # allowed difference of an answer between the kernels, times max(1, |answer|)


def passes(graph: bytes, own: Any, plain: Any, manifest: Manifest) -> bool:
    """Whether a graph gives the same finite answers to NaN in Lengthwise's kernels (`own`) and in onnxruntime's."""
    has_isnan = any(node.operator == "IsNaN" for node in onnx_graph.read(graph).walk())
    if manifest.input.kind == "tokens" or not has_isnan:
        return False
    sequences = _with_nan(manifest)
    rows = manifest.max_batch_rows or len(sequences)
    for first in range(0, len(sequences), rows):
        batch = pad(sequences[first : first + rows], multiple=manifest.width_multiple)
        ours, theirs = (_logits(session, batch, manifest.graph) for session in (own, plain))
        if not np.isfinite(ours).all() or not (np.abs(ours - theirs) <= _CLOSE * np.maximum(1, np.abs(theirs))).all():
            return False
    return True


def _logits(session: Any, batch: PaddedBatch, names: GraphNames) -> NDArray[np.float32]:
    """A session's logits, of a per-step head at valid steps only."""
    logits: NDArray[np.float32] = session.run([names.logits], feed(names, batch))[0]
    if logits.ndim != 3:
        return logits
    if names.classes_first:
        logits = logits.swapaxes(1, 2)
    elif names.time_first:
        logits = logits.swapaxes(0, 1)
    return logits[step_mask(batch.lengths, batch.width)]


def _with_nan(manifest: Manifest) -> list[NDArray[Any]]:
    """Sequences with one NaN (of each feature; at the first, a middle and the last step), and with more of them."""
    step_input = manifest.input
    features = step_input.features or 1
    length = min(max(_STEPS, manifest.min_length), manifest.max_length)
    random = np.random.default_rng(0)
    mean, std = np.asarray(step_input.mean or np.zeros(features)), np.asarray(step_input.std or np.ones(features))
    indices = sorted({round(index) for index in np.linspace(0, features - 1, min(features, _MOST_FEATURES))})
    slices: list[tuple[Any, Any]] = [(step, feature) for feature in indices for step in {0, length // 2, length - 1}]
    slices += [(step, slice(None)) for step in range(length)]  # a step without a value
    slices += [(slice(None), feature) for feature in indices]  # a feature without a value
    slices += [(slice(None), slice(None)), (slice(1, None), slice(None)), (slice(None, -1), slice(None))]
    sequences = []
    for index in slices:
        steps = (mean + std * random.standard_normal((length, features))).astype(np.float32)
        steps[index] = np.nan
        sequences.append(steps)
    return sequences
