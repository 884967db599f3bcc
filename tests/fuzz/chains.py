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
Given = str | NDArray[Any] | list[int] | int | float  # an input of a node


class Chain:
    """A graph that grows link by link."""

    def __init__(self, layout: Layout) -> None:
        self.value, self.features = "x", FEATURES  # the value at its end, and the number of its channels or features
        self.random = np.random.default_rng(0)  # where the link that is added draws its numbers from
        self._nodes: list[NodeProto] = []
        self._constants: list[TensorProto] = []
        if layout == "steps":
            self.value = self.turned()

    def node(self, kind: str, *inputs: Given, **attributes: Any) -> str:
        """Adds a node, and returns the name of its output."""
        return self.nodes(kind, 1, *inputs, **attributes)[0]

    def nodes(self, kind: str, count: int, *inputs: Given, **attributes: Any) -> list[str]:
        """Adds a node with several outputs; inputs that are no names are constants, numbers int64 or float32."""
        names = [each if isinstance(each, str) else self.constant(each) for each in inputs]
        outputs = [f"v{len(self._nodes)}_{place}" for place in range(count)]
        name = f"{kind}_{len(self._nodes)}"
        self._nodes.append(helper.make_node(kind, names, outputs, name=name, **attributes))
        return outputs

    def constant(self, given: NDArray[Any] | list[int] | float) -> str:
        """Adds a constant."""
        name = f"k{len(self._constants)}"
        array = np.asarray(given, np.float32 if isinstance(given, float) else None)
        self._constants.append(numpy_helper.from_array(array, name))
        return name

    def weights(self, *shape: int) -> NDArray[np.float32]:
        """Random weights."""
        return self.random.normal(scale=0.5, size=shape).astype(np.float32)

    def linear(self, value: str, *sizes: int) -> str:
        """The product with weights of these sizes, or of as many features as there are."""
        return self.node("MatMul", value, self.weights(*(sizes or (self.features, self.features))))

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
        return self.node("Range", 0, self.node("Squeeze", self.width(), [0]), 1)

    def slice(self, start: Given, end: Given, axis: int, step: int = 1) -> str:
        """A slice of the value along one axis; its ends are `[1]`."""
        return self.node("Slice", self.value, start, end, [axis], *([] if step == 1 else [[step]]))

    def turned(self, *order: int) -> str:
        """The value with its axes in this order; without one, with steps and features exchanged."""
        return self.node("Transpose", self.value, perm=order or (0, 2, 1))

    def centred(self, axes: list[int]) -> str:
        """The value less its mean over these axes."""
        return self.node("Sub", self.value, self.node("ReduceMean", self.value, axes=axes, keepdims=1))

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


Link = Callable[[Chain], str]  # adds its nodes, and gives the value at the new end


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
            chain.value = LINKS[self.layout][name](chain)
        name, seed = self.end
        chain.random = np.random.default_rng(seed)
        chain.value = chain.linear(ENDS[self.layout][name](chain), chain.features, CLASSES)
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


def _from_the_first(chain: Chain, axis: int) -> str:
    """The difference from the first step; without steps this raises, where onnxruntime's layers end the process."""
    return chain.node("Sub", chain.value, chain.node("Gather", chain.value, [0], axis=axis))


def convolution(chain: Chain) -> str:
    kernel, stride, dilation = chain.between(1, 6), chain.some(1, 1, 2, 3), chain.some(1, 1, 2, 3)
    said: dict[str, Any] = {"kernel_shape": [kernel], "strides": [stride], "dilations": [dilation]}
    mode = chain.some("pads", "pads", "SAME_UPPER", "SAME_LOWER", "VALID")
    if mode == "pads":
        most = kernel * dilation - 1 if kernel > 1 else 0
        said["pads"] = [chain.between(0, most), chain.between(0, most)]
    else:
        said["auto_pad"] = mode
        said["dilations"] = [1] if mode != "VALID" else [dilation]
    return _convolved(chain, chain.between(2, 5), kernel, **said)


def _convolved(chain: Chain, out: int, kernel: int, **said: Any) -> str:
    before, chain.features = chain.features, out
    return chain.node("Conv", chain.value, chain.weights(out, before, kernel), chain.weights(out), **said)


