"""Finds the part of a graph that counts results of fixed kernels above biases, and puts one operator in its place.

    values -> grid -> Transpose -> Conv -> Where(counted) -> Greater(biases) -> ReduceSum -> Div -> Reshape -> Concat
                                   (one such chain for each dilation)

becomes `values, lengths -> SharesAboveBiases`. `lengthwise_export` writes the left side, with the grid of each sequence
or one of constants. Weights, biases and the form of each chain are read here. Which steps count is a small graph of its
own; of that only the operators, what they start from and their constants are read. So `trial` gives sequences with
which `runtime.opening` runs both graphs: the operator is used only if all answers have the same bits.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Any, Final, NamedTuple

import numpy as np
from numpy.typing import NDArray

from lengthwise.runtime import fixed_kernels
from lengthwise.runtime.fixed_kernels import KERNELS, TAPS, DilatedKernels
from lengthwise.runtime.onnx import onnx_graph
from lengthwise.runtime.onnx.onnx_graph import BOOL, Graph, Node

_OF_MASKS: Final = frozenset(
    {"And", "Cast", "Constant", "GreaterOrEqual", "Less", "LessOrEqual", "Not", "Or"}
    | {"Range", "Reshape", "Shape", "Squeeze", "Sub", "Unsqueeze", "Where"}
)
"""The operators that say which steps count, and how many."""
_BELOW_ALL: Final = -3e38
_LONGEST: Final = 512
"""Longest sequence of a trial: the graph's own operators need memory for each step, kernel and bias."""


class _NotFound(Exception):
    """The graph has another form."""


class Counted(NamedTuple):
    """A graph with the operator, and the operator's kernels."""

    graph: bytes
    kernels: list[DilatedKernels]


class _Chain(NamedTuple):
    """The nodes of one dilation, from the values to the last Reshape."""

    kernels: DilatedKernels
    grid: tuple[str, int, float | None]  # the values that are rounded to it; its bits and its limit, as of a plan
    output: str


def fused(model: bytes, lengths: str) -> Counted | None:
    """The same graph with the operator; None if it has no place for it.

    Args:
        model: The ONNX file.
        lengths: The name of its input with the lengths, int32.

    Raises:
        ValueError: The bytes are not a protocol-buffers message.
    """
    if not all(name in model for name in (b"Conv", b"Greater", b"Round")):
        return None
    graph = onnx_graph.read(model)
    try:
        return _Finder(graph, lengths).replaced()
    except _NotFound:
        return None


def trial(found: Counted, features: int, longest: int) -> Iterator[NDArray[np.float32]]:
    """Sequences for the graph, at the lengths where something changes, and of wild sizes."""
    random = np.random.default_rng(0)
    edges = {8 * each.dilation + more for each in found.kernels for more in (0, 1)}
    for place, length in enumerate(sorted({1, 2, 7, *edges})):
        if length <= min(longest, _LONGEST):
            size = (1.0, 1e-3, 1e37, 1e-30)[place % 4]
            yield (random.standard_normal((length, features)) * size).astype(np.float32)


