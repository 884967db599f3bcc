"""Finds the part of a graph that counts results of fixed kernels above biases, and replaces it by one operator.

See `fixed_kernels` for kernels, dilations and the grid. A *chain* is the nodes of one dilation:

    values -> grid -> Transpose -> Conv -> Where(counted) -> Greater(biases) -> ReduceSum -> Div -> Reshape -> Concat

becomes `values, lengths -> SharesAboveBiases`. `lengthwise_export` writes the chains, with a grid for each sequence or
a constant one. Weights, biases and the form of each chain are read here. The nodes that compute which steps count are
not understood: only their operators, inputs and constants are checked. So `runtime.opening` runs both graphs on the
`trial_sequences`, and the operator is used only if all answers have the same bits.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Final, NamedTuple

import numpy as np
from numpy.typing import NDArray

from lengthwise.runtime import fixed_kernels
from lengthwise.runtime.fixed_kernels import KERNELS, TAPS, DilatedKernels
from lengthwise.runtime.onnx import onnx_graph
from lengthwise.runtime.onnx.onnx_graph import BOOL, Graph, Node
from lengthwise.runtime.onnx.pattern import NotFound, Pattern, require

OF_MASKS: Final = frozenset(
    {"And", "Cast", "Constant", "Greater", "GreaterOrEqual", "Less", "LessOrEqual", "Not", "Or"}
    | {"Range", "Reshape", "Shape", "Squeeze", "Sub", "Unsqueeze", "Where"}
)
"""The operators that say which steps count, and how many."""
_BELOW_ALL: Final = -3e38
_LONGEST: Final = 512
"""Longest sequence of a trial: the graph's own operators need memory for each step, kernel and bias."""


class Counted(NamedTuple):
    """A graph with the operator, and the operator's kernels."""

    graph: bytes
    kernels: list[DilatedKernels]


class _Grid(NamedTuple):
    """A grid, and the values that are rounded to it."""

    values: str  # their name
    bits: int  # see `fixed_kernels.plan`
    limit: float | None


class _Chain(NamedTuple):
    """What a chain computes."""

    kernels: DilatedKernels
    grid: _Grid
    output: str  # the value that its Reshape makes: a share for each kernel and bias


def fused(model: bytes, lengths: str) -> Counted | None:
    """The graph with SharesAboveBiases in it; None if it has no part that this operator computes.

    Args:
        model: The ONNX file.
        lengths: The name of its input with the lengths, int32.

    Bytes that are not a protocol-buffers message are a ValueError.
    """
    if not all(name in model for name in (b"Conv", b"Greater", b"Round")):
        return None
    try:
        return _Finder(onnx_graph.read(model), lengths).replaced()
    except NotFound:
        return None


def trial_sequences(counted: Counted, features: int, longest: int) -> Iterator[NDArray[np.float32]]:
    """Sequences `[length, features]` for a trial, with values of different sizes.

    Their lengths are the span of each kernel, one step more, and a few small ones.
    """
    random = np.random.default_rng(0)
    spans = {8 * kernels.dilation for kernels in counted.kernels}
    for index, length in enumerate(sorted({1, 2, 7, *spans, *(span + 1 for span in spans)})):
        if length <= min(longest, _LONGEST):
            size = (1.0, 1e-3, 1e37, 1e-30)[index % 4]
            yield (random.standard_normal((length, features)) * size).astype(np.float32)


