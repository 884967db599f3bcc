"""What a rewrite has to know about a graph: the sizes of its values' axes, measured, and which values are constant.

Sizes are measured and not inferred: shape inference does not follow every graph, and it does not say how small an axis
can be. The graph is run on the smallest batch that it accepts, and on a larger one. An axis of the same size in both is
fixed.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Final

import numpy as np
import onnx
import onnx_ir as ir
from numpy.typing import NDArray

from lengthwise.padding import PaddedBatch
from lengthwise.runtime.graph_inputs import feed
from lengthwise.runtime.manifest import Manifest
from lengthwise_export.errors import UncheckableError
from lengthwise_export.onnx_graphs.probing import open_recording_session

_MORE_ROWS: Final = 3
_MORE_STEPS: Final = 24
"""Rows and extra steps of the larger batch: an axis of steps is longer there after every usual stride."""
_MAX_DOUBLED: Final = 6
"""The smallest width is doubled at most this many times, for a graph that raises for short sequences."""


@dataclass(frozen=True, slots=True)
class MeasuredAxis:
    """One axis of a value."""

    size: int  # Its size in the smallest batch: one row, of the smallest width
    fixed: bool  # Whether it has this size in every batch


class GraphFacts:
    """The facts of one graph, whose `model` may be edited."""

    def __init__(self, graph: onnx.ModelProto, manifest: Manifest) -> None:
        self.model = ir.from_proto(graph)
        self.opset = self.model.opset_imports.get("", 0)
        self._measured = _measured(graph, manifest)
        self._constant: dict[int, bool] = {}

    def axes(self, value: ir.Value | None) -> tuple[MeasuredAxis, ...] | None:
        """The axes of a float32 value; None for another one, or one without measured sizes."""
        if value is None:
            return None
        constant = self.constant(value)
        if constant is not None:
            fixed = tuple(MeasuredAxis(size, fixed=True) for size in constant.shape)
            return fixed if constant.dtype == np.float32 else None
        return self._measured.get(value.name or "")

    def constant(self, value: ir.Value | None) -> NDArray[Any] | None:
        """The content of an initializer, or of a Constant node."""
        tensor = None if value is None else ir.convenience.get_const_tensor(value)
        return None if tensor is None else tensor.numpy()

    def is_constant(self, value: ir.Value) -> bool:
        """Whether a value depends on no input of the graph: onnxruntime computes it when it loads the graph."""
        if id(value) not in self._constant:
            node = value.producer()
            self._constant[id(value)] = (
                ir.convenience.get_const_tensor(value) is not None
                if node is None
                else all(self.is_constant(each) for each in node.inputs if each is not None)
            )
        return self._constant[id(value)]


def _measured(graph: onnx.ModelProto, manifest: Manifest) -> Mapping[str, tuple[MeasuredAxis, ...]]:
    """The axes of the float32 values that both batches give, by name."""
    nodes = [*graph.graph.node]
    session = open_recording_session(graph, nodes)
    names = [output.name for output in session.get_outputs()]

    def shapes(rows: int, width: int) -> dict[str, tuple[int, ...]]:
        inputs = feed(manifest.graph, _batch(manifest, rows, width))
        found = dict(zip(names, session.run(names, inputs), strict=True)) | inputs
        return {
            name: value.shape
            for name, value in found.items()
            if isinstance(value, np.ndarray) and value.dtype == np.float32
        }

    smallest, larger = _smallest_and_larger(shapes, manifest)
    return {
        name: tuple(MeasuredAxis(one, one == other) for one, other in zip(shape, larger[name], strict=True))
        for name, shape in smallest.items()
        if len(larger.get(name, ())) == len(shape)
    }


def _smallest_and_larger(shapes: Any, manifest: Manifest) -> tuple[dict[str, Any], dict[str, Any]]:
    raised: Exception | None = None
    for times in range(_MAX_DOUBLED + 1):
        width = manifest.width_multiple << times
        if times and width > manifest.max_length:
            break
        wider = min(width + _MORE_STEPS, max(manifest.max_length, width))
        try:
            return shapes(1, width), shapes(_MORE_ROWS, wider)
        except Exception as error:  # onnxruntime's exceptions have no common base of their own
            raised = error
    raise UncheckableError(f"the graph raises for every small batch: {raised}") from raised


def _batch(manifest: Manifest, rows: int, width: int) -> PaddedBatch:
    """A batch of ones (of token 0 for tokens), whose rows are one step shorter each."""
    longest = min(width, manifest.max_length)
    lengths = np.maximum(longest - np.arange(rows, dtype=np.int32), min(manifest.min_length, longest)).astype(np.int32)
    if manifest.input.kind == "tokens":
        return PaddedBatch(np.zeros((rows, width), dtype=np.int64), lengths)
    return PaddedBatch(np.ones((rows, width, manifest.input.features or 1), dtype=np.float32), lengths)
