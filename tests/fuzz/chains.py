"""Random chains of operators: graphs without lengths, for `tests.fuzz.mends`.

A chain is a list of links. Each link draws its numbers from a seed of its own, so a chain stays what it is where one of
its links is left out. Links of *channels* take `[rows, channels, width]`, links of *steps* `[rows, width, features]`.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Final, Literal

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import NodeProto, TensorProto, helper, numpy_helper, parser

FEATURES: Final = 3
CLASSES: Final = 3
_FAR: Final = int(np.iinfo(np.int64).max)
_NEAR: Final = int(np.iinfo(np.int64).min) + 1
_OPSET: Final = 17

Layout = Literal["channels", "steps"]


class Chain:
    """A graph that grows link by link."""

    def __init__(self, layout: Layout) -> None:
        self.value, self.features = "x", FEATURES  # the value at its end, and the number of its channels or features
        self.random = np.random.default_rng(0)  # where the link that is added draws its numbers from
        self._nodes: list[NodeProto] = []
        self._constants: list[TensorProto] = []
        if layout == "steps":
            self.value = self.node("Transpose", self.value, perm=[0, 2, 1])

    def node(self, kind: str, *inputs: str, **attributes: Any) -> str:
        """Adds a node, and returns the name of its output."""
        return self.nodes(kind, 1, *inputs, **attributes)[0]

    def nodes(self, kind: str, count: int, *inputs: str, **attributes: Any) -> list[str]:
        """Adds a node with several outputs."""
        outputs = [f"v{len(self._nodes)}_{place}" for place in range(count)]
        name = f"{kind}_{len(self._nodes)}"
        self._nodes.append(helper.make_node(kind, list(inputs), outputs, name=name, **attributes))
        return outputs

    def constant(self, array: NDArray[Any] | np.generic | Sequence[int]) -> str:
        """Adds a constant."""
        name = f"k{len(self._constants)}"
        self._constants.append(numpy_helper.from_array(np.asarray(array), name))
        return name

    def integers(self, *numbers: int) -> str:
        """A constant of int64."""
        return self.constant(np.array(numbers, np.int64))

    def number(self, number: float) -> str:
        """A lone float32."""
        return self.constant(np.float32(number))

    def whole(self, number: int) -> str:
        """A lone int64."""
        return self.constant(np.int64(number))

    def weights(self, *shape: int) -> str:
        """Random weights."""
        return self.constant(self.random.normal(scale=0.5, size=shape).astype(np.float32))

    def between(self, low: int, high: int) -> int:
        """A number from `low` to `high`, both included."""
        return int(self.random.integers(low, high + 1))

    def some(self, *choices: Any) -> Any:
        """One of the choices."""
        return choices[int(self.random.integers(len(choices)))]

    def width(self, axis: int = 1) -> str:
        """`[1]`: the size of an axis of the value."""
        return self.node("Shape", self.value, start=axis, end=axis + 1)

    def positions(self) -> str:
        """`[width]` int64: 0, 1, 2, ..."""
        end = self.node("Squeeze", self.width(), self.integers(0))
        return self.node("Range", self.whole(0), end, self.whole(1))

    def slice(self, start: int, end: int, axis: int, step: int = 1, value: str | None = None) -> str:
        """A slice along one axis."""
        numbers = [self.integers(each) for each in (start, end, axis, step)]
        return self.node("Slice", value or self.value, *numbers)

    def model(self) -> onnx.ModelProto:
        """The graph with the inputs `x` and the output `y`."""
        graph = helper.make_graph(
            self._nodes,
            "chain",
            [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["rows", FEATURES, "width"])],
            [helper.make_tensor_value_info("y", TensorProto.FLOAT, ["rows", CLASSES])],
            self._constants,
        )
        graph.node.append(helper.make_node("Identity", [self.value], ["y"], name="answer"))
        model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", _OPSET)])
        model.ir_version = 8
        return model


Link = Callable[[Chain], None]


@dataclass(frozen=True, slots=True)
class Recipe:
    """What a chain is made of."""

    layout: Layout
    links: tuple[tuple[str, int], ...]  # the name and the seed of each
    end: tuple[str, int]  # those of its last link, which pools the steps

    def build(self) -> onnx.ModelProto:
        """The graph."""
        chain = Chain(self.layout)
        for name, seed in self.links:
            chain.random = np.random.default_rng(seed)
            LINKS[self.layout][name](chain)
        name, seed = self.end
        chain.random = np.random.default_rng(seed)
        pooled = ENDS[self.layout][name](chain)
        chain.value = chain.node("MatMul", pooled, chain.weights(chain.features, CLASSES))
        return chain.model()

    def shorter(self) -> list[Recipe]:
        """The same without one of its links, in all ways."""
        places = range(len(self.links))
        return [Recipe(self.layout, (*self.links[:at], *self.links[at + 1 :]), self.end) for at in places]

    def __str__(self) -> str:
        """Such as `steps: attention, stride, mean`."""
        return f"{self.layout}: " + ", ".join(name for name, _ in (*self.links, self.end))


def draw(seed: int, most: int = 5) -> Recipe:
    """A random chain of at most so many links."""
    random = np.random.default_rng(seed)
    layout: Layout = "channels" if random.random() < 0.5 else "steps"

    def link(names: Sequence[str]) -> tuple[str, int]:
        return names[int(random.integers(len(names)))], int(random.integers(2**31))

    count = int(random.integers(1, most + 1))
    return Recipe(layout, tuple(link([*LINKS[layout]]) for _ in range(count)), link([*ENDS[layout]]))


# -- links of channels ------------------------------------------------------------------------------------------------


def _from_the_first(chain: Chain, axis: int) -> None:
    """The difference from the first step; without steps this raises, where onnxruntime's layers end the process."""
    first = chain.node("Gather", chain.value, chain.integers(0), axis=axis)
    chain.value = chain.node("Sub", chain.value, first)


