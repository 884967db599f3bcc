"""Computes sizes such as `int(0.29 * x.shape[1])` in float64 in the graph, as Python does.

The exporter translates Python's floats to float32, and 0.29 * 100 is 28.999... in float64, but 29 in float32. So each
size that is a float made whole (`int`, `math.floor`, `math.ceil`) is computed again from the sizes that it is made of.
"""

from __future__ import annotations

import math
import operator
from collections.abc import Iterator, Mapping
from typing import Any, Final

import numpy as np
import onnx_ir as ir
import torch
from torch import fx
from torch.export import ExportedProgram

_WHOLE: Final[Mapping[Any, str | None]] = {math.trunc: None, math.floor: "Floor", math.ceil: "Ceil"}
"""What makes a float whole, and the operator for it; a cast to int64 cuts off what is behind the point."""

_OPERATORS: Final[Mapping[Any, str]] = {
    operator.add: "Add",
    operator.sub: "Sub",
    operator.mul: "Mul",
    operator.truediv: "Div",
    operator.pow: "Pow",
    operator.neg: "Neg",
    torch.sym_float: "Identity",
    torch.sym_sqrt: "Sqrt",
}
"""The arithmetic of floats that are made of sizes."""


def with_exact_sizes(model: ir.Model, program: ExportedProgram) -> ir.Model:
    """Changes a program's translation, before it is optimised: values still have the names of the program's nodes."""
    values = {value.name: value for value in _values(model)}
    for node in program.graph.nodes:
        value = values.get(node.name)
        producer = None if value is None else value.producer()
        if node.target not in _WHOLE or value is None or producer is None:
            continue
        cone = _Cone(values)
        whole = cone.float64(node.args[0])
        if whole is not None:
            kind = _WHOLE[node.target]
            exact = cone.int64(whole if kind is None else cone.add(kind, [whole]))
            exact.shape = value.shape
            model.graph.insert_before(producer, cone.nodes)
            ir.convenience.replace_all_uses_with(value, exact)
    return model


def _values(model: ir.Model) -> Iterator[ir.Value]:
    yield from model.graph.inputs
    for node in model.graph:
        yield from node.outputs


class _Cone:
    """The nodes that compute one size; `values` by the names of the program's nodes."""

    def __init__(self, values: Mapping[str | None, ir.Value]) -> None:
        self._values = values
        self.nodes: list[ir.Node] = []

    def float64(self, given: Any) -> ir.Value | None:
        """A number of the program as float64; None if it is made in another way."""
        if not isinstance(given, fx.Node):
            return self._constant(given) if isinstance(given, int | float) else None
        if isinstance(given.meta.get("val"), torch.SymInt):
            value = self._values.get(given.name)
            return None if value is None else self.add("Cast", [value], to=ir.DataType.DOUBLE)
        kind = _OPERATORS.get(given.target)
        inputs = [self.float64(each) for each in given.args]
        known = [each for each in inputs if each is not None]
        return None if kind is None or len(known) < len(inputs) else self.add(kind, known)

    def int64(self, value: ir.Value) -> ir.Value:
        return self.add("Cast", [value], to=ir.DataType.INT64)

    def add(self, kind: str, inputs: list[ir.Value], *, to: ir.DataType = ir.DataType.DOUBLE) -> ir.Value:
        """The value that one more node gives, of type `to`."""
        attributes = [ir.AttrInt64("to", to)] if kind == "Cast" else []
        node = ir.Node("", kind, inputs, attributes)
        self.nodes.append(node)
        (value,) = node.outputs
        value.dtype = to
        return value

    def _constant(self, number: float) -> ir.Value:
        node = ir.node("Constant", [], {"value": ir.tensor(np.float64(number))})
        self.nodes.append(node)
        (value,) = node.outputs
        value.dtype, value.shape = ir.DataType.DOUBLE, ir.Shape([])
        return value
