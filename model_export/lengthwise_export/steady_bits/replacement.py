"""What a rewrite knows of a graph, and the new nodes that replace one.

Sizes are measured and not inferred: shape inference does not follow every graph, and it does not say how small an axis
can be. The graph is run on the smallest batch that it accepts, and on a larger one. An axis of the same size in both is
fixed.
"""

from __future__ import annotations

import functools
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import NodeProto, numpy_helper

from lengthwise.padding import PaddedBatch
from lengthwise.runtime.graph_inputs import feed
from lengthwise.runtime.manifest import Manifest
from lengthwise_export.errors import UncheckableError
from lengthwise_export.onnx_graphs.node_writer import NodeWriter
from lengthwise_export.onnx_graphs.probing import open_recording_session
from lengthwise_export.onnx_graphs.protos import constants_of, keep_needed, names_in, opset_of, refill

_MORE_ROWS: Final = 3
_MORE_STEPS: Final = 24  # of the larger batch: an axis of steps is longer there after every usual stride
_MAX_DOUBLED: Final = 6  # times that the smallest width is doubled, for a graph that raises for short sequences


@dataclass(frozen=True, slots=True)
class MeasuredAxis:
    """One axis of a value."""

    size: int  # Its size in the smallest batch: one row, of the smallest width
    fixed: bool  # Whether it has this size in every batch


class GraphFacts:
    """What is known of one graph, which does not change while rewrites of its nodes are collected. Values are names."""

    def __init__(self, model: onnx.ModelProto, manifest: Manifest, *, every: bool) -> None:
        graph = model.graph
        self.every = every  # whether operators are replaced at sizes too where they were not seen to lose bits
        self.opset = opset_of(model)
        self.names = {name for node in graph.node for name in (node.name, *node.input, *node.output)}
        self.names |= {value.name for value in graph.input} | {tensor.name for tensor in graph.initializer}
        self.producers = {name: node for node in graph.node for name in node.output}
        self.outputs = {value.name for value in graph.output}
        self.two_axes: dict[str, str] = {}  # by a value without the second axis, the one with it: see `convolutions`
        self._graph = graph
        self._measured = _measured(model, manifest)
        self._constants = constants_of(graph)
        self._constant: dict[str, bool] = {}

    def users(self, name: str) -> list[NodeProto]:
        """The nodes that take a value, or have a graph inside that does."""
        return [node for node in self._graph.node if name in names_in([node])]

    def axes(self, name: str) -> tuple[MeasuredAxis, ...] | None:
        """The axes of a float32 value; None for another one, or one without measured sizes."""
        if (constant := self.constant(name)) is not None:
            fixed = tuple(MeasuredAxis(size, fixed=True) for size in constant.shape)
            return fixed if constant.dtype == np.float32 else None
        return self._measured.get(name)

    def constant(self, name: str) -> NDArray[Any] | None:
        """The values of an initializer or a Constant node; None for another name."""
        return numpy_helper.to_array(self._constants[name]) if name in self._constants else None

    def is_constant(self, name: str) -> bool:
        """Whether a value depends on no input of the graph: onnxruntime computes it when it loads the graph."""
        if name not in self._constant:
            node = self.producers.get(name)
            inputs = [] if node is None else [each for each in names_in([node]) if each]
            is_known = name in self._constants
            self._constant[name] = is_known or (node is not None and all(map(self.is_constant, inputs)))
        return self._constant[name]


def _measured(graph: onnx.ModelProto, manifest: Manifest) -> Mapping[str, tuple[MeasuredAxis, ...]]:
    """The axes of the graph's float32 values by name, measured by a run of a smallest and a larger batch.

    Raises:
        UncheckableError: The graph raises for every small batch.
    """
    session = open_recording_session(graph, [*graph.graph.node])
    names = [output.name for output in session.get_outputs()]

    def shapes(rows: int, width: int) -> dict[str, tuple[int, ...]]:
        longest = min(width, manifest.max_length)  # the rows are one step shorter each
        lengths = np.maximum(longest - np.arange(rows), min(manifest.min_length, longest)).astype(np.int32)
        steps = np.ones((rows, width, manifest.input.features or 1), dtype=np.float32)
        if manifest.input.kind == "tokens":
            steps = np.zeros((rows, width), dtype=np.int64)
        inputs = feed(manifest.graph, PaddedBatch(steps, lengths))
        values = dict(zip(names, session.run(names, inputs), strict=True)) | inputs
        arrays = {name: value for name, value in values.items() if isinstance(value, np.ndarray)}
        return {name: array.shape for name, array in arrays.items() if array.dtype == np.float32}

    raised: Exception | None = None
    for times in range(_MAX_DOUBLED + 1):
        width = manifest.width_multiple << times
        if times and width > manifest.max_length:
            break
        wider = min(width + _MORE_STEPS, max(manifest.max_length, width))
        try:
            smallest, larger = shapes(1, width), shapes(_MORE_ROWS, wider)
        except Exception as error:  # onnxruntime's exceptions have no common base of their own
            raised = error
            continue
        return {
            name: tuple(MeasuredAxis(size, size == other) for size, other in zip(shape, larger[name], strict=True))
            for name, shape in smallest.items()
            if len(larger.get(name, ())) == len(shape)
        }
    raise UncheckableError(f"the graph raises for every small batch: {raised}") from raised


PART: Final = 128  # A product over so many numbers is added in one part
LANES: Final = 4  # the numbers that sums, functions and products of one row take at once
MOST_LANES: Final = 16  # the most numbers that a processor computes at once, in float32


class Replacement(NodeWriter):
    """New nodes in order of execution that stand for one node, or for it and some behind it."""

    def __init__(self, node: NodeProto, facts: GraphFacts) -> None:
        super().__init__(facts.names, f"{node.name or node.output[0]}/", node.metadata_props)
        self.replaced = [node]

    def total(self, parts: Iterable[str]) -> str:
        """The sum of values, added one after the other."""
        return functools.reduce(lambda total, part: self.emit("Add", [total, part]), parts)

    def gives(self, *values: str) -> Replacement:
        """Renames new values to the outputs of the last replaced node, so that other nodes take them; returns self."""
        new = {name for node in self.nodes for name in node.output}
        values = tuple(name if name in new else self.emit("Identity", [name]) for name in values)
        names = dict(zip(values, self.replaced[-1].output, strict=False))
        for node in self.nodes:
            for field in (node.input, node.output):
                field[:] = [names.get(name, name) for name in field]
        return self


def put_into(model: onnx.ModelProto, replacements: Sequence[Replacement]) -> None:
    """Replaces nodes of a graph, in place; the new nodes stand where the last replaced node of each rewrite stood."""
    # By the id of each node that is replaced: the nodes in its place
    new_nodes: dict[int, list[NodeProto]] = {id(node): [] for new in replacements for node in new.replaced}
    new_nodes |= {id(new.replaced[-1]): new.nodes for new in replacements}
    old_nodes = list(model.graph.node)
    refill(model.graph.node, [node for old in old_nodes for node in new_nodes.get(id(old), [old])])
    model.graph.initializer.extend(constant for new in replacements for constant in new.constants)
    keep_needed(model.graph)
