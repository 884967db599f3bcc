"""One run of a Keras model, in which the mask of the lengths replaces the masks that Keras computes from the steps.

The *mask of the lengths* is `[rows, width]`, true at valid steps. When a functional model is built, Keras writes the
computation of each mask into its graph, as operations between layers, and passes the result to each layer as its
argument `mask`. A user's model may also do so itself:

    Masking(v)              NotEqual(inputs, v) -> Any(axis=-1)
    Embedding(mask_zero)    NotEqual(tokens, 0)

In a graph of Keras, a *node* is a call of a layer or an operation, and a *symbol* is a tensor without a value, known by
its `id`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from numbers import Real
from typing import Any, Final, cast

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode
from torch.utils._pytree import tree_leaves

from lengthwise_export.keras_models import recurrent
from lengthwise_export.masks import step_mask
from lengthwise_export.tracing.recurrent_op import LayerWeights


def identity(part: Any) -> int:
    """A number that identifies a layer, an operation or a cell, and the copy that a trace makes of it.

    The copy is another object with the same attributes, so the number is the `id` of one, Keras's tracker.
    """
    return id(getattr(part, "_tracker", part))


class KnownLayers(nn.Module):
    """What all runs of one Keras model share: the weights of its recurrent layers, and which layers read its input.

    A trace cannot compare values. So some runs before it are *learning runs*, with `learning` set: they compare the
    input of each layer with the steps of the run, and its mask with that of the lengths. Other runs use the results.

    Args:
        padding: The value that padding has for Keras, where a step is a list of numbers.
    """

    def __init__(self, padding: float = 0.0) -> None:
        super().__init__()
        self.padding = padding
        self.learning = False
        # By `identity`: whether the input (or mask) of a layer was equal in every learning run so far
        self._matched: dict[int, bool] = {}
        self._weights: dict[tuple[int, ...], LayerWeights] = {}  # by the cells of a layer, one for each direction
        self._operations: dict[int, nn.Module] = {}  # the modules that stand for operations between layers

    def register(self, operation: Any, module: nn.Module) -> None:
        """Remembers the module that is to be called instead of an operation between layers."""
        self._operations[identity(operation)] = module

    def module_of(self, operation: Any) -> Callable[..., Any]:
        """The module that is registered for an operation between layers; without one, the operation itself."""
        return cast("Callable[..., Any]", self._operations.get(identity(operation), operation))

    def matched_in_every_run(self, layer: Any, compare: Callable[[], bool] | None = None) -> bool:
        """Whether the comparison for a layer was true in every learning run so far; False if there was none.

        A layer that reads the steps compares its input with the model's, any other its mask with that of the lengths.

        Args:
            layer: The layer.
            compare: Makes this comparison; called in a learning run, whose result counts, too. None to only look up.
        """
        if self.learning and compare is not None:
            self._matched[identity(layer)] = compare() and self._matched.get(identity(layer), True)
        return self._matched.get(identity(layer), False)

    def weights_of(self, cells: Sequence[Any], form: recurrent.CellForm) -> LayerWeights:
        """The weights of a recurrent layer, copied at the first call; `cells` are one cell for each direction."""
        key = tuple(map(identity, cells))
        if key not in self._weights:
            self._weights[key] = recurrent.weights_of(cells, form)
            self.add_module(f"recurrent_weights_{len(self._weights)}", self._weights[key])
        return self._weights[key]


_COPYING: Final = frozenset({"to", "float", "double", "int", "long", "clone", "detach", "unsqueeze", "squeeze"})
"""The functions of torch whose result has the values of their argument, if no number is rounded."""


class _Copies(TorchFunctionMode):
    """Follows a tensor through a run: finds the tensors that are made of nothing but it.

    Equal values do not show that: the mask of `tokens > 1` is that of `tokens != 0` until somebody sends token 1.

    Args:
        tensor: The tensor.
        copying: The names of the functions of torch whose results are followed, if all their tensors are.
        constant: The names of those whose result is followed in any case.
    """

    def __init__(self, tensor: Tensor, copying: frozenset[str], constant: frozenset[str] = frozenset()) -> None:
        super().__init__()
        # By the id: the tensor, kept alive so that no other gets its id; its version, which a change in place raises
        self._followed = {id(tensor): (tensor, _version(tensor))}
        self._copying = copying
        self._constant = constant

    def __contains__(self, tensor: Tensor) -> bool:
        return self._followed.get(id(tensor)) == (tensor, _version(tensor))

    def __torch_function__(self, function: Any, types: Any, arguments: Any = (), options: Any = None) -> Any:
        result = function(*arguments, **(options or {}))
        name = getattr(function, "__name__", "")
        if name in self._constant or (
            name in self._copying
            and all(tensor in self for tensor in tree_leaves((arguments, options)) if isinstance(tensor, Tensor))
        ):
            self._followed[id(result)] = (result, _version(result))
        return result


def _version(tensor: Tensor) -> int:
    """How often a tensor was changed in place; 0 under `torch.inference_mode`, which does not count it."""
    return 0 if tensor.is_inference() else tensor._version


class KerasRun:
    """One run of a Keras model.

    Args:
        known: What all runs of the model share.
        steps: The model's input, `[rows, width, features]` or `[rows, width]`.
        lengths: `[rows]`; None to run without any mask of the lengths.
    """

    def __init__(self, known: KnownLayers, steps: Tensor, lengths: Tensor | None) -> None:
        self.known = known
        self.steps = steps
        self.lengths = lengths
        self.mask = None if lengths is None else step_mask(lengths, steps.shape[1])
        # In a learning run, what is made of the steps alone, and what is made of the mask alone
        self.copies_of_steps = _Copies(steps, _COPYING | {"reshape", "view"})
        self.copies_of_mask = _Copies(
            steps if self.mask is None else self.mask,
            _COPYING | {"bool", "any", "all", "logical_and", "logical_or", "cat"},
            frozenset({"zeros_like", "ones_like"}),
        )
        # By the id of the result of `fill`: that tensor, kept alive so that no other gets its id; the values before
        self._unfilled: dict[int, tuple[Tensor, Tensor]] = {}

    @property
    def is_traced(self) -> bool:
        """Whether the run is a trace, in which values cannot be compared."""
        return torch.compiler.is_exporting() or type(self.steps) is not Tensor

    def reads_input(self, layer: Any, inputs: Tensor) -> bool:
        """Whether the inputs of a layer are the model's own steps.

        They are also equal if steps `[rows, width]` have a further axis in the layer, `[rows, width, 1]`.
        """

        def is_same() -> bool:
            steps = self.steps if inputs.dim() == self.steps.dim() else self.steps.unsqueeze(-1)
            is_copy = inputs in self.copies_of_steps and inputs.shape == steps.shape
            return is_copy and torch.equal(inputs.double(), steps.double())

        return self.known.matched_in_every_run(layer, is_same)

    def has_mask_of_lengths(self, layer: Any, mask: Tensor) -> bool:
        """Whether the mask `[rows, width]` of a layer is that of the lengths; False in a run without lengths."""
        if self.mask is None:
            return False
        mask_of_lengths = self.mask

        def is_same() -> bool:
            is_copy = mask in self.copies_of_mask and mask.shape == mask_of_lengths.shape
            return is_copy and torch.equal(mask.bool(), mask_of_lengths)

        return self.known.matched_in_every_run(layer, is_same)

    def fill(self, values: Tensor, replacement: Tensor | float) -> Tensor:
        """Writes `replacement` into values `[rows, width, features]` at padding; returns the result as a new tensor.

        `unfilled` returns the values again, if it gets that tensor.
        """
        assert self.mask is not None
        filled = torch.where(self.mask.unsqueeze(-1), values, replacement)
        self._unfilled[id(filled)] = (filled, values)
        return filled

    def unfilled(self, values: Tensor) -> Tensor:
        """The values `[rows, width, ...]` that `fill` has filled; `values` themselves if they are no result of `fill`.

        Both are equal at valid steps.
        """
        return self._unfilled.get(id(values), (values, values))[1]

    def lengths_at(self, values: Tensor) -> Tensor | None:
        """The lengths `[rows]` for a recurrent layer that has no mask; None to run it over the full width.

        Without a mask, Keras runs a layer over the padding, too, and so does a run. But a trace gives it lengths: only
        a model without leaks is exported, whose answers do not depend on what is computed at padding. If the values
        `[rows, width, features]` have another number of rows or steps than the model's input, each length is the width.
        """
        if self.lengths is None or not self.is_traced:
            return None
        if values.shape[:2] == self.steps.shape[:2]:
            return self.lengths
        return torch.full((values.shape[0],), values.shape[1], dtype=torch.int64)


@dataclass(frozen=True, slots=True)
class MaskSource:
    """What a mask in the graph of a functional model is computed from: which steps are not a number."""

    name: str  # That of the operation
    values: int  # The id of the symbol of the steps
    number: float
    is_list: bool  # Whether a step is a list of numbers, and valid if any of them is another


@dataclass(frozen=True, slots=True)
class GraphMasks:
    """The masks in the graph of a functional model, by the ids of their symbols."""

    sources: dict[int, MaskSource]
    # The masks, and what is computed from masks, that are used as a layer's argument `mask` only
    only_masks: set[int]


def masks_in(function: Any) -> GraphMasks:
    """Finds the masks in the graph of a functional model.

    They are the operations that Keras writes into the graph for Masking and for Embedding (the module has both).
    """
    nodes = list(_nodes(function))
    compared: dict[int, MaskSource] = {}  # for each NotEqual of [rows, width, features]
    sources: dict[int, MaskSource] = {}
    for node in nodes:
        kind = type(node.operation).__name__
        if _is_layer(node.operation) or not node.input_tensors:
            continue
        first_input, output = node.input_tensors[0], id(node.outputs[0])
        # Masking: NotEqual, then Any over the features. Embedding: NotEqual with 0
        numbers = [
            float(leaf) for leaf in tree_leaves((node.arguments.args, node.arguments.kwargs)) if isinstance(leaf, Real)
        ]
        if kind == "NotEqual" and len(node.input_tensors) == len(numbers) == 1:
            is_list = len(first_input.shape) == 3
            source = MaskSource(node.operation.name, id(first_input), numbers[0], is_list)
            if is_list:
                compared[output] = source
            elif len(first_input.shape) == 2 and source.number == 0:
                sources[output] = source
        elif kind == "Any" and id(first_input) in compared and node.operation.axis in (-1, 2, (-1,), (2,), [-1], [2]):
            sources[output] = compared[id(first_input)]
    return GraphMasks(sources, _only_masks(function, nodes, sources))


def run_graph(function: Any, run: KerasRun, values: list[Any], operation_fn: Callable[[Any], Any]) -> dict[int, Any]:
    """Runs the graph of a functional model; returns the value of each symbol by its id.

    A mask that the graph computes from the model's own steps, and uses for nothing but masks, is not computed: that of
    the lengths takes its place. In a run without lengths it is left out, with all that is computed from it: the layers
    run without a mask. One that is used otherwise, too, is computed, and false at padding, as Keras computes it there.

    Args:
        function: The functional model.
        run: The run.
        values: The values of the model's inputs.
        operation_fn: Takes a layer, and returns the function to call in its place; it is Keras's own.
    """
    masks = masks_in(function)
    known = {id(symbol): value for symbol, value in zip(function.inputs, values, strict=True)}
    for node in _nodes(function):
        inputs_without_masks = {*map(id, node.input_tensors)} - _mask_arguments(node)
        if not inputs_without_masks <= known.keys():  # it computes something from a mask that was left out
            continue
        # The node computes a mask from the steps
        output = node.outputs[0]
        source, mask = masks.sources.get(id(output)), run.mask
        is_mask = (
            source is not None
            and source.number == (run.known.padding if source.is_list else 0)
            and run.reads_input(node.operation, known[source.values])
        )
        if mask is not None and len(output.shape) == 3:
            mask = mask.unsqueeze(-1)
        if is_mask and id(output) in masks.only_masks:
            if mask is not None:
                known[id(output)] = mask
            continue
        # Any other node
        arguments, options = node.arguments.fill_in(known)
        call = operation_fn(node.operation) if _is_layer(node.operation) else run.known.module_of(node.operation)
        answer = call(*arguments, **options)
        if is_mask and mask is not None:
            answer = answer & mask
        for symbol, value in zip(node.outputs, tree_leaves(answer), strict=False):
            known[id(symbol)] = value
    return known


def _nodes(function: Any) -> Iterator[Any]:
    """Yields the nodes of a graph, without those of inputs, in an order in which they can run."""
    by_depth = function._nodes_by_depth
    for depth in sorted(by_depth, reverse=True):
        yield from (node for node in by_depth[depth] if node.operation and not node.is_input)


def _is_layer(operation: Any) -> bool:
    """Whether a node of a graph is a layer, and not an operation of `keras.ops`."""
    return hasattr(operation, "compute_mask")


def _mask_arguments(node: Any) -> set[int]:
    """The ids of the symbols that a layer gets as masks; empty for an operation between layers."""
    if not _is_layer(node.operation):
        return set()
    masks = [value for name, value in node.arguments.kwargs.items() if name.endswith("mask")]
    return {id(symbol) for value in masks for symbol in tree_leaves(value) if symbol is not None}


def _only_masks(function: Any, nodes: list[Any], masks: Iterable[int]) -> set[int]:
    """The ids of masks, and of what is computed from masks, that are used as a layer's argument `mask` only.

    Args:
        function: The functional model; an output of the model is another use.
        nodes: The nodes of its graph, in an order in which they can run.
        masks: The ids of the masks that are computed from values.
    """
    # Forward: what is computed from masks by operations between layers
    from_masks = set(masks)
    for node in nodes:
        if not _is_layer(node.operation) and any(id(symbol) in from_masks for symbol in node.input_tensors):
            from_masks.update(map(id, node.outputs))
    # Backward: what a layer's inputs, or an output of the model, are computed from
    used_otherwise = {id(symbol) for symbol in function.outputs}
    for node in reversed(nodes):
        outputs = {*map(id, node.outputs)}
        if _is_layer(node.operation) or outputs & used_otherwise or not outputs & from_masks:
            used_otherwise |= {*map(id, node.input_tensors)} - _mask_arguments(node)
    return from_masks - used_otherwise
