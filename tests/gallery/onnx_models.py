"""What the ONNX rooms share: a model from ONNX's textual syntax and arrays, and seeded weights.

In the syntax, `[name]` before a statement is the node's name, and names with slashes or colons stand in quotes, as the
exporters of torch and TensorFlow write them.
"""

import functools
from collections.abc import Callable
from typing import Any, Self

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import ModelProto, numpy_helper, parser

Array = NDArray[Any]


def model(signature: str, body: str, weights: dict[str, Array], *, producer: str, opset: int = 17) -> ModelProto:
    """A checked model, as that exporter would have written it.

    Its signature is the graph's name, inputs and outputs, as `main (float[N,T,4] x) => (float[N,2] y)`; its body has a
    node a line. The weights are its initializers; those of `CONSTANTS` that the nodes read come by themselves.
    """
    built = parser.parse_model(f'<ir_version: 8, opset_import: ["" : {opset}]>\n{signature}\n{{\n{body}\n}}')
    built.producer_name = producer
    nodes = built.graph.node
    read = {name for node in nodes for name in node.input} - {name for node in nodes for name in node.output}
    weights = {name: array for name, array in CONSTANTS.items() if name in read} | weights
    built.graph.initializer.extend(numpy_helper.from_array(array, name) for name, array in weights.items())
    onnx.checker.check_model(built)
    return built


class Weights(dict[str, Array]):
    """Small seeded weights of a model, in the layouts that ONNX wants, and the exporter that would have written it."""

    def __init__(self, seed: int, producer: str = "test", opset: int = 17) -> None:
        super().__init__()
        self._random = np.random.default_rng(seed)
        self._written: dict[str, Any] = {"producer": producer, "opset": opset}

    def model(self, text: str) -> ModelProto:
        """A checked model of that exporter, with the weights so far; the text is its signature, then its body."""
        end = text.index(")", text.index("=>")) + 1
        return model(text[:end], text[end:], self, **self._written)

    def normal(self, *shape: int, scale: float = 0.4) -> Array:
        return self._random.normal(scale=scale, size=shape).astype(np.float32)

    def named(self, shapes: str) -> Self:
        """Normal weights by name, as `"kernel 5x8, bias 8*0.2, gain 8+1"`: the shape, and another scale or mean."""
        for name, shape in map(str.split, shapes.split(",")):
            shape, _, mean = shape.partition("+")
            sizes, _, scale = shape.partition("*")
            drawn = self.normal(*map(int, sizes.split("x")), scale=float(scale or 0.4))
            self[name] = drawn + np.float32(mean or 0)
        return self

    def recurrent(self, gates: int, features: int, hidden: int, directions: int = 1) -> Self:
        """`W`, `R` and `B` of an LSTM (4 gates), a GRU (3) or a plain RNN (1)."""
        size = f"{directions}x{gates * hidden}"
        return self.named(f"W {size}x{features}, R {size}x{hidden}, B {directions}x{2 * gates * hidden}*0.2")


def graph(
    seed: int | None, producer: str = "", opset: int = 17, **said: Any
) -> Callable[[Callable[..., ModelProto]], Callable[[], ModelProto]]:
    """Gives a function its weights and its exporter, if it has any; `index` reads what is `said` of its model."""
    return lambda make: functools.wraps(make)(lambda: make() if seed is None else make(Weights(seed, producer, opset)))


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