def convolution(chain: Chain) -> None:
    kernel, stride, dilation = chain.between(1, 6), chain.some(1, 1, 2, 3), chain.some(1, 1, 2, 3)
    said: dict[str, Any] = {"kernel_shape": [kernel], "strides": [stride], "dilations": [dilation]}
    mode = chain.some("pads", "pads", "SAME_UPPER", "SAME_LOWER", "VALID")
    if mode == "pads":
        most = kernel * dilation - 1 if kernel > 1 else 0
        said["pads"] = [chain.between(0, most), chain.between(0, most)]
    else:
        said["auto_pad"] = mode
        said["dilations"] = [1] if mode != "VALID" else [dilation]
    out = chain.between(2, 5)
    weights = chain.weights(out, chain.features, kernel)
    chain.value = chain.node("Conv", chain.value, weights, chain.weights(out), **said)
    chain.features = out


def _pool(chain: Chain) -> dict[str, Any]:
    kernel = chain.between(2, 4)
    half = kernel // 2
    pads = chain.some([chain.between(0, kernel - 1), chain.between(0, kernel - 1)], [half, half], [0, 0])
    said = {"kernel_shape": [kernel], "strides": [chain.between(1, 3)], "ceil_mode": chain.between(0, 1)}
    return said | {"pads": pads}


def max_pool(chain: Chain) -> None:
    said = _pool(chain) | ({"dilations": [2]} if chain.random.random() < 0.3 else {})
    chain.value = chain.node("MaxPool", chain.value, **said)


def average_pool(chain: Chain) -> None:
    chain.value = chain.node("AveragePool", chain.value, **_pool(chain), count_include_pad=chain.between(0, 1))


def activation(chain: Chain) -> None:
    chain.value = chain.node(chain.some("Relu", "Sigmoid", "Tanh"), chain.value)


def batch_norm(chain: Chain) -> None:
    count = chain.features
    variance = chain.constant((chain.random.random(count) + 0.5).astype(np.float32))
    numbers = [chain.weights(count) for _ in range(3)]
    chain.value = chain.node("BatchNormalization", chain.value, *numbers, variance)


