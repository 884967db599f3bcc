"""One run of a Keras model: the mask that the lengths make, and where it stands for one that Keras would compute.

When a functional model is built, Keras writes the computation of each mask into its graph, as operations of their own,
and passes the result to each layer as its argument `mask` (as models with a mask made by hand do):

    Masking(v)              NotEqual(inputs, v) -> Any(axis=-1)
    Embedding(mask_zero)    NotEqual(tokens, 0)
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_leaves

from lengthwise_export.keras_models import recurrent
from lengthwise_export.masks import step_mask


def identity(part: Any) -> int:
    """A number for a layer, an operation or a cell, the same for the copy that a trace makes of it."""
    return id(getattr(part, "_tracker", part))  # a copy has the same attributes, among them Keras's tracker


class KnownLayers(nn.Module):
    """What all runs of one Keras model share: which layers read the model's input, and their weights.

    While `learning`, the input and the mask of each layer are compared with those of the run. A trace cannot compare
    values, and uses the results of these comparisons.
    """

    def __init__(self) -> None:
        super().__init__()
        self.learning = False
        self._matched: dict[int, bool] = {}
        self._weights: dict[tuple[int, ...], recurrent.CellWeights] = {}

        self._operations: dict[int, nn.Module] = {}

    def name(self, operation: Any, part: nn.Module) -> None:
        """Registers the part of the module that stands for an operation between layers."""
        self._operations[identity(operation)] = part

    def part_of(self, operation: Any) -> Callable[..., Any]:
        """The part of the module that stands for an operation between layers; without one, the operation itself."""
        called: Callable[..., Any] = self._operations.get(identity(operation), operation)
        return called

    def matched_in_every_run(self, layer: Any, compare: Callable[[], bool] | None = None) -> bool:
        """Whether a layer's input (or mask) was that of the model in every learning run.

        In a learning run, first compares them, and remembers the result.

        Args:
            layer: The layer.
            compare: Returns whether the layer's input (or mask) is that of the run.
        """
        if self.learning and compare is not None:
            self._matched[identity(layer)] = compare() and self._matched.get(identity(layer), True)
        return self._matched.get(identity(layer), False)

    def weights_of(self, cells: Sequence[Any], form: recurrent.CellForm) -> recurrent.CellWeights:
        """The weights of the cells of the directions of one layer, copied once."""
        key = tuple(map(identity, cells))
        if key not in self._weights:
            self._weights[key] = recurrent.CellWeights(cells, form)
            self.add_module(f"recurrent_weights_{len(self._weights)}", self._weights[key])
        return self._weights[key]


class KerasRun:
    """One run: steps `[rows, width(, features)]`, lengths `[rows]` or None, and their mask `[rows, width]`."""

    def __init__(self, known: KnownLayers, steps: Tensor, lengths: Tensor | None) -> None:
        self.known = known
        self.steps = steps
        self.lengths = lengths
        self.mask = None if lengths is None else step_mask(lengths, steps.shape[1])
        # By the id of a filled tensor: that tensor, kept alive so that no other gets its id, and the values before
        self._unfilled: dict[int, tuple[Tensor, Tensor]] = {}

    @property
    def is_traced(self) -> bool:
        """Whether the run is a trace, in which values cannot be compared."""
        return torch.compiler.is_exporting() or type(self.steps) is not Tensor

    def reads_input(self, layer: Any, inputs: Tensor) -> bool:
        """Whether the inputs of a layer are the model's own steps, `[rows, width, features]` or `[rows, width]`.

        A layer may also read steps `[rows, width]` with a further axis for their one feature.
        """

        def is_same() -> bool:
            steps = self.steps if inputs.dim() == self.steps.dim() else self.steps.unsqueeze(-1)
            return inputs.shape == steps.shape and torch.equal(inputs.double(), steps.double())

        return self.known.matched_in_every_run(layer, is_same)

    def has_mask_of_lengths(self, layer: Any, mask: Tensor) -> bool:
        """Whether the mask `[rows, width]` of a layer is that of the lengths."""
        if self.mask is None:
            return False
        of_lengths = self.mask
        return self.known.matched_in_every_run(
            layer, lambda: mask.shape == of_lengths.shape and torch.equal(mask.bool(), of_lengths)
        )

    def fill(self, values: Tensor, replacement: Tensor | float) -> Tensor:
        """Values `[rows, width, features]` with `replacement` at masked steps; `unfilled` gives the values back."""
        assert self.mask is not None
        filled = torch.where(self.mask.unsqueeze(-1), values, replacement)
        self._unfilled[id(filled)] = (filled, values)
        return filled

    def unfilled(self, values: Tensor) -> Tensor:
        """The values `[rows, width, ...]` before `fill`, or as they are; they are equal at valid steps."""
        return self._unfilled.get(id(values), (values, values))[1]

    def lengths_at(self, values: Tensor) -> Tensor | None:
        """The lengths `[rows]` for a recurrent layer over values `[rows, width, features]` that has no mask."""
        # Without a mask, Keras runs such a layer over the padding, too. In a trace it gets the lengths all the same:
        # only a model without leaks is exported, whose answers do not depend on what is computed there.
        if self.lengths is None or not self.is_traced:
            return None
        if values.shape[:2] == self.steps.shape[:2]:
            return self.lengths
        return torch.full((values.shape[0],), values.shape[1], dtype=torch.int64)


@dataclass(frozen=True, slots=True)
class GraphMasks:
    """The masks in the graph of a functional model; each tensor is the `id` of its symbol."""

    sources: dict[int, int]  # For each mask that is computed from values, the tensor of these values
    # The masks, and the tensors computed from masks, that are used as a layer's argument `mask` only
    only_masks: set[int]


def masks_in(function: Any) -> GraphMasks:
    """The masks in the graph of a functional model."""
    nodes = list(_nodes(function))
    compared: dict[int, int] = {}  # for each NotEqual of values, before its Any, the tensor of these values
    sources: dict[int, int] = {}
    for node in nodes:
        kind = type(node.operation).__name__
        if _is_layer(node.operation) or not node.input_tensors:
            continue
        first, output = node.input_tensors[0], id(node.outputs[0])
        if kind == "NotEqual" and len(node.input_tensors) == 1 and len(first.shape) == 3:
            compared[output] = id(first)
        elif kind == "NotEqual" and len(node.input_tensors) == 1 and len(first.shape) == 2:
            others = node.arguments.args[1:]
            if len(others) == 1 and isinstance(others[0], int | float) and others[0] == 0:
                sources[output] = id(first)
        elif kind == "Any" and id(first) in compared and node.operation.axis in (-1, 2, (-1,), (2,), [-1], [2]):
            sources[output] = compared[id(first)]
    return GraphMasks(sources, _only_masks(function, nodes, sources))


def run_graph(function: Any, run: KerasRun, values: list[Any], operation_fn: Callable[[Any], Any]) -> dict[int, Any]:
    """Runs a graph, its layers through `operation_fn`; returns the value of each tensor, by its id.

    A mask that is computed from the model's own steps becomes that of the lengths. In a run without lengths it is left
    out, and with it whatever is computed from it, if it is used as a mask only.
    """
    masks = masks_in(function)
    known = {id(symbol): value for symbol, value in zip(function.inputs, values, strict=True)}
    for node in _nodes(function):
        if not {*map(id, node.input_tensors)} - _mask_arguments(node) <= known.keys():  # it needs what was left out
            continue
        output = node.outputs[0]
        if id(output) in masks.sources and run.reads_input(node.operation, known[masks.sources[id(output)]]):
            if run.mask is not None:
                known[id(output)] = run.mask if len(output.shape) == 2 else run.mask.unsqueeze(-1)
                continue
            if id(output) in masks.only_masks:
                continue
        arguments, options = node.arguments.fill_in(known)
        called = operation_fn(node.operation) if _is_layer(node.operation) else run.known.part_of(node.operation)
        for symbol, value in zip(node.outputs, tree_leaves(called(*arguments, **options)), strict=False):
            known[id(symbol)] = value
    return known


def _nodes(function: Any) -> Iterator[Any]:
    """The calls of operations, in an order in which they can run."""
    by_depth = function._nodes_by_depth
    for depth in sorted(by_depth, reverse=True):
        yield from (node for node in by_depth[depth] if node.operation and not node.is_input)


def _is_layer(operation: Any) -> bool:
    """Whether a node of a graph is a layer, and not an operation of `keras.ops`."""
    return hasattr(operation, "compute_mask")


def _mask_arguments(node: Any) -> set[int]:
    """The ids of the tensors that a layer gets as masks; none for an operation between layers."""
    if not _is_layer(node.operation):
        return set()
    masks = [value for name, value in node.arguments.kwargs.items() if name.endswith("mask")]
    return {id(symbol) for value in masks for symbol in tree_leaves(value) if symbol is not None}


def _only_masks(function: Any, nodes: list[Any], masks: Iterable[int]) -> set[int]:
    """The ids of masks, and of tensors computed from masks, that are used as a layer's argument `mask` only.

    Args:
        function: The functional model; its outputs are uses, too.
        nodes: The calls in the graph of the model, in an order in which they can run.
        masks: The ids of the masks that are computed from values.
    """
    from_masks = set(masks)
    for node in nodes:
        if not _is_layer(node.operation) and any(id(symbol) in from_masks for symbol in node.input_tensors):
            from_masks.update(map(id, node.outputs))
    used_otherwise = {id(symbol) for symbol in function.outputs}
    for node in reversed(nodes):
        outputs = {*map(id, node.outputs)}
        if _is_layer(node.operation) or outputs & used_otherwise or not outputs & from_masks:
            used_otherwise |= {*map(id, node.input_tensors)} - _mask_arguments(node)
    return from_masks - used_otherwise
