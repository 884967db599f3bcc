"""What a rewrite knows of a graph, and the new nodes that replace one.

Sizes are measured and not inferred: shape inference does not follow every graph, and it does not say how small an axis
can be. The graph is run on the smallest batch that it accepts, and on a larger one. An axis of the same size in both is
fixed.
"""

from __future__ import annotations

import functools
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
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
_MORE_STEPS: Final = 24  # of the larger batch: an axis of steps is longer there after every usual stride
_MAX_DOUBLED: Final = 6  # times that the smallest width is doubled, for a graph that raises for short sequences


@dataclass(frozen=True, slots=True)
class MeasuredAxis:
    """One axis of a value."""

    size: int  # Its size in the smallest batch: one row, of the smallest width
    fixed: bool  # Whether it has this size in every batch


class GraphFacts:
    """The facts of one graph, whose `model` may be edited."""

    def __init__(self, graph: onnx.ModelProto, manifest: Manifest, *, every: bool) -> None:
        self.every = every  # whether operators are replaced at sizes too where they were not seen to lose bits
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
        """The content, of any shape, of an initializer or of a Constant node."""
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
    """The axes of the float32 values that both batches give, by name.

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
            name: tuple(MeasuredAxis(one, one == other) for one, other in zip(shape, larger[name], strict=True))
            for name, shape in smallest.items()
            if len(larger.get(name, ())) == len(shape)
        }
    raise UncheckableError(f"the graph raises for every small batch: {raised}") from raised


PART: Final = 128  # A product over so many numbers is added in one part
LANES: Final = 4  # the numbers that sums, functions and products of one row take at once
MOST_LANES: Final = 16  # the most numbers that a processor computes at once, in float32


@dataclass(slots=True)
class Replacement:
    """New nodes in order of execution, and their outputs, which replace those of other nodes."""

    replaced: ir.Node
    nodes: list[ir.Node] = field(default_factory=list)
    # The values that are replaced, outputs of `replaced` or of nodes behind it
    olds: list[ir.Value] = field(default_factory=list)
    news: list[ir.Value] = field(default_factory=list)  # The values that replace them
    also: list[ir.Node] = field(default_factory=list)  # Nodes behind `replaced` that go with it
    weights: list[ir.Value] = field(default_factory=list)

    def add(self, operator: str, *inputs: ir.Value | None, **attributes: Any) -> ir.Value:
        """Adds a node with one output."""
        return self.add_outputs(operator, inputs, 1, **attributes)[0]

    def add_outputs(
        self, operator: str, inputs: Sequence[ir.Value | None], outputs: int, **attributes: Any
    ) -> Sequence[ir.Value]:
        """Adds a node with several outputs."""
        name = f"{self.replaced.name or self.replaced.outputs[0].name}/{operator}_{len(self.nodes)}"
        metadata = dict(self.replaced.metadata_props)
        node = ir.node(
            operator, list(inputs), attributes or None, num_outputs=outputs, name=name, metadata_props=metadata
        )
        for number, value in enumerate(node.outputs):
            value.name = name if outputs == 1 else f"{name}:{number}"
        self.nodes.append(node)
        return node.outputs

    def constant(self, numbers: NDArray[Any] | Sequence[int]) -> ir.Value:
        """A small constant in the shape of `numbers`; int64 if it is not an array."""
        array = numbers if isinstance(numbers, np.ndarray) else np.array(numbers, dtype=np.int64)
        return self.add("Constant", value=ir.tensor(array))

    def weight(self, array: NDArray[Any], name: str) -> ir.Value:
        """A new initializer in the shape of `array`."""
        self.weights.append(ir.val(name, const_value=ir.tensor(array, name=name)))
        return self.weights[-1]

    def transposed(self, value: ir.Value, order: Sequence[int]) -> ir.Value:
        """The value with its axes in this order."""
        return value if list(order) == sorted(order) else self.add("Transpose", value, perm=list(order))

    def total(self, parts: Iterable[ir.Value]) -> ir.Value:
        """The sum of values, added one after the other."""
        return functools.reduce(lambda total, part: self.add("Add", total, part), parts)

    def gives(self, *values: ir.Value) -> Replacement:
        """Says what replaces the outputs of the replaced node."""
        self.olds, self.news = list(self.replaced.outputs)[: len(values)], list(values)
        return self

    def put_into(self, graph: ir.Graph) -> None:
        """Replaces the nodes in the graph."""
        self._rename_apart(graph)
        for old, new in zip(self.olds, self.news, strict=True):
            # The measured sizes are known by name, and a value that is an output of the graph keeps its name.
            new.name, new.type, new.shape = old.name, old.type, old.shape
        ir.convenience.replace_all_uses_with(self.olds, self.news, replace_graph_outputs=True)
        for value in self.weights:
            graph.register_initializer(value)
        last = [self.replaced, *self.also][-1]
        graph.insert_after(last, self.nodes)
        graph.remove([*self.also[::-1], self.replaced], safe=True)

    def _rename_apart(self, graph: ir.Graph) -> None:
        """Makes the names of new nodes and values differ from all others."""
        nodes = {node.name for node in graph}
        values = {value.name for node in graph for value in node.outputs} | {*graph.initializers}
        values |= {value.name for value in graph.inputs}
        new_values = [*(value for node in self.nodes for value in node.outputs), *self.weights]
        for taken, ones in ((nodes, self.nodes), (values, new_values)):
            for one in ones:
                while one.name in taken:
                    one.name = f"{one.name}_"
                taken.add(one.name)