class _Finder(Pattern):
    """Finds the chains of a graph, and replaces them."""

    def __init__(self, graph: Graph, lengths: str) -> None:
        super().__init__(graph)
        self._lengths = lengths

    def replaced(self) -> Counted:
        """The graph with the operator instead of all chains; `NotFound` if there are none, or their grids differ."""
        # 1. The chains, by their outputs. Several are joined by a Concat.
        all_chains = [self._chain(node) for node in self.graph.nodes if node.operator == "Conv"]
        require(len({chain.grid for chain in all_chains}) == 1)
        chains = {chain.output: chain for chain in all_chains}
        outputs = [*chains]
        users = self.users.get(outputs[0], [])
        concat = users[0] if len(users) == 1 and users[0].operator == "Concat" else None
        if concat is not None:
            outputs = [name for name in concat.inputs if name in chains]
            require(concat.inputs[: len(outputs)] == outputs and concat.attributes.get("axis") == 1)
        require(len(outputs) == len(chains) and (concat is not None or len(outputs) == 1))
        # 2. Their plan
        kernels, grid = [chains[name].kernels for name in outputs], chains[outputs[0]].grid
        plan = fixed_kernels.plan(kernels, grid.bits, grid.limit)
        self.graph.add_tensor("lengthwise.plan", plan.numbers)
        self.graph.add_tensor("lengthwise.biases", plan.biases)
        # 3. The operator. The Concat may have further features after the shares, such as a sequence's level and scale.
        further_features = [] if concat is None else concat.inputs[len(outputs) :]
        result = outputs[0] if concat is None else concat.outputs[0]
        shares = "lengthwise.shares" if further_features else result
        inputs = [grid.values, self._lengths, "lengthwise.plan", "lengthwise.biases"]
        replacement = [Node("SharesAboveBiases", inputs, [shares], domain=fixed_kernels.DOMAIN)]
        if further_features:
            replacement.append(Node("Concat", [shares, *further_features], [result], {"axis": 1}))
        index = self.graph.nodes.index(self.makers[result])
        self.graph.nodes[index : index + 1] = replacement
        self.graph.remove_unused()
        return Counted(self.graph.write({fixed_kernels.DOMAIN: 1}), kernels)

    def _chain(self, conv: Node) -> _Chain:
        """The chain that a convolution of the fixed kernels belongs to.

        Raises:
            NotFound: The nodes before or after it do not have the form of a chain.
        """
        # 1. The convolution, with the weights of the fixed kernels
        weights = self.numbers(conv.inputs[1], KERNELS, -1, TAPS)
        dilations, pads = conv.attributes.get("dilations", (1,)), conv.attributes.get("pads")
        if not isinstance(dilations, tuple) or len(dilations) != 1 or dilations[0] < 1:
            raise NotFound
        dilation = int(dilations[0])
        require(len(conv.inputs) == 2 and conv.attributes.get("group", 1) == 1 and pads == (4 * dilation,) * 2)
        require(conv.attributes.get("strides", (1,)) == (1,) and conv.attributes.get("auto_pad", "NOTSET") == "NOTSET")
        reads = weights[:, :, 0] != 0
        require(np.array_equal(weights, reads[:, :, None] * fixed_kernels.kernel_weights()[:, None, :]))
        grid = self._grid(conv.inputs[0])
        # Over the grid's limit: the weights of a kernel are 3 * 2 and 6 * -1. In float32 every sum must be exact.
        largest_sum = 12 * reads.sum(axis=1).max()
        require(largest_sum <= 2 ** (24 - grid.bits) and reads.any(axis=1).all())
        # 2. The steps that count, and how many results at these are above each bias
        counted = self.only_user(conv.outputs[0], "Where")
        require(counted.inputs[1] == conv.outputs[0] and self.constant(counted.inputs[2]) <= _BELOW_ALL)
        self._mask_tables(counted.inputs[0], dilation)
        unsqueezed = self.only_user(counted.outputs[0], "Unsqueeze")
        parts = [self._count(node, unsqueezed.outputs[0]) for node in self.users[unsqueezed.outputs[0]]]
        biases = np.concatenate([part_biases for part_biases, _ in parts], axis=1)
        counts = parts[0][1]
        if len(parts) > 1:
            joined = self.only_user(counts, "Concat")
            require(joined.inputs == [count for _, count in parts] and joined.attributes.get("axis") == 2)
            counts = joined.outputs[0]
        # 3. Divided by how many steps count for each kernel, which has the table of `DilatedKernels.inside`
        share = self.only_user(counts, "Div")
        inside = self._mask_tables(share.inputs[1], dilation)
        flat = self.only_user(share.outputs[0], "Reshape")
        require(share.inputs[0] == counts and len(inside) == 1)
        kernels = DilatedKernels(dilation, reads, biases, inside[0].ravel())
        return _Chain(kernels, grid, flat.outputs[0])

    def _grid(self, name: str) -> _Grid:
        """The grid of the values from which `name` is made: Transpose(Round(Clip(values) / distance) * distance)."""
        transposed = self.maker(name, "Transpose")
        scaled = self.maker(transposed.inputs[0], "Mul")
        divided = self.maker(self.maker(scaled.inputs[0], "Round").inputs[0], "Div")
        clipped = self.maker(divided.inputs[0], "Clip")
        require(transposed.attributes.get("perm") == (0, 2, 1) and divided.inputs[1] == scaled.inputs[1])
        distance, limit = scaled.inputs[1], None
        if distance in self.makers:  # of each sequence: the smallest power above its values, times a constant
            product = self.maker(distance, "Mul")
            smallest = self.maker(product.inputs[0], "ReduceMin")
            powers = self.numbers(self.maker(smallest.inputs[0], "Where").inputs[1], -1)
            require(np.array_equal(powers, fixed_kernels.POWERS))
            relative_distance = self.constant(product.inputs[1])
        else:  # a constant
            low, limit = (self.constant(name) for name in [*clipped.inputs, "", ""][1:3])
            require(low == -limit and limit in fixed_kernels.POWERS)
            relative_distance = self.constant(distance) / limit
        bits = -math.log2(max(relative_distance, 1e-30))
        require(1 <= bits <= 22 and bits % 1 == 0)
        return _Grid(clipped.inputs[0], int(bits), limit)

    def _count(self, greater: Node, results: str) -> tuple[NDArray[np.float32], str]:
        """Reads ReduceSum(Cast(Greater(results, biases))) over the steps.

        Returns:
            The biases `[84, n]`, a tensor or a part of one that a Split makes; and the name of the sum.
        """
        require(greater.operator == "Greater" and greater.inputs[0] == results)
        total = self.only_user(self.only_user(greater.outputs[0], "Cast").outputs[0], "ReduceSum")
        require(self.axis(total) in (3, -1) and total.attributes.get("keepdims", 1) == 0)
        name = greater.inputs[1]
        split = self.makers.get(name)
        if split is None or split.operator != "Split":
            return self.numbers(name, KERNELS, -1, 1)[:, :, 0], total.outputs[0]
        all_biases = self.numbers(split.inputs[0], KERNELS, -1, 1)
        if any(split.inputs[1:]):
            sizes = self.numbers(split.inputs[1], -1).tolist()
        else:  # equal parts, but the last one may be smaller
            size = -(-all_biases.shape[1] // len(split.outputs))
            earlier_parts = [size] * (len(split.outputs) - 1)
            sizes = [*earlier_parts, all_biases.shape[1] - sum(earlier_parts)]
        index = split.outputs.index(name)
        begin = sum(sizes[:index])
        require(split.attributes.get("axis") == 1 and sum(sizes) == all_biases.shape[1])
        return all_biases[:, begin : begin + sizes[index], 0], total.outputs[0]

    def _mask_tables(self, name: str, dilation: int) -> list[NDArray[np.bool_]]:
        """The boolean initializers `[84, 1]` from which a mask, or a count of its steps, is computed.

        `NotFound` if the mask does not depend on the lengths and the width only, or does not have the span of the
        kernels (8 dilations) among its constants.
        """
        waiting, visited, tables = [name], {self._lengths, ""}, []  # `waiting`: values that are to be followed back
        sizes: set[float] = set()  # all constants of the mask
        while waiting:
            name = waiting.pop()
            if name in visited:
                continue
            visited.add(name)
            tensor = self.graph.tensors.get(name)
            if tensor is not None and tensor.kind == BOOL:
                tables.append(self.numbers(name, KERNELS, 1))
            elif name in self.graph.constants:
                sizes.update(self.graph.constants[name])
            else:
                maker = self.maker(name, *OF_MASKS)
                waiting += maker.inputs if maker.operator != "Shape" else []
        require(8 * dilation in sizes)
        return tables
