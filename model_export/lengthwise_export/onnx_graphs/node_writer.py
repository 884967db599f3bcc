"""Makes new nodes and constants for a graph of ONNX, under names that the graph does not have yet.

A value of a graph is a name, that of a node's output or of a constant: `writer.emit("Add", ["x", "y"])` adds a node and
returns the name of its output. The caller puts the nodes and constants into the graph.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from copy import deepcopy
from typing import Any

import numpy as np
from numpy.typing import NDArray
from onnx import NodeProto, StringStringEntryProto, TensorProto, helper, numpy_helper

from lengthwise_export.onnx_graphs.protos import refill


class NodeWriter:
    """Collects new nodes, in order of execution, and new constants."""

    def __init__(self, names: set[str], stem: str, metadata: Iterable[StringStringEntryProto] = ()) -> None:
        """Starts without nodes and constants.

        Args:
            names: The names of all values and nodes of the graph, which new names must differ from; these are added.
            stem: What each new name begins with.
            metadata: The metadata of each new node, such as its line of code.
        """
        self.nodes: list[NodeProto] = []
        self.constants: list[TensorProto] = []
        self._names, self._stem, self._metadata = names, stem, tuple(metadata)
        self._constants: dict[tuple[str, tuple[int, ...], bytes], str] = {}  # names, by element type, shape and bytes

    def name(self, stem: str) -> str:
        """Reserves a new name for a value or a node: `stem`, followed by a number if that name is used already."""
        name, count = stem, 1
        while name in self._names:
            count += 1
            name = f"{stem}_{count}"
        self._names.add(name)
        return name

    def emit(self, kind: str, inputs: Sequence[str], **attributes: Any) -> str:
        """Adds a node of the operator `kind` with one output, and returns the output's name."""
        return self.emit_outputs(kind, inputs, 1, **attributes)[0]

    def emit_outputs(self, kind: str, inputs: Sequence[str], count: int, **attributes: Any) -> list[str]:
        """Adds a node of the operator `kind` with `count` outputs, and returns their names."""
        names = [self.name(f"{self._stem}{kind.lower()}") for _ in range(count)]
        node = helper.make_node(kind, list(inputs), names, name=self.name(f"{names[0]}_node"), **attributes)
        node.metadata_props.extend(self._metadata)
        self.nodes.append(node)
        return names

    def copy(
        self,
        node: NodeProto,
        inputs: Sequence[str],
        *,
        drop: Iterable[str] = (),
        name_suffix: str = "",
        **attributes: Any,
    ) -> list[str]:
        """Adds a copy of a node with other inputs and attributes, and returns the names of the copy's outputs.

        Args:
            node: The node, which stays as it is.
            inputs: The inputs of the copy; empty ones at the end are left out.
            drop: The names of attributes that the copy does not get.
            name_suffix: What is added to the names of the copy and of its outputs. Without it the names are those of
                the node, which the copy is to replace.
            **attributes: The attributes of the copy that the node does not have, or with other values.
        """
        copied = deepcopy(node)
        count = max((index for index, name in enumerate(inputs, start=1) if name), default=0)
        copied.input[:] = inputs[:count]
        kept_attributes = [attribute for attribute in copied.attribute if attribute.name not in {*attributes, *drop}]
        refill(
            copied.attribute,
            [*kept_attributes, *(helper.make_attribute(name, value) for name, value in attributes.items())],
        )
        if name_suffix:
            copied.output[:] = [self.name(f"{name}_{name_suffix}") if name else "" for name in copied.output]
            copied.name = self.name(f"{copied.name}_{name_suffix}")
        self.nodes.append(copied)
        return list(copied.output)

    def constant(self, array: NDArray[Any] | np.generic | Sequence[int] | float, dtype: Any = None) -> str:
        """The name of a constant with these numbers, which is added unless there is an equal one.

        Its shape is that of the numbers. Its element type is `dtype`; by default int64 for integers, else NumPy's.
        """
        tensor = np.asarray(array, dtype=dtype)
        if dtype is None and np.issubdtype(tensor.dtype, np.integer):
            tensor = tensor.astype(np.int64)
        key = (str(tensor.dtype), tensor.shape, tensor.tobytes())
        if key not in self._constants:
            name = self.name(f"{self._stem}constant")
            self.constants.append(numpy_helper.from_array(np.array(tensor, order="C"), name))
            self._constants[key] = name
        return self._constants[key]

    def unsqueezed(self, name: str, axes: Sequence[int]) -> str:
        """The name of the tensor with axes of size 1 inserted, which are these axes of the result."""
        return self.emit("Unsqueeze", [name, self.constant(list(axes))]) if axes else name

    def squeezed(self, name: str, axes: Sequence[int]) -> str:
        """The name of the tensor without these axes, which have size 1."""
        return self.emit("Squeeze", [name, self.constant(list(axes))]) if axes else name

    def transposed(self, name: str, order: Sequence[int]) -> str:
        """The name of the tensor with its axes in this order."""
        return name if list(order) == sorted(order) else self.emit("Transpose", [name], perm=list(order))