def instance_norm(chain: Chain) -> None:
    numbers = [chain.weights(chain.features) for _ in range(2)]
    _from_the_first(chain, 2)
    chain.value = chain.node("InstanceNormalization", chain.value, *numbers, epsilon=0.1)


def padded(chain: Chain) -> None:
    mode = chain.some("constant", "edge", "reflect")
    inputs = [chain.integers(0, 0, chain.between(0, 3), 0, 0, chain.between(0, 3))]
    inputs += [chain.number(1.5)] if mode == "constant" else []
    chain.value = chain.node("Pad", chain.value, *inputs, mode=mode)


def cut(chain: Chain) -> None:
    start, end = chain.some(0, 1, 2, -5, -3), chain.some(_FAR, -1, -2, 6)
    end = _FAR if start < 0 < end else end
    chain.value = chain.slice(start, end, 2, chain.some(1, 1, 2, 3))


def squeeze_excite(chain: Chain) -> None:
    pooled = chain.node(chain.some("GlobalAveragePool", "GlobalMaxPool"), chain.value)
    gate = chain.node("Conv", pooled, chain.weights(chain.features, chain.features, 1))
    chain.value = chain.node("Mul", chain.value, chain.node("Sigmoid", gate))


def gru(chain: Chain) -> None:
    count = chain.between(1, 2)
    direction = "bidirectional" if count == 2 else chain.some("forward", "reverse")
    _from_the_first(chain, 2)
    steps = chain.node("Transpose", chain.value, perm=[2, 0, 1])
    sizes = ((count, 12, chain.features), (count, 12, 4), (count, 24))
    weights = [chain.weights(*shape) for shape in sizes]
    said = {"hidden_size": 4, "linear_before_reset": chain.between(0, 1), "direction": direction}
    every = chain.node("Transpose", chain.node("GRU", steps, *weights, **said), perm=[2, 1, 3, 0])
    chain.features = 4 * count
    chain.value = chain.node("Reshape", every, chain.integers(0, chain.features, -1))


def sum_so_far(chain: Chain) -> None:
    said = {"reverse": chain.between(0, 1), "exclusive": chain.between(0, 1)}
    chain.value = chain.node("Tanh", chain.node("CumSum", chain.value, chain.whole(2), **said))


def flip(chain: Chain) -> None:
    chain.value = chain.slice(-1, _NEAR, 2, -1)


def softmax_gate(chain: Chain) -> None:
    chain.value = chain.node("Mul", chain.value, chain.node("Softmax", chain.value, axis=2))


