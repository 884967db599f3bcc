"""Runs the graph of a functional Keras model, with the mask of the lengths where the graph computes one from values.

When such a model is built, Keras writes the computation of each mask into its graph, as operations of their own, and
passes the result to each layer as its argument `mask` (as models with a mask made by hand do):

    Masking(v)              NotEqual(inputs, v) -> Any(axis=-1)
    Embedding(mask_zero)    NotEqual(tokens, 0)
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any, Final, Protocol

from torch import Tensor

_MASK_ARGUMENT: Final = "mask"


class MaskSource(Protocol):
    """What a run knows about masks."""

    mask: Tensor | None

    def is_over_input(self, layer: Any, inputs: Tensor) -> bool:
        """Whether a layer reads the steps as they came in."""

    def named(self, operation: Any) -> Callable[..., Any]:
        """What calls an operation between layers under its name."""


@dataclass(frozen=True, slots=True)
class GraphMasks:
    """The masks in the graph of a functional model; tensors are given by their ids."""

    over: dict[int, int]  # The tensor whose padding a mask shows, for each mask that is computed from values
    # Those of them that are used as masks of layers only, with everything computed from them
    only_masks: frozenset[int]


def masks_in(function: Any) -> GraphMasks:
    """The masks in the graph of a functional model."""
    nodes = list(_nodes(function))
    compared: dict[int, int] = {}
    over: dict[int, int] = {}
    for node in nodes:
        kind = type(node.operation).__name__
        if _is_layer(node.operation) or not node.input_tensors:
            continue
        first = node.input_tensors[0]
        if kind == "NotEqual" and len(node.input_tensors) == 1 and len(first.shape) in (2, 3):
            if len(first.shape) == 3:
                compared[id(node.outputs[0])] = id(first)
            elif len(other := node.arguments.args[1:]) == 1 and isinstance(other[0], int | float) and other[0] == 0:
                over[id(node.outputs[0])] = id(first)
        elif kind == "Any" and id(first) in compared and node.operation.axis in (-1, 2, (-1,), (2,), [-1], [2]):
            over[id(node.outputs[0])] = compared[id(first)]
    return GraphMasks(over, _only_masks(function, nodes, over))


def run_graph(
    function: Any, masks: GraphMasks, run: MaskSource, values: list[Any], operation_fn: Callable[[Any], Any]
) -> dict[int, Any]:
    """Runs the operations of a graph: the value of each tensor, by its id.

    Without a mask in `run`, masks are left out: each row is a sequence of its own. `operation_fn` makes layers
    callable.
    """
    known = {id(symbol): value for symbol, value in zip(function.inputs, values, strict=True)}
    for node in _nodes(function):
        of_layer = _mask_arguments(node) if _is_layer(node.operation) else frozenset()
        needed = [symbol for symbol in node.input_tensors if id(symbol) not in of_layer]
        if any(id(symbol) not in known for symbol in needed):
            continue
        (output, *_) = node.outputs
        if id(output) in masks.over and run.is_over_input(node.operation, known[masks.over[id(output)]]):
            if run.mask is not None:
                known[id(output)] = run.mask if len(output.shape) == 2 else run.mask.unsqueeze(-1)
                continue
            if id(output) in masks.only_masks:
                continue
        arguments, options = node.arguments.fill_in(known)
        called = operation_fn(node.operation) if _is_layer(node.operation) else run.named(node.operation)
        answer = called(*arguments, **options)
        for symbol, value in zip(node.outputs, _flat(answer), strict=False):
            known[id(symbol)] = value
    return known


def _nodes(function: Any) -> Iterator[Any]:
    """The calls of operations, in an order in which they can run."""
    by_depth = function._nodes_by_depth
    for depth in sorted(by_depth, reverse=True):
        yield from (node for node in by_depth[depth] if node.operation and not node.is_input)


def _is_layer(operation: Any) -> bool:
    return hasattr(operation, "compute_mask")


def _mask_arguments(node: Any) -> frozenset[int]:
    """The ids of the tensors that a layer gets as masks."""
    given = [value for name, value in node.arguments.kwargs.items() if name.endswith(_MASK_ARGUMENT)]
    return frozenset(id(symbol) for value in given for symbol in _flat(value) if symbol is not None)


def _only_masks(function: Any, nodes: list[Any], over: dict[int, int]) -> frozenset[int]:
    """The masks, and what is computed from them, that nothing uses but layers as their masks."""
    others = {id(symbol) for symbol in function.outputs}
    found: set[int] = set()
    from_masks = set(over)
    for node in nodes:
        if not _is_layer(node.operation) and any(id(symbol) in from_masks for symbol in node.input_tensors):
            from_masks.update(map(id, node.outputs))
    for node in reversed(nodes):
        is_layer = _is_layer(node.operation)
        masks = _mask_arguments(node) if is_layer else frozenset()
        is_mask_only = not is_layer and all(id(symbol) not in others for symbol in node.outputs)
        for symbol in node.input_tensors:
            if id(symbol) not in masks and not (is_mask_only and id(node.outputs[0]) in from_masks):
                others.add(id(symbol))
        found.update(id(symbol) for symbol in node.outputs if id(symbol) in from_masks and id(symbol) not in others)
    return frozenset(found - others)


def _flat(value: Any) -> list[Any]:
    if isinstance(value, dict):
        return [leaf for each in value.values() for leaf in _flat(each)]
    if isinstance(value, list | tuple):
        return [leaf for each in value for leaf in _flat(each)]
    return [value]
