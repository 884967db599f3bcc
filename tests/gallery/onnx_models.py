"""What the ONNX rooms share: a model from ONNX's textual syntax and arrays, and seeded weights.

In the syntax, `[name]` before a statement is the node's name, and names with slashes or colons stand in quotes, as the
exporters of torch and TensorFlow write them.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import ModelProto, numpy_helper, parser

Array = NDArray[Any]


def model(signature: str, body: str, weights: dict[str, Array], *, producer: str, opset: int = 17) -> ModelProto:
    """A checked model.

    Args:
        signature: The graph's name, inputs and outputs, as `main (float[N,T,4] x) => (float[N,2] y)`.
        body: Its nodes, one a line.
        weights: Its initializers by name; those of `CONSTANTS` that its nodes read come by themselves.
        producer: The exporter that would have written it.
        opset: Of the default domain.
    """
    built = parser.parse_model(f'<ir_version: 8, opset_import: ["" : {opset}]>\n{signature}\n{{\n{body}\n}}')
    built.producer_name = producer
    nodes = built.graph.node
    read = {name for node in nodes for name in node.input} - {name for node in nodes for name in node.output}
    weights = {name: array for name, array in CONSTANTS.items() if name in read} | weights
    built.graph.initializer.extend(numpy_helper.from_array(array, name) for name, array in weights.items())
    onnx.checker.check_model(built)
    return built


class Weights:
    """Small seeded weights, in the layouts that ONNX wants."""

    def __init__(self, seed: int) -> None:
        self._random = np.random.default_rng(seed)

    def normal(self, *shape: int, scale: float = 0.4) -> Array:
        return self._random.normal(scale=scale, size=shape).astype(np.float32)

    def named(self, shapes: str) -> dict[str, Array]:
        """Normal weights by name, as `"kernel 5x8, bias 8*0.2"`: the shape, and the scale where it is another."""
        found = {}
        for name, shape in map(str.split, shapes.split(",")):
            sizes, _, scale = shape.partition("*")
            found[name] = self.normal(*map(int, sizes.split("x")), scale=float(scale or 0.4))
        return found

    def recurrent(self, gates: int, features: int, hidden: int, directions: int = 1) -> dict[str, Array]:
        """`W`, `R` and `B` of an LSTM (4 gates), a GRU (3) or a plain RNN (1)."""
        return {
            "W": self.normal(directions, gates * hidden, features),
            "R": self.normal(directions, gates * hidden, hidden),
            "B": self.normal(directions, 2 * gates * hidden, scale=0.2),
        }


def graph(seed: int | None, **said: Any) -> Callable[[Callable[..., ModelProto]], Callable[[], ModelProto]]:
    """Gives a function its weights, if it has any; `index` reads what is `said` of its model."""
    return lambda make: functools.wraps(make)(lambda: make() if seed is None else make(Weights(seed)))


def integers(*values: int) -> Array:
    """A one-dimensional int64 constant."""
    return np.array(values, dtype=np.int64)


def scalar(value: float, dtype: Any = np.float32) -> Array:
    """A constant without axes."""
    return np.array(value, dtype=dtype)


CONSTANTS = {
    "axis0": integers(0),
    "axis1": integers(1),
    "axis2": integers(2),
    "two": integers(2),
    "minus_one": integers(-1),
    "flat": integers(0, 0, -1),
    "zero": scalar(0, np.int64),
    "one": scalar(1, np.int64),
    "nought": scalar(0),
}
