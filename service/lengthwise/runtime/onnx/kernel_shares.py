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


def fused(model: bytes, lengths: str) -> Counted:
    """Returns the graph with SharesAboveBiases in it; `NotFound` (`require`) if it has no part for this operator.

    If the bytes are not a message of protocol buffers, `onnx_graph.read` raises a ValueError.

    Args:
        model: The ONNX file.
        lengths: The name of its input with the lengths, int32.
    """
    require(all(name in model for name in (b"Conv", b"Greater", b"Round")))
    return _Finder(onnx_graph.read(model), lengths).replaced()


def trial_sequences(counted: Counted, features: int, longest: int) -> Iterator[NDArray[np.float32]]:
    """Yields the sequences `[length, features]` of a trial, with values of different sizes.

    Their lengths are the span of each dilation (from the first to the last weight of a kernel), one step more, and a
    few small ones; but at most `longest`, the model's longest length.
    """
    random = np.random.default_rng(0)
    spans = {8 * kernels.dilation for kernels in counted.kernels}
    for index, length in enumerate(sorted({1, 2, 7, *spans, *(span + 1 for span in spans)})):
        if length <= min(longest, _LONGEST):
            yield (random.standard_normal((length, features)) * (1.0, 1e-3, 1e37, 1e-30)[index % 4]).astype(np.float32)


class _Finder(Pattern):
    """Finds the chains of a graph, and replaces them. Every method raises `NotFound` where the graph has no chain."""

    def __init__(self, graph: Graph, lengths: str) -> None:
        super().__init__(graph)
        self._lengths = lengths

    def replaced(self) -> Counted:
        """Returns the graph in which the operator replaces all chains; `NotFound` if none, or if their grids differ."""
        # 1. The chains, by their outputs
        all_chains = [self._chain(node) for node in self.graph.nodes if node.operator == "Conv"]
        require(len({chain.grid for chain in all_chains}) == 1)
        chains = {chain.output: chain for chain in all_chains}
        # 2. Their order: several chains are joined by a Concat, of which they are the first inputs.
        outputs = [*chains]
        users = self.users.get(outputs[0], [])
        concat = users[0] if len(users) == 1 and users[0].operator == "Concat" else None
        if concat is not None:
            outputs = [name for name in concat.inputs if name in chains]
            require(concat.inputs[: len(outputs)] == outputs and concat.attributes.get("axis") == 1)
        require(len(outputs) == len(chains) and (concat is not None or len(outputs) == 1))
        # 3. Their plan
        kernels, grid = [chains[name].kernels for name in outputs], chains[outputs[0]].grid
        plan = fixed_kernels.plan(kernels, grid.bits, grid.limit)
        self.graph.add_tensor("lengthwise.plan", plan.numbers)
        self.graph.add_tensor("lengthwise.biases", plan.biases)
        # 4. The operator. The Concat may have further features after the shares, such as a sequence's level and scale.
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
        """Reads the chain that a convolution belongs to: the module's docstring has its nodes.

        Raises:
            NotFound: The weights are not those of the fixed kernels, or the nodes before or after the convolution do
                not have the form of a chain.
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
        # The largest sum, divided by the grid's limit: the weights of a kernel are three of 2 and six of -1. In float32
        # every sum must be exact.
        require(12 * reads.sum(axis=1).max() <= 2 ** (24 - grid.bits) and reads.any(axis=1).all())
        # 2. The steps that count, and how many results at these are above each bias
        counted = self.only_user(conv.outputs[0], "Where")
        require(counted.inputs[1] == conv.outputs[0] and self.constant(counted.inputs[2]) <= _BELOW_ALL)
        self._mask_tables(counted.inputs[0], dilation)
        unsqueezed = self.only_user(counted.outputs[0], "Unsqueeze")
        parts = [self._count(node, unsqueezed.outputs[0]) for node in self.users[unsqueezed.outputs[0]]]
        part_biases, part_counts = zip(*parts, strict=True)
        counts = part_counts[0]
        if len(parts) > 1:
            joined = self.only_user(counts, "Concat")
            require(joined.inputs == [*part_counts] and joined.attributes.get("axis") == 2)
            counts = joined.outputs[0]
        # 3. Divided by how many steps count for each kernel, which has the table of `DilatedKernels.inside`
        share = self.only_user(counts, "Div")
        inside = self._mask_tables(share.inputs[1], dilation)
        flat = self.only_user(share.outputs[0], "Reshape")
        require(share.inputs[0] == counts and len(inside) == 1)
        kernels = DilatedKernels(dilation, reads, np.concatenate(part_biases, axis=1), inside[0].ravel())
        return _Chain(kernels, grid, flat.outputs[0])

    def _grid(self, name: str) -> _Grid:
        """Reads the grid of the value `name`, which is Transpose(Round(Clip(values) / distance) * distance).

        `distance`, between points of the grid, is a constant, or is computed for each sequence.
        """
        transposed = self.maker(name, "Transpose")
        scaled = self.maker(transposed.inputs[0], "Mul")
        divided = self.maker(self.maker(scaled.inputs[0], "Round").inputs[0], "Div")
        clipped = self.maker(divided.inputs[0], "Clip")
        require(transposed.attributes.get("perm") == (0, 2, 1) and divided.inputs[1] == scaled.inputs[1])
        distance, limit = scaled.inputs[1], None
        if distance in self.makers:  # for each sequence: the smallest of `POWERS` above its values, times a constant
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
        """Reads ReduceSum(Cast(Greater(results, biases))), which counts the steps with results above each bias.

        The biases are an initializer, or a part of one that a Split makes.

        Args:
            greater: The node Greater.
            results: The name of the kernels' results.

        Returns:
            The biases `[84, n]`, and the name of the counts.
        """
        require(greater.operator == "Greater" and greater.inputs[0] == results)
        total = self.only_user(self.only_user(greater.outputs[0], "Cast").outputs[0], "ReduceSum")
        require(self.axis(total) in (3, -1) and total.attributes.get("keepdims", 1) == 0)
        name = greater.inputs[1]
        if (split := self.makers.get(name)) is None or split.operator != "Split":
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
        """Checks a mask, or a count of its steps; returns the boolean initializers `[84, 1]` that it is computed from.

        `NotFound` if it depends on something else than the lengths and the width, or if the span of the kernels (8
        dilations) is not among its constants.
        """
        names = self.mask_constants(name, self._lengths)
        sizes = {size for constant in names for size in self.graph.constants.get(constant, ())}
        require(8 * dilation in sizes)
        return [
            self.numbers(table, KERNELS, 1)
            for table in names
            if table in self.graph.tensors and self.graph.tensors[table].kind == BOOL
        ]