class _Finder:
    def __init__(self, graph: Graph, lengths: str) -> None:
        self._graph = graph
        self._lengths = lengths
        self._makers = graph.makers()
        self._users = graph.users()

    def replaced(self) -> Counted:
        """The graph with the operator in the place of all chains.

        Raises:
            _NotFound: There are none, or they are not all alike.
        """
        convolutions = [node for node in self._graph.nodes if node.operator == "Conv"]
        chains = {chain.output: chain for chain in map(self._chain, convolutions)}
        if not chains or len({chain.grid for chain in chains.values()}) != 1:
            raise _NotFound
        outputs = [*chains]
        users = self._users.get(outputs[0], [])
        last = users[0] if len(users) == 1 and users[0].operator == "Concat" else None
        if last is not None:
            outputs = [name for name in last.inputs if name in chains]
            if last.inputs[: len(outputs)] != outputs or last.attributes.get("axis") != 1:
                raise _NotFound
        if len(outputs) != len(chains) or (last is None and len(outputs) > 1):
            raise _NotFound
        kernels = [chains[name].kernels for name in outputs]
        values, bits, limit = chains[outputs[0]].grid
        plan = fixed_kernels.plan(kernels, bits, limit)
        self._graph.add_tensor("lengthwise.plan", plan.numbers)
        self._graph.add_tensor("lengthwise.biases", plan.biases)
        others = [] if last is None else last.inputs[len(outputs) :]
        whole = outputs[0] if last is None else last.outputs[0]
        to = "lengthwise.shares" if others else whole
        inputs = [values, self._lengths, "lengthwise.plan", "lengthwise.biases"]
        new = [Node("SharesAboveBiases", inputs, [to], domain=fixed_kernels.DOMAIN)]
        if last is not None and others:
            new.append(Node("Concat", [to, *others], last.outputs, {"axis": 1}))
        replaced = last if last is not None else self._makers[whole]
        place = self._graph.nodes.index(replaced)
        self._graph.nodes[place : place + 1] = new
        self._graph.remove_unused()
        return Counted(self._graph.write({fixed_kernels.DOMAIN: 1}), kernels)

    def _chain(self, conv: Node) -> _Chain:
        weights = self._numbers(conv.inputs[1], (KERNELS, -1, TAPS))
        dilation = self._attribute(conv, "dilations")
        pads = conv.attributes.get("pads")
        if len(conv.inputs) != 2 or conv.attributes.get("group", 1) != 1 or pads != (4 * dilation,) * 2:
            raise _NotFound
        if conv.attributes.get("strides", (1,)) != (1,) or conv.attributes.get("auto_pad", "NOTSET") != "NOTSET":
            raise _NotFound
        reads = weights[:, :, 0] != 0
        if not np.array_equal(weights, reads[:, :, None] * fixed_kernels.kernel_weights()[:, None, :]):
            raise _NotFound
        grid = self._grid(conv.inputs[0])
        is_exact = 12 * reads.sum(axis=1).max() <= 2 ** (24 - grid[1])  # every sum
        if not is_exact or not reads.any(axis=1).all():
            raise _NotFound
        counted = self._only_user(conv.outputs[0], "Where")
        if counted.inputs[1] != conv.outputs[0] or self._constant(counted.inputs[2]) > _BELOW_ALL:
            raise _NotFound
        self._cone(counted.inputs[0], dilation)
        wide = self._only_user(counted.outputs[0], "Unsqueeze")
        parts = [self._count(node, wide.outputs[0]) for node in self._users[wide.outputs[0]]]
        biases = np.concatenate([part for part, _ in parts], axis=1)
        total = parts[0][1]
        if len(parts) > 1:
            joined = self._only_user(total, "Concat")
            if joined.inputs != [output for _, output in parts] or joined.attributes.get("axis") != 2:
                raise _NotFound
            total = joined.outputs[0]
        share = self._only_user(total, "Div")
        inside = self._cone(share.inputs[1], dilation)
        flat = self._only_user(share.outputs[0], "Reshape")
        if share.inputs[0] != total or len(inside) != 1:
            raise _NotFound
        kernels = DilatedKernels(dilation, reads, biases, inside[0].ravel())
        return _Chain(kernels, grid, flat.outputs[0])

    def _grid(self, name: str) -> tuple[str, int, float | None]:
        """What is rounded to a grid and turned to give a value; the bits of the grid, and its limit."""
        turn = self._maker(name, "Transpose")
        scaled = self._maker(turn.inputs[0], "Mul")
        rounded = self._maker(scaled.inputs[0], "Round")
        divided = self._maker(rounded.inputs[0], "Div")
        clipped = self._maker(divided.inputs[0], "Clip")
        if turn.attributes.get("perm") != (0, 2, 1) or divided.inputs[1] != scaled.inputs[1]:
            raise _NotFound
        distance, limit = scaled.inputs[1], None
        if distance in self._makers:
            product = self._maker(distance, "Mul")
            least = self._maker(product.inputs[0], "ReduceMin")
            powers = self._numbers(self._maker(least.inputs[0], "Where").inputs[1], (-1,))
            if not np.array_equal(powers, fixed_kernels.POWERS):
                raise _NotFound
            share = self._constant(product.inputs[1])
        else:
            low, limit = (self._constant(name) for name in [*clipped.inputs, "", ""][1:3])
            if low != -limit or limit not in fixed_kernels.POWERS:
                raise _NotFound
            share = self._constant(distance) / limit
        bits = -math.log2(max(share, 1e-30))
        if not 1 <= bits <= 22 or bits % 1:
            raise _NotFound
        return clipped.inputs[0], int(bits), limit

    def _count(self, greater: Node, results: str) -> tuple[NDArray[np.float32], str]:
        """The biases `[84, n]` that results are compared with, and the value that counts them."""
        if greater.operator != "Greater" or greater.inputs[0] != results:
            raise _NotFound
        number = self._only_user(greater.outputs[0], "Cast")
        total = self._only_user(number.outputs[0], "ReduceSum")
        if self._constant(total.inputs[1]) not in (3, -1) or total.attributes.get("keepdims", 1) != 0:
            raise _NotFound
        given = greater.inputs[1]
        split = self._makers.get(given)
        if split is None or split.operator != "Split":
            return self._numbers(given, (KERNELS, -1, 1))[:, :, 0], total.outputs[0]
        sizes, whole = self._sizes(split.inputs[1]), self._numbers(split.inputs[0], (KERNELS, -1, 1))
        place = split.outputs.index(given)
        begin = sum(sizes[:place])
        if split.attributes.get("axis") != 1 or sum(sizes) != whole.shape[1]:
            raise _NotFound
        return whole[:, begin : begin + sizes[place], 0], total.outputs[0]

    def _cone(self, name: str, dilation: int) -> list[NDArray[np.bool_]]:
        """The tables of booleans in what gives a value that depends on the lengths and the width only.

        Raises:
            _NotFound: It depends on something else, or not on the span of these kernels.
        """
        left, seen, tables = [name], set[str](), []
        sizes: set[float] = set()
        while left:
            name = left.pop()
            if name in seen or name == self._lengths or not name:
                continue
            seen.add(name)
            tensor, maker = self._graph.tensors.get(name), self._makers.get(name)
            if tensor is not None and tensor.kind == BOOL:
                tables.append(self._numbers(name, (KERNELS, 1)))
            elif name in self._graph.constants:
                sizes.update(self._graph.constants[name])
            elif maker is None or maker.operator not in _OF_MASKS:
                raise _NotFound
            elif maker.operator != "Shape":
                left += maker.inputs
        if 8 * dilation not in sizes:
            raise _NotFound
        return tables

    def _maker(self, name: str, operator: str) -> Node:
        node = self._makers.get(name)
        if node is None or node.operator != operator or node.domain:
            raise _NotFound
        return node

    def _only_user(self, name: str, operator: str) -> Node:
        users = self._users.get(name, [])
        if len(users) != 1 or name in self._graph.used_elsewhere or users[0].operator != operator or users[0].domain:
            raise _NotFound
        return users[0]

    def _numbers(self, name: str, shape: tuple[int, ...]) -> NDArray[Any]:
        """A tensor's numbers; -1 in its shape is any size."""
        tensor = self._graph.tensors.get(name)
        numbers = None if tensor is None else tensor.numbers()
        if numbers is None or len(numbers.shape) != len(shape):
            raise _NotFound
        if any(size not in (-1, actual) for size, actual in zip(shape, numbers.shape, strict=True)):
            raise _NotFound
        return numbers

    def _sizes(self, name: str) -> list[int]:
        tensor = self._graph.tensors.get(name)
        numbers = None if tensor is None else tensor.numbers()
        if numbers is None:
            raise _NotFound
        return [int(size) for size in numbers]

    def _constant(self, name: str) -> float:
        numbers = self._graph.constants.get(name, ())
        if len(numbers) != 1:
            raise _NotFound
        return numbers[0]

    def _attribute(self, node: Node, name: str) -> int:
        numbers = node.attributes.get(name, (1,))
        if not isinstance(numbers, tuple) or len(numbers) != 1 or numbers[0] < 1:
            raise _NotFound
        return int(numbers[0])
