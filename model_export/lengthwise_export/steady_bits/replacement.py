"""The new nodes that stand in place of one."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, Final

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

from lengthwise_export.onnx_graphs.protos import AXES_ARE_INPUTS

PART: Final = 128  # A product over so many numbers is added in one part
LANES: Final = 4  # the numbers that sums, functions and products of one row take at once
MOST_LANES: Final = 16  # the most numbers that a processor computes at once, in float32


@dataclass(slots=True)
class Replacement:
    """New nodes in order of execution, and what they give in place of the replaced nodes' outputs."""

    replaced: ir.Node
    nodes: list[ir.Node] = field(default_factory=list)
    # The values that are replaced, outputs of `replaced` or of nodes behind it
    olds: list[ir.Value] = field(default_factory=list)
    news: list[ir.Value] = field(default_factory=list)  # The values in their place
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
        """A small constant; int64 if it is not an array."""
        array = numbers if isinstance(numbers, np.ndarray) else np.array(numbers, dtype=np.int64)
        return self.add("Constant", value=ir.tensor(array))

    def weight(self, array: NDArray[Any], name: str) -> ir.Value:
        """A new initializer."""
        shape, kind = ir.Shape(array.shape), ir.TensorType(ir.DataType.FLOAT)
        value = ir.Value(name=name, shape=shape, type=kind, const_value=ir.tensor(array, name=name))
        self.weights.append(value)
        return value

    def reduced(self, operator: str, value: ir.Value, axis: int, opset: int) -> ir.Value:
        """A reduction over one axis, which is dropped."""
        if opset >= AXES_ARE_INPUTS:
            return self.add(operator, value, self.constant([axis]), keepdims=0)
        return self.add(operator, value, axes=[axis], keepdims=0)

    def gives(self, *values: ir.Value) -> Replacement:
        """Says what stands in place of the outputs of the replaced node."""
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
