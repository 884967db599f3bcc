"""Simplifies a translated graph, and keeps the small numbers in it.

onnxscript's optimizer takes any number below 1e-8 for 0 and any within 1e-5 of 1 for 1: `log(x + 1e-12)` would become
`log(x)`, not finite for a sequence of zeros. So such numbers are inputs of the graph while it runs.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Final

import onnx_ir as ir
from onnxscript import optimizer

_NEAR_ZERO: Final = 1e-6
_NEAR_ONE: Final = 1e-3
"""Wider than what the optimizer takes for 0 and for 1."""


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
    for value in _read_values(model):
        tensor = ir.convenience.get_const_tensor(value)
        if tensor is None or tensor.shape.rank() or not tensor.dtype.is_floating_point():
            continue
        number = float(tensor.numpy())
        near = abs(number) < _NEAR_ZERO or math.isclose(number, 1.0, rel_tol=_NEAR_ONE)
        if near and number not in (0.0, 1.0):
            found[id(value)] = (value, tensor)
    return [*found.values()]


def _read_values(model: ir.Model) -> Iterator[ir.Value]:
    for node in model.graph.all_nodes():
        yield from (value for value in node.inputs if value is not None)


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
