"""Masks that a graph computes from the values of its steps: a step is hidden where all its values are one number.

    Masking(0.0), Embedding(mask_zero=True)     Not(Equal(steps, 0.0)) -> any over the features -> mask

An author of such a model meant lengths: the number marks the padding. Where a mend puts lengths in the place of such a
mask, the mask is *opened*: true everywhere, and only the length says where a sequence ends.
"""

from __future__ import annotations

import contextlib
from collections.abc import Collection
from copy import deepcopy
from dataclasses import dataclass
from typing import Final

from onnx import ModelProto, TensorProto, helper

from lengthwise_export.mending.patterns import Node, NotFound, Pattern, pattern_of, require, source_of_copy
from lengthwise_export.onnx_graphs.protos import refill

_SAME: Final = frozenset(
    {"Identity", "Transpose", "Unsqueeze", "Squeeze", "Reshape", "ReverseSequence", "Expand", "Flatten"}
)
"""Operators that move or repeat a mask, so that their output is the same mask."""

_COPIES: Final = ("Identity", "Cast")


@dataclass(frozen=True, slots=True)
class HidingMask:
    """A mask that hides the steps whose values are all one number."""

    name: str  # The value of the graph that is the mask, before it is transposed or reshaped
    number: float  # The number
    is_opened: bool = False  # Whether it was made true everywhere


class StepsHidden(Exception):
    """A loop is a recurrent layer only if some masks are made true everywhere: `mend` begins again with them opened.

    Argument: by the name of each mask, the number that marks the steps that it hides.
    """


def hiding_masks(model: ModelProto, sequences: str, opened_names: Collection[str]) -> dict[str, HidingMask]:
    """Finds the masks of a graph that hide steps by their values.

    Args:
        model: The graph.
        sequences: The name of its input with the steps.
        opened_names: The names of the masks that are made true everywhere.

    Returns:
        The mask, by the name of each value that is a mask of this kind, or a transposed or reshaped copy of it.
    """
    steps = next(value for value in model.graph.input if value.name == sequences)
    has_tokens = len(steps.type.tensor_type.shape.dim) == 2 and steps.type.tensor_type.elem_type != TensorProto.FLOAT
    pattern = pattern_of(model.graph)
    masks: dict[str, HidingMask] = {}
    for name, node in pattern.makers.items():
        if node.operator in _SAME and node.inputs[0] in masks:
            masks[name] = masks[node.inputs[0]]
        with contextlib.suppress(NotFound):
            number = _hidden_number(pattern, node, sequences, has_tokens=has_tokens)
            masks[name] = HidingMask(name, number, name in opened_names)
    return masks


def _hidden_number(pattern: Pattern, node: Node, sequences: str, *, has_tokens: bool) -> float:
    """The number that all values of a step have if a mask hides it.

    Args:
        pattern: The graph.
        node: The last node of those that compute the mask.
        sequences: The name of the graph's input with the steps.
        has_tokens: Whether the steps are tokens, which have no features: the output of Not is their mask.

    Raises:
        NotFound: The node computes no mask that hides steps by their values.
    """  # noqa: DOC502 - `require` raises it
    if not has_tokens:
        is_boolean = node.operator == "Cast" and node.attributes.get("to") == TensorProto.BOOL
        require(is_boolean or (node.operator == "Greater" and pattern.constant(node.inputs[1]) == 0))
        counted = pattern.maker(node.inputs[0], "ReduceSum", "ReduceMax")
        require(pattern.axis(counted) in (-1, 2))
        node = pattern.maker(source_of_copy(pattern, counted.inputs[0], *_COPIES), "Not")
    require(node.operator == "Not")
    operands = pattern.maker(node.inputs[0], "Equal").inputs
    steps, number = operands[::-1] if operands[0] in pattern.graph.constants else operands
    require(source_of_copy(pattern, steps, *_COPIES) == sequences)
    return pattern.constant(number)


def opened(model: ModelProto, names: Collection[str]) -> ModelProto:
    """A copy of a graph in which some masks are true everywhere.

    After each mask, a Not and an Or are added: `Or(mask, Not(mask))` is true everywhere, and has the mask's shape.

    Args:
        model: The graph, which stays as it is.
        names: The names of the masks.
    """
    copy = deepcopy(model)
    nodes = []
    for node in copy.graph.node:
        nodes.append(node)
        name = node.output[0] if node.output else ""
        if name in names:
            # The mask gets another name, so that all nodes that take it take the Or.
            node.output[0], opposite = f"{name}_before", f"{name}_opposite"
            nodes.append(helper.make_node("Not", [node.output[0]], [opposite]))
            nodes.append(helper.make_node("Or", [node.output[0], opposite], [name], name=f"{node.name}_opened"))
    refill(copy.graph.node, nodes)
    return copy