def residual(chain: Chain) -> None:
    kernel, count = chain.some(1, 3, 5), chain.features
    said = {"kernel_shape": [kernel], "pads": [kernel // 2] * 2}
    branch = chain.node("Conv", chain.value, chain.weights(count, count, kernel), chain.weights(count), **said)
    chain.value = chain.node("Add", chain.value, branch)


def centred(chain: Chain) -> None:
    chain.value = chain.node("Sub", chain.value, chain.node("ReduceMean", chain.value, axes=[2], keepdims=1))


def transposed_convolution(chain: Chain) -> None:
    kernel, stride, out = chain.between(1, 4), chain.between(1, 3), chain.between(2, 4)
    pads = chain.some([chain.between(0, kernel - 1), chain.between(0, kernel - 1)], [0, 0])
    said = {"kernel_shape": [kernel], "strides": [stride], "pads": pads}
    said["output_padding"] = [chain.between(0, stride - 1)]
    weights = chain.weights(chain.features, out, kernel)
    chain.value = chain.node("ConvTranspose", chain.value, weights, chain.weights(out), **said)
    chain.features = out


def joined_in_time(chain: Chain) -> None:
    kernel, count = chain.some(2, 3), chain.features
    said = {"kernel_shape": [kernel], "strides": [chain.between(1, 2)], "pads": [1, 1]}
    other = chain.node("Conv", chain.value, chain.weights(count, count, kernel), chain.weights(count), **said)
    both = chain.some((chain.value, other), (other, chain.value))
    chain.value = chain.node("Concat", *both, axis=2)


def without_last(chain: Chain) -> None:
    chain.value = chain.node("Sub", chain.value, chain.slice(-1, _FAR, 2))


# -- links of steps ---------------------------------------------------------------------------------------------------


def _turned(chain: Chain) -> str:
    return chain.node("Transpose", chain.value, perm=[0, 2, 1])


def _square(chain: Chain, scores: str, values: str) -> str:
    return chain.node("MatMul", chain.node("Softmax", scores, axis=-1), values)


def attention(chain: Chain) -> None:
    queries = chain.node("MatMul", chain.value, chain.weights(chain.features, chain.features))
    scores = chain.node("MatMul", queries, _turned(chain))
    chain.value = chain.node("Add", chain.value, _square(chain, scores, chain.value))


def attention_with_a_mask(chain: Chain) -> None:
    scores = chain.node("MatMul", chain.value, _turned(chain))
    places = chain.positions()
    across, down = (chain.node("Unsqueeze", places, chain.integers(axis)) for axis in (0, 1))
    apart = chain.node("Sub", across, down)
    causal = chain.some(True, False)
    compared = apart if causal else chain.node("Abs", apart)
    masked = chain.node("Greater", compared, chain.whole(0 if causal else 2))
    chain.value = _square(chain, chain.node("Where", masked, chain.number(-1e9), scores), chain.value)


def heads(chain: Chain) -> None:
    count = 2 if chain.features % 2 == 0 else 1
    size = chain.features // count

    def split(value: str, order: list[int]) -> str:
        return chain.node("Transpose", chain.node("Reshape", value, chain.integers(0, 0, count, size)), perm=order)

    weights = [chain.weights(chain.features, chain.features) for _ in range(2)]
    queries, values = (chain.node("MatMul", chain.value, each) for each in weights)
    scores = chain.node("MatMul", split(queries, [0, 2, 1, 3]), split(chain.value, [0, 2, 3, 1]))
    mixed = chain.node("Transpose", _square(chain, scores, split(values, [0, 2, 1, 3])), perm=[0, 2, 1, 3])
    chain.value = chain.node("Tanh", chain.node("Reshape", mixed, chain.integers(0, 0, chain.features)))


def places(chain: Chain) -> None:
    numbers, count = (chain.node("Cast", each, to=1) for each in (chain.positions(), chain.width()))
    kind = chain.some("plain", "from the end", "share")
    if kind != "plain":
        numbers = chain.node("Sub", count, numbers) if kind == "from the end" else chain.node("Div", numbers, count)
    waves = chain.node("Mul", chain.node("Unsqueeze", numbers, chain.integers(1)), chain.weights(chain.features))
    chain.value = chain.node("Add", chain.value, chain.node("Sin", waves))


def pairs_of_steps(chain: Chain) -> None:
    half = chain.node("Div", chain.width(), chain.integers(2))
    even = chain.node("Mul", half, chain.integers(2))
    whole = chain.node("Slice", chain.value, chain.integers(0), even, chain.integers(1))
    shape = chain.node("Concat", chain.integers(0), half, chain.integers(2 * chain.features), axis=0)
    mixed = chain.node("MatMul", chain.node("Reshape", whole, shape), chain.weights(2 * chain.features, chain.features))
    chain.value = chain.node("Tanh", mixed)


def windows(chain: Chain) -> None:
    parts = []
    for place in range(3):
        end = chain.node("Sub", chain.width(), chain.integers(2 - place))
        parts.append(chain.node("Slice", chain.value, chain.integers(place), end, chain.integers(1)))
    joined = chain.node("Concat", *parts, axis=2)
    mixed = chain.node("MatMul", joined, chain.weights(3 * chain.features, chain.features))
    chain.value = chain.node("Tanh", mixed)


def gate_over_time(chain: Chain) -> None:
    scores = chain.node("MatMul", chain.value, chain.weights(chain.features, 1))
    chain.value = chain.node("Mul", chain.value, chain.node("Softmax", scores, axis=1))


def dense(chain: Chain) -> None:
    wide = chain.node("MatMul", chain.value, chain.weights(chain.features, 5))
    chain.value, chain.features = chain.node("Relu", chain.node("Add", wide, chain.weights(5))), 5


def covariance(chain: Chain) -> None:
    products = chain.node("Tanh", chain.node("MatMul", _turned(chain), chain.value))
    chain.value = chain.node("MatMul", chain.value, products)


def sum_of_steps_so_far(chain: Chain) -> None:
    summed = chain.node("CumSum", chain.value, chain.whole(1), reverse=chain.between(0, 1))
    chain.value = chain.node("Tanh", summed)


def shifted(chain: Chain) -> None:
    moved = chain.node("Pad", chain.slice(1, _FAR, 1), chain.integers(0, 0, 0, 0, 1, 0))
    chain.value = chain.node("Sub", chain.value, moved)


def token_added(chain: Chain) -> None:
    rows = chain.node("Shape", chain.value, start=0, end=1)
    shape = chain.node("Concat", rows, chain.integers(1), chain.integers(chain.features), axis=0)
    token = chain.node("Expand", chain.weights(1, 1, chain.features), shape)
    both = chain.some((token, chain.value), (chain.value, token))
    chain.value = chain.node("Concat", *both, axis=1)


def every_few(chain: Chain) -> None:
    chain.value = chain.slice(chain.between(0, 1), _FAR, 1, chain.between(2, 3))


def repeated(chain: Chain) -> None:
    single = chain.node("Unsqueeze", chain.value, chain.integers(2))
    double = chain.node("Mul", chain.width(), chain.integers(2))
    shape = chain.node("Concat", chain.integers(0), double, chain.integers(chain.features), axis=0)
    chain.value = chain.node("Reshape", chain.node("Concat", single, single, axis=2), shape)


def normalised(chain: Chain) -> None:
    axes = chain.some([1], [1, 2])
    apart = chain.node("Sub", chain.value, chain.node("ReduceMean", chain.value, axes=axes, keepdims=1))
    variance = chain.node("ReduceMean", chain.node("Mul", apart, apart), axes=axes, keepdims=1)
    deviation = chain.node("Sqrt", chain.node("Add", variance, chain.number(0.1)))
    chain.value = chain.node("Div", apart, deviation)


def lstm(chain: Chain) -> None:
    _from_the_first(chain, 1)
    steps = chain.node("Transpose", chain.value, perm=[1, 0, 2])
    weights = [chain.weights(*shape) for shape in ((1, 16, chain.features), (1, 16, 4), (1, 32))]
    every = chain.node("LSTM", steps, *weights, hidden_size=4, direction=chain.some("forward", "reverse"))
    chain.value = chain.node("Transpose", chain.node("Squeeze", every, chain.integers(1)), perm=[1, 0, 2])
    chain.features = 4


def rows_merged(chain: Chain) -> None:
    shape = chain.node("Shape", chain.value)
    merged = chain.node("Reshape", chain.value, chain.integers(-1, chain.features))
    mixed = chain.node("Tanh", chain.node("MatMul", merged, chain.weights(chain.features, chain.features)))
    chain.value = chain.node("Reshape", mixed, shape)


def turned_convolution(chain: Chain) -> None:
    kernel = chain.between(1, 4)
    said = {"strides": [chain.between(1, 2)], "pads": [chain.between(0, kernel - 1), chain.between(0, kernel - 1)]}
    weights = chain.weights(chain.features, chain.features, kernel)
    chain.value = chain.node("Conv", _turned(chain), weights, **said)
    chain.value = _turned(chain)


def trimmed(chain: Chain) -> None:
    chain.value = chain.slice(chain.between(0, 2), -chain.between(1, 2), 1)


def thirds(chain: Chain) -> None:
    third = chain.node("Div", chain.width(), chain.integers(3))
    ends = [chain.integers(0), third, chain.node("Mul", third, chain.integers(2)), chain.integers(_FAR)]
    kind = chain.some("ReduceMax", "ReduceMin", "ReduceL2")
    pooled = []
    for start, end in itertools.pairwise(ends):
        part = chain.node("Slice", chain.value, start, end, chain.integers(1))
        pooled.append(chain.node(kind, part, axes=[1], keepdims=1))
    chain.value = chain.node("Sub", chain.value, chain.node("Sum", *pooled))


def trimmed_by_share(chain: Chain) -> None:
    share = chain.node("Div", chain.width(), chain.integers(chain.between(3, 5)))
    end = chain.node("Sub", chain.width(), share)
    chain.value = chain.node("Slice", chain.value, share, end, chain.integers(1))


def padded_to_a_multiple(chain: Chain) -> None:
    count = chain.between(2, 4)
    missing = chain.node("Mod", chain.node("Neg", chain.width()), chain.integers(count))
    pads = chain.node("Concat", chain.integers(0, 0, 0, 0), missing, chain.integers(0), axis=0)
    whole = chain.node("Pad", chain.value, pads, chain.number(0.5))
    pieces = chain.node("Reshape", whole, chain.integers(0, -1, count * chain.features))
    mixed = chain.node("MatMul", pieces, chain.weights(count * chain.features, chain.features))
    chain.value = chain.node("Tanh", mixed)


def rolled(chain: Chain) -> None:
    last, others = chain.slice(-1, _FAR, 1), chain.slice(0, -1, 1)
    chain.value = chain.node("Sub", chain.value, chain.node("Concat", last, others, axis=1))


def picked_by_largest(chain: Chain) -> None:
    scores = chain.node("MatMul", chain.value, chain.weights(chain.features, 1))
    place = chain.node("ArgMax", scores, axis=1, keepdims=1)
    wide = chain.node("Expand", place, chain.integers(1, 1, chain.features))
    chain.value = chain.node("Sub", chain.value, chain.node("GatherElements", chain.value, wide, axis=1))


def products_of_steps(chain: Chain) -> None:
    square = chain.node("Tanh", chain.node("MatMul", chain.value, _turned(chain)))
    kind = chain.some("ReduceMean", "ReduceMax", "ReduceMin")
    reduced = chain.node(kind, square, axes=[chain.between(1, 2)], keepdims=0)
    chain.value = chain.node("Mul", chain.value, chain.node("Unsqueeze", reduced, chain.integers(2)))


def largest_beside(chain: Chain) -> None:
    largest = chain.node("ReduceMax", chain.value, axes=[1], keepdims=1)
    wide = chain.node("Expand", largest, chain.node("Shape", chain.value))
    both = chain.node("Concat", chain.value, wide, axis=2)
    chain.value = chain.node("MatMul", both, chain.weights(2 * chain.features, chain.features))


def largest_kept(chain: Chain) -> None:
    largest, _ = chain.nodes("TopK", 2, chain.value, chain.integers(1), axis=1)
    chain.value = chain.node("Where", chain.node("Less", chain.value, largest), chain.number(0.1), chain.value)


def scan(chain: Chain) -> None:
    hidden = chain.between(3, 5)
    steps = chain.node("Transpose", chain.value, perm=[1, 0, 2])
    rows = chain.node("Shape", chain.value, start=0, end=1)
    start = chain.node("ConstantOfShape", chain.node("Concat", rows, chain.integers(hidden), axis=0))
    names = (chain.weights(chain.features, hidden), chain.weights(hidden, hidden))
    kind = chain.some("Tanh", "Sigmoid", "Sin")
    body = parser.parse_graph(
        f"""body (float before, float step) => (float after, float shown) {{
            a = MatMul (step, {names[0]})
            b = MatMul (before, {names[1]})
            c = Add (a, b)
            after = {kind} (c)
            shown = Identity (after)
        }}"""
    )
    for value in (*body.input, *body.output):  # of any shape
        value.type.tensor_type.ClearField("shape")
    _, every = chain.nodes("Scan", 2, start, steps, body=body, num_scan_inputs=1)
    chain.value, chain.features = chain.node("Transpose", every, perm=[1, 0, 2]), hidden


# -- ends -------------------------------------------------------------------------------------------------------------


def _reduced(kind: str, axis: int) -> Callable[[Chain], str]:
    return lambda chain: chain.node(kind, chain.value, axes=[axis], keepdims=0)


def _summed(axis: int) -> Callable[[Chain], str]:
    return lambda chain: chain.node("ReduceSum", chain.value, chain.integers(axis), keepdims=0)


def _picked(place: int, axis: int) -> Callable[[Chain], str]:
    return lambda chain: chain.node("Gather", chain.value, chain.whole(place), axis=axis)


def global_average(chain: Chain) -> str:
    return chain.node("Flatten", chain.node("GlobalAveragePool", chain.value))


def two_largest(chain: Chain) -> str:
    largest, _ = chain.nodes("TopK", 2, chain.value, chain.integers(2), axis=2)
    return chain.node("ReduceMean", largest, axes=[2], keepdims=0)


def largest_by_place(chain: Chain) -> str:
    place = chain.node("ArgMax", chain.value, axis=2, keepdims=1)
    return chain.node("Squeeze", chain.node("GatherElements", chain.value, place, axis=2), chain.integers(2))


def variance(chain: Chain) -> str:
    apart = chain.node("Sub", chain.value, chain.node("ReduceMean", chain.value, axes=[2], keepdims=1))
    return chain.node("ReduceMean", chain.node("Mul", apart, apart), axes=[2], keepdims=0)


def middle(chain: Chain) -> str:
    half = chain.node("Div", chain.width(), chain.integers(2))
    return chain.node("Squeeze", chain.node("Gather", chain.value, half, axis=1), chain.integers(1))


def softmax_over_all(chain: Chain) -> str:
    flat = chain.node("Softmax", chain.node("Reshape", chain.value, chain.integers(0, -1)), axis=1)
    shares = chain.node("Reshape", flat, chain.node("Shape", chain.value))
    return chain.node("ReduceSum", chain.node("Mul", shares, chain.value), chain.integers(1), keepdims=0)


_COMMON: Final = ("ReduceMean", "ReduceMax", "ReduceMin", "ReduceL2", "ReduceLogSumExp")

LINKS: Final[dict[Layout, dict[str, Link]]] = {
    "channels": {
        link.__name__: link
        for link in (
            *(convolution, max_pool, average_pool, activation, batch_norm, instance_norm, padded, cut, squeeze_excite),
            *(gru, sum_so_far, flip, softmax_gate, residual, centred, transposed_convolution, joined_in_time),
            *(without_last,),
        )
    },
    "steps": {
        link.__name__: link
        for link in (
            *(attention, attention_with_a_mask, heads, places, pairs_of_steps, windows, gate_over_time, dense),
            *(covariance, sum_of_steps_so_far, shifted, token_added, every_few, repeated, normalised, lstm, thirds),
            *(trimmed_by_share, padded_to_a_multiple, rows_merged, turned_convolution, trimmed, rolled),
            *(picked_by_largest, products_of_steps, largest_beside, largest_kept, scan),
        )
    },
}
"""The links of each layout, by name."""

ENDS: Final[dict[Layout, dict[str, Callable[[Chain], str]]]] = {
    "channels": {
        **{kind: _reduced(kind, 2) for kind in _COMMON},
        "ReduceSum": _summed(2),
        "first": _picked(0, 2),
        "last": _picked(-1, 2),
        **{end.__name__: end for end in (global_average, two_largest, largest_by_place, variance)},
    },
    "steps": {
        **{kind: _reduced(kind, 1) for kind in _COMMON},
        "ReduceSum": _summed(1),
        "first": _picked(0, 1),
        "last": _picked(-1, 1),
        **{end.__name__: end for end in (middle, softmax_over_all)},
    },
}
"""What pools the steps at the end of a chain, by name."""