def _pool(chain: Chain) -> dict[str, Any]:
    kernel = chain.between(2, 4)
    half = kernel // 2
    pads = chain.some([chain.between(0, kernel - 1), chain.between(0, kernel - 1)], [half, half], [0, 0])
    said = {"kernel_shape": [kernel], "strides": [chain.between(1, 3)], "ceil_mode": chain.between(0, 1)}
    return said | {"pads": pads}


def max_pool(chain: Chain) -> str:
    said = _pool(chain) | ({"dilations": [2]} if chain.random.random() < 0.3 else {})
    return chain.node("MaxPool", chain.value, **said)


def batch_norm(chain: Chain) -> str:
    count = chain.features
    variance = (chain.random.random(count) + 0.5).astype(np.float32)
    numbers = [chain.weights(count) for _ in range(3)]
    return chain.node("BatchNormalization", chain.value, *numbers, variance)


def padded(chain: Chain) -> str:
    mode = chain.some("constant", "edge", "reflect")
    pads = [0, 0, chain.between(0, 3), 0, 0, chain.between(0, 3)]
    return chain.node("Pad", chain.value, pads, *([1.5] if mode == "constant" else []), mode=mode)


def cut(chain: Chain) -> str:
    start, end = chain.some(0, 1, 2, -5, -3), chain.some(_FAR, -1, -2, 6)
    return chain.slice([start], [_FAR if start < 0 < end else end], 2, chain.some(1, 1, 2, 3))


def squeeze_excite(chain: Chain) -> str:
    pooled = chain.node(chain.some("GlobalAveragePool", "GlobalMaxPool"), chain.value)
    gate = chain.node("Conv", pooled, chain.weights(chain.features, chain.features, 1))
    return chain.node("Mul", chain.value, chain.node("Sigmoid", gate))


def gru(chain: Chain) -> str:
    count = chain.between(1, 2)
    direction = "bidirectional" if count == 2 else chain.some("forward", "reverse")
    steps = chain.node("Transpose", _from_the_first(chain, 2), perm=[2, 0, 1])
    weights = [chain.weights(*shape) for shape in ((count, 12, chain.features), (count, 12, 4), (count, 24))]
    said = {"hidden_size": 4, "linear_before_reset": chain.between(0, 1), "direction": direction}
    every = chain.node("Transpose", chain.node("GRU", steps, *weights, **said), perm=[2, 1, 3, 0])
    chain.features = 4 * count
    return chain.node("Reshape", every, [0, chain.features, -1])


