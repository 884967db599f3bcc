"""What a rewrite knows of a graph, and the new nodes that replace one of its nodes.

Sizes are measured and not inferred: shape inference does not follow every graph, and it does not say how small an axis
can be. The graph is run on the smallest batch that it accepts (one row of the smallest width), and on a larger one. An
axis of the same size in both is *fixed*. A value is its name in the graph.
"""

from __future__ import annotations

import functools
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray
from onnx import ModelProto, NodeProto, numpy_helper

from lengthwise.exporter_api.contract import Manifest, PaddedBatch, feed
from lengthwise_export.errors import UncheckableError
from lengthwise_export.onnx_graphs.beside import completed
from lengthwise_export.onnx_graphs.probing import open_recording_session
from lengthwise_export.onnx_graphs.protos import (
    NodeWriter,
    all_names,
    constants_of,
    keep_needed,
    names_in,
    opset_of,
    refill,
)

_LARGER_ROWS: Final = 3  # rows of the larger batch
_MORE_STEPS: Final = 24  # steps by which that is wider: so an axis of steps is longer in it after every usual stride
_MAX_DOUBLED: Final = 6  # the smallest width is doubled at most this often, if the graph raises for short sequences


@dataclass(frozen=True, slots=True)
class MeasuredAxis:
    """One axis of a value."""

    size: int  # Its size in the smallest batch: one row, of the smallest width
    fixed: bool  # Whether it has this size in every batch


class GraphFacts:
    """What is known of one graph, which does not change while rewrites of its nodes are collected."""

    def __init__(self, model: ModelProto, manifest: Manifest, *, at_all_sizes: bool) -> None:
        """Runs the graph to measure its sizes.

        Args:
            model: The graph.
            manifest: Its manifest.
            at_all_sizes: Whether operators are also rewritten at sizes at which they were not seen to lose bits.
        """
        graph = model.graph
        self.at_all_sizes = at_all_sizes
        self.opset = opset_of(model)
        self.names = all_names(graph)
        self.producers = {name: node for node in graph.node for name in node.output}  # by the name of an output
        self.outputs = {value.name for value in graph.output}
        # By a value without the second axis of a rewritten convolution, the value with it: see `convolutions`
        self.two_axes: dict[str, str] = {}
        self._graph = graph
        self._measured = _measured(model, manifest)
        self._tensors = constants_of(graph)  # by name
        # The names of values that depend on no input of the graph: onnxruntime computes them when it loads the graph. A
        # random operator without inputs counts as well; a model that has one never keeps its bits.
        self.constants = {*self._tensors}
        for node in graph.node:
            if self.constants.issuperset(filter(None, names_in([node]))):
                self.constants.update(node.output)

    def users(self, name: str) -> list[NodeProto]:
        """The nodes that take a value, or that contain a graph which takes it."""
        return [node for node in self._graph.node if name in names_in([node])]

    def axes(self, name: str) -> tuple[MeasuredAxis, ...] | None:
        """The axes of a float32 value; None for another element type, or if the sizes could not be measured."""
        if (constant := self.constant(name)) is not None:
            fixed = tuple(MeasuredAxis(size, fixed=True) for size in constant.shape)
            return fixed if constant.dtype == np.float32 else None
        return self._measured.get(name)

    def constant(self, name: str) -> NDArray[Any] | None:
        """The array of an initializer or a Constant node; None for another value."""
        return numpy_helper.to_array(self._tensors[name]) if name in self._tensors else None


