"""Changes a translated graph: it is simplified, and its sizes and sigmoids are computed as torch computes them.

onnxscript's optimizer takes any number below 1e-8 for 0 and any within 1e-5 of 1 for 1: `log(x + 1e-12)` would become
`log(x)`, not finite for a sequence of zeros. So such numbers are inputs of the graph while it runs.
"""

from __future__ import annotations

import math
import operator
from collections.abc import Mapping
from typing import Any, Final

import numpy as np
import onnx_ir as ir
import torch
from onnxscript import optimizer
from torch import fx
from torch.export import ExportedProgram

_NEAR_ZERO: Final = 1e-6
_NEAR_ONE: Final = 1e-3  # wider than what the optimizer takes for 0 and for 1


def optimized(model: ir.Model) -> ir.Model:
    """The same model with constants folded and needless operators removed; it is changed in place."""
    optimizer.inline(model)
    optimizer.fold_constants(model)
    hidden = [(_hidden(model, value, count), tensor) for count, (value, tensor) in enumerate(_mistakable(model))]
    optimizer.optimize_ir(model)
    for value, tensor in hidden:
        model.graph.inputs.remove(value)
        if value.uses():
            value.const_value = tensor
            model.graph.register_initializer(value)
    return model


def _mistakable(model: ir.Model) -> list[tuple[ir.Value, ir.TensorProtocol]]:
    """The single numbers of a model that are nearly 0 or 1, and their values."""
    found = {}
    for value in (value for node in model.graph.all_nodes() for value in node.inputs if value is not None):
        tensor = ir.convenience.get_const_tensor(value)
        if tensor is None or tensor.shape.rank() or not tensor.dtype.is_floating_point():
            continue
        number = float(tensor.numpy())
        near = abs(number) < _NEAR_ZERO or math.isclose(number, 1.0, rel_tol=_NEAR_ONE)
        if near and number not in (0.0, 1.0):
            found[id(value)] = (value, tensor)
    return [*found.values()]


def _hidden(model: ir.Model, value: ir.Value, count: int) -> ir.Value:
    """An input of the graph in the place of a constant."""
    given = ir.Value(name=f"small_number_{count}", type=value.type, shape=ir.Shape([]))
    if given.type is None:
        tensor = ir.convenience.get_const_tensor(value)
        assert tensor is not None  # it is a constant
        given.type = ir.TensorType(tensor.dtype)
    ir.convenience.replace_all_uses_with(value, given)
    model.graph.inputs.append(given)
    return given


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
    """The same model with sizes such as `int(0.29 * x.shape[1])` computed in float64 in the graph, as Python does.

    The exporter translates Python's floats to float32, in which 0.29 * 100 is 29 and not 28.999... So each size that is
    a float made whole is computed again from what it is made of. The model is changed in place, before it is optimised:
    its values still have the names of the program's nodes.
    """
    outputs = (value for node in model.graph for value in node.outputs)
    values = {value.name: value for value in (*model.graph.inputs, *outputs)}
    for node in program.graph.nodes:
        value = values.get(node.name)
        producer = None if value is None else value.producer()
        if node.target not in _WHOLE or value is None or producer is None:
            continue
        cone = _Cone(values)
        whole = cone.float64(node.args[0])
        if whole is not None:
            kind = _WHOLE[node.target]
            exact = cone.add("Cast", [whole if kind is None else cone.add(kind, [whole])], to=ir.DataType.INT64)
            exact.shape = value.shape
            model.graph.insert_before(producer, cone.nodes)
            ir.convenience.replace_all_uses_with(value, exact)
    return model


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


_SHARP: Final = frozenset({"Log", "Reciprocal", "Pow", "Sqrt", "Div"})
_PASSING: Final = frozenset(
    {"Add", "Sub", "Mul", "Neg", "Abs", "Clip", "Max", "Min", "Where", "Identity", "Cast", "Reshape", "Transpose"}
    | {"Squeeze", "Unsqueeze", "Expand", "Slice", "Gather", "Concat", "Split", "Pad"}
)


def with_exact_sigmoids(model: ir.Model) -> ir.Model:
    """The same model with `1 / (1 + exp(-x))` in the place of each Sigmoid from which a logarithm or quotient is taken.

    onnxruntime's Sigmoid is a rational function with an absolute error of 1e-7, and 0 below -18, where torch has
    `exp(x)`: a logarithm of that is far off.
    """
    for node in [node for node in model.graph if node.op_type == "Sigmoid" and _is_read_sharply(node)]:
        (x,) = node.inputs
        assert x is not None  # it has to have one
        one = ir.node("Constant", [], {"value": ir.tensor(np.asarray(1, dtype=(x.dtype or ir.DataType.FLOAT).numpy()))})
        minus = ir.node("Neg", [x])
        power = ir.node("Exp", minus.outputs)
        total = ir.node("Add", [*power.outputs, *one.outputs])
        answer = ir.node("Reciprocal", total.outputs)
        nodes = [one, minus, power, total, answer]
        for place, each in enumerate(nodes):
            each.outputs[0].name = f"{node.outputs[0].name}_exact_{place}"
            each.outputs[0].type, each.outputs[0].shape = node.outputs[0].type, node.outputs[0].shape
            each.metadata_props.update(node.metadata_props)
        one.outputs[0].shape = ir.Shape([])
        ir.convenience.replace_nodes_and_values(model.graph, node, [node], nodes, node.outputs, answer.outputs)
    return model


def _is_read_sharply(sigmoid: ir.Node) -> bool:
    """Whether its small values matter: a logarithm, root or quotient is computed from them element by element."""
    seen: set[ir.Node] = set()
    left = [sigmoid]
    while left:
        for reader, place in [use for output in left.pop().outputs for use in output.uses()]:
            if reader.op_type in _SHARP and not (reader.op_type == "Div" and place == 0):
                return True
            if reader.op_type in _PASSING and reader not in seen:
                seen.add(reader)
                left.append(reader)
    return False