def residual(chain: Chain) -> str:
    kernel = chain.some(1, 3, 5)
    branch = _convolved(chain, chain.features, kernel, kernel_shape=[kernel], pads=[kernel // 2] * 2)
    return chain.node("Add", chain.value, branch)


def transposed_convolution(chain: Chain) -> str:
    kernel, stride, out = chain.between(1, 4), chain.between(1, 3), chain.between(2, 4)
    pads = chain.some([chain.between(0, kernel - 1), chain.between(0, kernel - 1)], [0, 0])
    said = {"kernel_shape": [kernel], "strides": [stride], "pads": pads}
    said["output_padding"] = [chain.between(0, stride - 1)]
    before, chain.features = chain.features, out
    return chain.node("ConvTranspose", chain.value, chain.weights(before, out, kernel), chain.weights(out), **said)


def joined_in_time(chain: Chain) -> str:
    kernel = chain.some(2, 3)
    said = {"kernel_shape": [kernel], "strides": [chain.between(1, 2)], "pads": [1, 1]}
    other = _convolved(chain, chain.features, kernel, **said)
    return chain.node("Concat", *chain.some((chain.value, other), (other, chain.value)), axis=2)


# -- links of steps ---------------------------------------------------------------------------------------------------


def _square(chain: Chain, scores: str, values: str) -> str:
    return chain.node("MatMul", chain.node("Softmax", scores, axis=-1), values)


def attention_with_a_mask(chain: Chain) -> str:
    scores = chain.node("MatMul", chain.value, chain.turned())
    places = chain.positions()
    apart = chain.node("Sub", *(chain.node("Unsqueeze", places, [axis]) for axis in (0, 1)))
    causal = chain.some(True, False)
    masked = chain.node("Greater", apart if causal else chain.node("Abs", apart), 0 if causal else 2)
    return _square(chain, chain.node("Where", masked, -1e9, scores), chain.value)


def heads(chain: Chain) -> str:
    count = 2 if chain.features % 2 == 0 else 1
    size = chain.features // count

    def split(value: str, order: list[int]) -> str:
        return chain.node("Transpose", chain.node("Reshape", value, [0, 0, count, size]), perm=order)

    queries, values = chain.linear(chain.value), chain.linear(chain.value)
    scores = chain.node("MatMul", split(queries, [0, 2, 1, 3]), split(chain.value, [0, 2, 3, 1]))
    mixed = chain.node("Transpose", _square(chain, scores, split(values, [0, 2, 1, 3])), perm=[0, 2, 1, 3])
    return chain.node("Tanh", chain.node("Reshape", mixed, [0, 0, chain.features]))


def places(chain: Chain) -> str:
    numbers, count = (chain.node("Cast", each, to=1) for each in (chain.positions(), chain.width()))
    kind = chain.some("plain", "from the end", "share")
    if kind != "plain":
        numbers = chain.node("Sub", count, numbers) if kind == "from the end" else chain.node("Div", numbers, count)
    waves = chain.node("Mul", chain.node("Unsqueeze", numbers, [1]), chain.weights(chain.features))
    return chain.node("Add", chain.value, chain.node("Sin", waves))


def pairs_of_steps(chain: Chain) -> str:
    half = chain.node("Div", chain.width(), [2])
    whole = chain.node("Slice", chain.value, [0], chain.node("Mul", half, [2]), [1])
    shape = chain.node("Concat", [0], half, [2 * chain.features], axis=0)
    pairs = chain.node("Reshape", whole, shape)
    return chain.node("Tanh", chain.linear(pairs, 2 * chain.features, chain.features))


def windows(chain: Chain) -> str:
    parts = [chain.slice([place], chain.node("Sub", chain.width(), [2 - place]), 1) for place in range(3)]
    joined = chain.node("Concat", *parts, axis=2)
    return chain.node("Tanh", chain.linear(joined, 3 * chain.features, chain.features))


def dense(chain: Chain) -> str:
    wide, chain.features = chain.linear(chain.value, chain.features, 5), 5
    return chain.node("Relu", chain.node("Add", wide, chain.weights(5)))


def token_added(chain: Chain) -> str:
    shape = chain.node("Concat", chain.width(0), [1], [chain.features], axis=0)
    token = chain.node("Expand", chain.weights(1, 1, chain.features), shape)
    return chain.node("Concat", *chain.some((token, chain.value), (chain.value, token)), axis=1)


def repeated(chain: Chain) -> str:
    single = chain.node("Unsqueeze", chain.value, [2])
    shape = chain.node("Concat", [0], chain.node("Mul", chain.width(), [2]), [chain.features], axis=0)
    return chain.node("Reshape", chain.node("Concat", single, single, axis=2), shape)


def normalised(chain: Chain) -> str:
    axes = chain.some([1], [1, 2])
    apart = chain.centred(axes)
    variance = chain.node("ReduceMean", chain.node("Mul", apart, apart), axes=axes, keepdims=1)
    return chain.node("Div", apart, chain.node("Sqrt", chain.node("Add", variance, 0.1)))


def lstm(chain: Chain) -> str:
    steps = chain.node("Transpose", _from_the_first(chain, 1), perm=[1, 0, 2])
    weights = [chain.weights(*shape) for shape in ((1, 16, chain.features), (1, 16, 4), (1, 32))]
    every = chain.node("LSTM", steps, *weights, hidden_size=4, direction=chain.some("forward", "reverse"))
    chain.features = 4
    return chain.node("Transpose", chain.node("Squeeze", every, [1]), perm=[1, 0, 2])


def rows_merged(chain: Chain) -> str:
    shape = chain.node("Shape", chain.value)
    merged = chain.node("Reshape", chain.value, [-1, chain.features])
    return chain.node("Reshape", chain.node("Tanh", chain.linear(merged)), shape)


def turned_convolution(chain: Chain) -> str:
    kernel = chain.between(1, 4)
    said = {"strides": [chain.between(1, 2)], "pads": [chain.between(0, kernel - 1), chain.between(0, kernel - 1)]}
    weights = chain.weights(chain.features, chain.features, kernel)
    return chain.node("Transpose", chain.node("Conv", chain.turned(), weights, **said), perm=[0, 2, 1])


def thirds(chain: Chain) -> str:
    third = chain.node("Div", chain.width(), [3])
    ends: list[Given] = [[0], third, chain.node("Mul", third, [2]), [_FAR]]
    kind = chain.some("ReduceMax", "ReduceMin", "ReduceL2")
    parts = [chain.slice(start, end, 1) for start, end in itertools.pairwise(ends)]
    pooled = [chain.node(kind, part, axes=[1], keepdims=1) for part in parts]
    return chain.node("Sub", chain.value, chain.node("Sum", *pooled))


def trimmed_by_share(chain: Chain) -> str:
    share = chain.node("Div", chain.width(), [chain.between(3, 5)])
    return chain.slice(share, chain.node("Sub", chain.width(), share), 1)


def padded_to_a_multiple(chain: Chain) -> str:
    count = chain.between(2, 4)
    missing = chain.node("Mod", chain.node("Neg", chain.width()), [count])
    pads = chain.node("Concat", [0, 0, 0, 0], missing, [0], axis=0)
    pieces = chain.node("Reshape", chain.node("Pad", chain.value, pads, 0.5), [0, -1, count * chain.features])
    return chain.node("Tanh", chain.linear(pieces, count * chain.features, chain.features))


def picked_by_largest(chain: Chain) -> str:
    place = chain.node("ArgMax", chain.linear(chain.value, chain.features, 1), axis=1, keepdims=1)
    wide = chain.node("Expand", place, [1, 1, chain.features])
    return chain.node("Sub", chain.value, chain.node("GatherElements", chain.value, wide, axis=1))


def products_of_steps(chain: Chain) -> str:
    square = chain.node("Tanh", chain.node("MatMul", chain.value, chain.turned()))
    kind = chain.some("ReduceMean", "ReduceMax", "ReduceMin")
    reduced = chain.node(kind, square, axes=[chain.between(1, 2)], keepdims=0)
    return chain.node("Mul", chain.value, chain.node("Unsqueeze", reduced, [2]))


def largest_beside(chain: Chain) -> str:
    largest = chain.node("ReduceMax", chain.value, axes=[1], keepdims=1)
    wide = chain.node("Expand", largest, chain.node("Shape", chain.value))
    return chain.linear(chain.node("Concat", chain.value, wide, axis=2), 2 * chain.features, chain.features)


def scan(chain: Chain) -> str:
    hidden = chain.between(3, 5)
    steps = chain.turned(1, 0, 2)
    start = chain.node("ConstantOfShape", chain.node("Concat", chain.width(0), [hidden], axis=0))
    names = [chain.constant(chain.weights(size, hidden)) for size in (chain.features, hidden)]
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
    chain.features = hidden
    return chain.node("Transpose", every, perm=[1, 0, 2])


# -- ends -------------------------------------------------------------------------------------------------------------


def _reduced(kind: str, axis: int) -> Link:
    return lambda chain: chain.node(kind, chain.value, axes=[axis], keepdims=0)


def _common(axis: int) -> dict[str, Link]:
    """The ends of both layouts, whose steps are along this axis."""
    kinds = ("ReduceMean", "ReduceMax", "ReduceMin", "ReduceL2", "ReduceLogSumExp")
    return {
        **{kind: _reduced(kind, axis) for kind in kinds},
        "ReduceSum": lambda chain: chain.node("ReduceSum", chain.value, [axis], keepdims=0),
        "first": lambda chain: chain.node("Gather", chain.value, 0, axis=axis),
        "last": lambda chain: chain.node("Gather", chain.value, -1, axis=axis),
    }


def largest_by_place(chain: Chain) -> str:
    place = chain.node("ArgMax", chain.value, axis=2, keepdims=1)
    return chain.node("Squeeze", chain.node("GatherElements", chain.value, place, axis=2), [2])


def variance(chain: Chain) -> str:
    apart = chain.centred([2])
    return chain.node("ReduceMean", chain.node("Mul", apart, apart), axes=[2], keepdims=0)


def softmax_over_all(chain: Chain) -> str:
    flat = chain.node("Softmax", chain.node("Reshape", chain.value, [0, -1]), axis=1)
    shares = chain.node("Reshape", flat, chain.node("Shape", chain.value))
    return chain.node("ReduceSum", chain.node("Mul", shares, chain.value), [1], keepdims=0)


def _named(*links: Link) -> dict[str, Link]:
    return {link.__name__: link for link in links}


LINKS: Final[dict[Layout, dict[str, Link]]] = {
    "channels": {
        **_named(convolution, max_pool),
        "average_pool": lambda c: c.node("AveragePool", c.value, **_pool(c), count_include_pad=c.between(0, 1)),
        "activation": lambda chain: chain.node(chain.some("Relu", "Sigmoid", "Tanh"), chain.value),
        **_named(batch_norm),
        "instance_norm": lambda c: c.node(
            "InstanceNormalization", _from_the_first(c, 2), *(c.weights(c.features) for _ in range(2)), epsilon=0.1
        ),
        **_named(padded, cut, squeeze_excite, gru),
        "sum_so_far": lambda c: c.node(
            "Tanh", c.node("CumSum", c.value, 2, reverse=c.between(0, 1), exclusive=c.between(0, 1))
        ),
        "flip": lambda chain: chain.slice([-1], [_NEAR], 2, -1),
        "softmax_gate": lambda chain: chain.node("Mul", chain.value, chain.node("Softmax", chain.value, axis=2)),
        **_named(residual),
        "centred": lambda chain: chain.centred([2]),
        **_named(transposed_convolution, joined_in_time),
        "without_last": lambda chain: chain.node("Sub", chain.value, chain.slice([-1], [_FAR], 2)),
    },
    "steps": {
        "attention": lambda c: c.node(
            "Add", c.value, _square(c, c.node("MatMul", c.linear(c.value), c.turned()), c.value)
        ),
        **_named(attention_with_a_mask, heads, places, pairs_of_steps, windows),
        "gate_over_time": lambda c: c.node("Mul", c.value, c.node("Softmax", c.linear(c.value, c.features, 1), axis=1)),
        **_named(dense),
        "covariance": lambda c: c.node("MatMul", c.value, c.node("Tanh", c.node("MatMul", c.turned(), c.value))),
        "sum_of_steps_so_far": lambda c: c.node("Tanh", c.node("CumSum", c.value, 1, reverse=c.between(0, 1))),
        "shifted": lambda c: c.node("Sub", c.value, c.node("Pad", c.slice([1], [_FAR], 1), [0, 0, 0, 0, 1, 0])),
        **_named(token_added),
        "every_few": lambda chain: chain.slice([chain.between(0, 1)], [_FAR], 1, chain.between(2, 3)),
        **_named(repeated, normalised, lstm, thirds, trimmed_by_share, padded_to_a_multiple, rows_merged),
        **_named(turned_convolution),
        "trimmed": lambda chain: chain.slice([chain.between(0, 2)], [-chain.between(1, 2)], 1),
        "rolled": lambda c: c.node(
            "Sub", c.value, c.node("Concat", c.slice([-1], [_FAR], 1), c.slice([0], [-1], 1), axis=1)
        ),
        **_named(picked_by_largest, products_of_steps, largest_beside),
        "largest_kept": lambda c: c.node(
            "Where", c.node("Less", c.value, c.nodes("TopK", 2, c.value, [1], axis=1)[0]), 0.1, c.value
        ),
        **_named(scan),
    },
}
"""The links of each layout, by name."""

ENDS: Final[dict[Layout, dict[str, Link]]] = {
    "channels": {
        **_common(2),
        "global_average": lambda chain: chain.node("Flatten", chain.node("GlobalAveragePool", chain.value)),
        "two_largest": lambda c: c.node(
            "ReduceMean", c.nodes("TopK", 2, c.value, [2], axis=2)[0], axes=[2], keepdims=0
        ),
        **_named(largest_by_place, variance),
    },
    "steps": {
        **_common(1),
        "middle": lambda c: c.node("Squeeze", c.node("Gather", c.value, c.node("Div", c.width(), [2]), axis=1), [1]),
        **_named(softmax_over_all),
    },
}
"""What pools the steps at the end of a chain, by name."""