def _measured(graph: ModelProto, manifest: Manifest) -> Mapping[str, tuple[MeasuredAxis, ...]]:
    """The axes of the graph's float32 values by name, measured by a run of a smallest and a larger batch.

    Values that have another number of axes in the larger batch are left out.

    Raises:
        UncheckableError: The graph raises for every small batch.
    """
    session = open_recording_session(graph, [*graph.graph.node])
    names = [output.name for output in session.get_outputs()]

    def shapes(rows: int, width: int) -> dict[str, tuple[int, ...]]:
        """The shapes of the float32 values, by name, for a batch of `rows` rows, `width` steps wide."""
        longest = min(width, manifest.max_length)  # each row is one step shorter than that before it
        lengths = np.maximum(longest - np.arange(rows), min(manifest.min_length, longest)).astype(np.int32)
        steps = np.ones((rows, width, manifest.input.features or 1), dtype=np.float32)
        if manifest.input.kind == "tokens":
            steps = np.zeros((rows, width), dtype=np.int64)
        inputs = feed(manifest.graph, completed(PaddedBatch(steps, lengths), manifest.input))
        values = dict(zip(names, session.run(names, inputs), strict=True)) | inputs
        arrays = {name: value for name, value in values.items() if isinstance(value, np.ndarray)}
        return {name: array.shape for name, array in arrays.items() if array.dtype == np.float32}

    # The smallest width that runs: the smallest that is allowed, or a multiple of it by a small power of two.
    raised: Exception | None = None
    for doublings in range(_MAX_DOUBLED + 1):
        width = manifest.width_multiple << doublings
        if doublings and width > manifest.max_length:
            break
        wider = min(width + _MORE_STEPS, max(manifest.max_length, width))
        try:
            smallest, larger = shapes(1, width), shapes(_LARGER_ROWS, wider)
        except Exception as error:  # onnxruntime's exceptions have no common base of their own
            raised = error
            continue
        return {
            name: tuple(
                MeasuredAxis(size, size == larger_size) for size, larger_size in zip(shape, larger[name], strict=True)
            )
            for name, shape in smallest.items()
            if len(larger.get(name, ())) == len(shape)
        }
    raise UncheckableError(f"the graph raises for every small batch: {raised}") from raised


PART: Final = 128  # numbers: a product that adds at most this many adds them in one part
LANES: Final = 4  # numbers that sums, functions and products of one row take at once
MOST_LANES: Final = 16  # the most float32 numbers that a processor computes at once


class Replacement(NodeWriter):
    """New nodes, in order of execution, that replace one node of a graph, and maybe some nodes after it."""

    def __init__(self, node: NodeProto, facts: GraphFacts) -> None:
        """Begins without new nodes, for a node of the graph; their names begin with its name."""
        super().__init__(facts.names, f"{node.name or node.output[0]}/", node.metadata_props)
        self.replaced = [node]  # in order of execution; `convolutions` adds nodes after the first one

    def total(self, parts: Iterable[str]) -> str:
        """Writes the sum of values, added one after the other; returns its name."""
        return functools.reduce(lambda total, part: self.emit("Add", [total, part]), parts)

    def with_outputs(self, *values: str) -> Replacement:
        """Gives new values the names of the outputs of the last replaced node, so that the nodes after it take them.

        A value that no new node makes is copied by an Identity. Returns this replacement.
        """
        new_names = {name for node in self.nodes for name in node.output}
        values = tuple(name if name in new_names else self.emit("Identity", [name]) for name in values)
        output_of = dict(zip(values, self.replaced[-1].output, strict=False))
        for node in self.nodes:
            for names in (node.input, node.output):
                names[:] = [output_of.get(name, name) for name in names]
        return self


def put_into(model: ModelProto, replacements: Sequence[Replacement]) -> None:
    """Replaces nodes of a graph, in place; new nodes stand where the last node stood that they replace."""
    # By the `id` of each node that is replaced (messages cannot be keys): the nodes in its place
    new_nodes: dict[int, list[NodeProto]] = {id(node): [] for new in replacements for node in new.replaced}
    new_nodes |= {id(new.replaced[-1]): new.nodes for new in replacements}
    old_nodes = list(model.graph.node)
    refill(model.graph.node, [node for old in old_nodes for node in new_nodes.get(id(old), [old])])
    model.graph.initializer.extend(constant for new in replacements for constant in new.constants)
    keep_needed(model.graph)
